"""What each overlay of ``configs/trainer`` costs or saves: training with it over training without, in turns.

One process a variant, forked after the imports, whole steps of a Trainer on one batch; CPU time of one thread (or the
clock, with ``--device cuda``). The steps in which ``torch.compile`` compiles are told apart. What a method refuses is
left out with its reason.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks
from benchmarks.speed.monitors import RECIPES as MONITORED
from benchmarks.speed.paired import (
    MANY,
    keep,
    markdown,
    now,
    options,
    peak_bytes,
    reset_peak,
    shown,
    spread,
    take_turns,
)
from benchmarks.training import quiet
from zoo import SSAST
from zoo.config_files import package_configs
from zoo.optim import Optim

OVERLAYS = sorted(path.stem for path in (package_configs() / "trainer").glob("*.yaml"))
NONE = "default"


def streets() -> tuple[Any, Any]:
    """Self-training of the embedded benchmark."""
    return monitored("self-training, StreetShift")


def digits() -> tuple[Any, Any]:
    """DINO of the embedded benchmark."""
    return monitored("DINO, digits")


def monitored(name: str) -> tuple[Any, Any]:
    build, make = MONITORED[name]
    data = make()
    data.prepare_data()
    data.setup("fit")
    return build(), data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def clips() -> tuple[Any, Any]:
    """SSAST's tiny network on four clips of 2.5 s."""
    shape = {"frames": 256, "patch": [16, 16]}
    method = SSAST("ast_tiny", shape, masked=64, optim=Optim("adam", lr=1e-4, schedule="constant"))
    return method, {"spectrogram": torch.randn(4, 256, 128), "index": torch.arange(4)}


RECIPES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "self-training, StreetCNN": streets,
    "DINO, ViT of width 96": digits,
    "SSAST, tiny": clips,
}


class Turns:
    """Loader that gives one batch as often as it is told, and tells what the steps took."""

    def __init__(self, pipe: Any, batch: Any, device: str) -> None:
        self.pipe, self.batch, self.device = pipe, batch, device
        reset_peak(device)
        self.held = peak_bytes(device)  # by imports, networks and the batch

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Any]:
        while steps := self.pipe.recv():
            reset_peak(self.device)
            start, others = now(self.device), of_children()
            for _ in range(steps):
                yield self.batch
            spent = (now(self.device) - start) / steps
            peak = peak_bytes(self.device) - self.held
            told = {"step": spent, "peak": peak, "others": of_children() - others}
            self.pipe.send(told)


def of_children() -> float:
    """CPU seconds of ended processes: compilers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train(pipe: Any, recipe: str, overlay: str, device: str) -> None:
    """Train as the pipe says."""
    given: dict[str, Any] = {}
    if overlay != NONE:
        given = yaml.safe_load((package_configs() / f"trainer/{overlay}.yaml").read_text())["trainer"]
    added = [
        getattr(callbacks, entry["class_path"].rpartition(".")[2])(**entry.get("init_args", {}))
        for entry in given.pop("callbacks+", [])
    ]
    L.seed_everything(0, verbose=False)
    method, batch = RECIPES[recipe]()
    if device == "cuda":
        batch = {key: value.cuda() if hasattr(value, "cuda") else value for key, value in batch.items()}
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", max_steps=MANY, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[*added, callbacks.NoMonitors()], **given,
    )  # fmt: skip
    try:
        trainer.fit(method, Turns(pipe, batch, device))
    except MisconfigurationException as error:
        pipe.recv()
        pipe.send(str(error))


class Forked:
    """A process that trains when it is its turn, as :class:`benchmarks.speed.paired.Worker`."""

    def __init__(self, recipe: str, overlay: str, device: str) -> None:
        self.name = overlay
        self.pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=train, args=(other, recipe, overlay, device), daemon=True)
        self.process.start()
        other.close()

    def turn(self, steps: int) -> Any:
        """Run so many steps."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def compared(recipe: str, overlays: list[str], rounds: int, steps: int, device: str) -> dict[str, Any]:
    """Every overlay's step over the default's, round by round; what the first three steps took besides."""
    record: dict[str, Any] = {}
    workers, first = [], {}
    for overlay in (NONE, *overlays):
        worker = Forked(recipe, overlay, device)
        told = worker.turn(3)
        if isinstance(told, str):
            record[overlay] = {"refused": told}
            worker.close()
            continue
        first[overlay] = 3 * told["step"] + told["others"]
        workers.append(worker)
    turns = take_turns(workers, rounds, steps, warmup=1)  # type: ignore[arg-type]
    for name, told in turns.items():
        ratios = [own["step"] / other["step"] for own, other in zip(told, turns[NONE], strict=True)]
        memory = [own["peak"] / other["peak"] for own, other in zip(told, turns[NONE], strict=True)]
        step = statistics.median(turn["step"] for turn in told)
        record[name] = {
            "ratio": spread(ratios),
            "memory": spread(memory),
            "peak_mib": statistics.median(turn["peak"] for turn in told) / 2**20,
            "step_ms": 1000 * step,
            "first_steps_s": first[name] - 3 * step,
        }
    return record


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--overlays", nargs="*", choices=OVERLAYS, default=OVERLAYS)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    given = parser.parse_args()
    quiet()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in the process that is measured
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    rows = []
    for recipe in given.recipes:
        start = time.perf_counter()
        found = compared(recipe, given.overlays, given.rounds, given.steps, given.device)
        print(recipe, json.dumps(found), f"{time.perf_counter() - start:.0f} s", flush=True)
        for overlay, of in found.items():
            if "refused" in of:
                rows.append([recipe, f"`{overlay}`", "refused", "-", "-"])
            elif overlay != NONE:
                begin = f"{of['first_steps_s']:.0f}"
                rows.append([recipe, f"`{overlay}`", shown(of["ratio"]), shown(of["memory"]), begin])
        keep(given.json, given.device, {recipe: found})
    header = [
        "recipe",
        "overlay",
        "step / default",
        "peak memory / default",
        "more seconds for the first steps",
    ]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
