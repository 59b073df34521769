"""A toy method for probes; run in two processes it tests one with probes and writes down what each rank logged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import KNNProbe, LinearProbe, RankMe, RawPixelProbe
from datamodules import FashionMNIST
from zoo.method import Method
from zoo.optim import Optim


class ToyEncoder(Method):
    """Features of small grey images, trained to keep a random projection of them."""

    def __init__(self, dim: int = 12, optim: Optim | None = None) -> None:
        super().__init__(optim)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.student = nn.Sequential(nn.Flatten(), nn.Linear(16, dim), nn.Dropout(0.5), nn.Tanh())
        self.forwards = 0

    def default_optim(self) -> Optim:
        return Optim(name="sgd", lr=0.05, weight_decay=0.0, schedule="constant")

    def features(self, image: Tensor) -> Tensor:
        self.forwards += 1
        return self.student(F.adaptive_avg_pool2d(image[:, :1], 4))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"square": self.student(F.adaptive_avg_pool2d(batch["image"][:, :1], 4)).square().mean()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The probes look."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The probes look."""


def toy_data(root: Path, **settings: Any) -> FashionMNIST:
    """Sixty training images of noise with a class-dependent mean; see ``tests.test_probes.noisy_tree``."""
    settings = {"num_val": 15, "batch_size": 8, "eval_batch_size": 8, **settings}
    return FashionMNIST(root=str(root), allow_partial=True, seed=0, **settings)


def toy_trainer(callbacks: list[Callback], **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, **{"devices": 1, "max_epochs": 2, **settings},
    )  # fmt: skip


def probes() -> list[Callback]:
    return [
        KNNProbe(k=[1, 5], chunk=16),
        LinearProbe(learning_rates=[0.1, 1.0], epochs=3, batch_size=16),
        RankMe(),
        RawPixelProbe(k=5),
    ]


if __name__ == "__main__":
    folder, root = Path(sys.argv[1]), Path(sys.argv[2])
    trainer = toy_trainer(probes(), devices=2, strategy="ddp")
    trainer.test(ToyEncoder(), datamodule=toy_data(root), verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (folder / f"rank{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(metrics))
