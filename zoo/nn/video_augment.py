"""Augmentation of videos in batches on the device; every frame of a clip is changed alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.transforms import v2

from zoo.nn.audio_augment import multi_hot
from zoo.nn.multicrop import random_boxes
from zoo.nn.ranks import this_rank


class MultiScaleCrop(nn.Module):
    """Crops whose height and width are each a share of the frame, resized to it (VideoMAE and HiCMAE, pre-training).

    The two shares are the same or neighbours in the list. A crop lies at one of 13 places: corners, middles of sides,
    the centre, and the centres of the quarters.

    Args:
        shares: of the side, descending.
        flip: probability that a clip is mirrored.

    Raises:
        ValueError: an option out of range.
    """

    #: Places of a crop, in quarters of what it leaves free above and to the left.
    places = (
        *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4)),
        *((4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)),
    )

    def __init__(self, shares: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66), flip: float = 0.0) -> None:
        super().__init__()
        if not shares or not all(0 < share <= 1 for share in shares) or not 0 <= flip <= 1:
            raise ValueError(f"shares={list(shares)} must lie in (0, 1], flip={flip} in [0, 1]")
        self.shares, self.flip = tuple(shares), flip

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Crop ``video`` ``[B, C, T, side, side]``; everything else stays."""
        video, rng = batch["video"], own_draws()
        B, (height, width) = len(video), video.shape[-2:]
        n = len(self.shares)
        pairs = [(a, b) for a in range(n) for b in range(n) if abs(a - b) <= 1]
        chosen = np.array(pairs)[rng.integers(len(pairs), size=B)]
        sides = np.array(self.shares)[chosen] * (height, width)
        sides = np.floor(sides)
        quarter = ((height, width) - sides) // 4
        corners = np.array(self.places)[rng.integers(len(self.places), size=B)] * quarter
        boxes = torch.from_numpy(np.concatenate((corners, sides), 1))
        mirrored = torch.from_numpy(rng.random(B) < self.flip)
        return {**batch, "video": crop_video(video, boxes, mirrored)}


class VideoAugment(nn.Module):
    """The augmentation of VideoMAE and HiCMAE in fine-tuning: RandAugment, crop, flip, erasing, mixing of clips.

    Mixing changes videos and labels alone, as released: the sound stays that of one clip. One share is drawn for the
    batch, and clip i is mixed with clip B - 1 - i. Labels become float ``[B, C]``.

    RandAugment is torchvision's; that of the release has a few other operations, and applies each with probability
    0.5. Its strength 7 of 10 is 21 of torchvision's 31.

    Args:
        num_classes: C; only needed to mix.
        operations: of RandAugment; 0: none.
        magnitude: their strength, of 31.
        crop_scale: (least, largest) share of the area that is seen. The release has 0.08, as for actions.
        flip: probability that a clip is mirrored.
        erase: probability that a rectangle of a clip is filled with noise.
        mixup: alpha of the share in mixing whole videos; 0: none.
        cutmix: the same of pasting a rectangle; with both, each has a chance of one half.

    Raises:
        ValueError: an option out of range, or mixing without ``num_classes``.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        operations: int = 4,
        magnitude: int = 21,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        erase: float = 0.25,
        mixup: float = 0.8,
        cutmix: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= flip <= 1 or not 0 <= erase <= 1 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(
                f"flip={flip} and erase={erase} must lie in [0, 1], crop_scale={tuple(crop_scale)} ascend in (0, 1]"
            )
        if min(operations, mixup, cutmix) < 0 or not 0 <= magnitude <= 30:
            raise ValueError(
                f"operations={operations}, mixup={mixup} and cutmix={cutmix} must not be negative, "
                f"magnitude={magnitude} lie in 0..30"
            )
        if (mixup or cutmix) and num_classes is None:
            raise ValueError("mixup and cutmix mix labels: set num_classes, or both to 0")
        self.num_classes, self.flip, self.erase = num_classes, flip, erase
        self.crop_scale = (crop_scale[0], crop_scale[1])
        self.mixup, self.cutmix = mixup, cutmix
        self.random = v2.RandAugment(operations, magnitude) if operations else None

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Change ``video`` float ``[B, 3, T, height, width]`` in [0, 1] and, where clips are mixed, ``label``.

        Raises:
            ValueError: clips without labels, or with numbers in place of classes, are to be mixed.
        """
        video, rng = batch["video"], own_draws()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        if self.random is not None:
            video = self._by_randaugment(video, int(rng.integers(2**62)))
        size = torch.tensor(video.shape[-2:]).expand(len(video), 2)
        boxes = random_boxes(size, self.crop_scale, (3 / 4, 4 / 3), generator)
        video = crop_video(video, boxes, torch.rand(len(video), generator=generator) < self.flip)
        if self.erase:
            boxes = random_boxes(size, (0.02, 1 / 3), (0.3, 1 / 0.3), generator)
            boxes[torch.rand(len(video), generator=generator) >= self.erase] = 0
            video = torch.where(within_boxes(boxes.to(video.device), video), _noise_like(video), video)
        if not (self.mixup or self.cutmix):
            return {**batch, "video": video}
        return {**batch, **self._mixed(video, batch.get("label"), rng)}

    def _by_randaugment(self, video: Tensor, seed: int) -> Tensor:
        """Every clip by operations of its own, in bytes as torchvision's tables expect."""
        assert self.random is not None
        frames = (video.transpose(1, 2) * 255).round().byte()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed = torch.stack([self.random(clip) for clip in frames])
        return changed.transpose(1, 2).float() / 255

    def _mixed(self, video: Tensor, label: Tensor | None, rng: np.random.Generator) -> dict[str, Tensor]:
        if label is None or label.is_floating_point():
            raise ValueError(
                "mixup and cutmix need class labels in training batches: set both to 0 in video_augment"
            )
        assert self.num_classes is not None
        cuts = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = float(rng.beta(alpha, alpha))
        if cuts:
            box = _cut_box(video.shape[-2], video.shape[-1], share, rng)
            inside = within_boxes(torch.tensor([box], device=video.device), video)
            mixed = torch.where(inside, video.flip(0), video)
            share = 1 - box[2] * box[3] / (video.shape[-2] * video.shape[-1])
        else:
            mixed = share * video + (1 - share) * video.flip(0)
        target = multi_hot(label, self.num_classes)
        return {"video": mixed, "label": share * target + (1 - share) * target.flip(0)}


def own_draws() -> np.random.Generator:
    """Random numbers of one call: from torch's global generator, other ones on each rank."""
    return np.random.default_rng([int(torch.randint(2**62, ())), this_rank()])


def crop_video(video: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Boxes of videos, resized to the whole frame (bilinear) and some of them mirrored.

    Args:
        video: float ``[B, C, T, height, width]``.
        boxes: (top, left, height, width) in pixels, ``[B, 4]`` on the host.
        mirrored: bool ``[B]`` on the host.
    """
    height, width = video.shape[-2:]
    top, left, tall, wide = boxes.to(torch.float32).T

    def line(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Places within -1 and 1 of pixel centres, ``[B, size]``."""
        centres = (torch.arange(size) + 0.5) / size
        return 2 * (start[:, None] + length[:, None] * centres) / size - 1

    across = line(left, wide, width)
    across = torch.where(mirrored[:, None], across.flip(1), across)
    down = line(top, tall, height)[:, :, None].expand(-1, -1, width)
    grid = torch.stack((across[:, None].expand(-1, height, -1), down), -1).to(video.device)
    flat = F.grid_sample(video.flatten(1, 2), grid, padding_mode="border", align_corners=False)
    return flat.unflatten(1, video.shape[1:3])


def within_boxes(boxes: Tensor, video: Tensor) -> Tensor:
    """Bool ``[B, 1, 1, height, width]``: which pixels lie in boxes (top, left, height, width), ``[B, 4]``."""
    rows, columns = (torch.arange(size, device=video.device) for size in video.shape[-2:])
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    down, across = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    return (down[:, :, None] & across[:, None, :])[:, None, None]


def _noise_like(video: Tensor) -> Tensor:
    """Normal noise as networks see it, so with ImageNet's mean and spread in [0, 1]."""
    mean, std = (
        torch.tensor(v, device=video.device).view(-1, 1, 1, 1)
        for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return mean + std * torch.randn_like(video)


def _cut_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A rectangle of ``1 - share`` of the area, cut at the borders: (top, left, height, width)."""
    tall, wide = (int(side * (1 - share) ** 0.5) for side in (height, width))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(y - tall // 2, 0), max(x - wide // 2, 0)
    return top, left, min(y + tall // 2, height) - top, min(x + wide // 2, width) - left
