"""What the default monitors cost: training with and without them, step by step in turns, CPU time of one thread.

Two processes a recipe take turns of as many steps as lie between two logs, on the benchmark's own batches; both write
the same CSV log. Prints the ratio of their steps, pair by pair, and the share of a step that the monitors' own hooks
take, which the noise of the machine does not hide. The preview of the first batch is drawn in the warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger

from benchmarks.speed.paired import Meter, Worker, markdown, spread, take_turns
from callbacks import BatchPreview, Monitor, NoMonitors
from datamodules import Optdigits, StreetShift
from zoo import DINO, FST, SelfTraining
from zoo.nn import MultiCrop
from zoo.optim import Optim

STREET = {
    "backbone": "street_cnn",
    "strong_augment": "photometric",
    "optim": Optim(lr=1e-3, schedule="constant"),
}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
PLAIN = (0.0, 0.0, 0.0)


def street() -> StreetShift:
    return StreetShift(batch_size=8, num_source=64, num_target=64, num_val=2, num_test=2)


def digits() -> Optdigits:
    views = MultiCrop(
        global_size=16, global_scale=(0.5, 1.0), local_size=8, local_scale=(0.2, 0.5), num_local=4, flip=0.0,
        saturation=0.0, hue=0.0, grey=0.0, blur=PLAIN, solarize=PLAIN,
    )  # fmt: skip
    return Optdigits(batch_size=64, image_size=16, views=views)


RECIPES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "self-training, StreetShift": (lambda: SelfTraining(**STREET), street),
    "FST, StreetShift": (
        lambda: FST(ignore_top=0, ignore_bottom=0, feature_distance=0.0, **STREET),
        street,
    ),
    "DINO, digits": (
        lambda: DINO(
            "vit_tiny_patch16_224",
            backbone_args=VIT,
            prototypes=1024,
            head_args={"hidden_dim": 256, "bottleneck_dim": 64},
            optim=Optim(lr=1e-3, schedule="constant"),
        ),
        digits,
    ),
}


class Stream(Meter):
    """As :class:`Meter`, with the batches of a loader one after the other."""

    def __iter__(self) -> Iterator[Any]:
        batches = itertools.chain.from_iterable(itertools.repeat(self.batch))
        for _ in super().__iter__():
            yield next(batches)


class Spent:
    """CPU seconds in the hooks of monitors."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, callback: Any) -> None:
        for name in ("on_train_batch_start", "on_train_batch_end"):
            setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            start = time.process_time()
            hook(*arguments)
            self.seconds += time.process_time() - start

        return timed

    def take(self, steps: int) -> dict[str, float]:
        spent, self.seconds = self.seconds / steps, 0.0
        return {"hooks": spent}


class Watch(L.Callback):
    """Puts clocks on the monitors when all callbacks are there."""

    def __init__(self, spent: Spent) -> None:
        self.spent = spent

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, Monitor | BatchPreview):
                self.spent.watch(callback)


def work(name: str, monitors: bool, log_every: int) -> None:
    """Train as standard input says."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    L.seed_everything(0, verbose=False)
    build, make = RECIPES[name]
    data, spent = make(), Spent()
    if not monitors and isinstance(data, StreetShift):
        type(data).keeps_truth = False
    loader = data.train_dataloader
    data.train_dataloader = lambda: Stream(loader(), after=spent.take)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu", max_steps=10**6, logger=CSVLogger(folder), log_every_n_steps=log_every,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, callbacks=[Watch(spent), *([] if monitors else [NoMonitors()])],
        )  # fmt: skip
        trainer.fit(build(), datamodule=data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--log-every", type=int, default=50, help="steps between two logs, and of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker[0], arguments.worker[1] == "on", arguments.log_every)
        return
    record: dict[str, Any] = {}
    rows = []
    for name in arguments.recipes:
        RECIPES[name][1]().prepare_data()
        command = [sys.executable, "-m", "benchmarks.speed.monitors", "--log-every", str(arguments.log_every)]
        workers = [Worker(state, [*command, "--worker", name, state]) for state in ("on", "off")]
        told = take_turns(workers, arguments.rounds, arguments.log_every, warmup=arguments.log_every)
        ratios = [on["step"] / off["step"] for on, off in zip(told["on"], told["off"], strict=True)]
        hooks = [turn["hooks"] / turn["step"] for turn in told["on"]]
        step = 1000 * spread([turn["step"] for turn in told["off"]])["median"]
        record[name] = {"ratio": spread(ratios), "hooks": spread(hooks), "step_ms": step}
        shown = [
            f"{found['median']:.4f} ({found['min']:.4f} to {found['max']:.4f})"
            for found in (spread(ratios), spread(hooks))
        ]
        rows.append([name, f"{step:.1f} ms", *shown])
    print(f"logs every {arguments.log_every} steps")
    print(markdown(["recipe", "step without", "with / without", "share of a step in hooks"], rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"log_every": arguments.log_every, **record}, indent=1))


if __name__ == "__main__":
    main()
