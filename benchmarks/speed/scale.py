"""How a step's time and memory grow along one axis at a time, as powers of it.

Axes: images of a batch, side of the crops, parameters of the backbone, classes, length of SePiCo's bank, processes.
Every point is a process of its own (two of them, over gloo, for two ranks), forked once everything is imported; those
of an axis take turns in rotating order. A step is that of a Trainer with the callbacks of the method's recipe, all that
happens between two requests for a batch; its memory is the most that was resident during the steps beyond what was
before the method was built. Exponents are least squares of logarithms: 1 grows as the axis does, 0 not at all.

What the time is worth in accuracy is asked by :mod:`benchmarks.speed.accuracy`.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import socket
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from benchmarks.speed.floor_record import replaced
from benchmarks.speed.floor_sizes import Batch, Builder, crops, streets
from benchmarks.speed.paired import MANY, keep, markdown, now, options, peak_bytes, reset_peak, shown, spread
from benchmarks.training import quiet
from zoo import DINO, SelfTraining, SePiCo
from zoo.heap import keep_freed_memory
from zoo.method import Method
from zoo.registry import create_backbone

RESULTS = Path(__file__).parents[1] / "results" / "speed_scale.json"
PROCESSES = multiprocessing.get_context("fork")


class Point(NamedTuple):
    """One size on an axis.

    Args:
        x: where on it.
        build: makes the method.
        batch: what it is given.
        ranks: processes that train together.
    """

    x: float
    build: Callable[[], Method]
    batch: Builder
    ranks: int = 1


def segmentation(
    kind: type[SelfTraining], backbone: str = "mit_b0", **arguments: Any
) -> Callable[[], Method]:
    """A self-training method under a light head, everything of it begun."""
    return lambda: kind(backbone=backbone, decode_head="fpn", **arguments)


def dino() -> Method:
    """ViT-Ti/16 of 96 pixels, 4096 prototypes."""
    return DINO(
        backbone="vit_tiny_patch16_224", backbone_args={"img_size": 96}, prototypes=4096,
        head_args={"hidden_dim": 512},
    )  # fmt: skip


def parameters(name: str) -> float:
    """Millions of them in a backbone."""
    with torch.device("meta"):
        network = create_backbone(name)
    return sum(int(parameter.numel()) for parameter in network.parameters()) / 1e6


def axes() -> dict[str, tuple[str, list[Point]]]:
    """Name → what is fixed, and the points."""
    plain = segmentation(SelfTraining)
    started: dict[str, Any] = {
        "contrast_start": 0,
        "projection_dim": 256,
        "ignore_top": 0,
        "ignore_bottom": 0,
    }
    common = "MiT-B0, FPN, 2 + 2 crops of 128 px"
    two = streets(2, 128, 128)
    classes = (5, 19, 75, 150)
    found: dict[str, tuple[str, list[Point]]] = {
        "self_training, batch": (common, [Point(n, plain, streets(n, 128, 128)) for n in (1, 2, 4, 8)]),
        "self_training, side of the crop": (common, [Point(s, plain, streets(2, s, s)) for s in (64, 128, 192, 256)]),
        "self_training, backbone, M parameters": (common, [
            Point(parameters(name), segmentation(SelfTraining, name), two)
            for name in ("mit_b0", "mit_b1", "mit_b2", "mit_b3")
        ]),
        "self_training, classes": (common, [
            Point(n, segmentation(SelfTraining, num_classes=n), streets(2, 128, 128, classes=n)) for n in classes
        ]),
        "sepico, classes": (f"{common}, distribution contrast", [
            Point(n, segmentation(SePiCo, num_classes=n, **started), streets(2, 128, 128, classes=n))
            for n in classes
        ]),
        "sepico, bank": (f"{common}, bank contrast, centroids a class", [
            Point(n, segmentation(SePiCo, contrast="bankcl", bank_length=n, **started), two)
            for n in (50, 200, 800, 3200)
        ]),
        "dino, batch": ("ViT-Ti/16, crops: 2 of 96, 6 of 48 px", [
            Point(n, dino, crops(n, 6, (96, 48))) for n in (2, 4, 8, 16)
        ]),
        "dino, ranks": ("ViT-Ti/16, 4 images on each rank", [
            Point(n, dino, crops(4, 6, (96, 48)), ranks=n) for n in (1, 2)
        ]),
    }  # fmt: skip
    return found


# -- a process -------------------------------------------------------------------------------------------------------


class Turns:
    """Loader that gives one batch as often as it is told to, and tells what the steps took.

    Args:
        connection: numbers of steps come in, measurements go out; None ends the training.
        batch: on the device.
        device: ``cpu`` or ``cuda``.
        base: bytes in use before the method was built.
    """

    def __init__(self, connection: Connection, batch: Batch, device: str, base: int) -> None:
        self.connection, self.batch, self.device, self.base = connection, batch, device, base

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Batch]:
        while (steps := self.connection.recv()) is not None:
            reset_peak(self.device)
            start, clock = now(self.device), time.perf_counter()
            for _ in range(steps):
                yield replaced(self.batch, lambda tensor: tensor)
            self.connection.send({
                "step": (now(self.device) - start) / steps,
                "wall": (time.perf_counter() - clock) / steps,
                "memory": peak_bytes(self.device) - self.base,
            })  # fmt: skip


def work(point: Point, connection: Connection, device: str, rank: int, port: int) -> None:
    """Train until told to stop; an error is told in place of an answer."""
    try:
        torch.set_num_threads(1)
        L.seed_everything(0, verbose=False)
        strategy = "auto"
        if point.ranks > 1:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
            os.environ.update({key: str(value) for key, value in place.items()})
            strategy = "ddp"
        reset_peak(device)
        base = peak_bytes(device)
        method = point.build()
        batch = replaced(point.batch(method), lambda tensor: tensor.to(device))
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=point.ranks, strategy=strategy,
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(method, Turns(connection, batch, device, base))
    except Exception:
        connection.send(traceback.format_exc())


class Processes:
    """Those of one point.

    Args:
        point: what they train.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, point: Point, device: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.connections, self.children = [], []
        for rank in range(point.ranks):
            here, there = PROCESSES.Pipe()
            child = PROCESSES.Process(target=work, args=(point, there, device, rank, port), daemon=True)
            child.start()
            self.connections.append(here)
            self.children.append(child)

    def turn(self, steps: int) -> dict[str, float]:
        """Let all ranks train; what the slowest of them took.

        Raises:
            RuntimeError: one of them failed.
        """
        for connection in self.connections:
            connection.send(steps)
        told = [connection.recv() for connection in self.connections]
        if failed := [text for text in told if isinstance(text, str)]:
            raise RuntimeError(failed[0])
        return {key: max(each[key] for each in told) for key in told[0]}

    def close(self) -> None:
        """End them."""
        for child in self.children:
            child.kill()
            child.join()


def measured(points: Sequence[Point], device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Numbers of all points of an axis, and the exponents."""
    processes: list[Processes] = []
    told: list[list[dict[str, float]]] = [[] for _ in points]
    with contextlib.ExitStack() as stack:
        for point in points:
            processes.append(Processes(point, device))
            stack.callback(processes[-1].close)
            processes[-1].turn(2)  # look-aheads, labels and the optimiser's state begin
        for index in range(rounds):
            order = [*range(len(points))]
            for which in order[index % len(points) :] + order[: index % len(points)]:
                told[which].append(processes[which].turn(steps))
    record: dict[str, Any] = {"x": [point.x for point in points]}
    record["ms"] = [1000 * statistics.median(turn["step"] for turn in turns) for turns in told]
    record["wall_ms"] = [1000 * statistics.median(turn["wall"] for turn in turns) for turns in told]
    record["bytes"] = [max(turn["memory"] for turn in turns) for turns in told]
    of_rounds = [[turns[index]["step"] for turns in told] for index in range(rounds)]
    record["time_exponent"] = spread([exponent(record["x"], seconds) for seconds in of_rounds])
    record["memory_exponent"] = exponent(record["x"], record["bytes"])
    return record


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x, by least squares."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    means = [statistics.mean(column) for column in zip(*logs, strict=True)]
    above = sum((a - means[0]) * (b - means[1]) for a, b in logs)
    return above / sum((a - means[0]) ** 2 for a, _ in logs)


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--axes", nargs="*", help="parts of their names (default: all)")
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.set_defaults(json=RESULTS)
    arguments = parser.parse_args()
    quiet()
    if arguments.device == "cpu":
        keep_freed_memory()  # as `zoo fit` does
    rows = []
    for name, (fixed, points) in axes().items():
        if arguments.axes and not any(part in name for part in arguments.axes):
            continue
        found = measured(points, arguments.device, arguments.rounds, arguments.steps)
        keep(arguments.json, arguments.device, {"axes": {name: {"fixed": fixed, **found}}})
        points_of, ms, mib = (
            ", ".join(f"{value:.4g}" for value in values)
            for values in (found["x"], found["ms"], [size / 2**20 for size in found["bytes"]])
        )
        exponents = [shown(found["time_exponent"]), f"{found['memory_exponent']:.2f}"]
        rows.append([name, fixed, points_of, ms, exponents[0], mib, exponents[1]])
        print(f"{name}: {points_of} → {ms} ms, exponent {exponents[0]}", flush=True)
    header = ["axis", "fixed", "points", "step, ms", "exponent", "memory, MiB", "exponent"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
