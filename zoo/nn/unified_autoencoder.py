"""The network of Uni4Eye: one encoder of images and volumes, and a decoder for each of two targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.nn.cross_attention import init_blocks
from zoo.nn.dynamic_head import DynamicHead
from zoo.nn.masked_prediction import patches_of
from zoo.nn.masking import Masks
from zoo.nn.masking_clusters import seen_and_hidden


class Branch(nn.Module):
    """A decoder: embedding, mask token, blocks, and a linear head per dimension.

    Args:
        inputs: channels of the encoder's tokens.
        dim: channels of its own.
        depth: number of blocks.
        num_heads: attention heads.
        values: number of axes → values of a patch.
    """

    def __init__(self, inputs: int, dim: int, depth: int, num_heads: int, values: dict[int, int]) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(inputs, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.heads = nn.ModuleDict({str(axes): nn.Linear(dim, count) for axes, count in values.items()})
        init_blocks(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def placed(self, tokens: Tensor, seen: Tensor, positions: Tensor) -> Tensor:
        """What enters the first block, ``[B, 1 + N, dim]``: seen tokens and mask tokens in their places.

        Args:
            tokens: class token and seen patches, ``[B, 1 + K, D]``.
            seen: their positions, int64 ``[B, K]``.
            positions: table ``[1, 1 + N, dim]``.
        """
        x = self.embed(tokens)
        B, (N, dim) = len(x), (positions.shape[1] - 1, x.shape[2])
        full = self.mask_token.to(x.dtype).expand(B, N, dim)
        full = full.scatter(1, seen[..., None].expand(-1, -1, dim), x[:, 1:])
        return torch.cat((x[:, :1], full), 1) + positions

    def forward(self, x: Tensor) -> Tensor:
        """All tokens behind the last block, before the shared norm, ``[B, 1 + N, dim]``, of :meth:`placed` ones."""
        for block in self.blocks:
            x = block(x)
        return x


class UnifiedAutoencoder(nn.Module):
    """Masked autoencoder of images and volumes with an ``intensity`` and a ``gradient`` decoder.

    The decoders share their norm and, for each dimension, their table of positions; the release has tables for
    the gradient decoder that it never reads.

    Args:
        backbone: a :class:`zoo.backbones.UnifiedViT`.
        decoder_dim: channels of the decoders.
        decoder_depth: blocks of each.
        decoder_heads: attention heads.
        gradient: whether there is a gradient decoder.
        dynamic_head: data sources of the head that mixes the patches of images that the intensity decoder predicts
            (Uni4Eye++, :class:`zoo.nn.dynamic_head.DynamicHead`); 0: none.
        rectified: with that head, the decoder's blocks see its tokens without what is below 0, as released.

    Raises:
        ValueError: a dynamic head in a network that takes no images.
    """

    decoder_pos2: Tensor
    decoder_pos3: Tensor

    def __init__(
        self,
        backbone: Any,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        gradient: bool = True,
        dynamic_head: int = 0,
        rectified: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.num_blocks = backbone, backbone.num_blocks
        voxels = {axes: math.prod(backbone.patches[axes]) for axes in backbone.sizes}
        colours = {axes: count * (backbone.in_chans if axes == 2 else 1) for axes, count in voxels.items()}
        shape = backbone.embed_dim, decoder_dim, decoder_depth, decoder_heads
        self.intensity = Branch(*shape, colours)
        self.gradient = Branch(*shape, voxels) if gradient else None
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        if dynamic_head and 2 not in backbone.sizes:
            raise ValueError(
                "a dynamic head mixes patches of images: set img_size in backbone_args, or leave it out"
            )
        images = math.prod(backbone.grid(*backbone.sizes[2])) if dynamic_head else 0
        self.dynamic = DynamicHead(images, dynamic_head) if dynamic_head else None
        self.rectified = rectified
        for axes, size in backbone.sizes.items():
            self.register_buffer(f"decoder_pos{axes}", backbone.table(backbone.grid(*size), decoder_dim))

    @property
    def branches(self) -> dict[str, Branch]:
        """The decoders by name."""
        found = {"intensity": self.intensity, "gradient": self.gradient}
        return {name: branch for name, branch in found.items() if branch is not None}

    def forward(
        self, x: Tensor, masks: Masks, everywhere: bool = False, source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each decoder makes of prepared images or volumes.

        Args:
            x: ``[B, C, *sides]``, see :meth:`zoo.backbones.UnifiedViT.prepared`.
            masks: which patches are hidden; equally many of every item.
            everywhere: predict all patches; losses need the masked ones alone.
            source: data source of every image, int64 ``[B]``, for the dynamic head.

        Returns:
            Values of the masked patches ``[M, values]``, in the order of ``masks.positions``; or ``[B, N, values]``.

        Raises:
            ValueError: there is a dynamic head, and images come without their sources, or from unknown ones.
        """
        (seen, _), axes = seen_and_hidden(masks), x.ndim - 2
        tokens, table = self.backbone.encode(x, seen), getattr(self, f"decoder_pos{axes}")
        predicted = {}
        for name, branch in self.branches.items():
            placed, mixing = branch.placed(tokens, seen, table), None
            if self.dynamic is not None and axes == 2 and name == "intensity":
                mixing = self.dynamic.weights(placed, source)
                placed = placed.relu() if self.rectified else placed
            whole = everywhere or mixing is not None
            decoded = branch(placed)[:, 1:]
            decoded = self.decoder_norm(decoded if whole else masks.gather(decoded))
            values = branch.heads[str(axes)](decoded)
            if self.dynamic is not None and mixing is not None:
                values = self.dynamic(values, *mixing)
                values = values if everywhere else masks.gather(values)
            predicted[name] = values
        return predicted

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; decoders come after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


def patch_values(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Values of every patch, ``[B, N, values * C]``, channels fastest, as masked autoencoders order them."""
    channels = x.shape[1]
    return patches_of(x, patch).unflatten(2, (channels, -1)).transpose(2, 3).flatten(2)


def image_values(patches: Tensor, channels: int) -> Tensor:
    """The inverse order: values with channels slowest, as :func:`zoo.nn.image_of` takes them."""
    return patches.unflatten(2, (-1, channels)).transpose(2, 3).flatten(2)


def normalised_patches(values: Tensor) -> Tensor:
    """Every patch with mean 0 and variance 1: ``(x - mean) / sqrt(var + 1e-6)``, the unbiased variance."""
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return (values - mean) / (variance + 1e-6).sqrt()
