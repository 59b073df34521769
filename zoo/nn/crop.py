"""Windows of unlabelled images, chosen by what their pseudo-labels hold."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Rule = Literal["balanced", "first"]


class ClassBalancedCrop(nn.Module):
    """Draw windows per image and keep the one whose pseudo-classes are many and even.

    A window in which one class reaches ``max_share`` of the pixels scores 0; any other scores the sum of
    ``log n_c`` over the classes with more than one pixel. ``balanced`` keeps the best of all ``tries`` (the
    first one of equals), ``first`` the first that scores, or the last one. Xie et al., "SePiCo" (TPAMI 2023),
    class-balanced cropping, as released.

    Args:
        num_classes: number of classes C.
        rule: which window to keep.
        max_share: share of a window's pixels that no class may reach.
        tries: windows drawn per image.
    """

    def __init__(
        self, num_classes: int, rule: Rule = "balanced", max_share: float = 0.75, tries: int = 10
    ) -> None:
        super().__init__()
        if rule not in ("balanced", "first"):
            raise ValueError(f"rule must be 'balanced' or 'first', got {rule!r}")
        self.num_classes, self.rule, self.max_share, self.tries = num_classes, rule, max_share, tries

    def forward(self, label: Tensor, size: tuple[int, int]) -> Tensor:
        """Choose a window of ``size`` for every label map, int64 ``[B, H, W]``.

        Returns:
            (top, left) of the windows, int64 ``[B, 2]``; take the pixels with :func:`window`.

        Raises:
            ValueError: the maps are smaller than the window.
        """
        height, width = label.shape[-2:]
        if height < size[0] or width < size[1]:
            raise ValueError(
                f"cannot cut windows of {size[0]}x{size[1]} from images of {height}x{width}: make the "
                "unlabelled images at least as large as the labelled crops"
            )
        corners = self.corners(len(label), height - size[0], width - size[1]).to(
            label.device, non_blocking=True
        )
        score = self.scores(label, corners, size)
        if self.rule == "first":
            score = (score > 0).float()
            score[:, -1] = 1.0
        best = score.argmax(1)
        return corners.gather(1, best.view(-1, 1, 1).expand(-1, 1, 2))[:, 0]

    def corners(self, count: int, last_top: int, last_left: int) -> Tensor:
        """Draw the windows' corners ``[count, tries, 2]`` as (top, left), on the CPU."""
        top = torch.randint(last_top + 1, (count, self.tries))
        left = torch.randint(last_left + 1, (count, self.tries))
        return torch.stack((top, left), 2)

    def scores(self, label: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
        """Score windows ``[B, tries]``, see the class."""
        views = label[:, None].expand(-1, corners.shape[1], -1, -1)
        pixels = window(views, corners, size).flatten(2)
        counts = torch.zeros(*pixels.shape[:2], self.num_classes, device=label.device)
        counts.scatter_add_(2, pixels, torch.ones_like(pixels, dtype=counts.dtype))
        mixed = counts.amax(2) / counts.sum(2) < self.max_share
        return counts.clamp(min=1).log().sum(2) * mixed


def window(maps: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a window of ``size`` out of each map, without asking the device where.

    Args:
        maps: ``[B, C, H, W]``.
        corner: (top, left), int64 ``[B, C, 2]``, or ``[B, 1, 2]`` for one window an image.
        size: height and width.

    Returns:
        ``[B, C, height, width]``.
    """
    image, channel, row, column = (torch.arange(n, device=corner.device) for n in (*maps.shape[:2], *size))
    return maps[
        image.view(-1, 1, 1, 1),
        channel.view(1, -1, 1, 1),
        corner[:, :, :1, None] + row.view(1, 1, -1, 1),
        corner[:, :, 1:, None] + column.view(1, 1, 1, -1),
    ]


def cut(part: dict[str, Any], corner: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Cut the same windows, corners ``[B, 2]``, out of all images ``[B, 3, H, W]`` of a part of a batch."""
    return {
        key: window(value, corner[:, None], size) if isinstance(value, Tensor) and value.dim() == 4 else value
        for key, value in part.items()
    }
