"""Base crops and random crops of volumes for contextual position prediction, cut on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.positions import base_boxes
from zoo.nn.ranks import this_rank
from zoo.nn.volume_turns import draw_turns, draw_within, per_volume, turned


class VolumeCrops(nn.Module):
    """Cut a batch of volumes into the cells of a grid, and take random crops as large as a cell.

    Volumes are first brought to the size of the grid, ``grid * crop`` voxels. Rule for other sizes: ``crop`` pads
    short axes with zeros on both sides (as MONAI's ``SpatialPad``; so does a volume smaller than one crop) and
    takes a random piece of long ones, another for every volume; ``resize`` interpolates trilinearly to exactly
    that size. Random crops have their centre anywhere between half a crop and the border less half a crop, on
    integers, the upper end excluded; with one cell along an axis they lie as the cell does.

    Every crop and every base is then flipped, turned and shifted in brightness on its own. Their boxes, and with
    them the labels, stay as they were cut, as released. Draws are made on the host from torch's global generator
    and the rank, the work is done for all crops of a batch together on their device.

    Args:
        crop: sides of a crop in voxels, even numbers, in the order of the volume's axes.
        grid: cells along every axis.
        num_crops: random crops of every volume.
        resize: sides to which cut crops are resized (the conference version cuts 96 and trains with 64).
        fit: what to do with volumes of another size, ``crop`` or ``resize``.
        flip: probability of mirroring, for every axis.
        rotate: probability of one to three quarter turns in the plane of the first two axes.
        shift: brightness is moved within ``± shift``.
        shift_probability: probability of that (the conference version has 0.1).

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        crop: tuple[int, int, int] = (64, 64, 64),
        grid: tuple[int, int, int] = (3, 3, 1),
        num_crops: int = 2,
        resize: tuple[int, int, int] | None = None,
        fit: Literal["crop", "resize"] = "crop",
        flip: float = 0.2,
        rotate: float = 0.2,
        shift: float = 0.1,
        shift_probability: float = 0.5,
    ) -> None:
        super().__init__()
        if min(crop) < 2 or any(side % 2 for side in crop):
            raise ValueError(f"crop must be three even sides, got {list(crop)}")
        if min(*grid, num_crops) < 1 or max(grid) < 2:
            raise ValueError(
                f"grid={list(grid)} must have at least two cells, and num_crops={num_crops} be at least 1"
            )
        for name, value in {"flip": flip, "rotate": rotate, "shift_probability": shift_probability}.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is a probability, which lies within [0, 1]; got {value}")
        if fit not in ("crop", "resize"):
            raise ValueError(f"fit must be 'crop' or 'resize', got {fit!r}")
        sides = crop if resize is None else resize
        if rotate and sides[0] != sides[1]:
            raise ValueError(f"crops of {list(sides)} cannot be turned by a quarter: set rotate to 0")
        self.crop, self.grid, self.num_crops = tuple(crop), tuple(grid), num_crops
        self.resize, self.fit = None if resize is None else tuple(resize), fit
        self.flip, self.rotate, self.shift, self.shift_probability = flip, rotate, shift, shift_probability

    @property
    def size(self) -> tuple[int, ...]:
        """Sides of the volume that the grid covers."""
        return tuple(cells * side for cells, side in zip(self.grid, self.crop, strict=True))

    def forward(self, volume: Tensor) -> dict[str, Tensor]:
        """Cut volumes ``[B, C, X, Y, Z]``, float in [0, 1].

        Returns:
            ``crops`` ``[B, n, C, *sides]``, ``base`` ``[B, m, C, *sides]``, their boxes ``crop_box`` ``[B, n, 6]``
            and ``base_box`` ``[B, m, 6]``, int64 in voxels of ``volume``, and ``volume`` ``[B, C, *size]``, the
            part of it that the grid covers.

        Raises:
            TypeError: the volumes are not float.
            ValueError: they have no five axes.
        """
        if volume.dim() != 5:
            raise ValueError(f"volume has shape {list(volume.shape)}: expected [B, C, X, Y, Z]")
        if not volume.is_floating_point():
            raise TypeError(f"volume must be float in [0, 1], got {volume.dtype}: window intensities first")
        rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())) + this_rank())
        volume = self.fitted(volume, rng)
        B = len(volume)
        starts = self.draw_starts(B, rng)
        crops = torch.stack([torch.stack([self._cut(v, s) for s in of]) for v, of in zip(volume, starts)])  # noqa: B905
        base = self._cells(volume)
        n, m = crops.shape[1], base.shape[1]
        views = self.augment(self._resized(torch.cat((crops, base), 1).flatten(0, 1)), rng)
        views = views.unflatten(0, (B, n + m))
        start = torch.tensor(starts).to(volume.device, non_blocking=True)
        sides = torch.tensor(self.crop, device=volume.device)
        return {
            "volume": volume,
            "crops": views[:, :n],
            "base": views[:, n:],
            "crop_box": torch.cat((start, start + sides), -1),
            "base_box": base_boxes(self.crop, self.grid, volume.device).expand(B, -1, -1),
        }

    def fitted(self, volume: Tensor, rng: torch.Generator) -> Tensor:
        """Volumes brought to :attr:`size`, see the class."""
        if tuple(volume.shape[2:]) == self.size:
            return volume
        if self.fit == "resize":
            return F.interpolate(volume, self.size, mode="trilinear", align_corners=True)
        short = [max(want - have, 0) for want, have in zip(self.size, volume.shape[2:], strict=True)]
        volume = F.pad(volume, [side for gap in reversed(short) for side in (gap // 2, gap - gap // 2)])
        room = [have - want for want, have in zip(self.size, volume.shape[2:], strict=True)]
        starts = _draw(len(volume), [space + 1 for space in room], rng).tolist()
        return torch.stack([self._piece(v, s, self.size) for v, s in zip(volume, starts, strict=True)])

    def draw_starts(self, batch: int, rng: torch.Generator) -> list[list[list[int]]]:
        """First voxels of the random crops of every volume, ``batch`` × ``num_crops`` × 3."""
        room = [max(size - side, 1) for size, side in zip(self.size, self.crop, strict=True)]
        return _draw(batch * self.num_crops, room, rng).view(batch, self.num_crops, 3).tolist()

    def augment(self, views: Tensor, rng: torch.Generator) -> Tensor:
        """Flip, turn and shift crops ``[N, C, *sides]``, each on its own."""
        turns = draw_turns(len(views), self.flip, self.rotate, generator=rng)
        offset = draw_within(len(views), self.shift, self.shift_probability, rng)
        return turned(views, turns) + per_volume(offset, views)

    def _cells(self, volume: Tensor) -> Tensor:
        """All cells of the grid ``[B, m, C, *crop]``."""
        (B, C), (a, b, c), (x, y, z) = volume.shape[:2], self.grid, self.crop
        return volume.view(B, C, a, x, b, y, c, z).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(B, -1, C, x, y, z)

    def _cut(self, volume: Tensor, start: Sequence[int]) -> Tensor:
        return self._piece(volume, start, self.crop)

    @staticmethod
    def _piece(volume: Tensor, start: Sequence[int], sides: Sequence[int]) -> Tensor:
        return volume[(slice(None), *(slice(s, s + side) for s, side in zip(start, sides, strict=True)))]

    def _resized(self, views: Tensor) -> Tensor:
        if self.resize is None:
            return views
        return F.interpolate(views, self.resize, mode="trilinear", align_corners=True)


def _draw(count: int, ends: Sequence[int], rng: torch.Generator) -> Tensor:
    """Integers from 0 up to, not including, the end of each axis, int64 ``[count, axes]``, on the host."""
    return torch.stack([torch.randint(end, (count,), generator=rng) for end in ends], 1)
