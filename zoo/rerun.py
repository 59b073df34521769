"""`zoo rerun`: compute a training step that broke a run once more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import constructor_arguments
from zoo.broken_batch import BrokenBatch, plain
from zoo.checkpoints.files import CheckpointError, read_plain
from zoo.class_paths import resolve_class
from zoo.config_files import UsageError
from zoo.finite import NonFinite
from zoo.pretrained import restoring


def rerun(path: str | Path, ckpt_path: str | None = None) -> dict[str, float]:
    """Compute the step of a file that ``NonFinite`` wrote once more, and return its loss terms.

    Args:
        path: the file.
        ckpt_path: take the weights from this checkpoint of the run; needed where the file has none.

    Raises:
        FloatingPointError: it breaks again.
        UsageError: the file holds no weights, and no checkpoint was given.
        CheckpointError: a file is damaged or something else.
    """
    found = BrokenBatch.load(path)
    if ckpt_path is not None:
        found.state = read_plain(ckpt_path)["state_dict"]
    if not found.state:
        raise UsageError(
            f"{path} holds no weights, since the broken step had changed them: add --ckpt_path last.ckpt of the run"
        )
    cls = resolve_class(found.class_path)
    taken = constructor_arguments(cls)  # what a class fixes for its bases is a hyper-parameter as well
    with restoring():
        method = cls(**{name: value for name, value in found.hyper_parameters.items() if name in taken})
    method.has_started = True
    settings = {**found.trainer, "max_steps": max(found.trainer["max_steps"], found.step + 1)}
    if settings["max_epochs"] not in (None, -1):
        settings["max_epochs"] = max(settings["max_epochs"], found.epoch + 1)
    replay = _Replay(found)
    trainer = L.Trainer(
        **settings,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[NonFinite(wait=True, max_files=0), replay],
    )
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = (
        found.step
    )
    progress = trainer.fit_loop.epoch_progress.current
    progress.ready = progress.completed = found.epoch
    trainer.fit(method, DataLoader(_Repeated(found.batch, found.batches), batch_size=None))
    return replay.losses


class _Repeated(Dataset[dict[str, Any]]):
    """The same batch, as often as an epoch has batches."""

    def __init__(self, batch: dict[str, Any], length: int) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return plain(self.batch)


class _Replay(Callback):
    """Put everything where it was, after all other callbacks have done what they do to a batch."""

    step_order = 10_000

    def __init__(self, found: BrokenBatch) -> None:
        self.found = found
        self.losses: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        known = pl_module.state_dict().keys()
        pl_module.load_state_dict({k: v for k, v in self.found.state.items() if k in known}, strict=True)
        batch.clear()
        batch.update(trainer.strategy.batch_to_device(plain(self.found.batch)))
        torch.set_rng_state(self.found.rng["torch"])
        if "cuda" in self.found.rng and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(self.found.rng["cuda"])

    def on_losses(self, pl_module: L.LightningModule, losses: Mapping[str, Tensor]) -> None:
        self.losses = {name: float(loss.detach()) for name, loss in losses.items()}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = True
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, self.found.step + 1


def main(argv: Sequence[str]) -> int:
    """``zoo rerun FILE``: exit code 1 if the step breaks again, 0 if it is finite now, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="zoo rerun", description=(rerun.__doc__ or "").partition("\n")[0])
    parser.add_argument("file", help="nonfinite-step<N>-rank<R>.pt in the run's folder")
    parser.add_argument("--ckpt_path", help="take the weights from this checkpoint")
    given = parser.parse_args(argv)
    try:
        losses = rerun(given.file, given.ckpt_path)
    except FloatingPointError as error:
        print(f"zoo rerun: it breaks again: {error}", file=sys.stderr)
        return 1
    except (UsageError, CheckpointError) as error:
        print(f"zoo rerun: error: {error}", file=sys.stderr)
        return 2
    for name, value in losses.items():
        print(f"{name} {value:.6g}")
    return 0
