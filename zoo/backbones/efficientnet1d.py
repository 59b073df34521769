"""EfficientNet for signals: inverted residual blocks of one-dimensional convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import register_backbone

#: Blocks of the body: width in units, kernel (``short`` or ``long``), stride of the first, how many.
STAGES = (
    (4, "short", 1, 1),
    (5, "short", 2, 2),
    (7, "long", 2, 2),
    (9, "short", 2, 3),
    (11, "long", 2, 3),
    (14, "long", 2, 4),
    (18, "long", 1, 1),
)


class ConvNorm1d(nn.Module):
    """Convolution without bias, padded with zeros by ``(k - 1) // 2``, and batch norm.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: taps k.
        stride: of the convolution.
        groups: of its channels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm1d(outputs, eps=1e-3, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, T]`` → ``[B, outputs, T / stride]``."""
        return self.norm(self.conv(x))


class MBConv1d(nn.Module):
    """Inverted residual block: expand, convolve channel by channel, squeeze and excite, reduce.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: taps of the depthwise convolution.
        stride: of the same; a block with stride 1 and equal channels has a residual connection.
        expansion: of the channels within; 1 leaves the expanding convolution out.
        se_ratio: squeezed channels, as a share of the expanded ones.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        expansion: int = 7,
        se_ratio: float = 0.25,
    ) -> None:
        super().__init__()
        width = inputs * expansion
        squeezed = max(1, int(width * se_ratio))
        self.expand = ConvNorm1d(inputs, width) if expansion != 1 else None
        self.depthwise = ConvNorm1d(width, width, kernel, stride, groups=width)
        self.squeeze = nn.Conv1d(width, squeezed, 1)
        self.excite = nn.Conv1d(squeezed, width, 1)
        self.reduce = ConvNorm1d(width, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, T]`` → ``[B, outputs, T / stride]``."""
        y = x if self.expand is None else F.silu(self.expand(x))
        y = F.silu(self.depthwise(y))
        gate = self.excite(F.silu(self.squeeze(y.mean(2, keepdim=True)))).sigmoid()
        y = self.reduce(gate * y)
        return x + y if self.residual else y


class EfficientNet1d(nn.Module):
    """The encoder of wearable biosignals (Abbaspourazad et al., ICLR 2024), as released with its successor.

    A convolution of stride 2, 16 inverted residual blocks, a pointwise convolution, and the mean over time. Widths are
    multiples of ``embed_dim / 36``, cut to integers. With 256 dimensions, expansion 7 and four channels (PPG) it has
    3.15 M parameters.

    Args:
        in_chans: channels C of the signal.
        embed_dim: width D of the embedding, at least 36.
        expansion: of the inverted residual blocks behind the first.
        kernel_size: k of the short kernels, odd; the long ones have ``2k - 1`` taps.
        se_ratio: see :class:`MBConv1d`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        in_chans: int = 4,
        embed_dim: int = 256,
        expansion: int = 7,
        kernel_size: int = 3,
        se_ratio: float = 0.25,
    ) -> None:
        super().__init__()
        if min(in_chans, expansion) < 1 or embed_dim < 36 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"in_chans={in_chans} and expansion={expansion} must be at least 1, embed_dim={embed_dim} at least 36, "
                f"kernel_size={kernel_size} odd"
            )
        if not 0.0 < se_ratio <= 1.0:
            raise ValueError(f"se_ratio={se_ratio} must lie in (0, 1]")

        def width(units: int) -> int:
            return int(embed_dim / 36 * units)

        self.in_chans, self.embed_dim = in_chans, width(36)
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans
        kernels = {"short": kernel_size, "long": 2 * kernel_size - 1}
        self.stem = ConvNorm1d(in_chans, width(6), kernel_size, stride=2)
        self.blocks = nn.ModuleList()
        inputs = width(6)
        for stage, (units, kernel, first_stride, count) in enumerate(STAGES):
            for number in range(count):
                stride = first_stride if number == 0 else 1
                factor = expansion if stage else 1
                self.blocks.append(MBConv1d(inputs, width(units), kernels[kernel], stride, factor, se_ratio))
                inputs = width(units)
        self.head = ConvNorm1d(inputs, self.embed_dim)
        ends = [sum(stage[3] for stage in STAGES[: n + 1]) - 1 for n in range(5)]
        #: Blocks whose output is a map; the last map is that of the pointwise convolution.
        self.map_blocks = tuple(ends)
        self.channels = (*(width(STAGES[n][0]) for n in range(5)), self.embed_dim)
        self.strides = (2, 4, 8, 16, 32, 64)

    def forward_features(self, signal: Tensor) -> list[Tensor]:
        """Signals ``[B, C, T]`` → maps ``[B, channels[i], T / strides[i]]``, fine to coarse.

        Raises:
            ValueError: another shape.
        """
        if signal.dim() != 3 or signal.shape[1] != self.in_chans:
            raise ValueError(f"signal has shape {list(signal.shape)}: expected [B, {self.in_chans}, T]")
        x, maps = F.silu(self.stem(signal)), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.map_blocks:
                maps.append(x)
        return [*maps, F.silu(self.head(x))]

    forward = forward_features

    def embed(self, signal: Tensor) -> Tensor:
        """Signals ``[B, C, T]`` → embeddings ``[B, D]``: the mean of the coarsest map over time."""
        return self.forward_features(signal)[-1].mean(2)


@register_backbone("efficientnet1d")
def efficientnet1d(pretrained: bool = False, in_chans: int = 4, **kwargs: Any) -> EfficientNet1d:
    """Build the encoder; no weights were published.

    Raises:
        ValueError: weights are asked for.
    """
    if pretrained:
        raise ValueError(
            "efficientnet1d has no published weights: set pretrained to false, or to a file of yours"
        )
    return EfficientNet1d(in_chans, **kwargs)
