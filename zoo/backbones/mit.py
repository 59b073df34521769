"""MiT, the hierarchical transformer encoder of SegFormer, under the parameter names of its release."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm, calculate_drop_path_rates, trunc_normal_
from timm.models.pvt_v2 import Block, OverlapPatchEmbed
from torch import Tensor, nn

from zoo.backbones.timm import per_channel
from zoo.registry import register_backbone


class MixTransformer(nn.Module):
    """Four stages of overlapping patch embedding and transformer blocks: Xie et al., "SegFormer" (NeurIPS 2021).

    Section 3.1: attention with spatially reduced keys and values, a depth-wise 3×3 convolution inside each
    feed-forward block in place of position embeddings (images of any size), a layer norm after each stage. The
    blocks are timm's of PVT v2, the same function; the names are those of the released files.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage's map.
        heads: attention heads of each stage.
        reductions: factor by which keys and values are smaller than queries, per side.
        mlp_ratio: width of the feed-forward blocks over that of the stage.
        drop_path_rate: probability of skipping a residual branch in the last block; linear from 0 in the first.
        in_chans: channels of the input image.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.channels = tuple(widths)
        self.strides = tuple(2 ** (i + 2) for i in range(len(widths)))
        self.mean = per_channel(IMAGENET_DEFAULT_MEAN, in_chans)
        self.std = per_channel(IMAGENET_DEFAULT_STD, in_chans)
        #: Smallest side of an image: every stage's map must hold one patch of reduced keys.
        self.smallest = max(s * (r - 1) + 1 for s, r in zip(self.strides, reductions, strict=True))
        self._stages = range(1, len(widths) + 1)

        inputs = (in_chans, *widths)
        for stage in self._stages:
            patch, stride = (7, 4) if stage == 1 else (3, 2)
            embed = OverlapPatchEmbed(patch, stride, inputs[stage - 1], inputs[stage])
            self.add_module(f"patch_embed{stage}", embed)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = zip(self._stages, widths, heads, reductions, rates, strict=True)
        for stage, width, num_heads, reduction, drop_paths in stages:
            blocks = (
                Block(width, num_heads, mlp_ratio, reduction, qkv_bias=True, drop_path=drop_path)
                for drop_path in drop_paths
            )
            self.add_module(f"block{stage}", nn.ModuleList(_released_names(block) for block in blocks))
            self.add_module(f"norm{stage}", LayerNorm(width))
        self.apply(_initialise)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Normalised images ``[B, in_chans, H, W]`` → maps ``[B, channels[i], ceil(H / s), ceil(W / s)]``.

        The strides s are 4, 8, 16 and 32; each map is the output of its stage's layer norm.

        Raises:
            ValueError: a side of the image is so small that a map cannot be reduced.
        """
        if min(image.shape[-2:]) < self.smallest:
            raise ValueError(
                f"image of {list(image.shape[-2:])} pixels is too small for MiT: both sides need at least "
                f"{self.smallest}"
            )
        x, maps = image, []
        for stage in self._stages:
            x = self.get_submodule(f"patch_embed{stage}")(x)
            size = x.shape[1:3]
            x = x.flatten(1, 2)
            for block in self.get_submodule(f"block{stage}").children():
                x = block(x, size)
            x = self.get_submodule(f"norm{stage}")(x).unflatten(1, size).permute(0, 3, 1, 2)
            maps.append(x)
        return maps

    forward = forward_features


def _released_names(block: Block) -> Block:
    """The release wraps the depth-wise convolution once more: ``mlp.dwconv.dwconv``."""
    block.mlp.dwconv = nn.Sequential(OrderedDict(dwconv=block.mlp.dwconv))
    return block


def _initialise(module: nn.Module) -> None:
    """As released: linear layers from a truncated N(0, 0.02), convolutions He normal by fan-out, biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * module.weight[0, 0].numel() // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


# -- factories ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """What differs between MiT-B0 ... B5 (SegFormer, appendix), and its ImageNet file."""

    depths: tuple[int, ...]
    file: str
    widths: tuple[int, ...] = (64, 128, 320, 512)


_DOWNLOADS = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
VARIANTS = {
    "mit_b0": Variant((2, 2, 2, 2), "mit_b0_20220624-7e0fe6dd.pth", (32, 64, 160, 256)),
    "mit_b1": Variant((2, 2, 2, 2), "mit_b1_20220624-02e5a6a1.pth"),
    "mit_b2": Variant((3, 4, 6, 3), "mit_b2_20220624-66e8bf70.pth"),
    "mit_b3": Variant((3, 4, 18, 3), "mit_b3_20220624-13b1141c.pth"),
    "mit_b4": Variant((3, 8, 27, 3), "mit_b4_20220624-d588d980.pth"),
    "mit_b5": Variant((3, 6, 40, 3), "mit_b5_20220624-658746d9.pth"),
}


def _factory(name: str) -> Callable[..., MixTransformer]:
    def create(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> MixTransformer:
        variant = VARIANTS[name]
        network = MixTransformer(
            **{"depths": variant.depths, "widths": variant.widths, **kwargs}, in_chans=in_chans
        )
        if pretrained:
            from zoo.checkpoints.load import load_pretrained  # which knows backbones itself

            checksum = variant.file.removesuffix(".pth").rpartition("-")[
                2
            ]  # its first digits are in the name
            load_pretrained(network, f"{_DOWNLOADS}{variant.file}#sha256={checksum}", min_share=1.0)
        return network

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""Build {name}, a :class:`MixTransformer`.

    Args:
        pretrained: start from the ImageNet weights released with SegFormer (NVIDIA's licence: non-commercial),
            downloaded as published by MMSegmentation and checked against their checksum.
        in_chans: channels of the input image.
        **kwargs: handed to :class:`MixTransformer`.

    Raises:
        CheckpointError: no connection, or ``pretrained`` with other ``depths`` or ``widths`` than the variant's.
    """
    return create


for _name in VARIANTS:
    register_backbone(_name)(_factory(_name))
