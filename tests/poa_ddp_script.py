"""Run by tests/test_poa.py in two gloo processes: three steps of POA, each rank with a sub-network of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch

from tests.test_poa import data, poa
from zoo.nn.elastic import Size


def main(folder: str) -> None:
    L.seed_everything(0, verbose=False)
    method, drawn = poa(mask_start_epochs=1), []
    draw = method.draw_size

    def draw_and_note() -> Size:
        drawn.append(tuple(draw()))
        return draw()

    method.draw_size = draw_and_note  # type: ignore[method-assign]
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, limit_train_batches=2,
    )  # fmt: skip
    trainer.fit(method, datamodule=data())
    state = {"student": method.student.state_dict(), "teacher": method.teacher.network.state_dict()}
    torch.save({**state, "drawn": drawn}, Path(folder) / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
