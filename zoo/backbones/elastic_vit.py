"""Elastic vision transformer (POA, card section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from zoo.backbones.elastic import ElasticBackbone, no_weights
from zoo.nn.elastic import (
    ElasticAttention,
    ElasticConv2d,
    ElasticLayerNorm,
    ElasticLayerScale,
    ElasticMlp,
    Size,
    leading,
    mask_tokens,
)
from zoo.nn.init import init_linear
from zoo.nn.stochastic_depth import Form, StochasticDepth
from zoo.nn.tokens import Tokens, probed_blocks
from zoo.registry import register_backbone


class ElasticViT(ElasticBackbone):
    """Pre-norm vision transformer of which every (width, depth) of the family is a working network.

    A plain ViT (biases everywhere, exact GELU, layer scale, class token, learned positions) under timm's names.
    Of its alphas, those of qkv and fc1 are multiplied into the layer norm before; those of proj and fc2, as
    ``alpha (W a) + b = alpha (W a + b / alpha)``, into the layer scale behind.

    Images of another size than ``img_size`` get interpolated positions: bicubic, no antialias, scale factor
    (g + 0.1) / grid, in float32 (DINOv2). timm antialiases: an extracted network equals timm's at ``img_size``.

    Args:
        img_size: side of the square images that the positions are learned for.
        patch_size: side of a patch.
        in_chans: channels of the image.
        widths: channels of the members, multiples of ``head_dim``; the largest is the intact one.
        depths: numbers of blocks of the members; the largest is the intact one.
        head_dim: channels per attention head, at every width.
        mlp_ratio: hidden over outer channels of the MLPs.
        layer_scale: initial value of the layer scales.
        init_std: of the initial weights of the blocks, see :func:`zoo.nn.init.init_linear`.
        drop_path_rate: of stochastic depth.
        drop_path_uniform: the same rate in all blocks; otherwise linear from 0 in the first block.
        drop_path_form: ``sample`` or ``batch``, see :class:`~zoo.nn.stochastic_depth.StochasticDepth`.

    Raises:
        ValueError: a width is no multiple of ``head_dim``, or ``img_size`` none of ``patch_size``.
    """

    family = "vit"
    published: ClassVar[Mapping[str, Size]] = {
        "vit_small": Size(384, 12),
        "vit_base": Size(768, 12),
        "vit_large": Size(1024, 24),
    }

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        widths: Sequence[int] = tuple(range(384, 1025, 64)),
        depths: Sequence[int] = tuple(range(12, 25)),
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        layer_scale: float = 1e-5,
        init_std: float | None = 0.02,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = True,
        drop_path_form: Form = "batch",
    ) -> None:
        dim, depth = max(widths), max(depths)
        paths = [f"blocks.{i}" for i in range(depth)]
        super().__init__(in_chans, sorted(widths), sorted(depths), [paths])
        if wrong := [width for width in self.widths if width % head_dim]:
            raise ValueError(f"widths must be multiples of head_dim={head_dim}, got {wrong}")
        self.img_size, self.patch_size = img_size, patch_size
        self.head_dim, self.mlp_ratio = head_dim, mlp_ratio
        self.embed_dim = dim
        self.channels, self.strides = (dim,) * 4, (patch_size,) * 4
        self.learned_grid = self.grid(img_size, img_size)

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=1e-6))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        positions = 1 + self.learned_grid[0] * self.learned_grid[1]
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, positions, dim), std=0.02))
        self.patch_embed = nn.ModuleDict({"proj": ElasticConv2d(in_chans, dim, patch_size, patch_size)})
        rates = [drop_path_rate * (1 if drop_path_uniform else i / max(depth - 1, 1)) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, head_dim, mlp_ratio, layer_scale, StochasticDepth(rate, drop_path_form))
            for rate in rates
        )
        self.norm = ElasticLayerNorm(dim, eps=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, init_std)

    @property
    def named_sizes(self) -> dict[str, Size]:
        """Names of the published sizes; none with another head dimension, where they would mislead."""
        return super().named_sizes if self.head_dim == 64 else {}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be cut into patches: sides must be multiples of "
                f"patch_size={self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None, size: Size | None = None) -> Tokens:
        """Class token and patch tokens after the final norm; see :class:`ElasticBackbone`."""
        size = self.resolve(size)
        x = self.embed(image, mask, size.width)
        for i in self.kept(size)[0]:
            x = self.blocks[i](x)
        return self._tokens(x)

    def forward_features(self, image: Tensor, size: Size | None = None) -> list[Tensor]:
        """Four maps ``[B, width, H / patch_size, W / patch_size]``: the patches of :meth:`intermediate_tokens`."""
        grid = self.grid(*image.shape[-2:])
        tokens = self.intermediate_tokens(image, size)
        return [patches.transpose(1, 2).unflatten(2, grid) for _, patches in tokens]

    def intermediate_tokens(self, image: Tensor, size: Size | None = None) -> list[Tokens]:
        """Tokens after a quarter, half, three quarters and all of the blocks, each through the final norm.

        Positions among the kept blocks are those of :func:`zoo.nn.tokens.probed_blocks`.
        """
        size = self.resolve(size)
        kept = self.kept(size)[0]
        taken = probed_blocks(len(kept))
        x, found = self.embed(image, None, size.width), {}
        for position, i in enumerate(kept):
            x = self.blocks[i](x)
            if position in taken:
                found[position] = self._tokens(x)
        return [found[position] for position in taken]

    def embed(self, image: Tensor, mask: Tensor | None, width: int) -> Tensor:
        """Token sequence ``[B, 1 + N, width]`` before the first block.

        Pure slices without an alpha: what a narrower network gets is the beginning of what a wider one gets.
        """
        grid = self.grid(*image.shape[-2:])
        mask = self.mask_grid(mask, image)
        x = self.patch_embed["proj"](image, width).flatten(2).transpose(1, 2)
        x = mask_tokens(x, None if mask is None else mask.flatten(1), leading(self.mask_token, 1, width))
        cls_token = leading(self.cls_token, 1, 1, width).expand(x.shape[0], -1, -1)
        return torch.cat([cls_token, x], 1) + self._positions(grid, width)

    def _positions(self, grid: tuple[int, int], width: int) -> Tensor:
        positions = leading(self.pos_embed, 1, self.pos_embed.shape[1], width)
        if grid == self.learned_grid:
            return positions
        scale = [(now + 0.1) / learned for now, learned in zip(grid, self.learned_grid, strict=True)]
        patches = positions[:, 1:].float().transpose(1, 2).unflatten(2, self.learned_grid)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([positions[:, :1], patches.to(positions.dtype)], 1)

    def _tokens(self, x: Tensor) -> Tokens:
        x = self.norm(x)
        return Tokens(x[:, 0], x[:, 1:])

    def alone_arguments(self, size: Size) -> dict[str, Any]:
        """Arguments of a plain ViT of this size."""
        return {
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "in_chans": self.in_chans,
            "widths": [size.width],
            "depths": [size.depth],
            "head_dim": self.head_dim,
            "mlp_ratio": self.mlp_ratio,
        }

    def folds(self, size: Size) -> list[tuple[str, float]]:
        """Norms and layer scales times alpha, biases between a matrix and its layer scale over alpha."""
        alpha = self.alpha(size)
        return [
            (r"blocks\.\d+\.(norm[12]\.|ls[12]\.)", alpha),
            (r"blocks\.\d+\.(attn\.proj|mlp\.fc2)\.bias", 1 / alpha),
        ]


class Block(nn.Module):
    """Attention and MLP with their norms and layer scales, at the width of their input."""

    def __init__(
        self, dim: int, head_dim: int, mlp_ratio: float, layer_scale: float, drop_path: StochasticDepth
    ) -> None:
        super().__init__()
        self.dim = dim
        self.norm1 = ElasticLayerNorm(dim, eps=1e-6)
        self.attn = ElasticAttention(dim, head_dim)
        self.ls1 = ElasticLayerScale(dim, layer_scale)
        self.norm2 = ElasticLayerNorm(dim, eps=1e-6)
        self.mlp = ElasticMlp(dim, mlp_ratio)
        self.ls2 = ElasticLayerScale(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, c] → [B, N, c]``."""
        alpha = self.dim / x.shape[-1]
        x = self.drop_path(x, lambda t: self.ls1(self.attn(self.norm1(t, alpha), None, 1 / alpha), alpha))
        return self.drop_path(x, lambda t: self.ls2(self.mlp(self.norm2(t, alpha), 1 / alpha), alpha))


@register_backbone("elastic_vit_large")
def elastic_vit_large(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> ElasticViT:
    """POA's family from ViT-S to ViT-L, 143 sizes; every argument of :class:`ElasticViT` can be set."""
    no_weights("elastic_vit_large", pretrained)
    return ElasticViT(in_chans=in_chans, **kwargs)


@register_backbone("elastic_vit_tiny")
def elastic_vit_tiny(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> ElasticViT:
    """A family for small images: 32 pixels, patches of 4, widths 64 to 192, depths 3 to 6, all settable."""
    no_weights("elastic_vit_tiny", pretrained)
    tiny = {"img_size": 32, "patch_size": 4, "widths": (64, 96, 128, 160, 192), "depths": (3, 4, 5, 6)}
    return ElasticViT(in_chans=in_chans, **{**tiny, "head_dim": 32, **kwargs})
