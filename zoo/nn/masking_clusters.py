"""Masks with the same number of masked tokens in every item, in clusters or single, drawn on the device.

For grids of any number of axes: spectrograms, images, volumes, sensor channels by time. Nothing here reads a
value back from the device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.masking import Masks


class UniformMasking:
    """``count`` tokens of every item, uniformly without replacement (SSAST's frame-shaped tokens).

    Args:
        count: masked tokens of an item.

    Raises:
        ValueError: ``count`` is not positive.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"at least one token must be masked, got count={count}")
        self.count = count

    def largest(self, tokens: int) -> int:
        """The most of ``tokens`` tokens that can be masked."""
        return tokens

    def __call__(
        self,
        items: int,
        grid: tuple[int, ...],
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Masks:
        """Draw masks of ``items`` items with ``grid`` tokens each; see :func:`masks_at` for their layout.

        Raises:
            ValueError: the grid has fewer tokens than are to be masked.
        """
        self.check(grid)
        return masks_at(self.draw(items, grid, torch.device(device), generator), math.prod(grid))

    def check(self, grid: tuple[int, ...]) -> None:
        """Raise the ValueError if a grid has fewer tokens than are to be masked."""
        tokens = math.prod(grid)
        if self.count > self.largest(tokens):
            raise ValueError(
                f"{self.count} tokens are to be masked, but of a grid of {' x '.join(map(str, grid))} = "
                f"{tokens} tokens at most {self.largest(tokens)} can be: mask fewer, or make the input longer"
            )

    def draw(
        self, items: int, grid: tuple[int, ...], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Positions of masked tokens, int64 ``[items, count]``, ascending."""
        order = torch.rand(items, math.prod(grid), device=device, generator=generator).argsort(1)
        return order[:, : self.count].sort(1).values


class TubeMasking(UniformMasking):
    """``count`` places of every video, uniformly without replacement, masked at all times (VideoMAE).

    Grids are (time, rows, columns). A mask that changed with time would leave a place visible at one time that it
    hides at the next, and little moves in between.

    Args:
        count: masked places of an item.

    Raises:
        ValueError: ``count`` is not positive.
    """

    def check(self, grid: tuple[int, ...]) -> None:
        """Raise the ValueError if a grid has fewer places than are to be masked."""
        super().check(grid[1:])

    def draw(
        self, items: int, grid: tuple[int, ...], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Positions of masked tokens, int64 ``[items, time * count]``, ascending."""
        places = super().draw(items, grid[1:], device, generator)
        start = torch.arange(grid[0], device=device) * math.prod(grid[1:])
        return (places[:, None] + start[:, None]).flatten(1)


class ClusterMasking(UniformMasking):
    """``count`` tokens of every item in blocks of C tokens along every axis, C drawn once per item (SSAST, section 4).

    Blocks begin at tokens drawn uniformly, one after the other, until more than ``count`` tokens are covered.
    Only where a token is drawn for the first time does it add anything, and the order of first draws is a
    random permutation; so a random number per token says when it is drawn, its minimum over the block's starts
    says when a token is covered, and no loop is needed.

    As released (``released=True``), blocks are bounded in the flat index alone, so that they wrap from the end
    of a row to the beginning of the next; token 0 is never covered; and what is covered beyond ``count`` is dropped
    from the top of the index, so that first rows (low frequencies) are masked less, and at most ``tokens - 2``
    can be masked. In the fixed form blocks are cut at the borders, may begin before the grid, and lose their
    surplus tokens at random, so that every token is masked about equally often.

    Args:
        count: masked tokens of an item.
        sizes: (least, largest) C.
        released: with the quirks of the released code, as above.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, count: int, sizes: tuple[int, int] = (3, 5), released: bool = True) -> None:
        super().__init__(count)
        if not 1 <= sizes[0] <= sizes[1]:
            raise ValueError(f"sizes of clusters must be (least, largest), at least 1, got {tuple(sizes)}")
        self.sizes, self.released = (sizes[0], sizes[1]), released

    def largest(self, tokens: int) -> int:
        """The most of ``tokens`` tokens that can be masked."""
        return tokens - 2 if self.released else tokens

    def draw(
        self, items: int, grid: tuple[int, ...], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Positions of masked tokens, int64 ``[items, count]``, ascending."""
        tokens = math.prod(grid)
        size = torch.randint(self.sizes[0], self.sizes[1] + 1, (items,), device=device, generator=generator)
        if self.released:
            covered = self._wrapping(self._times((items, tokens), device, generator), grid, size)
            covered[:, 0] = torch.inf
            last = covered.kthvalue(self.count + 1, dim=1, keepdim=True).values
            position = torch.arange(tokens, device=device)
            return torch.where(covered <= last, position, tokens).sort(1).values[:, : self.count]
        margin = self.sizes[1] - 1  # so far before the grid may blocks begin
        times = self._times((items, *(side + margin for side in grid)), device, generator)
        inside = (slice(None), *(slice(margin, None) for _ in grid))
        covered = self._bounded(times, size)[inside].flatten(1)
        # tokens of one block are covered at the same time: ties are broken at random
        shuffled = torch.rand(items, tokens, device=device, generator=generator).argsort(1)
        order = covered.gather(1, shuffled).sort(dim=1, stable=True).indices[:, : self.count]
        return shuffled.gather(1, order).sort(1).values

    def _times(
        self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """When a block begins at each place; in float64, lest two begin at once."""
        return torch.rand(shape, device=device, generator=generator, dtype=torch.float64)

    def _wrapping(self, times: Tensor, grid: tuple[int, ...], size: Tensor) -> Tensor:
        """When each token is covered, ``[items, tokens]``; blocks are bounded in the flat index alone."""
        for axis in range(len(grid)):
            times = self._earliest(times, math.prod(grid[axis + 1 :]), size)
        return times

    def _bounded(self, times: Tensor, size: Tensor) -> Tensor:
        """The same for ``[items, *places]``, where blocks end at the borders."""
        for axis in range(1, times.ndim):
            moved = times.movedim(axis, -1)
            lines = moved.reshape(len(moved), -1, moved.shape[-1])
            times = self._earliest(lines, 1, size[:, None]).view(moved.shape).movedim(-1, axis)
        return times

    def _earliest(self, times: Tensor, stride: int, size: Tensor) -> Tensor:
        """Minimum of each place and the ``size - 1`` before it at distance ``stride``, along the last axis."""
        earliest = times
        for step in range(1, self.sizes[1]):
            before = F.pad(times, (step * stride, 0), value=torch.inf)[..., : times.shape[-1]]
            earliest = torch.where(step < size[..., None], torch.minimum(earliest, before), earliest)
        return earliest


def masks_at(index: Tensor, tokens: int) -> Masks:
    """:class:`zoo.nn.Masks` of the masked positions ``[B, count]`` of items with ``tokens`` tokens each.

    As every item has equally many, ``masks.gather(x).unflatten(0, (B, count))`` is ``[B, count, D]``.
    """
    items, count = index.shape
    mask = torch.zeros(items, tokens, dtype=torch.bool, device=index.device).scatter_(1, index, True)
    flat = index + tokens * torch.arange(items, device=index.device)[:, None]
    return Masks(mask, flat.flatten(), torch.full((items * count,), 1.0 / count, device=index.device))


def seen_and_hidden(masks: Masks) -> tuple[Tensor, Tensor]:
    """Positions of the visible and of the masked tokens of every item, int64 ``[B, N - M]`` and ``[B, M]``, ascending.

    For masks with the same number M of every item.
    """
    items, tokens = masks.mask.shape
    order = masks.mask.byte().argsort(dim=1, stable=True)
    visible = tokens - len(masks.positions) // items
    return order[:, :visible], order[:, visible:]


def gathered(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens ``[B, K, D]`` at ``positions`` ``[B, K]`` of ``[B, N, D]``, or of ``[1, N, D]`` that all items share."""
    items, number, _ = tokens.shape
    own = torch.arange(items, device=positions.device)[:, None] * number  # 0 where items share them
    rows = tokens.flatten(0, 1).index_select(0, (positions + own).flatten())  # whole rows, unlike gather
    return rows.unflatten(0, positions.shape)


def masks_of_noise(noise: Tensor, count: int) -> Masks:
    """Mask the ``count`` tokens of every item whose noise is largest, as masked autoencoders do; N - count are seen.

    Uniform noise masks uniformly. Noise times a weight masks heavy tokens more often (Uni4Eye++: the entropy of
    patches, :func:`zoo.nn.entropy.patch_entropy`).

    Args:
        noise: ``[B, N]``.
        count: in 1..N - 1.

    Raises:
        ValueError: nothing would be masked, or nothing seen.
    """
    if not 0 < count < noise.shape[1]:
        raise ValueError(f"of {noise.shape[1]} tokens 1 to {noise.shape[1] - 1} can be masked, got {count}")
    index = noise.argsort(1)[:, noise.shape[1] - count :].sort(1).values
    return masks_at(index, noise.shape[1])
