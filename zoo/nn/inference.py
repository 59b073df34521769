"""How a segmentation network is run on whole images: at once, in windows, at several scales, mirrored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Network = Callable[[Tensor], Tensor]


@dataclass
class Inference:
    """Whole or sliding-window inference, with test-time augmentation where more than one view is asked for.

    The arithmetic is that of mmsegmentation 0.16, on which the released DAFormer, FST and SePiCo stand: windows
    lie on a grid whose last row and column end at the image's border, overlapping logits are averaged, and the
    mean is resized to the stored size. A window larger than the image is cut to it; nothing is padded. Of
    several views (scales, each plain and mirrored) the softmax at the stored size is averaged.

    Args:
        window: height and width of the windows; ``None`` takes the whole image at once.
        stride: their distances, down and across; ``None``: two thirds of the window, rounded up.
        window_batch: windows of every image that go through the network together.
        scales: factors on the image's sides, one view each.
        flip: add the mirrored image to every view.
        average: of the views' ``probabilities`` or ``logits``.

    Raises:
        ValueError: an argument is out of range, or ``stride`` leaves gaps between windows.
    """

    window: Size | None = None
    stride: Size | None = None
    window_batch: int = 8
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    average: Literal["probabilities", "logits"] = "probabilities"

    def __post_init__(self) -> None:
        """Check the arguments; checkpoints hold lists for tuples."""
        self.scales = tuple(self.scales)
        if self.window is None and self.stride is not None:
            raise ValueError(f"inference.stride={self.stride} needs inference.window: set the windows' size")
        if self.window is not None:
            height, width = self.window
            down, across = self.stride or (math.ceil(2 / 3 * height), math.ceil(2 / 3 * width))
            if not (1 <= down <= height and 1 <= across <= width):
                raise ValueError(
                    f"inference.stride={(down, across)} must be within [1, window], and the window is "
                    f"{(height, width)}: a larger stride leaves pixels without prediction"
                )
            self.window, self.stride = (height, width), (down, across)
        if self.window_batch < 1:
            raise ValueError(f"inference.window_batch must be at least 1, got {self.window_batch}")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"inference.scales must name positive factors, got {list(self.scales)}")
        if self.average not in ("probabilities", "logits"):
            raise ValueError(f"inference.average must be 'probabilities' or 'logits', got {self.average!r}")

    def __call__(
        self, network: Network, image: Tensor, size: Size | None = None, align_corners: bool = False
    ) -> Tensor:
        """Predict a batch of images.

        Args:
            network: images ``[B, 3, h, w]`` → logits ``[B, C, h, w]``, in evaluation mode.
            image: ``[B, 3, H, W]`` in [0, 1].
            size: height and width of the result; ``None``: the images'.
            align_corners: of the resize of logits.

        Returns:
            Logits ``[B, C, *size]``; of several averaged views their logarithm of the mean probability, so that
            softmax gives probabilities in every case.
        """
        size = size or (image.shape[-2], image.shape[-1])
        views = len(self.scales) * (1 + self.flip)
        total: Tensor | None = None
        for view, mirrored in self._views(image):
            logits = _resize(self._logits(network, view), size, align_corners)
            if views == 1:
                return logits
            score = logits.float().softmax(1) if self.average == "probabilities" else logits.float()
            score = score.flip(-1) if mirrored else score
            total = score if total is None else total + score
        assert total is not None
        mean = total / views
        return mean if self.average == "logits" else mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """The resized images and whether they are mirrored."""
        height, width = image.shape[-2:]
        for scale in self.scales:
            resized = _resize(image, (int(height * scale + 0.5), int(width * scale + 0.5)), False)
            yield resized, False
            if self.flip:
                yield resized.flip(-1), True

    def _logits(self, network: Network, image: Tensor) -> Tensor:
        """Logits at the image's size, of the whole image or averaged over windows."""
        if self.window is None or self.stride is None:
            return network(image)
        sides = [min(window, side) for window, side in zip(self.window, image.shape[-2:], strict=True)]
        rows, columns = (
            window_starts(side, window, stride)
            for side, window, stride in zip(image.shape[-2:], sides, self.stride, strict=True)
        )
        windows = [
            (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
            for top in rows
            for left in columns
        ]
        total: Tensor | None = None
        for first in range(0, len(windows), self.window_batch):
            chunk = windows[first : first + self.window_batch]
            logits = network(torch.cat([image[window] for window in chunk]))
            if total is None:
                shape = (len(image), logits.shape[1], *image.shape[-2:])
                total = logits.new_zeros(shape, dtype=torch.promote_types(logits.dtype, torch.float32))
            for window, part in zip(chunk, logits.split(len(image)), strict=True):
                total[window] += part
        assert total is not None
        return total / _coverage(rows, columns, sides, total)


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side begin; the last one ends at the border."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, side) - window, 0) for number in range(count)]


def _coverage(rows: list[int], columns: list[int], sides: list[int], like: Tensor) -> Tensor:
    """By how many windows each pixel is covered, ``[H, W]``."""
    down, across = like.new_zeros(like.shape[-2]), like.new_zeros(like.shape[-1])
    for counts, starts, side in ((down, rows, sides[0]), (across, columns, sides[1])):
        for start in starts:
            counts[start : start + side] += 1
    return down[:, None] * across


def _resize(image: Tensor, size: Size, align_corners: bool) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=align_corners)
