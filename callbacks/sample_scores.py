"""The score of every test sample, by which two runs are compared pair by pair."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from callbacks.output_folder import output_folder
from callbacks.probes import KNNProbe
from datamodules.cache import write_atomically
from zoo.method import trainer_callbacks

FILE_NAME = "sample_scores.csv"


class SampleScores(Callback):
    """Write ``sample_scores.csv`` after a test: a line per sample, its name and what the method scored on it.

    Scores are what ``test_step`` returns as ``scores``: metric → ``[B]``, named like the logged metric without its
    stage (``mIoU``, ``accuracy``, ``dice``); and of methods that probes test, whether k nearest neighbours were right.
    A metric of the whole set (mIoU) is not the mean of its samples' scores. Where names of samples repeat, their
    positions in the set stand before them. Without any scores no file is written.

    Args:
        folder: where to write; default: the trainer's ``default_root_dir``, which the command ``zoo`` sets to the run's
            folder. A trainer that was given no folder writes nothing.
    """

    family = "sample_scores"

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._names: list[str] = []
        self._index: list[int] = []
        self._scores: list[dict[str, Tensor]] = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self._names, self._index, self._scores = [], [], []

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the scores of a batch, on the device."""
        if "index" not in batch:
            return
        index = torch.as_tensor(batch["index"]).tolist()
        self._index += index
        self._names += [str(name) for name in batch.get("name") or index]
        scores = outputs.get("scores", {}) if isinstance(outputs, Mapping) else {}
        self._scores.append({metric: values.detach() for metric, values in scores.items()})

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the scores of all ranks and write them."""
        columns = {
            metric: torch.cat([scores[metric] for scores in self._scores]).float().tolist()
            for metric in (self._scores[0] if self._scores else ())
        }
        for probe in trainer_callbacks(trainer):
            if isinstance(probe, KNNProbe):
                columns |= {name: values.tolist() for name, values in probe.sample_scores().items()}
        rows = list(zip(self._names, self._index, *columns.values(), strict=True)) if columns else []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        folder = output_folder(trainer, self.folder, "")
        if rows and folder is not None and trainer.is_global_zero:
            unique = len({name for name, *_ in rows}) == len(rows)
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["name", *columns])
            for name, index, *values in sorted(rows, key=lambda row: row[1]):
                writer.writerow([name if unique else f"{index}/{name}", *values])
            write_atomically(folder / FILE_NAME, lambda file: file.write(out.getvalue().encode()))
