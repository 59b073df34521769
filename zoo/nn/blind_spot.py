"""Parts of blind-spot denoising: masked convolutions, phases, random sub-sampling, per-image normalisation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Standard deviation of a normal distribution cut off at two of its own.
_TRUNCATED = 0.87962566103423978


class MaskedConv2d(nn.Conv2d):
    """A convolution that can leave out its centre: one kernel, two masks (C-BSN, section 3.2).

    Zero padding keeps the size.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd, at least 3: side of the kernel.

    Raises:
        ValueError: a kernel without a centre, or with nothing around it.
    """

    hole: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size}: a kernel with a centre to mask is odd and at least 3"
            )
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        hole = torch.ones(1, 1, kernel_size, kernel_size)
        hole[..., kernel_size // 2, kernel_size // 2] = 0
        self.register_buffer("hole", hole, persistent=False)

    def forward(self, x: Tensor, blind: bool = False) -> Tensor:
        """Convolve ``[B, C, H, W]``; ``blind``: without the kernel's centre."""
        weight = self.weight * self.hole if blind else self.weight
        return F.conv2d(x, weight, self.bias, padding=self.padding)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions as released."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / module.weight[0].numel())
            if isinstance(module, MaskedConv2d):
                nn.init.normal_(module.weight, std=std)
            else:
                std /= _TRUNCATED
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def space_to_batch(x: Tensor, stride: int) -> Tensor:
    """The ``stride * stride`` phases of images ``[B, C, H, W]`` as images of their own.

    Phase (i, j) of image n is number ``(i * stride + j) * B + n``.

    Raises:
        ValueError: a side that is no multiple of the stride.
    """
    B, C, H, W = x.shape
    if H % stride or W % stride:
        raise ValueError(f"images of {H} x {W} pixels have no {stride} x {stride} phases of equal size")
    phases = x.view(B, C, H // stride, stride, W // stride, stride).permute(3, 5, 0, 1, 2, 4)
    return phases.reshape(stride * stride * B, C, H // stride, W // stride)


def batch_to_space(x: Tensor, stride: int) -> Tensor:
    """The inverse of :func:`space_to_batch`."""
    n, C, h, w = x.shape
    phases = x.view(stride, stride, n // stride**2, C, h, w).permute(2, 3, 4, 0, 5, 1)
    return phases.reshape(n // stride**2, C, h * stride, w * stride)


def draw_cells(image: Tensor, stride: int, generator: torch.Generator | None = None) -> Tensor:
    """Which pixel of every cell of ``stride * stride`` a sub-sampler takes, for images ``[B, C, H, W]``.

    Returns:
        int64 ``[B, H // stride, W // stride]``, row-major positions in the cell; equal for all channels.
    """
    B, _, H, W = image.shape
    size = (B, H // stride, W // stride)
    return torch.randint(stride**2, size, generator=generator, device=image.device)


def subsample(x: Tensor, cells: Tensor, stride: int) -> Tensor:
    """One pixel of every cell of images ``[B, C, H, W]``, that which ``cells`` names (RS of C-BSN, section 3.3).

    Args:
        x: images.
        cells: of :func:`draw_cells`.
        stride: side of a cell.

    Returns:
        ``[B, C, H // stride, W // stride]``.

    Raises:
        ValueError: a side that is no multiple of the stride.
    """
    B, C, H, W = x.shape
    if H % stride or W % stride:
        raise ValueError(f"images of {H} x {W} pixels have no whole cells of {stride} x {stride}")
    pixels = x.view(B, C, H // stride, stride, W // stride, stride).permute(0, 1, 2, 4, 3, 5).flatten(4)
    index = cells[:, None, :, :, None].expand(-1, C, -1, -1, -1)
    return pixels.gather(4, index)[..., 0]


def image_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of every image, each ``[B, C, 1, 1]``.

    Deviations divide by N and are at least ``1 / sqrt(H * W)``: 1/P for crops of side P, as released.
    """
    H, W = image.shape[-2:]
    mean = image.mean((2, 3), keepdim=True)
    variance = (image - mean).square().mean((2, 3), keepdim=True)
    return mean, variance.sqrt().clamp(min=1 / math.sqrt(H * W))


def normalised(image: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` with zero mean and unit deviation in every channel."""
    mean, std = image_statistics(image)
    return (image - mean) / std


def reflect_pad(image: Tensor, pixels: int) -> Tensor:
    """Images ``[B, C, H, W]`` continued by their mirror image, by fewer pixels where they have no more to mirror."""
    rows, columns = (min(pixels, side - 1) for side in image.shape[-2:])
    return F.pad(image, (columns, columns, rows, rows), mode="reflect")
