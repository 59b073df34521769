"""Mirrorings, quarter turns and changes of brightness of volumes, drawn for each of a batch on its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Turns(NamedTuple):
    """What is done to each of N volumes, on the host.

    Args:
        swapped: bool ``[N]``, whether the first two axes change places.
        mirrored: bool ``[N, 3]``, along which axes it is mirrored afterwards.
    """

    swapped: Tensor
    mirrored: Tensor


def draw_turns(
    count: int, flip: float, rotate: float, square: bool = True, generator: torch.Generator | None = None
) -> Turns:
    """Draw mirrorings along each axis, then one to three quarter turns in the plane of the first two axes.

    Turns are those of :func:`torch.rot90`. ``k`` of them are a swap of the axes, where ``k`` is odd, followed by
    mirrorings; these merge with the ones drawn, which the swap exchanges.

    Args:
        count: volumes N.
        flip: probability of mirroring, for every axis.
        rotate: probability of turning.
        square: whether the first two sides are equal; otherwise all turns are by half.
        generator: on the host; the global one by default.
    """
    mirrored = torch.rand(count, 3, generator=generator) < flip
    quarters = torch.randint(1, 4, (count,), generator=generator)
    turns = (quarters if square else torch.full((count,), 2)) * _chosen(count, rotate, generator)
    swapped = turns % 2 == 1
    mirrored[:, :2] = torch.where(swapped[:, None], mirrored[:, :2].flip(1), mirrored[:, :2])
    mirrored[:, 0] ^= (turns == 1) | (turns == 2)
    mirrored[:, 1] ^= (turns == 2) | (turns == 3)
    return Turns(swapped, mirrored)


def turned(volumes: Tensor, turns: Turns) -> Tensor:
    """Turn and mirror: ``[N, ..., X, Y, Z]`` of any type → the same shape.

    Whole batches at a time, at most four copies; nothing waits for the device.
    """
    if turns.swapped.any():
        volumes = torch.where(per_volume(turns.swapped, volumes), volumes.transpose(-3, -2), volumes)
    for axis, mirrored in zip((-3, -2, -1), turns.mirrored.unbind(1), strict=True):
        if mirrored.any():
            volumes = torch.where(per_volume(mirrored, volumes), volumes.flip(axis), volumes)
    return volumes


def draw_within(
    count: int, strength: float, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Numbers within ``± strength``, with a probability, or else 0: ``[count]`` on the host."""
    drawn = (torch.rand(count, generator=generator) * 2 - 1) * strength
    return drawn * _chosen(count, probability, generator)


def per_volume(values: Tensor, volumes: Tensor) -> Tensor:
    """One value of each volume, ``[N]`` on the host, on the device of volumes ``[N, ...]`` and shaped to match."""
    return values.to(volumes.device, non_blocking=True).view(-1, *[1] * (volumes.dim() - 1))


def _chosen(count: int, probability: float, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, generator=generator) < probability
