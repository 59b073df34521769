"""The contract of token backbones: one vector per image and one per patch."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Tokens(NamedTuple):
    """What a token backbone makes of a batch of B images, after its final norm.

    Attributes:
        cls: ``[B, D]``, the class token (or the pooled map, of networks that have none).
        patches: ``[B, N, D]``, one vector per patch, row-major over ``grid(height, width)``.
    """

    cls: Tensor
    patches: Tensor


def probed_blocks(depth: int) -> list[int]:
    """Positions of the four blocks that linear probes look at: round(L/4), round(L/2), round(3L/4), L - 1.

    Halves are rounded to even numbers (POA's protocol, card section 10); fewer than four blocks give some twice.
    """
    return [*(min(round(depth * quarter / 4), depth - 1) for quarter in (1, 2, 3)), depth - 1]


@runtime_checkable
class TokenBackbone(Protocol):
    """What self-distillation asks of a backbone; implementations are ``nn.Module``.

    Attributes:
        embed_dim: D, the channels of both kinds of tokens.
        in_chans: channels of the image.
        mean, std: normalisation for images in [0, 1]; the caller applies it.
        num_blocks: how many depth steps :meth:`block_of` distinguishes.
    """

    embed_dim: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_blocks: int

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens of normalised images ``[B, in_chans, H, W]``.

        Args:
            image: normalised images.
            mask: bool ``[B, N]``; True patches are replaced by the mask token before the first block.
        """
        ...

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens for an image of that size; their product is N."""
        ...

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter (named as in ``named_parameters``), for layer-wise learning rates.

        0 for embeddings and tokens, i+1 for block i, ``num_blocks + 1`` for the final norm.
        """
        ...
