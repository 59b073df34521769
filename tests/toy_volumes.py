"""A 3-D network and volumes, small enough to train in seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import registry
from zoo.nn import VolumeCrops


class ToyNet(nn.Module):
    """Three maps at strides 1, 2 and 4; the middle one is not pooled, like Swin UNETR's last but one."""

    pooled = (0, 2)

    def __init__(self, in_chans: int = 1, width: int = 4) -> None:
        super().__init__()
        self.in_chans, self.channels, self.strides = in_chans, (width, width, 2 * width), (1, 2, 4)
        self.mean, self.std = (0.5,) * in_chans, (0.25,) * in_chans
        inputs = (in_chans, width, width)
        self.stages = nn.ModuleList(
            nn.Conv3d(i, o, 3, stride=2 if n else 1, padding=1)
            for n, (i, o) in enumerate(zip(inputs, self.channels, strict=True))
        )

    def forward_features(self, volume: Tensor) -> list[Tensor]:
        maps = [volume]
        for stage in self.stages:
            maps.append(stage(maps[-1]).relu())
        return maps[1:]

    forward = forward_features


def register_toy_net(monkeypatch: Any) -> None:
    """``toy_3d`` as a name of the registry, for one test."""
    monkeypatch.setattr(registry, "_backbones", dict(registry._own_backbones()))
    registry.register_backbone("toy_3d")(lambda pretrained=False, **kwargs: ToyNet(**kwargs))


VIEWS: dict[str, Any] = {"crop": (8, 8, 8), "grid": (3, 3, 1)}
SMALL: dict[str, Any] = {"backbone": "toy_3d", "hidden_dim": 16, "projection_dim": 8}


def textured(count: int, seed: int = 0) -> Tensor:
    """Volumes [count, 1, 24, 24, 8] of nine cells, each with a brightness and frequency of its own, and noise."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.arange(8)
    volume = torch.empty(24, 24, 8)
    for cell in range(9):
        x, y = 8 * (cell // 3), 8 * (cell % 3)
        stripes = torch.sin(z * (0.3 + 0.35 * (cell % 3))) * 0.15
        volume[x : x + 8, y : y + 8] = 0.15 + 0.35 * (cell // 3) + stripes
    return (volume + 0.03 * torch.randn(count, 1, 24, 24, 8, generator=rng)).clamp(0, 1)


def voco_batch(seed: int = 0, size: int = 2, **views: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return VolumeCrops(**{**VIEWS, **views})(textured(size, seed))


def loader(batches: list[dict[str, Any]]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
