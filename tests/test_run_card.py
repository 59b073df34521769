"""The run card: what it says of a run, also of one that did not end well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import callbacks.run_card as run_card
from callbacks import RunCard
from callbacks.run_facts import dataset_facts, git_state, strict
from datamodules import GTA5Cityscapes
from tests.cli_toy import CLIData, checkpoint, config, only_run, zoo_run
from tests.toy import ToyMethod, toy_loader, toy_trainer
from zoo.__main__ import main
from zoo.config_hash import config_hash, differing_settings


def card(folder: str | Path) -> dict[str, Any]:
    return json.loads(Path(folder, "run_card.json").read_text())


# -- a run that ends well --------------------------------------------------------------------------------


def test_card_of_a_run() -> None:
    every = ["--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    assert zoo_run("fit", *every, "--model.backbone", "wide", steps=6) == 0
    run = only_run()
    found = card(run)
    assert {key: found[key] for key in ("verb", "status", "reason", "method", "benchmark", "backbone")} == {
        **{"verb": "fit", "status": "finished", "reason": None},
        **{"method": "climethod", "benchmark": "clidata", "backbone": "wide"},
    }
    assert (found["seed"], found["steps"], found["resumed_from"]) == (0, 6, 0)
    assert found["config"] == config(run / "config.yaml")
    assert found["config_hash"] == config_hash(found["config"])
    # val/score is -|step - 4|, so it is best in the middle.
    assert (found["monitor"], found["monitor_mode"]) == ("val/score", "max")
    assert found["best"] == {"step": 4, "epoch": 0, "metrics": {"val/score": 0.0}}
    assert found["last"]["step"] == 6
    assert found["last"]["metrics"]["val/score"] == -2.0
    assert found["last"]["metrics"]["train/loss"] > 0
    assert found["versions"]["torch"] in torch.__version__
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["devices"] == 1
    assert found["peak_memory"]["device"] is None
    assert found["peak_memory"]["host"] > 50e6  # torch alone
    assert 0 < found["seconds"] < 600
    assert found["parameters"] == sum(p.numel() for p in ToyMethod().student.parameters())
    assert found["started"] <= found["ended"]
    assert {path.name for path in run.iterdir()} >= {"run_card.json"}
    assert not list(run.glob(".run_card*"))  # no half-written file


class Clock(Callback):
    """Time stands still but for two seconds a training batch and a hundred a validation batch."""

    def __init__(self) -> None:
        self.now = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 2.0

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 100.0


def test_throughput_leaves_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(run_card, "perf_counter", lambda: clock.now)
    trainer = toy_trainer(max_steps=4, val_check_interval=2, callbacks=[RunCard("here"), clock])
    method = ToyMethod()
    method.validation_step = lambda *_: None  # type: ignore[method-assign]
    trainer.fit(method, datamodule=CLIData(batches=4, batch_size=3))
    found = card("here")
    assert found["samples_per_second"] == 4 * 3 / 8  # four batches of three in eight seconds
    # Two validations of two batches, and the check of two batches before training.
    assert found["seconds"] == 8 + (4 + 2) * 100


def test_card_of_a_run_from_python(tmp_path: Path) -> None:
    trainer = toy_trainer(max_steps=2, default_root_dir=tmp_path / "mine", callbacks=[RunCard(seed=7)])
    trainer.fit(ToyMethod(dropout=0.25), toy_loader(2))
    found = card(tmp_path / "mine")
    assert (found["method"], found["benchmark"], found["seed"]) == ("toymethod", None, 7)
    assert found["config"]["model"]["class_path"] == "tests.toy.ToyMethod"
    assert found["config"]["model"]["init_args"]["dropout"] == 0.25
    assert found["config"]["trainer"]["max_steps"] == 2
    assert found["data"] == {"counts": {}, "validates_on_test": None, "splits": {}}


def test_nothing_is_written_where_no_folder_was_given() -> None:
    toy_trainer(max_steps=1, callbacks=[RunCard()]).fit(ToyMethod(), toy_loader(1))
    assert not Path("run_card.json").exists()


def test_card_can_be_switched_off_or_replaced() -> None:
    assert zoo_run("fit", "--run_card", "false", "--run_dir", "without", steps=1) == 0
    assert not Path("without/run_card.json").exists()
    own = '[{"class_path": "RunCard", "init_args": {"folder": "elsewhere"}}]'
    assert zoo_run("fit", "--trainer.callbacks", own, "--run_dir", "own", steps=1) == 0
    assert card("elsewhere")["status"] == "finished"
    assert not Path("own/run_card.json").exists()


def test_evaluation_has_a_card_of_its_own() -> None:
    assert zoo_run("fit", steps=2) == 0
    path = only_run() / "checkpoints/last.ckpt"
    for verb, key in (("test", "test/weight"), ("validate", "val/score"), ("predict", None)):
        assert zoo_run(verb, "--ckpt_path", path, "--run_dir", verb) == 0
        found = card(verb)
        assert (found["verb"], found["status"]) == (verb, "finished")
        assert [*found["last"]["metrics"]] == ([key] if key else [])
    assert card("test")["config_hash"] != ""


def test_resumed_run_continues_best_and_time() -> None:
    interval = ["--trainer.val_check_interval", "2", "--run_dir", "here"]
    assert zoo_run("fit", *interval, steps=4) == 0
    first = card("here")
    state = checkpoint(Path("here/checkpoints/last.ckpt"))["callbacks"]["RunCard"]
    assert state["best"] == first["best"]
    assert zoo_run("fit", *interval, "--ckpt_path", "here/checkpoints/last.ckpt", steps=8) == 0
    second = card("here")
    assert (second["resumed_from"], second["steps"]) == (4, 8)
    assert second["best"] == first["best"] == {"step": 4, "epoch": 0, "metrics": {"val/score": 0.0}}
    assert second["seconds"] > state["seconds"] > 0


# -- a run that does not ---------------------------------------------------------------------------------


class Stop(Callback):
    """Ends a run in its third step."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step != 2:
            return
        if self.how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.how == "SIGINT":
            signal.raise_signal(signal.SIGINT)
        else:
            raise RuntimeError("two lines\nof trouble")


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("SIGTERM", "interrupted", "SIGTERM"),
        ("SIGINT", "interrupted", "SIGINT"),
        ("bug", "failed", "RuntimeError: two lines\nof trouble"),
    ],
)
def test_card_says_why_a_run_ended(how: str, status: str, reason: str) -> None:
    trainer = toy_trainer(max_steps=9, callbacks=[RunCard("here"), Stop(how)])
    with pytest.raises((SystemExit, RuntimeError)):
        trainer.fit(ToyMethod(), toy_loader(9))
    found = card("here")
    assert (found["status"], found["reason"]) == (status, reason)
    assert found["steps"] == (3 if how == "SIGTERM" else 2)  # SIGTERM lets the step end
    assert found["ended"] is not None
    assert found["method"] == "toymethod"


def test_a_death_that_is_told_while_the_card_is_written_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch raises it out of a signal handler."""
    told: list[str] = []

    def interrupted(device: Any) -> int:
        if found := Path("here/run_card.json").is_file() and not told:
            told.append("once")
            raise RuntimeError("DataLoader worker is killed")
        return int(found)

    trainer = toy_trainer(max_steps=9, callbacks=[RunCard("here"), Stop("bug")])
    monkeypatch.setattr("callbacks.run_card.peak_memory", interrupted)
    with pytest.raises(RuntimeError, match="trouble"):
        trainer.fit(ToyMethod(), toy_loader(9))
    reason = "RuntimeError: DataLoader worker is killed (RuntimeError: two lines\nof trouble)"
    assert (card("here")["status"], card("here")["reason"]) == ("failed", reason)


def test_card_of_a_run_that_never_began(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "source_only/embedded", "--trainer.accelerator", "cpu", "--run_dir", "here"]
    missing = ["--data", "GTA5Cityscapes", "--data.source_root", "nowhere"]
    assert main(["fit", *options, *missing]) == 1
    assert "there is no folder nowhere" in capsys.readouterr().err
    found = card("here")
    assert found["status"] == "failed"
    assert found["reason"].startswith("datamodules.layout.LayoutError: ")
    assert (found["method"], found["benchmark"], found["steps"]) == ("source_only", "gta5_cityscapes", 0)


def test_killed_run_stays_running_and_names_its_process() -> None:
    seen: list[dict[str, Any]] = []

    class Look(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(card("here"))

    toy_trainer(max_steps=1, callbacks=[RunCard("here"), Look()]).fit(ToyMethod(), toy_loader(1))
    assert (seen[0]["status"], seen[0]["ended"], seen[0]["process"]) == ("running", None, os.getpid())


def test_numbers_that_are_not_finite_are_null() -> None:
    assert strict({"a": float("nan"), 1: [float("inf"), 1.5]}) == {"a": None, "1": [None, 1.5]}
    assert not run_card._is_better(float("nan"), 1.0, "max")
    assert run_card._is_better(1.0, float("nan"), "max")
    assert run_card._is_better(1.0, 2.0, "min")
    assert not run_card._is_better(1.0, 2.0, "max")


# -- facts -----------------------------------------------------------------------------------------------


def git(*command: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", *who, *command], check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_changes_of_the_working_directory() -> None:
    assert git_state()["working_directory"] is None
    git("init", "--quiet")
    Path("a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "--quiet", "--message", "one")
    Path("new.py").write_text("untracked\n")
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert git_state()["working_directory"] == clean
    Path("a.py").write_text("2\n")
    assert git_state()["working_directory"] == {**clean, "dirty": True}


def test_checksums_tell_other_data(roots: dict[str, Any]) -> None:
    def facts() -> dict[str, Any]:
        data = GTA5Cityscapes(
            **roots, allow_partial=True, crop=(16, 16), source_resize=None, target_resize=None
        )
        data.setup("fit")
        return dataset_facts(data)

    before = facts()
    assert before["counts"] == {"train": 5, "val": 3}
    assert {name: split["files"] for name, split in before["splits"].items()} == {
        **{"source_root/train": 4, "target_root/train": 5, "target_root/val": 3}
    }
    assert facts() == before
    image = sorted(Path(roots["source_root"], "images").glob("*.png"))[1]
    image.write_bytes(image.read_bytes() + b"\0")
    after = facts()
    changed = [name for name in before["splits"] if after["splits"][name] != before["splits"][name]]
    assert changed == ["source_root/train"]


# -- the hash --------------------------------------------------------------------------------------------

CONFIG = {
    "seed_everything": 0,
    "run_dir": "runs/a",
    "model": {"class_path": "FST", "init_args": {"optim": {"lr": 1.0, "name": "sgd"}, "backbone": "x"}},
    "data": {"class_path": "StreetShift", "init_args": {"root": "here", "num_workers": 4, "shift": 0.9}},
    "trainer": {"max_steps": 5, "logger": None, "enable_progress_bar": True},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(CONFIG))
    *parents, last = path.split(".")
    inner = copy
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return copy


def test_hash_does_not_depend_on_order_places_seed_or_spelling() -> None:
    backwards = json.loads(json.dumps(CONFIG), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert [*backwards] == [*reversed(CONFIG)]
    assert config_hash(backwards) == config_hash(CONFIG)
    for path, value in (
        *(("seed_everything", 3), ("run_dir", "b"), ("data.init_args.root", "there")),
        *(("data.init_args.num_workers", 0), ("data.init_args.source_root", "x")),
        *(("trainer.logger", False), ("trainer.enable_progress_bar", False)),
        ("model.init_args.optim.lr", 1),
    ):
        assert config_hash(changed(path, value)) == config_hash(CONFIG), path
    assert len(config_hash(CONFIG)) == 12


def test_hash_tells_everything_else() -> None:
    others = [
        *(changed("model.init_args.optim.lr", 2), changed("model.class_path", "DINO")),
        *(changed("data.init_args.shift", 0.5), changed("trainer.max_steps", 6)),
        *(changed("model.init_args.backbone", None), changed("model.init_args.root", "of the model")),
    ]
    assert len({config_hash(other) for other in (CONFIG, *others)}) == 7


def test_differing_settings() -> None:
    other = changed("trainer.max_steps", 6)
    other["model"]["init_args"]["optim"] = {"lr": 1, "momentum": 0.9}
    assert differing_settings(CONFIG, other) == {
        "model.optim.momentum": (None, 0.9),
        "model.optim.name": ("sgd", None),
        "trainer.max_steps": (5, 6),
    }
