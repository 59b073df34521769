"""A batch that broke a run, as a file: `NonFinite` writes it, `zoo rerun` computes it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from zoo.checkpoints.files import CheckpointError, read_plain

SETTINGS = (
    "max_steps",
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
_MOST_NAMED = 8


@dataclasses.dataclass
class BrokenBatch:
    """What is needed to compute a training step again, as tensors and plain values.

    Args:
        class_path: of the method.
        hyper_parameters: its constructor arguments.
        state: parameters and buffers before the step (statistics of normalisation layers have seen its batch);
            empty where the step has changed them already.
        batch: what ``training_step`` got, on the CPU.
        rng: random states before it.
        step: optimiser steps before it.
        epoch: epochs before it.
        batches: training batches of an epoch.
        batch_idx: number of the batch in the epoch.
        broken: what was not finite.
        trainer: settings of the trainer that a step depends on.
    """

    class_path: str
    hyper_parameters: dict[str, Any]
    state: dict[str, Tensor]
    batch: dict[str, Any]
    rng: dict[str, Tensor]
    step: int
    epoch: int
    batches: int
    batch_idx: int
    broken: list[str]
    trainer: dict[str, Any]

    @classmethod
    def of(
        cls,
        method: L.LightningModule,
        step: int,
        batch_idx: int,
        batch: Any,
        rng: dict[str, Tensor],
        broken: list[str],
        unchanged: bool,
    ) -> BrokenBatch:
        """Gather it from a method that is being trained; ``unchanged``: the step has changed no weights yet."""
        trainer, batches = method.trainer, method.trainer.num_training_batches
        return cls(
            f"{type(method).__module__}.{type(method).__qualname__}",
            plain(dict(method.hparams)),
            {name: t.detach().cpu().clone() for name, t in method.state_dict().items()} if unchanged else {},
            plain(batch) if isinstance(batch, Mapping) else {"batch": plain(batch)},
            rng,
            step,
            trainer.current_epoch,
            int(batches) if batches != float("inf") else step + 1,
            batch_idx,
            broken,
            {name: getattr(trainer, name) for name in SETTINGS} | {"precision": str(trainer.precision)},
        )

    def save(self, path: Path) -> None:
        """Write it with ``torch.save``; it is read back without executing anything.

        Raises:
            OSError: the folder cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            torch.save({"broken_batch": 1, **vars(self)}, file)

    @classmethod
    def load(cls, path: str | Path) -> BrokenBatch:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is damaged or something else.
        """
        content = read_plain(path)
        fields = {field.name for field in dataclasses.fields(cls)}
        if (
            not isinstance(content, dict)
            or content.pop("broken_batch", None) != 1
            or content.keys() != fields
        ):
            raise CheckpointError(f"{path} is no batch that NonFinite wrote (nonfinite-step<N>-rank<R>.pt)")
        return cls(**content)

    def broken_inputs(self) -> list[str]:
        """Which samples of which part of the batch already are not finite: ``views.local: index 301``."""
        found = []
        for place, tensor, index in _floats(self.batch):
            bad = (
                ~torch.isfinite(tensor.flatten(1).float().sum(1))
                if tensor.ndim > 1
                else ~torch.isfinite(tensor)
            )
            if not bad.any():
                continue
            if index is not None and len(tensor) % len(index) == 0:  # views lie one after the other
                bad = bad.view(-1, len(index)).any(0)
            else:
                index = torch.arange(len(tensor))
            found.append(f"{place}: index {_listed(index[bad])}")
        return found


def samples_of(batch: Any) -> str:
    """The samples of a batch, by their ``index`` and, where the batch knows them, their names."""
    told = []
    for place, value in _leaves(batch):
        key = place.rpartition(".")[2]
        if key == "index" and isinstance(value, Tensor) and "future" not in place:
            told.append(f"{place} {_listed(value.flatten())}")
        elif key == "name" and isinstance(value, list):
            told.append(f"{place} {_listed(value)}")
    return ", ".join(told) or "its samples have no index"


def _listed(values: Any) -> str:
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    shown = ", ".join(map(str, values[:_MOST_NAMED]))
    return shown + (f" and {len(values) - _MOST_NAMED} more" if len(values) > _MOST_NAMED else "")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(inner, (Mapping, Tensor)) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}.{number}")
    else:
        yield place, value


def _floats(value: Any, index: Tensor | None = None) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Every tensor of floats, with the ``index`` beside it or above it."""
    indices: dict[str, Tensor] = {}
    leaves = list(_leaves(value))
    for place, leaf in leaves:
        folder, _, key = place.rpartition(".")
        if key == "index" and isinstance(leaf, Tensor):
            indices[folder] = leaf.flatten()
    for place, leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim:
            folder = place
            while folder and folder not in indices:
                folder = folder.rpartition(".")[0]
            yield place, leaf, indices.get(folder)


def plain(value: Any) -> Any:
    """A copy on the CPU made of tensors and plain values; of anything else, its text."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
