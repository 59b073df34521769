"""What a batch of VoCo costs beside the step that learns from it, and the memory a voxel takes.

Steps of a real Trainer over real files, CPU seconds of one thread (seconds of the clock on a GPU). Of every step are
timed, nested in it: cutting and augmenting the crops, and the position labels. So each step is its own pair, and
the share of a run is the median over its steps. Two scales:

* ``embedded``: `voco/embedded` as it is, four torsos, 64 crops of 16×16×32 voxels;
* ``published``: two volumes of 192×192×64 voxels, 22 crops of 64³, through Swin UNETR. On one core it has feature size
  12 in place of 48: the step is cheaper than the published one and the same batch weighs more, so the share
  is an upper bound of the published one's.

Memory is what a step holds at most beyond what lies there between steps, per voxel of its crops; and what
sliding-window inference of a whole volume (9 classes) does, per voxel of the volume.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch

import zoo.methods.medical.voco as voco_module
from benchmarks.speed.paired import markdown, now, peak_bytes, reset_peak, spread
from datamodules import TorsoPhantom, VolumeDataModule, VolumeFolders
from datamodules.phantom import AFFINE, render
from datamodules.volume_files import write_nifti
from datamodules.volume_processing import Processing
from zoo.methods.medical.segmenter import VolumeSegmenter
from zoo.methods.medical.voco import VoCo
from zoo.nn import SlidingWindow, VolumeCrops

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


@contextmanager
def embedded(device: str, feature_size: int) -> Iterator[tuple[VoCo, VolumeDataModule]]:
    """The method and data of `voco/embedded`."""
    views = VolumeCrops((16, 16, 32), (4, 3, 1), 4)
    data = TorsoPhantom(style="both", batch_size=4, num_train=8, num_val=1, num_test=1, views=views)
    arguments = {"backbone_args": {"widths": [16, 32, 64, 128]}, "hidden_dim": 256, "projection_dim": 256}
    yield VoCo("residual_unet", **arguments), data


@contextmanager
def published(device: str, feature_size: int) -> Iterator[tuple[VoCo, VolumeDataModule]]:
    """The release's geometry, on torsos of its size."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(4):
            volume, _ = render(seed, size=SIZE)
            write_nifti(Path(folder) / f"images/torso_{seed}.nii.gz", volume, AFFINE)
        data = VolumeFolders(
            root=folder, images="images", batch_size=2, num_workers=0, crop=SIZE, views=VolumeCrops(), seed=0,
            cache_folder=f"{folder}/cache",
            processing=Processing(spacing=None, window=(-1000.0, 500.0), crop_foreground=False),
        )  # fmt: skip
        arguments = {"feature_size": feature_size, "checkpointing": True}
        yield VoCo("swin_unetr_b", backbone_args=arguments), data


SCALES = {"embedded": embedded, "published": published}


def trainer(device: str, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip


def measure(scale: str, steps: int, device: str, feature_size: int) -> dict[str, Any]:
    """Rows of one scale, its shares and its memory per voxel."""
    L.seed_everything(0, verbose=False)
    clock = Clock(device)
    with SCALES[scale](device, feature_size) as (method, data):
        views: Any = data.views
        views.forward = clock.timed("crops", views.forward)
        labels = clock.timed("labels", voco_module.overlap_labels)
        precision = "32-true" if device == "cpu" else "bf16-mixed"
        with patch.object(voco_module, "overlap_labels", labels):
            trainer(device, max_steps=WARMUP + steps, callbacks=[clock], precision=precision).fit(
                method, datamodule=data
            )
        crops = np.prod(views.crop) * (views.num_crops + np.prod(views.grid)) * data.batch_size
        volume = torch.rand(1, 1, *(data.crop or (64, 48, 32)), device=device)
        inference = inference_bytes(method, volume, device)
    rows = clock.rows[WARMUP:]
    shares = [(row["crops"] + row["labels"]) / row["step"] for row in rows]
    return {
        "rows": rows,
        "share": spread(shares),
        "step_s": statistics.median(row["step"] for row in rows),
        "train_bytes_per_voxel": statistics.median(row["bytes"] for row in rows) / float(crops),
        "inference_bytes_per_voxel": inference / volume.numel(),
    }


@torch.no_grad()
def inference_bytes(method: VoCo, volume: torch.Tensor, device: str) -> int:
    """Most bytes that predicting a volume holds beyond the network and the volume."""
    hparams = {key: method.hparams[key] for key in ("backbone", "backbone_args")}
    side = 64 if hparams["backbone"].startswith("swin") else 32
    window = SlidingWindow((side, side, side), overlap=0.5, window_batch=4)
    segmenter = VolumeSegmenter(**hparams, num_classes=9, inference=window).to(device).eval()
    reset_peak(device)
    rest = peak_bytes(device)
    segmenter(volume)
    return peak_bytes(device) - rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=list(SCALES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--feature-size", type=int, default=12, help="of Swin UNETR; published: 48")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {}
    for scale in arguments.scales:
        found[scale] = measure(scale, arguments.steps, arguments.device, arguments.feature_size)
        if arguments.json:
            arguments.json.write_text(json.dumps({"feature_size": arguments.feature_size, **found}, indent=1))
    header = [
        "scale",
        "step, s",
        "crops and labels, % of it",
        "training, bytes a voxel",
        "inference, bytes a voxel",
    ]
    rows = []
    for scale, result in found.items():
        percent = {key: 100 * value for key, value in result["share"].items()}
        shown = f"{percent['median']:.2f} ({percent['min']:.2f} to {percent['max']:.2f})"
        sizes = [f"{result[f'{kind}_bytes_per_voxel']:.0f}" for kind in ("train", "inference")]
        rows.append([scale, f"{result['step_s']:.2f}", shown, *sizes])
    print(markdown(header, rows))
    if slow := [scale for scale, result in found.items() if result["share"]["median"] >= 0.25]:
        raise SystemExit(f"crops and labels cost a quarter of a step or more: {slow}")


if __name__ == "__main__":
    main()
