"""A vision transformer for images and volumes: two patch embeddings into one space of tokens (Uni4Eye, MICCAI 2022)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.nn.cross_attention import init_blocks
from zoo.nn.masking_clusters import gathered
from zoo.nn.sincos import sincos_positions
from zoo.nn.tokens import Tokens
from zoo.registry import register_backbone

Positions = Literal["sincos", "zero"]


class ViTSize(NamedTuple):
    """Width, depth and attention heads of a published size."""

    embed_dim: int
    depth: int
    num_heads: int


SIZES = {
    "unified_vit_small": ViTSize(384, 12, 6),
    "unified_vit_base": ViTSize(768, 12, 12),
    "unified_vit_large": ViTSize(1024, 24, 16),
}


class UnifiedViT(nn.Module):
    """Pre-norm transformer over square patches of images or cubic patches of volumes, with class token.

    The Unified Patch Embedding is one projection per dimension; everything behind it is shared. Blocks are timm's:
    fused qkv with bias, exact GELU, layer norms with eps 1e-6. Linear layers start from Xavier's uniform
    distribution, patch projections too (as matrices), the class token from N(0, 0.02), as in MAE; the release of
    Uni4Eye has the call commented out. Positions are fixed.

    Volumes have one channel; the released class builds their projection with the three of images, and fails on the
    data it is for.

    Args:
        embed_dim: D, channels of tokens.
        depth: number of blocks.
        num_heads: attention heads.
        img_size: side of the images; None builds no embedding of images.
        volume_size: sides of the volumes, the short one in the middle as published; None builds none of volumes.
        patch: side of image patches.
        volume_patch: side of volume patches.
        in_chans: channels of the images.
        positions: ``sincos``, tables as the paper has them, or ``zero`` as released: no positions at all, since what
            fills the tables is commented out there.
        standardise: give volumes mean 0 and standard deviation 1 over their voxels above 0; all others become 0.
        drop_path_rate: of stochastic depth, linear from 0 in the first block.

    Raises:
        ValueError: sides that patches do not divide, no dimension at all, or an unknown kind of positions.
    """

    pos_embed2: Tensor
    pos_embed3: Tensor

    def __init__(
        self,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        img_size: int | None = 224,
        volume_size: Sequence[int] | None = (224, 112, 224),
        patch: int = 16,
        volume_patch: int = 16,
        in_chans: int = 3,
        positions: Positions = "sincos",
        standardise: bool = True,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if positions not in ("sincos", "zero"):
            raise ValueError(f"positions={positions!r}: expected sincos or zero")
        self.embed_dim, self.num_blocks, self.in_chans = embed_dim, depth, in_chans
        self.img_size, self.positions, self.standardise = img_size, positions, standardise
        self.channels, self.strides = (embed_dim,), (patch,)
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans  # [0, 1] as published
        #: Sides of what goes in, and of its patches, by number of axes.
        self.sizes: dict[int, tuple[int, ...]] = {}
        self.patches: dict[int, tuple[int, ...]] = {2: (patch,) * 2, 3: (volume_patch,) * 3}
        if img_size is not None:
            self.sizes[2] = (img_size, img_size)
        if volume_size is not None:
            if len(volume_size) != 3:
                raise ValueError(f"volume_size must be three sides, got {list(volume_size)}")
            self.sizes[3] = tuple(int(side) for side in volume_size)
        if not self.sizes:
            raise ValueError("img_size and volume_size are both None: set the one that is to be used")
        self.patch_embed = nn.ModuleDict()
        for axes, size in self.sizes.items():
            table = self.table(self.grid(*size), embed_dim)
            self.register_buffer(f"pos_embed{axes}", table)
            chans, sides = (in_chans if axes == 2 else 1), self.patches[axes]
            conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
            projection = conv(chans, embed_dim, sides, stride=sides)
            nn.init.xavier_uniform_(projection.weight.view(embed_dim, -1))
            self.patch_embed[f"proj{axes}"] = projection
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        norm = partial(nn.LayerNorm, eps=1e-6)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates
        )
        self.norm = norm(embed_dim)
        init_blocks(self)
        nn.init.normal_(self.cls_token, std=0.02)

    def table(self, grid: Sequence[int], dim: int) -> Tensor:
        """Positions ``[1, 1 + N, dim]`` of class token and patches, for the encoder or a decoder."""
        if self.positions == "zero":
            return torch.zeros(1, 1 + math.prod(grid), dim)
        return sincos_positions(grid, dim)

    def grid(self, *sides: int) -> tuple[int, ...]:
        """Patches along every axis of an image or volume.

        Raises:
            ValueError: it has another size than the network was built for, or none was built for its dimension.
        """
        axes, argument = len(sides), {2: "img_size", 3: "volume_size"}.get(len(sides), "sizes")
        if axes not in self.sizes:
            raise ValueError(
                f"an input with sides {list(sides)}, but this network takes {self._taken()}: set {argument} in "
                "backbone_args"
            )
        patch = self.patches[axes]
        if tuple(sides) != self.sizes[axes] or any(s % p or s < p for s, p in zip(sides, patch, strict=True)):
            raise ValueError(
                f"an input with sides {list(sides)} and patches of {list(patch)}, but this network takes "
                f"{self._taken()}, which patches must divide: change the size of the data, or {argument} and the "
                "patch size in backbone_args"
            )
        return tuple(side // size for side, size in zip(sides, patch, strict=True))

    def _taken(self) -> str:
        kinds = {2: "images", 3: "volumes"}
        return " and ".join(f"{kinds[axes]} of {'x'.join(map(str, s))}" for axes, s in self.sizes.items())

    def prepared(self, x: Tensor) -> Tensor:
        """Images as they are, in [0, 1]; volumes standardised, if they are to be.

        Raises:
            TypeError: integers, so not yet in [0, 1].
            ValueError: the wrong number of channels.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"input must be float in [0, 1], got {x.dtype}: divide uint8 by 255, window volumes"
            )
        axes, wanted = x.ndim - 2, self.in_chans if x.ndim == 4 else 1
        if axes not in (2, 3) or x.shape[1] != wanted:
            raise ValueError(
                f"input of shape {list(x.shape)}: expected images [B, {self.in_chans}, H, W] or volumes of one "
                "channel [B, 1, X, Y, Z]"
            )
        return standardised(x) if axes == 3 and self.standardise else x

    def embed(self, x: Tensor) -> Tensor:
        """Patch tokens with positions, ``[B, N, D]``, of prepared images or volumes."""
        axes = x.ndim - 2
        self.grid(*x.shape[2:])
        tokens = self.patch_embed[f"proj{axes}"](x).flatten(2).transpose(1, 2)
        return tokens + getattr(self, f"pos_embed{axes}")[:, 1:]

    def encode(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Class token and patch tokens behind the final norm, ``[B, 1 + K, D]``.

        Args:
            x: prepared images or volumes.
            seen: positions of the patches that are seen, int64 ``[B, K]``; None: all.
        """
        tokens = self.embed(x)
        if seen is not None:
            tokens = gathered(tokens, seen)
        cls = self.cls_token + getattr(self, f"pos_embed{x.ndim - 2}")[:, :1]
        tokens = torch.cat((cls.expand(x.shape[0], -1, -1).to(tokens.dtype), tokens), 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward_tokens(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens of images ``[B, in_chans, H, W]`` or volumes ``[B, 1, X, Y, Z]`` in [0, 1].

        Raises:
            ValueError: a mask; masked patches are left out here, see :meth:`encode`.
        """
        if mask is not None:
            raise ValueError("UnifiedViT has no mask token and takes no mask")
        tokens = self.encode(self.prepared(x))
        return Tokens(tokens[:, 0], tokens[:, 1:])

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """One map ``[B, D, *grid]`` of the patch tokens."""
        return [self.forward_tokens(x).patches.transpose(1, 2).unflatten(2, self.grid(*x.shape[2:]))]

    forward = forward_features

    def block_of(self, parameter_name: str) -> int:
        """0 for embeddings and tokens, i+1 for block i, ``num_blocks + 1`` for the final norm."""
        if match := re.match(r"blocks\.(\d+)\.", parameter_name):
            return int(match[1]) + 1
        return self.num_blocks + 1 if parameter_name.startswith("norm.") else 0


def standardised(volume: Tensor) -> Tensor:
    """Volumes ``[B, 1, X, Y, Z]`` with mean 0 and standard deviation 1 over their voxels above 0; the others are 0."""
    volume = volume.float()
    there = volume > 0
    count = there.sum((1, 2, 3, 4), keepdim=True).clamp(min=1)
    centred = (volume - volume.sum((1, 2, 3, 4), keepdim=True) / count) * there
    spread = (centred.square().sum((1, 2, 3, 4), keepdim=True) / count).sqrt()
    return centred / spread.clamp(min=1e-6)


def _register(name: str, size: ViTSize) -> None:
    @register_backbone(name)
    def create(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> UnifiedViT:
        if pretrained:
            raise ValueError(
                f"{name} has no weights of its own to fetch: set pretrained to false, or to a file (Uni4Eye, Uni4Eye++ "
                "or any MAE)"
            )
        return UnifiedViT(**{**size._asdict(), "in_chans": in_chans, **kwargs})


for _name, _size in SIZES.items():
    _register(_name, _size)
