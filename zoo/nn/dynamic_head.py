"""A head whose weights depend on the item and on where it comes from (Uni4Eye++, TMI 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DynamicHead(nn.Module):
    """Mix the predicted patches of every item with a linear layer of its own.

    What an item's tokens hold on average above 0, one number per token, is joined with its data source as one-hot
    code; a 1x1 convolution makes of both the ``N x N`` weights and ``N`` biases of a layer from patches to patches. The
    convolution starts as PyTorch initialises it, like the released one.

    Args:
        tokens: N, patches of an item.
        sources: how many data sources there are.

    Raises:
        ValueError: fewer than one token or source.
    """

    def __init__(self, tokens: int, sources: int = 7) -> None:
        super().__init__()
        if tokens < 1 or sources < 1:
            raise ValueError(f"tokens={tokens} and sources={sources} must both be at least 1")
        self.tokens, self.sources = tokens, sources
        self.controller = nn.Conv1d(1 + tokens + sources, tokens * tokens + tokens, 1)

    def weights(self, tokens: Tensor, source: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights ``[B, N, N]`` and biases ``[B, N]`` of every item's layer.

        Args:
            tokens: class token and patch tokens, as they enter the decoder's blocks, ``[B, 1 + N, D]``.
            source: data source of every item, int64 ``[B]`` in ``0 .. sources - 1``.

        Raises:
            ValueError: no sources, or not as described. To say so, sources are read from the device.
        """
        if source is None or source.shape != tokens.shape[:1]:
            found = "none" if source is None else f"shape {list(source.shape)}"
            raise ValueError(
                f"the dynamic head needs the data source of each of {len(tokens)} items, and got {found}: batches must "
                "hold source, int64 [B] (data.source sets one for all images)"
            )
        if unknown := sorted({number for number in source.tolist() if not 0 <= number < self.sources}):
            raise ValueError(f"source holds {unknown}, and the dynamic head knows 0..{self.sources - 1}")
        described = tokens.relu().mean(2)
        code = F.one_hot(source, self.sources).to(described.dtype)
        numbers = self.controller(torch.cat((described, code), 1)[..., None])[..., 0]
        weight, bias = numbers.split((self.tokens**2, self.tokens), 1)
        return weight.unflatten(1, (self.tokens, self.tokens)), bias

    def forward(self, patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Mixed patches ``[B, N, values]``: patch i becomes ``sum_j weight_ij patch_j + bias_i``."""
        return torch.baddbmm(bias[..., None].to(patches.dtype), weight.to(patches.dtype), patches)
