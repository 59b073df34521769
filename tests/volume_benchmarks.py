"""The volume benchmarks on their miniature trees, ready to be asked for batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import (
    AMOS22,
    BTCV,
    FLARE22,
    LUNA16,
    MSD,
    DecathlonVolumes,
    PreCT,
    VolumeDataModule,
    VolumeFolders,
)
from tests import tiny_volumes as tiny


class Halves(nn.Module):
    """A stand-in for VolumeCrops that shows what it was given, and draws."""

    def forward(self, volume: Tensor) -> dict[str, Tensor]:
        assert volume.dtype == torch.float32
        return {"crops": volume[:, None, :, ::2], "drawn": torch.rand(len(volume))}


BENCHMARKS: dict[str, tuple[Any, Any]] = {
    "btcv": (BTCV, tiny.btcv_tree),
    "msd": (MSD, tiny.msd_tree),
    "amos22": (AMOS22, tiny.amos22_tree),
    "flare22": (FLARE22, tiny.flare22_tree),
    "luna16": (LUNA16, tiny.luna16_tree),
    "prect": (PreCT, tiny.prect_tree),
    "decathlon": (DecathlonVolumes, tiny.msd_tree),
    "folders": (VolumeFolders, tiny.msd_tree),
}
LABELLED = ("btcv", "msd", "amos22", "flare22", "decathlon", "folders")


def ready(name: str, root: Path, stage: str | None = "fit", **settings: Any) -> VolumeDataModule:
    cls, tree = BENCHMARKS[name]
    cache = str(root / "processed")
    defaults = {**tiny.MINI, "cache_folder": cache, "crop": (8, 8, 8), "batch_size": 1, "num_crops": 2}
    if name in ("msd", "luna16", "prect"):
        defaults["num_val"] = 1
    data = cls(root=str(tree(root / "tree")), **{**defaults, **settings})
    data.prepare_data()
    data.setup(stage)
    return data


def train_batch(data: Any) -> dict[str, Any]:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
