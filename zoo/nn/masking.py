"""Random masks over grids of tokens.

Masks are drawn on the host, where the numbers of masked tokens are known, so that gathering them on the device
waits for nothing. Generators take a ``random.Random`` and draw nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor


class Masks(NamedTuple):
    """Which tokens of V views are masked.

    Attributes:
        mask: bool ``[V, N]``.
        positions: of the M masked tokens in the flattened ``V * N``, int64 ``[M]``, ascending.
        weight: 1 / (masked tokens of the same view), float32 ``[M]``.
    """

    mask: Tensor
    positions: Tensor
    weight: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Masks:
        """Positions and weights of a mask on the host."""
        weight = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return cls(mask, mask.flatten().nonzero().flatten(), weight[mask])

    @classmethod
    def joined(cls, masks: Sequence[Masks]) -> Masks:
        """Masks of several passes over the same views, as those of one batch: all views of the first, then the next."""
        views, tokens = masks[0].mask.shape
        return cls(
            torch.cat([m.mask for m in masks]),
            torch.cat([m.positions + i * views * tokens for i, m in enumerate(masks)]),
            torch.cat([m.weight for m in masks]),
        )

    def to(self, device: torch.device) -> Masks:
        """The same on a device, without waiting for it."""
        return Masks(*(part.to(device, non_blocking=True) for part in self))

    def gather(self, tokens: Tensor) -> Tensor:
        """The masked ones of ``[V, N, D]`` → ``[M, D]``."""
        return tokens.flatten(0, 1).index_select(0, self.positions)


class BlockMasking:
    """Masks of rectangular blocks, as in BEiT, iBOT, DINOv2 and POA.

    Of V views ``int(share * V)`` are masked. Their target ratios are stratified: view i of n draws uniformly
    from the i-th of n equal parts of ``ratio``, and the list is shuffled over the views (DINOv2, POA). Or every
    view draws for itself whether it is masked, and its ratio from all of ``ratio`` (iBOT). A mask grows by blocks of
    random area and aspect until its target is reached or ten blocks in a row do not fit, so that counts stay at
    or below the target.

    Args:
        ratio: (least, largest) share of tokens that are masked in a masked view.
        share: of the views that are masked at all.
        stratified: as above, or each view for itself.
        min_tokens: least area of a block.
        max_share: largest area of a block, as a share of all tokens.
        aspect: (least, largest) height over width of a block.

    Raises:
        ValueError: an option out of range.
    """

    tries = 10

    def __init__(
        self,
        ratio: tuple[float, float] = (0.1, 0.5),
        share: float = 0.5,
        stratified: bool = True,
        min_tokens: int = 4,
        max_share: float = 0.5,
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        if not 0.0 <= ratio[0] <= ratio[1] <= 1.0:
            raise ValueError(f"mask ratio must be (least, largest) within [0, 1], got {tuple(ratio)}")
        if not 0.0 <= share <= 1.0 or not 0.0 < max_share <= 1.0:
            raise ValueError(f"share={share} and max_share={max_share} of a mask must be within [0, 1]")
        if not 0.0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be (least, largest), both positive, got {tuple(aspect)}")
        self.ratio, self.share, self.stratified = (ratio[0], ratio[1]), share, stratified
        self.min_tokens, self.max_share = min_tokens, max_share
        self.log_aspect = math.log(aspect[0]), math.log(aspect[1])

    def __call__(self, views: int, grid: tuple[int, int], rng: Random) -> Masks:
        """Draw masks of ``views`` views with ``grid`` (rows, columns) of tokens each, on the host."""
        tokens, count = grid[0] * grid[1], int(views * self.share)
        if self.stratified:
            edges = torch.linspace(*self.ratio, count + 1).tolist()
            bounds = list(pairwise(edges))
        else:
            bounds = [self.ratio if rng.random() < self.share else (0.0, 0.0) for _ in range(views)]
        masks = [self.draw(int(tokens * rng.uniform(*pair)), grid, rng) for pair in bounds]
        masks += [torch.zeros(grid, dtype=torch.bool)] * (views - len(bounds))
        if self.stratified:
            rng.shuffle(masks)
        return Masks.of(torch.stack(masks).flatten(1))

    def draw(self, target: int, grid: tuple[int, int], rng: Random) -> Tensor:
        """One mask, bool ``[rows, columns]``, of at most ``target`` tokens."""
        mask, count = torch.zeros(grid, dtype=torch.bool), 0
        largest = self.max_share * grid[0] * grid[1]
        while count < target:
            added = self._add_block(mask, min(target - count, largest), rng)
            if not added:
                break
            count += added
        return mask

    def _add_block(self, mask: Tensor, limit: float, rng: Random) -> int:
        """Mask one more block that covers up to ``limit`` new tokens; their number, 0 if no try fits."""
        rows, columns = mask.shape
        for _ in range(self.tries):
            area = rng.uniform(self.min_tokens, limit)
            aspect = math.exp(rng.uniform(*self.log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
            block = mask[top : top + height, left : left + width]
            added = block.numel() - int(block.sum())
            if 0 < added <= limit:
                block.fill_(True)
                return added
        return 0
