"""Run by ``test_datamodules.py`` in two processes: fit and validate StreetShift, and write down what was seen."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from datamodules import StreetShift


class Recorder(L.LightningModule):
    """Notes the indices of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: dict[str, list[list[int]]] = {"source": [], "target": [], "val": []}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        for domain in ("source", "target"):
            self.seen[domain].append(batch[domain]["index"].tolist())
        return self.scale * batch["source"]["image"].mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.seen["val"].append(batch["index"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=StreetShift(**settings))
    (folder / f"rank{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(recorder.seen))
