"""Audio spectrogram transformer: a DeiT over patches of a log-mel spectrogram (AST, Interspeech 2021; SSAST)."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.nn.tokens import Tokens
from zoo.registry import register_backbone


class ASTSize(NamedTuple):
    """Width and attention heads of a published size; all have 12 blocks."""

    embed_dim: int
    num_heads: int
    dist_token: bool = True


SIZES = {
    "ast_tiny": ASTSize(192, 3),
    "ast_small": ASTSize(384, 6),
    "ast_base": ASTSize(768, 12),
    "ast_base_nokd": ASTSize(768, 12, dist_token=False),
}


class AST(nn.Module):
    """Pre-norm transformer over spectrogram patches, with class token, distillation token and learned positions.

    A spectrogram is an image here: rows are triangles (low to high), columns are frames, so that patches are
    counted frequency-major, as released. Blocks are timm's: fused qkv with bias, exact GELU, layer norms with
    eps 1e-6. Patch-shaped tokens are 16 triangles x 16 frames; frame-shaped ones are all triangles x 2 frames.
    With a ``stride`` below the shape patches overlap (fine-tuning).

    Positions are two parameters: ``pos_prefix`` ``[1, tokens, D]`` and ``pos_grid`` ``[1, D, rows, columns]``.
    Those of a checkpoint are brought to this grid by :func:`fit_positions`, and stay trainable; so are, on the
    fly, those of spectrograms of another length than ``frames``. Linear weights, tokens and positions start as
    truncated normals of std 0.02, the mask token at std ``1 / sqrt(D)`` (Xavier).

    Args:
        embed_dim: D, channels of tokens.
        depth: number of blocks.
        num_heads: attention heads.
        mels: rows of the spectrogram.
        frames: columns of the spectrogram.
        patch: (triangles, frames) of a patch.
        stride: (triangles, frames) from patch to patch; ``None``: the patch itself.
        in_chans: channels of the spectrogram.
        dist_token: whether there is a distillation token beside the class token.
        mask_token: whether there is a mask token, which masked patches are replaced by.
        drop_path_rate: of stochastic depth, linear from 0 in the first block.

    Raises:
        ValueError: a patch larger than the spectrogram, or a stride below one.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mels: int = 128,
        frames: int = 1024,
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] | None = None,
        in_chans: int = 1,
        dist_token: bool = True,
        mask_token: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.stride = _pair(patch), _pair(stride or patch)
        if min(self.stride) < 1:
            raise ValueError(f"stride must be at least (1, 1), got {self.stride}")
        self.embed_dim, self.num_blocks, self.in_chans = embed_dim, depth, in_chans
        self.mels, self.frames = mels, frames
        self.channels, self.strides = (embed_dim,), (self.stride[1],)
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans  # the feature pipeline normalises

        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch, stride=self.stride)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if dist_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if mask_token else None
        self.pos_prefix = nn.Parameter(torch.zeros(1, 1 + dist_token, embed_dim))
        self.pos_grid = nn.Parameter(torch.zeros(1, embed_dim, *self.grid(mels, frames)))
        norm = partial(nn.LayerNorm, eps=1e-6)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates
        )
        self.norm = norm(embed_dim)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.dist_token, self.pos_prefix, self.pos_grid):
            if token is not None:
                trunc_normal_(token, std=0.02)
        if self.mask_token is not None:
            nn.init.xavier_normal_(self.mask_token)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a spectrogram with ``height`` triangles and ``width`` frames.

        Raises:
            ValueError: it is smaller than one patch.
        """
        if height < self.patch[0] or width < self.patch[1]:
            raise ValueError(
                f"a spectrogram of {height} triangles x {width} frames is smaller than a patch of "
                f"{self.patch[0]} x {self.patch[1]}: pad it (target_length of the features), or set a smaller patch "
                "in backbone_args"
            )
        rows, columns = (
            (size - p) // s + 1 for size, p, s in zip((height, width), self.patch, self.stride, strict=True)
        )
        return rows, columns

    def embed(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """What goes into the first block: prefix and patch tokens with positions, ``[B, prefix + N, D]``.

        Args:
            image: spectrograms ``[B, in_chans, mels, frames]``.
            mask: bool ``[B, N]``, True patches are replaced by the mask token.

        Raises:
            ValueError: a spectrogram smaller than a patch, or a mask without a mask token.
        """
        grid = self.grid(*image.shape[-2:])
        x = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("this backbone was built without a mask token: set mask_token=True")
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        positions = fit_positions(self.pos_grid, grid).flatten(2).transpose(1, 2)
        tokens = (
            self.cls_token if self.dist_token is None else torch.cat((self.cls_token, self.dist_token), 1)
        )
        prefix = (tokens + self.pos_prefix).expand(x.shape[0], -1, -1)
        return torch.cat((prefix.to(x.dtype), x + positions), 1)

    def forward_blocks(self, image: Tensor) -> list[Tensor]:
        """Outputs of every block before the final norm, prefix tokens first: ``depth`` times ``[B, prefix + N, D]``."""
        x, outputs = self.embed(image), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens after the final norm; ``cls`` is the mean of class and distillation token.

        Args:
            image: spectrograms ``[B, in_chans, mels, frames]``.
            mask: see :meth:`embed`.
        """
        x = self.embed(image, mask)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        prefix = self.pos_prefix.shape[1]
        return Tokens(x[:, :prefix].mean(1), x[:, prefix:])

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """One map ``[B, D, rows, columns]`` of the patch tokens."""
        patches = self.forward_tokens(image).patches
        return [patches.transpose(1, 2).unflatten(2, self.grid(*image.shape[-2:]))]

    forward = forward_features

    def block_of(self, parameter_name: str) -> int:
        """0 for embeddings and tokens, i+1 for block i, ``num_blocks + 1`` for the final norm."""
        if match := re.match(r"blocks\.(\d+)\.", parameter_name):
            return int(match[1]) + 1
        return self.num_blocks + 1 if parameter_name.startswith("norm.") else 0


def fit_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions ``[1, D, rows, columns]`` for another grid, as released: cut where smaller, interpolated where larger.

    Columns first, then rows: the centred window that begins at ``old // 2 - new // 2``, or bilinear interpolation
    (no antialias, corners not aligned).
    """
    for axis, new in ((3, grid[1]), (2, grid[0])):
        old = positions.shape[axis]
        if new < old:
            positions = positions.narrow(axis, old // 2 - new // 2, new)
        elif new > old:
            size = (positions.shape[2], new) if axis == 3 else (new, positions.shape[3])
            positions = F.interpolate(positions, size=size, mode="bilinear", align_corners=False)
    return positions


def _pair(values: Any) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)


def _register(name: str, size: ASTSize) -> None:
    @register_backbone(name)
    def create(pretrained: bool = False, in_chans: int = 1, **kwargs: Any) -> AST:
        if pretrained:
            raise ValueError(
                f"{name} has no weights of its own to fetch: set pretrained to false, or to a file (released "
                "SSAST and AST weights, or timm:deit_base_distilled_patch16_384)"
            )
        return AST(**{**size._asdict(), "in_chans": in_chans, **kwargs})


for _name, _size in SIZES.items():
    _register(_name, _size)
