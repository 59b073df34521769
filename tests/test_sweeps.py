"""Many runs by one command, and W&B sweeps."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli_toy import TOY, checkpoint, started_here, zoo_run
from zoo import series
from zoo.__main__ import main
from zoo.config_files import UsageError
from zoo.series import is_series, split_series
from zoo.sweeps import make_sweep

SWEPT = {
    "model": {"class_path": "SourceOnly", "init_args": {"backbone": "street_cnn", "optim": {"lr": 2e-3}}},
    "data": {"class_path": "StreetShift"},
    "trainer": {"max_steps": 5},
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    return started_here(monkeypatch)


def cards() -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in Path("runs/climethod/clidata").glob("*/run_card.json")]
    return sorted(found, key=lambda card: (str(card["backbone"]), card["seed"]))


# -- series ----------------------------------------------------------------------------------------------


def test_every_combination_is_a_run_of_its_own(started: list[Sequence[str]]) -> None:
    assert zoo_run("fit", "--seeds", "0", "3", "--backbones", "a", "b", steps=1) == 0
    assert [(card["backbone"], card["seed"]) for card in cards()] == [("a", 0), ("a", 3), ("b", 0), ("b", 3)]
    assert {card["status"] for card in cards()} == {"finished"}
    assert len({card["config_hash"] for card in cards()}) == 2  # one a backbone
    assert len(started) == 4


def test_finished_runs_are_skipped_by_what_they_computed(
    started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", "--seeds", "0", steps=1) == 0
    assert zoo_run("fit", "--seeds", "0", "1", "--trainer.enable_model_summary", "false", steps=1) == 0
    assert [card["seed"] for card in cards()] == [0, 1]
    assert "zoo: 1 of 2: seed 0: skipped, finished in runs" in capsys.readouterr().err
    assert zoo_run("fit", "--seeds", "0", "--model.decay", "0.5", steps=1) == 0  # another experiment
    assert len(cards()) == len(started) == 3


def test_unfinished_run_is_resumed_where_it_is(started: list[Sequence[str]]) -> None:
    every = ["--trainer.val_check_interval", "2", "--seeds", "0"]
    assert zoo_run("fit", *every, steps=4) == 0
    (path,) = Path("runs").rglob("run_card.json")
    whole = json.loads(path.read_text())
    assert zoo_run("fit", *every[:2], "--run_dir", "stopped", steps=2) == 0
    # As if the run had been stopped after its second step.
    path.write_text(json.dumps({**whole, "status": "interrupted"}))
    last = path.parent / "checkpoints/last.ckpt"
    for file in last.parent.iterdir():
        file.unlink()
    for file in Path("stopped/checkpoints").iterdir():
        (last.parent / file.name).write_bytes(file.read_bytes())
    assert zoo_run("fit", *every, steps=4) == 0
    assert [*started[-1][-4:]] == ["--run_dir", str(path.parent), "--ckpt_path", "last"]
    resumed = json.loads(path.read_text())
    assert (resumed["status"], resumed["resumed_from"], resumed["steps"]) == ("finished", 2, 4)
    assert resumed["config_hash"] == whole["config_hash"]
    assert checkpoint(last)["global_step"] == 4
    assert len(cards()) == 1


def test_running_run_is_left_alone(started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--seeds", "0", steps=1) == 0
    (path,) = Path("runs").rglob("run_card.json")
    running = {**json.loads(path.read_text()), "status": "running", "process": os.getpid()}
    path.write_text(json.dumps(running))
    assert zoo_run("fit", "--seeds", "0", steps=1) == 0
    assert f"skipped, is running as process {os.getpid()}" in capsys.readouterr().err
    assert len(started) == 1
    # Killed: no such process any more, or the card is of another machine.
    for killed in ({"process": 2**22 + 1}, {"hardware": {**running["hardware"], "host": "elsewhere"}}):
        path.write_text(json.dumps(running | killed))
        assert zoo_run("fit", "--seeds", "0", steps=1) == 0
    assert len(started) == 3


def test_failed_run_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    codes = iter([0, 1, 0])
    monkeypatch.setattr(series, "start", lambda argv: next(codes))
    assert zoo_run("fit", "--seeds", "0", "1", "2", steps=1) == 1
    assert "zoo: 1 of 3 failed: seed 1" in capsys.readouterr().err
    assert next(codes, None) is None


@pytest.mark.slow
def test_runs_have_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    toy = [f"tests.cli_toy.{word}" if word in ("CLIMethod", "CLIData") else word for word in TOY]
    assert (
        main(["fit", "--allow-imports", "tests", *toy, "--seeds", "0", "1", "--trainer.max_steps", "1"]) == 0
    )
    assert len({card["process"] for card in cards()} - {os.getpid()}) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--seeds"], "--seeds needs one or more values, as in --seeds 0 1 2"),
        (["--backbones", "--seeds", "1"], "--backbones needs one or more values"),
        (["--seeds", "0", "x"], "--seeds takes whole numbers from 0 on, found 'x'"),
        (["--seeds", "0", "1", "0"], "--seeds names 0 twice"),
        (["--seeds", "0", "--run_dir", "a"], "every run has a folder of its own"),
        (["--seeds", "0", "--ckpt_path", "a"], "unfinished runs are resumed by themselves"),
        (["--seed_everything", "1", "--seeds", "0"], "--seeds and --seed_everything exclude each other"),
        (["--backbones", "a", "--model.backbone=b"], "exclude each other"),
    ],
)
def test_wrong_series_is_one_line(
    options: list[str], complaint: str, started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", *options) == 2
    assert complaint in capsys.readouterr().err
    assert not started


def test_wrong_setting_is_told_before_anything_starts(
    started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", "--model.decai", "1", "--seeds", "0", "1") == 2
    assert "did you mean" in capsys.readouterr().err
    assert not started


def test_options_are_told_from_their_values() -> None:
    assert split_series(["--a", "1", "--seeds", "0", "1", "--b=2", "--backbones=x", "y", "--c"]) == (
        ["--a", "1", "--b=2", "--c"],
        {"--seeds": ["0", "1"], "--backbones": ["x", "y"]},
    )
    assert is_series(["fit", "--seeds=0"])
    assert not is_series(["fit", "--seed_everything", "0"])
    assert not is_series(["test", "--seeds", "0"])


# -- W&B sweeps ------------------------------------------------------------------------------------------


@pytest.fixture
def swept() -> str:
    Path("mine.yaml").write_text(yaml.safe_dump(SWEPT))
    return "mine.yaml"


def test_sweep_around_the_learning_rate(swept: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", swept]) == 0
    sweep = yaml.safe_load(capsys.readouterr().out)
    assert sweep["method"] == "bayes"
    assert sweep["metric"] == {"name": "val/mIoU", "goal": "maximize"}
    assert sweep["command"] == ["${env}", "zoo", "fit", "--config", "mine.yaml", "${args}"]
    lr = sweep["parameters"]["model.optim.lr"]
    assert lr == {"distribution": "log_uniform_values", "min": 2e-4, "max": 2e-2}
    assert sweep["parameters"]["seed_everything"] == {"values": [0]}
    assert sweep["run_cap"] == 30


def test_sweep_over_choices_and_ranges(swept: str) -> None:
    vary = [
        "model.backbone=street_cnn,resnet18",
        *("data.shift=0.5..0.9", "trainer.max_steps=10..1000", "data.batch_size=2..4"),
    ]
    sweep = make_sweep(swept, "random", 7, vary, [0, 1])
    assert sweep["parameters"] == {
        "model.backbone": {"values": ["street_cnn", "resnet18"]},
        "data.shift": {"distribution": "uniform", "min": 0.5, "max": 0.9},
        "trainer.max_steps": {"distribution": "q_log_uniform_values", "min": 10, "max": 1000},
        "data.batch_size": {"distribution": "int_uniform", "min": 2, "max": 4},
        "seed_everything": {"values": [0, 1]},
    }
    assert "run_cap" not in make_sweep(swept, "grid", 7, vary[:1], [0])


@pytest.mark.parametrize(
    ("vary", "complaint"),
    [
        (["model.optim.lrr=1,2"], "did you mean lr"),
        (["data.shift=a,b"], "shift"),
        (["lr"], "expected key=a,b,c or key=low..high"),
        (["data.shift=0.9..0.1"], "from a smaller to a larger"),
        (["data.shift=0.1..0.9"], "--method grid needs choices"),
    ],
)
def test_wrong_sweep_is_refused(swept: str, vary: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint.replace(".", r"\.")):
        make_sweep(swept, "grid", 1, vary, [0])


def test_unknown_config_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "fst/embeddd"]) == 2
    assert "did you mean fst/embedded" in capsys.readouterr().err
