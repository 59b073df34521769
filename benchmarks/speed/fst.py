"""What a look-ahead costs: steps of FST against steps of plain self-training, interleaved, CPU time of one thread.

Prints the ratio of each pair and its median, for depth 1 and 3 and width 3, and the memory the look-ahead holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import lightning as L

from benchmarks.training import quiet
from callbacks import FutureTeacher
from datamodules import StreetShift
from zoo import FST, SelfTraining
from zoo.optim import Optim

LOOKS = {"depth 1": {"depth": 1}, "depth 3": {"depth": 3}, "width 3": {"depth": 0, "width": 3}}


class Timer(L.Callback):
    """CPU seconds of every training step, data loading included."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.stamps.append(time.process_time())

    def step(self, skip: int) -> float:
        stamps = self.stamps[skip:]
        return (stamps[-1] - stamps[0]) / (len(stamps) - 1)


def seconds_per_step(method: SelfTraining, data: StreetShift, steps: int) -> float:
    timer = Timer()
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[timer],
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return timer.step(skip=3)  # the first steps have no look-ahead and warm the allocator up


def build(backbone: str, look: dict[str, int] | None) -> SelfTraining:
    common = {
        "backbone": backbone,
        "strong_augment": "photometric",
        "optim": Optim(lr=1e-3, schedule="constant"),
    }
    if look is None:
        return SelfTraining(**common)
    return FST(ignore_top=0, ignore_bottom=0, feature_distance=0.0, **look, **common)


def held_copies(look: dict[str, int], backbone: str, data: StreetShift) -> float:
    """Elements the look-ahead keeps, as a multiple of the student's parameters."""
    method = build(backbone, look)
    seconds_per_step(method, data, steps=6)
    future = next(c for c in method.trainer.callbacks if isinstance(c, FutureTeacher))
    held = sum(tensor.numel() for tensor in [*future._kept, *future._soup])
    return held / sum(parameter.numel() for parameter in method.student.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="street_cnn")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    quiet()
    L.seed_everything(0, verbose=False)

    def data() -> StreetShift:
        return StreetShift(batch_size=8, num_source=64, num_target=64, num_val=2, num_test=2)

    data().prepare_data()
    record = {}
    for name, look in LOOKS.items():
        ratios = []
        for _ in range(arguments.pairs):
            plain = seconds_per_step(build(arguments.backbone, None), data(), arguments.steps)
            ahead = seconds_per_step(build(arguments.backbone, look), data(), arguments.steps)
            ratios.append(ahead / plain)
        copies = held_copies(look, arguments.backbone, data())
        record[name] = {
            "ratios": ratios,
            "median": statistics.median(ratios),
            "copies": copies,
            "plain_s": plain,
        }
        print(
            f"{name}: {statistics.median(ratios):.2f} x self-training "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {1000 * plain:.0f} ms a plain step), holds {copies:.2f} copies"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
