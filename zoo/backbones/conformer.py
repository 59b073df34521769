"""Conformer over log-mel spectrograms: convolutional subsampling, then torchaudio's conformer layers (w2v-BERT)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.models import Conformer

from zoo.nn.sincos import sincos_positions
from zoo.nn.tokens import Tokens
from zoo.registry import register_backbone


class ConformerBackbone(nn.Module):
    """Four times fewer steps than frames by two strided convolutions, a linear layer, conformer layers.

    A spectrogram is an image as elsewhere in the zoo: rows are triangles, columns are frames. Tokens are steps in time.
    Layers are those of :class:`torchaudio.models.Conformer`, which have no relative positions; fixed sinusoids are
    added instead. Convolutions of a layer reach over padding by half their kernel; attention does not.

    Args:
        embed_dim: D, channels of steps.
        depth: conformer layers.
        num_heads: attention heads.
        ffn_dim: hidden width of feed-forward modules; ``None``: 4 D.
        kernel: of the depthwise convolutions, in steps; odd.
        conv_channels: of the two convolutions of stride (2, 2), each followed by ReLU.
        conv_kernel: side of their kernels; odd.
        mels: rows of the spectrogram.
        frames: columns that positions are kept for; those of longer spectrograms are made when they come.
        in_chans: channels of the spectrogram.
        encoded_norm: normalise every encoded step (wav2vec 2.0's layer norm), before it is masked or quantised.
        norm: of the convolution modules: ``batch``, or ``group`` (one group, for small batches).
        positions: add sinusoids, or leave order to the convolutions.
        dropout: everywhere in the layers.
        mask_token: whether there is a vector that masked steps are replaced by, before the linear layer.

    Raises:
        ValueError: an unknown norm, or an even kernel.
    """

    table: Tensor | None

    def __init__(
        self,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 8,
        ffn_dim: int | None = None,
        kernel: int = 5,
        conv_channels: tuple[int, int] = (128, 32),
        conv_kernel: int = 3,
        mels: int = 80,
        frames: int = 1024,
        in_chans: int = 1,
        encoded_norm: bool = True,
        norm: str = "batch",
        positions: bool = True,
        dropout: float = 0.0,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group"):
            raise ValueError(f"norm={norm!r}: expected batch or group")
        for argument, side in (("kernel", kernel), ("conv_kernel", conv_kernel)):
            if side % 2 == 0:
                raise ValueError(f"{argument}={side} must be odd")
        self.embed_dim, self.num_blocks, self.in_chans = embed_dim, depth, in_chans
        self.mels, self.frames = mels, frames
        self.channels, self.strides = (embed_dim,), (4,)
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans  # the feature pipeline normalises
        first, second = conv_channels
        self.subsampling = nn.ModuleList(
            nn.Conv2d(inputs, outputs, conv_kernel, 2, padding=conv_kernel // 2)
            for inputs, outputs in ((in_chans, first), (first, second))
        )
        #: F, values of an encoded step.
        self.encoded_dim = second * quarter(mels)
        self.encoded_norm = nn.LayerNorm(self.encoded_dim) if encoded_norm else nn.Identity()
        self.projection = nn.Linear(self.encoded_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.rand(self.encoded_dim)) if mask_token else None
        table = sincos_positions((quarter(frames),), embed_dim, prefix=0) if positions else None
        self.register_buffer("table", table, persistent=False)
        layers = Conformer(
            embed_dim, num_heads, ffn_dim or 4 * embed_dim, depth, kernel, dropout, norm == "group"
        )
        self.blocks = layers.conformer_layers

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """One row, and steps of a spectrogram of ``width`` frames."""
        return 1, quarter(width)

    def encode(self, image: Tensor) -> Tensor:
        """Encoded steps ``[B, S, F]`` of spectrograms ``[B, in_chans, mels, T]``.

        Raises:
            ValueError: another number of triangles.
        """
        if image.shape[-2] != self.mels:
            raise ValueError(
                f"a spectrogram of {image.shape[-2]} triangles, but mels={self.mels}: set backbone_args.mels, or mels "
                "of the features' bank"
            )
        for convolution in self.subsampling:
            image = convolution(image).relu()
        return self.encoded_norm(image.flatten(1, 2).transpose(1, 2))

    def embed(self, encoded: Tensor, mask: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """What goes into the first layer, ``[B, S, D]``.

        Args:
            encoded: of :meth:`encode`.
            mask: bool ``[B, S]``; True steps are replaced by the mask token.
            noise: ``[B, S, F]``, which they are replaced by instead.

        Raises:
            ValueError: a mask, but neither noise nor a mask token.
        """
        if mask is not None:
            if noise is None and self.mask_token is None:
                raise ValueError("this backbone was built without a mask token: set mask_token=True")
            hidden: Any = self.mask_token if noise is None else noise
            encoded = torch.where(mask[..., None], hidden.to(encoded.dtype), encoded)
        x = self.projection(encoded)
        if self.table is None:
            return x
        table = self.table
        if x.shape[1] > table.shape[1]:
            table = sincos_positions((x.shape[1],), self.embed_dim, prefix=0).to(x.device)
        return x + table[:, : x.shape[1]].to(x.dtype)

    def run(
        self, x: Tensor, start: int = 0, stop: int | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Steps ``[B, S, D]`` after layers ``start`` to ``stop``; ``padding`` is bool, True behind the end."""
        x = x.transpose(0, 1)
        for block in self.blocks[start:stop]:
            x = block(x, padding)
        return x.transpose(0, 1)

    def forward_blocks(self, image: Tensor) -> list[Tensor]:
        """Outputs of every layer, ``depth`` times ``[B, S, D]``."""
        x, outputs = self.embed(self.encode(image)), []
        for index in range(self.num_blocks):
            x = self.run(x, index, index + 1)
            outputs.append(x)
        return outputs

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Steps ``[B, S, D]`` after the last layer as ``patches``, and their mean as ``cls``."""
        x = self.run(self.embed(self.encode(image), mask))
        return Tokens(x.mean(1), x)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """One map ``[B, D, 1, S]``."""
        return [self.forward_tokens(image).patches.transpose(1, 2)[:, :, None]]

    forward = forward_features

    def block_of(self, parameter_name: str) -> int:
        """0 for what comes before the layers, i+1 for layer i."""
        match = re.match(r"blocks\.(\d+)\.", parameter_name)
        return int(match[1]) + 1 if match else 0


def quarter(length: Any) -> Any:
    """Steps that two convolutions of stride 2 make of so many frames; of a tensor, of each."""
    return ((length + 1) // 2 + 1) // 2


def _register(name: str, depth: int) -> None:
    @register_backbone(name)
    def create(pretrained: bool = False, in_chans: int = 1, **kwargs: Any) -> ConformerBackbone:
        if pretrained:
            raise ValueError(
                f"{name} has no weights to fetch: nobody released any. Set pretrained to false, or to a file"
            )
        return ConformerBackbone(**{"depth": depth, "in_chans": in_chans, **kwargs})


for _name, _depth in {"conformer_xl": 24, "conformer_xxl": 42}.items():
    _register(_name, _depth)
