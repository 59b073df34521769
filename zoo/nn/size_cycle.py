"""Which member of an elastic family a step trains: weighted cycles without replacement (POA, equation 14)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from zoo.nn.elastic import Size


def size_copies(
    sizes: Sequence[Size], width_emphasis: float = 3.0, depth_emphasis: float = 3.0
) -> list[tuple[Size, int]]:
    """How often each of ``sizes`` occurs in a cycle: small networks more often than large ones.

    ``round(ws_i * ds_j)`` copies of the i-th width with the j-th depth, where ``ws`` falls linearly from
    ``width_emphasis`` to 1 over the widths and ``ds`` from ``depth_emphasis`` to 1 over the depths; halves are rounded
    to even numbers, as released.

    Args:
        sizes: all widths with all depths, each in ascending order; the last one is the intact network.
        width_emphasis: weight of the narrowest over the widest; 3 for ViT, 2 for Swin, 1 for ResNet.
        depth_emphasis: weight of the shallowest over the deepest; 3 for ViT, 2 for Swin and ResNet.

    Raises:
        ValueError: an emphasis below 1.
    """
    if min(width_emphasis, depth_emphasis) < 1:
        raise ValueError(
            f"width_emphasis={width_emphasis} and depth_emphasis={depth_emphasis} must be at least 1, the weight "
            "of the largest size"
        )
    widths = list(dict.fromkeys(size.width for size in sizes))
    depths = list(dict.fromkeys(size.depth for size in sizes))
    by_width = dict(zip(widths, _falling(width_emphasis, len(widths)), strict=True))
    by_depth = dict(zip(depths, _falling(depth_emphasis, len(depths)), strict=True))
    return [(size, int(np.round(by_width[size.width] * by_depth[size.depth]))) for size in sizes]


def _falling(emphasis: float, count: int) -> np.ndarray:
    """From ``emphasis`` down to 1; the only one of a kind has weight 1."""
    return np.linspace(emphasis, 1, count) if count > 1 else np.ones(1)


class SizeCycle:
    """A shuffled deck of sizes, of which each step takes one; after the last it is shuffled again.

    What a step gets depends on nothing but its number and a seed, so there is no state to checkpoint.

    Args:
        copies: sizes and how often each is in the deck, see :func:`size_copies`. One copy of the last, the intact
            network, is taken out: it is trained in every step anyway.

    Raises:
        ValueError: no other size is left.
    """

    def __init__(self, copies: Sequence[tuple[Size, int]]) -> None:
        self.deck = [size for size, count in copies for _ in range(count)][:-1]
        if not self.deck:
            raise ValueError(
                "the backbone has no size but the intact one: give it more widths or depths (backbone_args)"
            )
        self._shuffled: tuple[object, list[Size]] = (None, [])

    def __call__(self, step: int, seed: str) -> Size:
        """Size of optimiser step ``step``."""
        cycle, place = divmod(step, len(self.deck))
        key = f"{seed}/{cycle}"
        if self._shuffled[0] != key:
            deck = list(self.deck)
            Random(key).shuffle(deck)
            self._shuffled = key, deck
        return self._shuffled[1][place]
