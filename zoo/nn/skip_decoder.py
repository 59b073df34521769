"""Decoder of a masked autoencoder whose blocks look back into the encoder, deepest layer first (HiCMAE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn.cross_attention import CrossBlock, LayerNorm, SelfBlock, init_blocks, sinusoids
from zoo.nn.masking_clusters import gathered


class SkipDecoder(nn.Module):
    """Predicts the values of masked tokens from the visible ones.

    The visible tokens, projected and with positions, are followed by one mask token with a position for every masked
    token. The first block is a plain one; block i attends to the i-th of the encoder's intermediate layers counted
    from the deepest, through the same projection and with the positions of the visible tokens.

    Args:
        tokens: N, visible and masked together.
        encoder_dim: channels of the encoder's tokens.
        embed_dim: channels of the decoder's.
        num_heads: attention heads.
        levels: number of intermediate layers, so that there are ``levels + 1`` blocks.
        values: predicted of every token.

    Raises:
        ValueError: heads do not divide the width.
    """

    positions: Tensor

    def __init__(
        self, tokens: int, encoder_dim: int, embed_dim: int, num_heads: int, levels: int, values: int
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(encoder_dim, embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("positions", sinusoids(tokens, embed_dim), persistent=False)
        blocks: list[nn.Module] = [SelfBlock(embed_dim, num_heads)]
        blocks += [CrossBlock(embed_dim, num_heads) for _ in range(levels)]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = LayerNorm(embed_dim), nn.Linear(embed_dim, values)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_blocks(self)

    def forward(self, tokens: Tensor, skips: Sequence[Tensor], visible: Tensor, hidden: Tensor) -> Tensor:
        """Values ``[B, M, values]`` of the masked tokens.

        Args:
            tokens: the visible ones as encoded, ``[B, N - M, encoder_dim]``.
            skips: the same of the encoder's intermediate layers, the shallowest first.
            visible: their positions, int64 ``[B, N - M]``.
            hidden: positions of the masked ones, int64 ``[B, M]``.
        """
        where = gathered(self.positions, visible)
        x = torch.cat(
            (self.projection(tokens) + where, self.mask_token + gathered(self.positions, hidden)), 1
        )
        for number, block in enumerate(self.blocks):
            x = block(x, self.projection(skips[-number]) + where) if number else block(x)
        return self.head(self.norm(x[:, -hidden.shape[1] :]))
