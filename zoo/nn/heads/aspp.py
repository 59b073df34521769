"""Atrous spatial pyramid pooling: one map seen through several dilations at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.heads.blocks import ConvBNReLU, PooledConv, SeparableConv, resize


class ASPP(nn.Module):
    """Parallel dilated branches, concatenated and fused by a 3×3 bottleneck.

    Chen et al., "Rethinking Atrous Convolution" (2017), section 3.3; with ``separable`` as in "Encoder-Decoder
    with Atrous Separable Convolution" (ECCV 2018).

    Args:
        inputs: channels in.
        width: channels of each branch, and out.
        dilations: one branch each; 1 is a 1×1 convolution, others are 3×3.
        separable: 3×3 branches are depth-wise separable.
        image_pooling: a further branch, the first, sees the mean of the whole map.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        dilations: Sequence[int],
        separable: bool = False,
        image_pooling: bool = True,
    ) -> None:
        super().__init__()
        self.image_pool = PooledConv(inputs, width, 1) if image_pooling else None
        self.aspp_modules = nn.ModuleList(
            ConvBNReLU(inputs, width)
            if dilation == 1
            else SeparableConv(inputs, width, dilation)
            if separable
            else ConvBNReLU(inputs, width, 3, dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvBNReLU((len(dilations) + image_pooling) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Fuse ``[B, inputs, h, w]`` to ``[B, width, h, w]``."""
        branches = [branch(x) for branch in self.aspp_modules]
        if self.image_pool is not None:
            branches.insert(0, resize(self.image_pool(x), x.shape[-2:]))
        return self.bottleneck(torch.cat(branches, 1))
