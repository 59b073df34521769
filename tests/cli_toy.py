"""A method and a benchmark for the command line, and what its tests read from a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from callbacks import EMATeacher
from datamodules.base import BenchmarkDataModule
from tests.toy import ToyMethod, toy_loader
from zoo import series
from zoo.__main__ import main
from zoo.optim import Optim

QUIET = {"accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false"}
TOY = [
    "--model",
    "CLIMethod",
    "--data",
    "CLIData",
    *(x for k, v in QUIET.items() for x in (f"--trainer.{k}", v)),
]


class CLIMethod(ToyMethod):
    """The toy, validated by a score that is best in the middle of training."""

    monitor = "val/score"

    def __init__(
        self, backbone: str = "mlp", decay: float = 0.9, optim: Optim | None = None, **kwargs: Any
    ) -> None:
        super().__init__(optim=optim, **kwargs)
        self.decay = decay

    def default_callbacks(self) -> list[Callback]:
        return [EMATeacher(decay=self.decay)]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", float(-abs(self.global_step - 4)), batch_size=1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/weight", self.student[0].weight.sum(), batch_size=1)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.student(batch["source"]["image"])


class OtherMethod(CLIMethod):
    """Another class with the same parameters."""


class BrokenMethod(CLIMethod):
    """Trains into an error of its own, or into a bug."""

    def __init__(self, bug: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bug = bug

    def losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        loss = batch["nothing"] if self.bug else self.student[0].weight.sum() * float("nan")
        return {"source": loss}


class CLIData(BenchmarkDataModule):
    """Batches of the toy; two of them validate."""

    def __init__(self, batches: int = 4, batch_size: int = 1) -> None:
        super().__init__(batch_size)
        self.batches = batches

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        return {}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return batch

    def train_dataloader(self) -> DataLoader[Any]:
        return toy_loader(self.batches)

    def val_dataloader(self) -> DataLoader[Any]:
        return toy_loader(2)

    test_dataloader = predict_dataloader = val_dataloader


def started_here(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Make the runs of a series start in this process; what was started."""
    calls: list[Sequence[str]] = []

    def start(argv: Sequence[str]) -> int:
        calls.append(argv)
        return main(argv)

    monkeypatch.setattr(series, "start", start)
    return calls


def zoo_run(verb: str, *argv: str | Path, steps: int | None = None) -> int:
    limit = [] if steps is None else ["--trainer.max_steps", str(steps)]
    return main([verb, *TOY, *map(str, argv), *limit])


def only_run(verb: str = "") -> Path:
    """The one run folder in the working directory."""
    (folder,) = [p for p in Path("runs").glob("*/*/*") if p.name.endswith(f"seed0{verb}")]
    return folder


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was told, in order."""
    prefix = "zoo: note: "
    return [
        line.removeprefix(prefix) for line in capsys.readouterr().err.splitlines() if line.startswith(prefix)
    ]


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


class DyingMethod(CLIMethod):
    """Dies on one rank in its third step."""

    def __init__(self, dies: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dies = dies

    def losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.global_step == 2 and self.global_rank == self.dies:
            raise ArithmeticError(f"rank {self.dies} cannot go on")
        return super().losses(batch)
