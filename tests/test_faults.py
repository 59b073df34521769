"""What goes wrong around a run: one clear error, no lost work, the right exit code."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.labels import ENCODINGS
from tests.cli_toy import CLIData, CLIMethod, checkpoint, notes, zoo_run
from tests.toy import toy_batch
from zoo.__main__ import main

LAST = Path("here/checkpoints/last.ckpt")
HERE = ["--run_dir", "here", "--trainer.num_sanity_val_steps", "0"]


def card() -> dict[str, Any]:
    return json.loads(Path("here/run_card.json").read_text())


class Signalled(CLIMethod):
    """Gets a signal in its second step."""

    def __init__(self, number: int = 0, times: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number, self.times = number, times

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 1:
            for _ in range(self.times):
                signal.raise_signal(self.number)
        return super().training_step(batch, batch_idx)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_run_after_the_step_and_saves_it(name: str, code: int) -> None:
    number = str(int(getattr(signal, name)))
    assert zoo_run("fit", "--model", "Signalled", "--model.number", number, *HERE, steps=4) == code
    assert (card()["status"], card()["reason"], card()["steps"]) == ("interrupted", name, 2)
    assert checkpoint(LAST)["global_step"] == 2
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.usefixtures("_signals")
def test_a_second_interrupt_stops_at_once() -> None:
    options = ["--model", "Signalled", "--model.number", str(int(signal.SIGINT)), "--model.times", "2"]
    assert zoo_run("fit", *options, *HERE, steps=4) == 130
    assert (card()["status"], card()["reason"], card()["steps"]) == ("interrupted", "SIGINT", 1)
    assert not LAST.exists()


class FailingValidation(CLIMethod):
    """Runs out of memory in validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def test_out_of_memory_in_validation_loses_no_step() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        zoo_run("fit", "--model", "FailingValidation", *HERE, "--trainer.val_check_interval", "3", steps=4)
    assert checkpoint(LAST)["global_step"] == 3
    assert card()["reason"].startswith("torch.OutOfMemoryError: CUDA out of memory")
    resume = ["--ckpt_path", "last", "--trainer.limit_val_batches", "0"]
    assert zoo_run("fit", *HERE, "--model", "FailingValidation", *resume, steps=4) == 0
    assert checkpoint(LAST)["global_step"] == 4


class Vanishing(Dataset[dict[str, Any]]):
    """Its third file is gone, or kills the worker that reads it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 2 and self.how == "vanish":
            return {"image": Path("data/3.png").read_bytes()}
        if index == 2 and self.how == "kill":
            while not Path("seen1").exists():  # else the batch before would be cut off on its way
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return toy_batch(index)


class FaultyData(CLIData):
    """Data that goes wrong in its third batch."""

    def __init__(self, how: str = "vanish", workers: int = 0) -> None:
        super().__init__()
        self.how, self.workers = how, workers
        self._seen = 0

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        Path(f"seen{self._seen}").touch()
        self._seen += 1
        return batch

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Vanishing(self.how), batch_size=None, num_workers=self.workers)


@pytest.mark.parametrize(
    ("how", "workers", "reason"),
    [
        ("vanish", 0, "No such file or directory: 'data/3.png'"),
        ("vanish", 1, "No such file or directory: 'data/3.png'"),
        ("kill", 1, "DataLoader worker (pid"),
    ],
)
def test_data_that_fails_loses_no_step(how: str, workers: int, reason: str) -> None:
    data = ["--data", "FaultyData", "--data.how", how, "--data.workers", str(workers)]
    with pytest.raises((FileNotFoundError, RuntimeError)):
        zoo_run("fit", *data, *HERE, steps=4)
    assert reason in card()["reason"]
    if how == "vanish":  # a worker that is killed is told of at once, in the middle of a step
        assert checkpoint(LAST)["global_step"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_while_saving_keeps_the_older_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", *HERE, steps=2) == 0
    older = LAST.read_bytes()
    (LAST.parent / ".last.ckpt.partial").symlink_to("/dev/full")
    assert zoo_run("fit", *HERE, "--ckpt_path", str(LAST), steps=4) == 1
    assert re.search(r"error: .* No space left on device: '.*last.ckpt'\n$", capsys.readouterr().err)
    assert LAST.read_bytes() == older
    assert not list(LAST.parent.glob(".*"))
    assert "No space left on device" in card()["reason"]


def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mkdir = os.mkdir

    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        if "here" in Path(path).parts:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refuse)
    assert zoo_run("fit", *HERE, steps=2) == 1
    assert re.search(r"error: .* Read-only file system: '.*here'\n$", capsys.readouterr().err)


def test_a_label_map_with_holes_names_file_and_values() -> None:
    import numpy as np

    stored = np.array([[0, 18], [200, 77]], np.uint8)
    with pytest.raises(
        ValueError, match=r"Label a.png: 2 pixels hold values outside encoding 'trainIds': \[77, 200\]"
    ):
        ENCODINGS["trainIds"].decode(stored, "a.png")


def test_a_clock_that_jumps_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By decades, back and forth, every time that somebody looks."""
    times = itertools.cycle((2e9, 1e9, 3e9))
    monkeypatch.setattr("time.time", lambda: next(times))
    assert zoo_run("fit", *HERE, steps=2) == 0
    assert 0 <= card()["seconds"] < 1e4


def test_wrong_types_and_unknown_keys_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--trainer.max_steps", "many") == 2
    assert "trainer.max_steps: expected int, found many" in capsys.readouterr().err
    assert zoo_run("fit", "--model.backbon", "x") == 2
    assert "did you mean backbone?" in capsys.readouterr().err


def test_wandb_out_of_reach_is_offline_or_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setattr("zoo.run_folder.getproxies", dict)
        assert zoo_run("fit", "--wandb", "online", *HERE, steps=1) == 1
        assert "--wandb online: nobody answers at http://127.0.0.1" in capsys.readouterr().err
        assert zoo_run("fit", *HERE, steps=1) == 0
    assert any("W&B keeps this run offline" in note for note in notes(capsys))
    assert list(Path("here").glob("wandb/offline-run-*"))


# -- the table -------------------------------------------------------------------------------------------


def test_every_test_that_the_table_names_exists() -> None:
    root = Path(__file__).parents[1]
    table = (root / "docs" / "reliability.md").read_text().partition("## Faults")[2]
    named = [word.strip("`") for word in table.split() if word.startswith("`tests/") and "::" in word]
    assert len(named) > 12
    for node in named:
        file, _, function = node.rstrip("`,.;").partition("::")
        assert f"def {function}(" in (root / file).read_text(), node


def test_help_names_the_way_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "zoo rerun FILE" in capsys.readouterr().out
