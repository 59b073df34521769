"""Fixed sine-cosine positions of tokens on grids of any number of axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sincos_positions(grid: Sequence[int], dim: int, prefix: int = 1) -> Tensor:
    """Positions of the tokens of a grid, row-major, behind ``prefix`` zeros for tokens that have no place.

    Every axis has an equal, even share of the channels, the last axis first: sines, then cosines, of the place over
    ``10000^(i / n)``. On two axes these are MAE's tables. Channels that cannot be shared out are 0.

    Args:
        grid: tokens along every axis.
        dim: channels D.
        prefix: tokens before those of the grid.

    Returns:
        Float32 ``[1, prefix + N, D]``.

    Raises:
        ValueError: there are fewer than two channels for every axis.
    """
    share = dim // (2 * len(grid))
    if share < 1:
        raise ValueError(f"{dim} channels are too few for sine and cosine of {len(grid)} axes")
    rate = 10_000.0 ** -(torch.arange(share, dtype=torch.float64) / share)
    places = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rate for axis in reversed(places)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return torch.nn.functional.pad(table, (0, dim - table.shape[1], prefix, 0)).float()[None]
