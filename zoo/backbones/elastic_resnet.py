"""Elastic ResNet with group norm (POA, card section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.elastic import ElasticBackbone, no_weights
from zoo.nn.elastic import ElasticConv2d, ElasticGroupNorm, Size, mask_tokens
from zoo.nn.tokens import Tokens
from zoo.registry import register_backbone


class ElasticResNet(ElasticBackbone):
    """Bottleneck ResNet with group norm of which every (width, depths) of the family is a working network.

    Only the middle of a bottleneck is elastic; stem, block outputs and shortcuts are those of the intact network at
    every size. The alphas of the second and third convolution are multiplied into the group norm before each (a
    ReLU passes a positive factor on). The stride is on the 3 x 3 convolution.

    The class token is the mean of the last map, without a norm; the patch tokens are the last map, repeated 2 x 2.
    There is no stochastic depth, as released.

    Args:
        in_chans: channels of the image.
        widths: middle channels of the first stage, doubled from stage to stage; multiples of ``groups``.
        depths: per stage, the numbers of blocks to choose from.
        stem_width: channels of the stem; blocks of stage s give ``4 * stem_width * 2^s``.
        groups: of every group norm, at every width.

    Raises:
        ValueError: a width is no multiple of ``groups``.
    """

    family = "resnet"
    published: ClassVar[Mapping[str, Size]] = {
        "resnet50": Size(64, (3, 4, 6, 3)),
        "resnet101": Size(64, (3, 4, 23, 3)),
        "resnet152": Size(64, (3, 8, 36, 3)),
    }

    def __init__(
        self,
        in_chans: int = 3,
        widths: Sequence[int] = (64, 96, 128),
        depths: Sequence[Sequence[int]] = ((3,), tuple(range(4, 9)), tuple(range(6, 37)), (3,)),
        stem_width: int = 64,
        groups: int = 32,
    ) -> None:
        width, intact = max(widths), [max(choices) for choices in depths]
        paths = [[f"layer{s + 1}.{i}" for i in range(depth)] for s, depth in enumerate(intact)]
        choices = sorted(product(*(sorted(stage) for stage in depths)), key=sum)
        super().__init__(in_chans, sorted(widths), choices, paths)
        if wrong := [size for size in (stem_width, *self.widths) if size % groups]:
            raise ValueError(f"stem_width and widths must be multiples of groups={groups}, got {wrong}")
        self.stem_width, self.groups = stem_width, groups
        self.channels = tuple(4 * stem_width << s for s in range(len(intact)))
        self.strides = tuple(4 << s for s in range(len(intact)))
        self.embed_dim = self.channels[-1]

        self.conv1 = nn.Conv2d(in_chans, stem_width, 7, 2, 3, bias=False)
        self.norm1 = nn.GroupNorm(groups, stem_width)
        self.mask_token = nn.Parameter(torch.zeros(1, stem_width, 1, 1))
        channels = stem_width
        for s, depth in enumerate(intact):
            blocks = nn.ModuleList()
            for i in range(depth):
                stride = 2 if s > 0 and i == 0 else 1
                blocks.append(Bottleneck(channels, width << s, self.channels[s], stride, groups))
                channels = self.channels[s]
            self.add_module(f"layer{s + 1}", blocks)

    @property
    def named_sizes(self) -> dict[str, Size]:
        """Names of the published sizes; none with another stem, where they would mislead."""
        return super().named_sizes if self.stem_width == 64 else {}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens: twice those of the last map."""
        return 2 * -(-height // self.strides[-1]), 2 * -(-width // self.strides[-1])

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None, size: Size | None = None) -> Tokens:
        """Pooled and patch tokens of the last map; see :class:`ElasticBackbone`."""
        last = self._stages(image, mask, self.resolve(size))[-1]
        patches = last.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return Tokens(last.mean((2, 3)), patches.flatten(2).transpose(1, 2))

    def forward_features(self, image: Tensor, size: Size | None = None) -> list[Tensor]:
        """Maps of the stages, ``[B, channels[s], h_s, w_s]``."""
        return self._stages(image, None, self.resolve(size))

    def _stages(self, image: Tensor, mask: Tensor | None, size: Size) -> list[Tensor]:
        x = F.relu(self.norm1(self.conv1(image)))
        x = F.max_pool2d(x, 3, 2, 1)
        if (cells := self.mask_map(mask, image, (x.shape[2], x.shape[3]))) is not None:
            x = mask_tokens(x.permute(0, 2, 3, 1), cells, self.mask_token.flatten()).permute(0, 3, 1, 2)
        maps = []
        for s, kept in enumerate(self.kept(size)):
            blocks: Any = self.get_submodule(f"layer{s + 1}")
            for i in kept:
                x = blocks[i](x, size.width << s)
            maps.append(x)
        return maps

    def alone_arguments(self, size: Size) -> dict[str, Any]:
        """Arguments of a plain ResNet of this size."""
        return {
            "in_chans": self.in_chans,
            "widths": [size.width],
            "depths": [[len(blocks)] for blocks in self.kept(size)],
            "stem_width": self.stem_width,
            "groups": self.groups,
        }

    def folds(self, size: Size) -> list[tuple[str, float]]:
        """The norms before the second and third convolution times alpha."""
        return [(r"layer\d\.\d+\.norm[12]\.", self.alpha(size))]

    def block_of(self, parameter_name: str) -> int:
        """As :meth:`ElasticBackbone.block_of`, one deeper: with no final norm, the last block learns at full rate."""
        return super().block_of(parameter_name) + 1


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution with group norms, and a shortcut.

    Args:
        inputs: channels of the input.
        middle: channels of the 3 x 3 convolution, elastic.
        outputs: channels of the output.
        stride: of the 3 x 3 convolution and the shortcut.
        groups: of the group norms.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.middle = middle
        self.conv1 = ElasticConv2d(inputs, middle, 1, bias=False)
        self.norm1 = ElasticGroupNorm(groups, middle)
        self.conv2 = ElasticConv2d(middle, middle, 3, stride, 1, bias=False)
        self.norm2 = ElasticGroupNorm(groups, middle)
        self.conv3 = ElasticConv2d(middle, outputs, 1, bias=False)
        self.norm3 = ElasticGroupNorm(groups, outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )

    def forward(self, x: Tensor, middle: int) -> Tensor:
        """``[B, inputs, H, W] → [B, outputs, H / stride, W / stride]`` with ``middle`` channels in between."""
        alpha = self.middle / middle
        y = F.relu(self.norm1(self.conv1(x, middle), alpha))
        y = F.relu(self.norm2(self.conv2(y, middle), alpha))
        y = self.norm3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


@register_backbone("elastic_resnet152")
def elastic_resnet152(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> ElasticResNet:
    """POA's family from ResNet-50 to a ResNet-152 of double width, 465 sizes; all of it can be set."""
    no_weights("elastic_resnet152", pretrained)
    return ElasticResNet(in_chans, **kwargs)


@register_backbone("elastic_resnet_tiny")
def elastic_resnet_tiny(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> ElasticResNet:
    """A family for small images: stem 16, widths 16 to 32, depths 1-1..2-1..3-1, 8 groups, all settable."""
    no_weights("elastic_resnet_tiny", pretrained)
    depths = ((1,), (1, 2), (1, 2, 3), (1,))
    tiny = {"widths": (16, 24, 32), "depths": depths, "stem_width": 16, "groups": 8}
    return ElasticResNet(in_chans, **{**tiny, **kwargs})
