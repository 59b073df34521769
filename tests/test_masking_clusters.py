"""Masks with the same number of tokens in every item, against the released loop and by their properties."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor

from tests.test_nn_no_sync import assert_never_waits
from zoo.nn import ClusterMasking, UniformMasking, masks_at


def released_mask(count: int, grid: tuple[int, int], rng: Random) -> list[int]:
    """The rule of the card (section 4), clip by clip."""
    rows, columns = grid
    tokens, masked = rows * columns, set()
    size = rng.randint(3, 5)
    while len(masked) <= count:
        start = rng.randrange(tokens)
        block = (start + columns * i + j for i in range(size) for j in range(size))
        masked |= {index for index in block if 0 < index < tokens}
    return sorted(masked)[:count]


@pytest.mark.parametrize(("count", "grid"), [(24, (8, 8)), (40, (4, 16)), (62, (8, 8))])
def test_every_token_is_masked_as_often_as_by_the_released_loop(count: int, grid: tuple[int, int]) -> None:
    draws, rng = 4_000, Random(0)
    reference = torch.zeros(grid[0] * grid[1])
    for _ in range(draws):
        reference[released_mask(count, grid, rng)] += 1 / draws
    masks = ClusterMasking(count)(draws, grid, generator=torch.Generator().manual_seed(0))
    found = masks.mask.float().mean(0)
    assert found[0] == reference[0] == 0
    # four standard deviations of the difference of two shares
    bound = 4 * (2 * reference * (1 - reference) / draws).sqrt() + 2e-3
    assert ((found - reference).abs() < bound).all()
    pairs = (masks.mask[:, :-1] & masks.mask[:, 1:]).float().mean()
    rng, together = Random(1), 0.0
    for _ in range(1_000):
        chosen = released_mask(count, grid, rng)
        together += sum(b - a == 1 for a, b in pairwise(chosen)) / 1_000
    assert pairs.item() == pytest.approx(together / (len(reference) - 1), abs=0.01)


def test_fixed_clusters_are_blocks_within_the_grid() -> None:
    drawn = ClusterMasking(9, sizes=(3, 3), released=False)(3_000, (20, 20)).mask.view(-1, 20, 20)
    rows, columns = drawn.any(2).sum(1), drawn.any(1).sum(1)
    whole = (rows == 3) & (columns == 3)  # nine tokens in 3 x 3: the first block, wherever it began inside
    assert whole.float().mean().item() == pytest.approx((18 / 22) ** 2, abs=0.04)
    often = ClusterMasking(100, released=False)(4_000, (8, 64)).mask.float().mean(0)
    assert often.min() > 0.15
    assert often.max() < 0.24


@pytest.mark.parametrize("grid", [(40,), (5, 9), (4, 3, 5)])
@pytest.mark.parametrize(
    "masking", [UniformMasking(7), ClusterMasking(7), ClusterMasking(7, (2, 2), released=False)]
)
def test_any_grid_has_exactly_so_many(masking: UniformMasking, grid: tuple[int, ...]) -> None:
    tokens = torch.Size(grid).numel()
    one, two = (masking(6, grid, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.mask, two.mask)
    assert one.mask.shape == (6, tokens)
    assert (one.mask.sum(1) == 7).all()
    assert torch.equal(one.positions, one.mask.flatten().nonzero().flatten())
    assert torch.equal(one.weight, torch.full((42,), 1 / 7))
    values = torch.rand(6, tokens, 2)
    gathered = one.gather(values).unflatten(0, (6, 7))
    assert torch.equal(gathered[4], values[4][one.mask[4]])


def test_single_tokens_are_uniform() -> None:
    often = (
        UniformMasking(10)(20_000, (4, 10), generator=torch.Generator().manual_seed(0)).mask.float().mean(0)
    )
    assert (often - 0.25).abs().max() < 0.015


@pytest.mark.parametrize(
    ("masking", "most"),
    [(UniformMasking(21), 20), (ClusterMasking(19), 18), (ClusterMasking(21, released=False), 20)],
)
def test_fewer_tokens_than_are_to_be_masked(masking: UniformMasking, most: int) -> None:
    with pytest.raises(ValueError, match=rf"4 x 5 = 20 tokens at most {most} can be: mask fewer"):
        masking(2, (4, 5))
    masking.count = most
    assert (masking(2, (4, 5)).mask.sum(1) == most).all()


def test_options() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        UniformMasking(0)
    with pytest.raises(ValueError, match="least, largest"):
        ClusterMasking(4, sizes=(4, 3))


@pytest.mark.parametrize("released", [True, False])
def test_the_host_never_waits(released: bool) -> None:
    def draw(tokens: Tensor) -> Tensor:
        masks = ClusterMasking(24, released=released)(2, (8, 8))
        return masks.gather(tokens) + masks_at(torch.zeros(2, 3, dtype=torch.long), 64).mask.sum()

    assert_never_waits(lambda: draw, (2, 64, 4))
