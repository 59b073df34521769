"""The decoder of UNETR and Swin UNETR, for any 3-D backbone with maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.extras import require


class UNETRHead(nn.Module):
    """Upsample the coarsest map step by step, joined with the finer ones (Hatamizadeh et al., 2022).

    Every step is a transposed convolution, concatenation, and a residual block with instance norm (MONAI's). Names
    of parameters are those of MONAI's Swin UNETR.

    Args:
        channels: channels of the backbone's maps, fine to coarse; at least two maps, each half as large as the
            one before.
        num_classes: channels of the logits.
        deep_supervision: so many coarser decoder maps get logits of their own, in training.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: fewer than two maps, or not so many decoder maps.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, deep_supervision: int = 0) -> None:
        super().__init__()
        steps = len(channels) - 1
        if steps < 1 or not 0 <= deep_supervision < steps:
            raise ValueError(
                f"deep_supervision={deep_supervision} with maps of {list(channels)} channels: at least two maps are "
                f"needed, and at most {max(steps - 1, 0)} of them can be supervised beside the finest"
            )
        blocks = require("monai.networks.blocks", "medical", "UNETRHead")
        self.steps, self.width = steps, channels[0]
        for step in range(steps, 0, -1):
            inputs, outputs = channels[step], channels[step - 1]
            up = blocks.UnetrUpBlock(3, inputs, outputs, 3, 2, norm_name="instance", res_block=True)
            self.add_module(f"decoder{step}", up)
        self.out = blocks.UnetOutBlock(3, channels[0], num_classes)
        self.aux = nn.ModuleList(
            blocks.UnetOutBlock(3, channels[level], num_classes) for level in range(1, deep_supervision + 1)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse → logits ``[B, C, ...]`` at the size of the finest."""
        return self.out(self.decode(features)[0])

    def forward_deep(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of the finest decoder map and of the supervised coarser ones, fine to coarse."""
        maps = self.decode(features)
        return [self.out(maps[0]), *(head(m) for head, m in zip(self.aux, maps[1:], strict=False))]

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Decoder maps, fine to coarse, as large as the backbone's but the coarsest.

        Raises:
            ValueError: a map is not twice as large as the next coarser one.
        """
        x, maps = features[-1], []
        for step in range(self.steps, 0, -1):
            skip = features[step - 1]
            if any(side != 2 * coarse for side, coarse in zip(skip.shape[2:], x.shape[2:], strict=True)):
                raise ValueError(
                    f"maps of {list(skip.shape[2:])} and {list(x.shape[2:])} follow each other: the UNETR decoder "
                    "needs a backbone whose maps halve from one to the next"
                )
            x = self.get_submodule(f"decoder{step}")(x, skip)
            maps.append(x)
        return maps[::-1]
