"""How near training steps come to the device's limits, and what they spend their time with.

For FST, SePiCo, POA, SSAST and VoCo with the networks of their published recipes: time and peak memory of a step,
floating-point operations a second over the best rate of matrix products at the step's precision, bytes a second over
that of copies, both measured beside it; the time that a step would take if every operator met the tighter of both
limits, over the time it takes; calls into ATen; where the host waits for values; on a GPU launches of kernels, its busy
share and synchronisations as CUDA tells them; and the operators that took longest. What is counted, and how, says
:mod:`benchmarks.speed.roofline_count`.

A step is that of a Trainer with the callbacks of the method's recipe, without loggers, on a random batch; each method
has a process of its own. With ``--device cuda`` batches and precisions are the published ones; on a CPU, one thread and
CPU time, the same networks get so small a batch that a step takes seconds. ``--images``, ``--crop`` and ``--precision``
change them. A float32 step multiplies as ``--matmul`` says; cuDNN's convolutions do not follow that: they may take TF32
and pass the ceiling of float32.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.floor_record import replaced
from benchmarks.speed.floor_sizes import THAWED, Builder, command, crops, positions, spectrograms, streets
from benchmarks.speed.paired import MANY, keep, markdown, now, options, peak_bytes, reset_peak, shown, spread
from benchmarks.speed.roofline_count import (
    Operators,
    busiest,
    copy_bandwidth,
    matrix_rate,
    synchronisations,
)
from benchmarks.training import quiet
from zoo import POA
from zoo.heap import keep_freed_memory

RESULTS = Path(__file__).parents[1] / "results"
WARMUP = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A published recipe.

    Args:
        config: its name.
        batch: of so many images and such a side: makes what the method gets.
        published: images, and the side of a crop in pixels, voxels or frames.
        small: the same as one core can train it.
        told: network and unit, for the table.
        model: arguments of the method that differ.
    """

    config: str
    batch: Callable[[int, int], Builder]
    published: tuple[int, int]
    small: tuple[int, int]
    told: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CASES: dict[str, Case] = {
    "fst": Case(
        "fst/gta5_cityscapes", lambda n, side: streets(n, side, side), (2, 512), (1, 128),
        "MiT-B5, DAFormer's head, {0} + {0} crops of {1} px", {"pretrained": False},
    ),
    "sepico": Case(
        "sepico/gta5_cityscapes", lambda n, side: streets(n, side, side, target=(side, 2 * side)), (2, 640), (1, 128),
        "MiT-B5, DAFormer's head, {0} + {0} crops of {1} px", {"pretrained": False},
    ),
    "poa": Case(
        "poa/imagenet_vit_large", lambda n, side: crops(n, 8, (side, side * 3 // 7)), (50, 224), (2, 224),
        "ViT-S/16, {0} images, 2 views of {1} px, 8 smaller ones",
        {
            "backbone_args": {"widths": list(range(192, 385, 64)), "depths": list(range(8, 13, 2)), "head_dim": 64},
            **THAWED,
        },
    ),
    "ssast": Case(
        "ssast/patch_base", lambda n, frames: spectrograms(n, frames), (24, 1024), (1, 1024),
        "AST-B, {0} clips of {1} frames",
    ),
    "voco": Case(
        "voco/prect", lambda n, side: positions(n, side, grid=(3, 3, 1)), (2, 64), (1, 64),
        "SwinUNETR-B, checkpointing, {0} volumes, 11 crops of {1}³ each",
    ),
}  # fmt: skip


class Steps:
    """Loader that gives one batch again and again and looks at the steps between.

    Args:
        batch: on the device.
        device: ``cpu`` or ``cuda``.
        rounds: how often steps are timed.
        steps: of a round.
    """

    def __init__(self, batch: Any, device: str, rounds: int, steps: int) -> None:
        self.batch, self.device, self.rounds, self.steps = batch, device, rounds, steps
        self.seconds: list[float] = []
        self.peak = 0
        self.trainer: L.Trainer  # that of the run

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Any]:
        batch = (replaced(self.batch, lambda tensor: tensor) for _ in range(MANY))
        for _ in range(WARMUP):  # look-aheads and the optimiser's state begin
            yield next(batch)
        reset_peak(self.device)
        for _ in range(self.rounds):
            start = now(self.device)
            for _ in range(self.steps):
                yield next(batch)
            self.seconds.append((now(self.device) - start) / self.steps)
        self.peak = peak_bytes(self.device)
        state = self.trainer.optimizers[0].state.values()
        counters = [of["step"] for of in state if isinstance(of.get("step"), torch.Tensor)]
        with Operators(self.device, hosted=counters) as self.operators:
            yield next(batch)
        if self.device == "cuda":
            with synchronisations() as self.synchronisations:
                yield next(batch)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device == "cuda")
        with profile(activities=activities) as self.profile:
            yield next(batch)


def ceiling_of(precision: str, device: str) -> tuple[str, float]:
    """Name and rate of the matrix products that a step of that precision makes."""
    half = precision.startswith(("bf16", "16"))
    dtype = torch.float32 if not half else torch.float16 if precision.startswith("16") else torch.bfloat16
    tf32 = device == "cuda" and not half and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 else str(dtype).removeprefix("torch."), matrix_rate(dtype, device)


def measured(
    name: str, device: str, rounds: int, steps: int, images: int, side: int, precision: Any, matmul: str
) -> dict[str, Any]:
    """All numbers of a method; the process's threads and memory are set up for it."""
    quiet()
    if device == "cpu":
        keep_freed_memory()  # as `zoo fit` does
    torch.set_float32_matmul_precision(matmul)
    L.seed_everything(0, verbose=False)
    case = CASES[name]
    usual = case.small if device == "cpu" else case.published
    size = (images or usual[0], side or usual[1])
    cli = command(name, case.config, case.model)
    precision = precision or (
        str(cli.settings.trainer.precision or "32-true") if device == "cuda" else "32-true"
    )
    kind, rate = ceiling_of(precision, device)
    bandwidth = copy_bandwidth(device)
    reset_peak(device)
    base = peak_bytes(device)
    method = cli.build_method()
    if isinstance(method, POA):
        sizes = method.student.backbone.sizes()
        method.draw_size = lambda: sizes[len(sizes) // 2]  # type: ignore[method-assign] # what is counted is what is timed
    batch = replaced(case.batch(*size)(method), lambda tensor: tensor.to(device))
    seen = Steps(batch, device, rounds, steps)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1, precision=precision,
        gradient_clip_val=cli.settings.trainer.gradient_clip_val, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    seen.trainer = trainer
    trainer.fit(method, seen)
    rate = max(rate, ceiling_of(precision, device)[1])  # other jobs come and go
    bandwidth = max(bandwidth, copy_bandwidth(device))
    step, operators = statistics.median(seen.seconds), seen.operators
    record: dict[str, Any] = {
        "told": case.told.format(*size), "precision": precision, "rounds": rounds, "steps": steps,
        "step_ms": spread([1000 * seconds for seconds in seen.seconds]),
        "flops": operators.flops, "flops_per_s": operators.flops / step,
        "matrix_products": kind, "matrix_rate": rate, "of_matrix_rate": operators.flops / step / rate,
        "bytes": operators.bytes, "bytes_per_s": operators.bytes / step,
        "bandwidth": bandwidth, "of_bandwidth": operators.bytes / step / bandwidth,
        "bound_over_step": operators.bound(rate, bandwidth) / step,
        "peak_bytes": seen.peak - base, "calls": len(operators.calls), "waits": dict(operators.waits),
        **busiest(seen.profile, device),
    }  # fmt: skip
    if device == "cuda":
        record["synchronisations"] = dict(seen.synchronisations)
        record["busy_over_step"] = record["busy"] / step
    return record


def row(name: str, found: Mapping[str, Any]) -> list[str]:
    """Of the table."""
    cells = [
        f"`{name}`: {found['told']}, {found['precision']}", shown(found["step_ms"], 0), f"{found['flops'] / 1e9:.0f}",
        f"{found['of_matrix_rate']:.2f}", f"{found['bytes'] / 1e9:.1f}", f"{found['of_bandwidth']:.2f}",
        f"{found['bound_over_step']:.2f}", f"{found['peak_bytes'] / 2**20:.0f}", str(found["calls"]),
        str(sum(found["waits"].values())),
    ]  # fmt: skip
    if "launches" in found:
        waits = sum(found["synchronisations"].values())
        cells += [str(found["launches"]), f"{found['busy_over_step']:.2f}", str(waits)]
    return cells


HEADER = [
    "method", "step, ms", "GFLOP", "/ matrix products", "GB, estimated", "/ copies", "limit / step", "peak, MiB",
    "ATen calls", "values read",
]  # fmt: skip
ON_A_GPU = ["launches", "GPU busy", "synchronisations"]


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--methods", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=0, help="of a round; 1 on a CPU, else 10, by default")
    parser.add_argument(
        "--images", type=int, default=0, help="of a batch: clips, volumes, images of each domain"
    )
    parser.add_argument("--crop", type=int, default=0, help="its side in pixels or voxels; frames of a clip")
    parser.add_argument("--precision", default="", help="the recipe's by default, on a CPU 32-true")
    parser.add_argument("--matmul", choices=("highest", "high"), default="highest")
    given = parser.parse_args()
    file = given.json or RESULTS / f"speed_roofline_{given.device}.json"
    steps = given.steps or (1 if given.device == "cpu" else 10)
    rows, failed = [], []
    for name in given.methods:
        alone = multiprocessing.get_context("spawn")  # fresh memory; CUDA cannot be forked
        with ProcessPoolExecutor(1, mp_context=alone) as pool:
            try:
                found = pool.submit(
                    measured, name, given.device, given.rounds, steps, given.images, given.crop, given.precision,
                    given.matmul,
                ).result()  # fmt: skip
            except Exception:
                traceback.print_exc()
                failed.append(name)
                continue
        keep(file, given.device, {name: found})
        rows.append(row(name, found))
        print(f"\n{name}, a step's operators: ", end="")
        print(", ".join(f"{o['name']} {o['share']:.0%} ({o['calls']})" for o in found["top"]))
        for kind in ("waits", "synchronisations"):
            for place, count in sorted(found.get(kind, {}).items()):
                print(f"  {kind}: {count} at {place}", flush=True)
    print(f"\n{markdown([*HEADER, *(ON_A_GPU if given.device == 'cuda' else [])], rows)}")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
