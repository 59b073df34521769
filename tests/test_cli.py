"""The run commands: configs by name, evaluating a run, checkpoints against what is typed."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import zoo
from tests.cli_toy import checkpoint, config, notes, only_run, zoo_run
from zoo.__main__ import main
from zoo.config_files import UsageError, find_config, resolve_configs
from zoo.resume import Trained

# -- the command itself ----------------------------------------------------------------------------------


def test_overview_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"zoo {verb}" in overview for verb in ("list", "fit", "validate", "test", "predict"))
    assert main(["fitt"]) == 2
    assert "unknown command 'fitt'; did you mean fit?" in capsys.readouterr().err


def test_module_and_entry_point_are_the_same() -> None:
    commands = ([sys.executable, "-m", "zoo"], [str(Path(sys.executable).with_name("zoo"))])
    printed = {
        subprocess.run([*c, "--version"], capture_output=True, text=True, check=True).stdout for c in commands
    }
    assert printed == {f"{zoo.__version__}\n"}


# -- configs by name -------------------------------------------------------------------------------------


def test_config_names_resolve_here_before_the_package() -> None:
    packaged = find_config("fst/embedded")
    assert packaged.is_absolute()
    assert packaged.parts[-3:] == ("configs", "fst", "embedded.yaml")
    mine = Path("configs/fst/embedded.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    assert find_config("fst/embedded") == find_config("fst/embedded.yaml") == mine
    Path("fst").mkdir()
    Path("fst/embedded").write_text("{}")
    assert find_config("fst/embedded") == Path("fst/embedded")
    assert resolve_configs(["fit", "-c", "fst/embedded", "--x=1", f"--config={mine}"]) == [
        *("fit", "--config", "fst/embedded", "--x=1", "--config", str(mine))
    ]


def test_unknown_config_names_the_nearest_and_all() -> None:
    with pytest.raises(
        UsageError, match=r"--config fst/embeddd: .*did you mean fst/embedded.*known: .*source_only/"
    ):
        find_config("fst/embeddd")


def test_print_config_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        zoo_run("fit", "--print_config", "--model.decay", "0.75")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["decay"] == 0.75
    assert printed["wandb"] == "auto"
    assert [*Path().iterdir()] == []


# -- evaluating ------------------------------------------------------------------------------------------


def test_evaluating_a_run_from_its_config_and_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", steps=4) == 0
    run = only_run()
    before = (run / "config.yaml").read_text()
    weight = checkpoint(run / "checkpoints/last.ckpt")["state_dict"]["student.0.weight"].sum()
    for verb in ("validate", "test", "predict"):
        from_run = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
        assert main([verb, *from_run]) == 0
        assert config(only_run(f"-{verb}") / "config.yaml")["model"] == config(run / "config.yaml")["model"]
    with (only_run("-test") / "metrics.csv").open() as file:
        assert float(next(csv.DictReader(file))["test/weight"]) == pytest.approx(float(weight))
    assert (run / "config.yaml").read_text() == before
    assert notes(capsys) == []


def test_checkpoint_alone_says_which_model() -> None:
    assert zoo_run("fit", "--model.decay", "0.25", steps=2) == 0
    path = str(only_run() / "checkpoints/last.ckpt")
    assert main(["test", "--data", "CLIData", "--trainer.accelerator", "cpu", "--ckpt_path", path]) == 0
    model = config(only_run("-test") / "config.yaml")["model"]
    assert model["class_path"].endswith("CLIMethod")
    assert model["init_args"]["decay"] == 0.25


def test_evaluating_an_untrained_network_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("test") == 0
    assert [note.partition(":")[0] for note in notes(capsys)] == ["no --ckpt_path"]


# -- checkpoints against what is typed -------------------------------------------------------------------


def test_another_network_is_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--run_dir", "run", steps=2) == 0
    written = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for verb in ("fit", "test"):
        wider = ["--model.batch_norm", "true", "--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "run"]
        assert zoo_run(verb, *wider) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "last.ckpt does not fit: lacks" in said
        assert said.endswith("or start a new run with --model.init_from")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == written


def test_the_config_of_a_resumed_run_starts_another_one() -> None:
    assert zoo_run("fit", "--run_dir", "run", steps=2) == 0
    assert zoo_run("fit", "--run_dir", "run", "--ckpt_path", "last", steps=4) == 0
    assert config(Path("run/config.yaml"))["ckpt_path"] is None


def test_typed_option_wins_over_the_checkpoint_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--model.decay", "0.25", "--model.backbone", "wide", steps=2) == 0
    path = only_run() / "checkpoints/last.ckpt"
    capsys.readouterr()
    assert zoo_run("fit", "--model.decay", "0.5", "--ckpt_path", path, "--run_dir", "second", steps=4) == 0
    resumed = config(Path("second/config.yaml"))["model"]["init_args"]
    assert (resumed["decay"], resumed["backbone"]) == (0.5, "wide")
    assert notes(capsys) == [
        "model.decay is 0.5 as you asked; the checkpoint was trained with 0.25",
    ]


def test_what_cannot_be_changed_by_resuming_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--model.optim", '{"name": "sgd", "lr": 0.1, "schedule": "constant"}', steps=2) == 0
    path = only_run() / "checkpoints/last.ckpt"
    for typed, complaint in (
        (["--model.optim.lr", "0.2"], "model.optim.lr is 0.2, but resuming restores the optimiser"),
        (
            ["--model", "OtherMethod"],
            "holds a tests.cli_toy.CLIMethod, the command asks for a tests.cli_toy.Other",
        ),
    ):
        assert zoo_run("fit", "--ckpt_path", path, *typed, steps=4) == 2
        assert complaint in capsys.readouterr().err
    assert (
        zoo_run("fit", "--ckpt_path", path, "--model.optim.warmup_steps", "1", "--run_dir", "ok", steps=4)
        == 0
    )
    assert "model.optim.warmup_steps is 1 as you asked; the checkpoint was trained with 0" in notes(capsys)


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_unreadable_checkpoint_is_one_line(content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content:
        Path("x.ckpt").write_bytes(content)
    assert zoo_run("fit", "--ckpt_path", "x.ckpt") == 2
    expected = "is not a Lightning checkpoint" if content else "there is no such file"
    assert expected in capsys.readouterr().err


def test_checkpoint_with_random_state_is_not_complained_about() -> None:
    for callbacks, complaints in (({"ExactResume": {"rng_state": 1}}, 0), ({"EMATeacher": {}}, 1)):
        torch.save({"callbacks": callbacks}, "x.ckpt")
        assert len(Trained("x.ckpt").compare({"class_path": "x.X"}, resumes=True)) == complaints


def test_checkpoint_of_a_script_is_compared_but_adds_nothing() -> None:
    torch.save(
        {"hyper_parameters": {"decay": 0.5, "other": 1}, "callbacks": {"a": {"rng_state": 1}}}, "x.ckpt"
    )
    trained = Trained("x.ckpt")
    assert trained.as_options() == []
    model = {"class_path": "x.X", "init_args": {"decay": 0.9}}
    assert trained.compare(model, resumes=True) == [
        "model.decay is 0.9 as you asked; the checkpoint was trained with 0.5"
    ]
    for name in (None, "."):
        assert Trained(name).compare(model, resumes=True) == []
