"""Patches of inputs with any number of axes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.nn import image_of, masks_at, patches_of
from zoo.nn.masked_prediction import filled_in


@pytest.mark.parametrize("stride", [None, (3, 2)])
def test_patches_of_images_are_those_of_unfold(stride: tuple[int, int] | None) -> None:
    image = torch.randn(2, 3, 13, 17)
    expected = F.unfold(image, (4, 5), stride=stride or (4, 5)).transpose(1, 2)
    assert torch.equal(patches_of(image, (4, 5), stride), expected)


@pytest.mark.parametrize(("patch", "grid"), [((4,), (3,)), ((2, 3), (3, 2)), ((2, 3, 4), (2, 1, 3))])
def test_patches_and_back(patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    sides = [size * count for size, count in zip(patch, grid, strict=True)]
    whole = torch.randn(2, 3, *sides)
    larger = F.pad(whole, (0, 1) * len(sides))  # what no whole patch covers is left out
    patches = patches_of(larger, patch)
    assert patches.shape == (2, torch.tensor(grid).prod(), 3 * torch.tensor(patch).prod())
    assert torch.equal(image_of(patches, patch, grid), whole)
    last = tuple(slice((n - 1) * p, n * p) for p, n in zip(patch, grid, strict=True))
    assert torch.equal(patches[1, -1], whole[(1, slice(None), *last)].flatten())


def test_masks_of_several_passes_are_those_of_one_batch() -> None:
    parts = [masks_at(torch.tensor([[0, 2], [1, 3]]), 4), masks_at(torch.tensor([[1], [2]]), 4)]
    tokens = torch.randn(4, 4, 5)
    joined = type(parts[0]).joined(parts)
    alone = [mask.gather(some) for mask, some in zip(parts, tokens.split(2), strict=True)]
    assert torch.equal(joined.gather(tokens), torch.cat(alone))
    assert torch.equal(joined.mask, torch.cat([mask.mask for mask in parts]))
    assert joined.weight.tolist() == [0.5] * 4 + [1.0] * 2


@pytest.mark.parametrize(("patch", "sides"), [((3,), (10,)), ((2, 3), (5, 6)), ((2, 2, 2), (4, 2, 5))])
def test_predictions_take_the_places_of_masked_patches(
    patch: tuple[int, ...], sides: tuple[int, ...]
) -> None:
    image = torch.rand(2, 2, *sides)
    values = torch.full((2, 1, 2 * torch.tensor(patch).prod()), 7.0)
    masks = masks_at(torch.tensor([[0], [1]]), patches_of(image, patch).shape[1])
    seen, filled = filled_in(image, values, masks.mask, patch)
    hidden = seen.isnan()
    assert (hidden == (filled == 7)).all()
    assert torch.equal(filled[~hidden], image[~hidden])
    assert torch.equal(seen[~hidden], image[~hidden])
    assert hidden[0, :, *(slice(size) for size in patch)].all()
    assert hidden.flatten(1).sum(1).tolist() == [values.shape[2]] * 2
