"""A toy method and its data, small enough to write every reference computation out by hand."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import EMATeacher
from zoo.method import Method
from zoo.optim import Optim
from zoo.teacher import Teacher

SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 0.0, "schedule": "constant"}


def mlp(batch_norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Three inputs, four classes."""
    layers: list[nn.Module] = [nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)]
    if batch_norm:
        layers.insert(1, nn.BatchNorm1d(8))
    if dropout:
        layers.insert(1, nn.Dropout(dropout))
    return nn.Sequential(*layers)


class ToyMethod(Method):
    """Classification with a teacher whose hard labels supervise unlabelled points."""

    def __init__(
        self,
        batch_norm: bool = False,
        dropout: float = 0.0,
        mode: str = "train_no_dropout",
        optim: Optim | None = None,
    ) -> None:
        super().__init__(optim)
        self.student = mlp(batch_norm, dropout)
        self.teacher = Teacher(self.student, mode=mode)

    def default_optim(self) -> Optim:
        return Optim(**SGD)

    def default_callbacks(self) -> list[Callback]:
        return [EMATeacher(decay=0.9)]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        source, target = batch["source"], batch["target"]
        pseudo = self.teacher(target["image"]).argmax(1)
        return {
            "source": F.cross_entropy(self.student(source["image"]), source["label"]),
            "target": 0.5 * F.cross_entropy(self.student(target["image"]), pseudo),
        }


def toy_batch(seed: int, size: int = 6) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)

    def points() -> Tensor:
        return torch.randn(size, 3, generator=rng)

    label = torch.randint(0, 4, (size,), generator=rng)
    return {"source": {"image": points(), "label": label}, "target": {"image": points()}}


def toy_loader(batches: int = 6, future: int = 0, offset: int = 0) -> DataLoader:
    """Batches by seed; ``future`` adds so many further ones to each."""
    items = []
    for index in range(batches):
        item = toy_batch(offset + index)
        if future:
            item["future"] = [toy_batch(1000 * (j + 1) + offset + index) for j in range(future)]
        items.append(item)
    return DataLoader(items, batch_size=None)


def toy_trainer(**kwargs: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    }
    return L.Trainer(**{**quiet, "enable_model_summary": False, **kwargs})


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


class Record(Callback):
    """Copies of student and teacher after every micro-batch."""

    step_order = 1000

    def __init__(self) -> None:
        self.student: list[list[Tensor]] = []
        self.teacher: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.student.append(weights(pl_module.student))
        self.teacher.append(weights(pl_module.teacher))
