"""Run by tests/test_ddp.py in two gloo processes: train the toy method, save what each rank ends with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from callbacks import EMATeacher, FutureTeacher, Mesa
from tests.toy import ToyMethod, toy_batch, toy_trainer
from zoo.optim import Optim

CALLBACKS: dict[str, dict[str, Any]] = {
    "ema": {"class": EMATeacher},
    "after": {"class": EMATeacher, "timing": "after_step"},
    "deep": {"class": FutureTeacher, "depth": 2},
    "wide": {"class": FutureTeacher, "depth": 0, "width": 2},
    "semi": {"class": FutureTeacher, "depth": 2, "order": "semi"},
    "mesa": {"class": Mesa, "exact": []},
}
STEPS = 4


def build(name: str) -> tuple[ToyMethod, Callback]:
    options = dict(CALLBACKS[name])
    torch.manual_seed(0)
    method = ToyMethod(optim=Optim("adamw", lr=0.05, weight_decay=0.1, schedule="constant"))
    return method, options.pop("class")(decay=0.9, **options)


def rank_batch(step: int, rank: int) -> dict[str, Any]:
    """Another batch on every rank, with future ones."""
    batch = toy_batch(10 * step + rank)
    batch["future"] = [toy_batch(1000 * (j + 1) + 10 * step + rank) for j in range(2)]
    return batch


def main(name: str, folder: str) -> None:
    method, callback = build(name)
    trainer = toy_trainer(
        max_steps=STEPS, devices=2, strategy="ddp", callbacks=[callback], use_distributed_sampler=False
    )

    def loader() -> torch.utils.data.DataLoader:
        torch.manual_seed(100 + trainer.global_rank)  # ranks draw different random numbers, as in real runs
        items = [rank_batch(step, trainer.global_rank) for step in range(STEPS)]
        return torch.utils.data.DataLoader(items, batch_size=None)

    method.train_dataloader = loader
    trainer.fit(method)
    torch.save(
        {
            "student": [p.detach() for p in method.student.parameters()],
            "teacher": [p.detach() for p in method.teacher.parameters()],
            "steps": method.teacher.steps,
            "global_step": trainer.global_step,
            "callback": callback.state_dict(),
        },
        Path(folder) / f"{name}-{trainer.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
