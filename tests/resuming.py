"""A run that is stopped and resumed against one that is not: both through the command line, compared bit for bit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.__main__ import main
from zoo.run_folder import LastCheckpoint

#: Nothing that belongs to training: times, file names, and a score that ModelCheckpoint stores and never reads.
VOLATILE = {
    *("seconds", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"),
    "current_score",
}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted names of what differs between two checkpoints, bit for bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}.{key}" for key in one.keys() ^ other.keys()]
        for key in (one.keys() & other.keys()) - VOLATILE:
            found += differences(one[key], other[key], f"{path}.{key}")
        return found
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            name
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for name in differences(a, b, f"{path}.{i}")
        ]
    return [] if one == other or (one != one and other != other) else [f"{path}: {one!r} != {other!r}"]


def logged(path: Path, start: int = 0) -> list[dict[str, str]]:
    """What ``metrics.csv`` holds from a step on, without empty cells and without times."""
    with path.open() as file:
        rows = [
            {key: value for key, value in row.items() if value and not key.startswith("perf/")}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if int(row["step"]) >= start]


def straight_and_resumed(
    command: list[str], run: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train to the end; go on once more from the checkpoint of step ``stop``; both must be equal.

    Everything is compared: networks, optimiser, schedules, callbacks, loops, random states and logged metrics.

    Args:
        command: of a whole run, without its folder; a checkpoint must be written after ``stop``.
        run: folder of both.
        stop: the optimiser step from which the second goes on.
        monkeypatch: keeps the checkpoint that ``last.ckpt`` was then.

    Returns:
        The checkpoints of ``stop`` and of the end.
    """
    kept, last = run / "stopped.ckpt", run / "checkpoints" / "last.ckpt"
    save = LastCheckpoint._save

    def save_and_keep(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == stop:
            shutil.copy(last, kept)

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_keep)
        assert main([*command, "--run_dir", str(run)]) == 0
    straight = last.rename(run / "straight.ckpt")
    (last.parent / "best.ckpt").unlink(missing_ok=True)  # of a later step, perhaps
    kept.rename(last)
    stopped = torch.load(last, weights_only=True)
    assert main([*command, "--run_dir", str(run), "--ckpt_path", "last"]) == 0

    one, other = (torch.load(path, weights_only=True) for path in (straight, last))
    found = differences(one, other)
    assert not found, found[:12]
    straight_rows, rows = logged(run / "metrics-1.csv", start=stop), logged(run / "metrics.csv")
    assert rows == straight_rows, (rows, straight_rows)
    assert other["global_step"] > stopped["global_step"] == stop
    return stopped, other
