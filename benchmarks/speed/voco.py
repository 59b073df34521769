"""What a batch of VoCo costs beside the step that learns from it, and the memory a voxel takes.

CPU seconds of one thread, or seconds of the clock on a GPU; the cost of a batch is cutting and augmenting crops, and
its position labels.

* ``embedded``: steps of a real Trainer over the files of `voco/embedded` (4 torsos, 64 crops of 16×16×32 voxels). The
  batch is timed inside the steps, so every step is a pair of its own.
* ``published``: two volumes of 192×192×64 voxels, 22 crops of 64³, Swin UNETR B. A step takes one core minutes; so the
  batch is compared with the mere forward of its crops, taken from two of them. A step is longer: the share is an
  upper bound.

Memory is what a step holds at most beyond what lies there between steps, per voxel of its crops; and what
sliding-window inference of a whole volume (9 classes) does, per voxel of the volume.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch

import zoo.methods.medical.voco as voco_module
from benchmarks.speed.paired import (
    STRICT_MALLOC,
    markdown,
    now,
    peak_bytes,
    reset_peak,
    shown,
    spread,
)
from benchmarks.training import quiet
from datamodules import TorsoPhantom
from datamodules.phantom import render
from zoo import create_backbone
from zoo.methods.medical.segmenter import VolumeSegmenter
from zoo.methods.medical.voco import VoCo
from zoo.nn import SlidingWindow, VolumeCrops
from zoo.nn.positions import overlap_labels
from zoo.nn.volume_networks import VolumeEncoder

SIZE = (192, 192, 64)
WARMUP = 1


class Clock(L.Callback):
    """Seconds of whole steps, loading included, and of the calls that lie in them; memory of every step."""

    def __init__(self, device: str) -> None:
        self.device, self.rows, self.open = device, [], dict[str, float]()
        self.start = self.rest = 0.0

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, whose time counts as ``name`` in the step it happens in."""

        def wrapped(*args: Any) -> Any:
            begun = now(self.device)
            result = call(*args)
            self.open[name] = self.open.get(name, 0.0) + now(self.device) - begun
            return result

        return wrapped

    def begin(self) -> None:
        self.start, self.open = now(self.device), {}
        reset_peak(self.device)
        self.rest = peak_bytes(self.device)

    def on_train_start(self, *_: object) -> None:
        self.begin()

    def on_train_batch_end(self, *_: object) -> None:
        step = now(self.device) - self.start
        self.rows.append({"step": step, **self.open, "bytes": peak_bytes(self.device) - self.rest})
        self.begin()


def embedded() -> tuple[VoCo, TorsoPhantom]:
    """The method and data of `voco/embedded`."""
    views = VolumeCrops((16, 16, 32), (4, 3, 1), 4)
    data = TorsoPhantom(style="both", batch_size=4, num_train=8, num_val=1, num_test=1, views=views)
    arguments = {"backbone_args": {"widths": [16, 32, 64, 128]}, "hidden_dim": 256, "projection_dim": 256}
    return VoCo("residual_unet", **arguments), data


def trainer(device: str, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip


def measure_embedded(steps: int, device: str) -> dict[str, Any]:
    """Share of the batch in real steps, and memory per voxel."""
    method, data = embedded()
    clock, views = Clock(device), data.views
    assert isinstance(views, VolumeCrops)
    views.forward = clock.timed("crops", views.forward)  # type: ignore[method-assign]
    labels = clock.timed("labels", overlap_labels)
    precision: Any = "32-true" if device == "cpu" else "bf16-mixed"
    run = trainer(device, max_steps=WARMUP + steps, callbacks=[clock], precision=precision)
    with patch.object(voco_module, "overlap_labels", labels):
        run.fit(method, datamodule=data)
    voxels = np.prod(views.crop) * (views.num_crops + np.prod(views.grid)) * data.batch_size
    rows = clock.rows[WARMUP:]
    volume = torch.rand(1, 1, *views.size, device=device)
    return {
        "share": spread([(row["crops"] + row["labels"]) / row["step"] for row in rows]),
        "step_s": statistics.median(row["step"] for row in rows),
        "train_bytes_per_voxel": statistics.median(row["bytes"] for row in rows) / float(voxels),
        "inference_bytes_per_voxel": inference_bytes(method, volume, device) / volume.numel(),
        "rows": rows,
    }


@torch.no_grad()
def measure_published(repeats: int, device: str, taken: int = 2) -> dict[str, Any]:
    """Upper bound of the batch's share at the release's sizes: beside a forward of all crops."""
    volume = torch.stack([torch.from_numpy(render(seed, size=SIZE)[0])[None] for seed in (0, 1)]).to(device)
    volume, views, rows = (volume.float() + 1000).clamp(0, 1500) / 1500, VolumeCrops(), []
    encoder = VolumeEncoder(create_backbone("swin_unetr_b", in_chans=1)).to(device).eval()
    for _ in range(WARMUP + repeats):
        clock = Clock(device)
        batch = clock.timed("crops", views)(volume)
        clock.timed("labels", overlap_labels)(batch["crop_box"], batch["base_box"])
        crops = torch.cat((batch["crops"], batch["base"]), 1).flatten(0, 1)
        clock.timed("forward", encoder)(crops[:taken])
        rows.append({**clock.open, "forward": clock.open["forward"] * len(crops) / taken})
    rows = rows[WARMUP:]
    costs = [row["crops"] + row["labels"] for row in rows]
    return {
        "share": spread([cost / (cost + row["forward"]) for cost, row in zip(costs, rows, strict=True)]),
        "step_s": statistics.median(row["forward"] for row in rows),
        "rows": rows,
    }


@torch.no_grad()
def inference_bytes(method: VoCo, volume: torch.Tensor, device: str) -> int:
    """Most bytes that predicting a volume holds beyond the network and the volume."""
    hparams = {key: method.hparams[key] for key in ("backbone", "backbone_args")}
    window = SlidingWindow((32, 32, 32), overlap=0.5, window_batch=4)
    segmenter = VolumeSegmenter(**hparams, num_classes=9, inference=window).to(device).eval()
    reset_peak(device)
    rest = peak_bytes(device)
    segmenter(volume)
    return peak_bytes(device) - rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="of the embedded scale")
    parser.add_argument("--repeats", type=int, default=3, help="of the published scale")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if STRICT_MALLOC.items() - os.environ.items():  # read when a process starts
        module = [sys.executable, "-m", "benchmarks.speed.voco", *sys.argv[1:]]
        os.execve(sys.executable, module, {**os.environ, **STRICT_MALLOC})
    quiet()
    L.seed_everything(0, verbose=False)
    found = {
        "embedded": measure_embedded(arguments.steps, arguments.device),
        "published": measure_published(arguments.repeats, arguments.device),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    rows = []
    for scale, result in found.items():
        share = {key: 100 * value for key, value in result["share"].items()}
        rows.append([scale, f"{result['step_s']:.2f}", shown(share)])
    print(markdown(["scale", "step (published: forward), s", "crops and labels, % of it"], rows))
    for kind in ("train", "inference"):
        print(f"{kind}: {found['embedded'][f'{kind}_bytes_per_voxel']:.0f} bytes a voxel")
    if slow := [scale for scale, result in found.items() if result["share"]["median"] >= 0.25]:
        raise SystemExit(f"crops and labels cost a quarter of a step or more: {slow}")


if __name__ == "__main__":
    main()
