"""Whether a difference of means is one: the paired bootstrap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

RESAMPLES = 10_000
MIN_PAIRS = 3


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference between two rows.

    Args:
        mean: of the first minus the second.
        low: 2.5 % quantile of the resampled means.
        high: 97.5 % quantile.
        pairs: how many pairs it rests on.
        over: what was paired: ``seeds`` or ``samples``.
    """

    mean: float
    low: float
    high: float
    pairs: int
    over: str

    @property
    def is_real(self) -> bool:
        """Whether zero lies outside the interval of 95 %."""
        return not self.low <= 0.0 <= self.high

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] over {self.pairs} {self.over}"


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], over: str
) -> Difference | None:
    """Percentile bootstrap of the mean difference over what both have (Efron & Tibshirani 1993, chapter 13).

    Deterministic. With few pairs the interval is too narrow (for three, differences of one sign always count as
    real): samples, where there are scores of each, are the better evidence.

    Args:
        first: pair (seed or sample) → score.
        second: the same for the other row.
        over: what pairs are, for messages.

    Returns:
        None with fewer than three common pairs: nothing can be said.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < MIN_PAIRS:
        return None
    differences = np.array([first[key] - second[key] for key in common])
    rng = np.random.default_rng(0)
    # In blocks, since 10,000 draws of a large validation set would fill the memory.
    block = max(1, 10_000_000 // len(common))
    means = np.concatenate(
        [
            differences[rng.integers(len(common), size=(min(block, RESAMPLES - done), len(common)))].mean(1)
            for done in range(0, RESAMPLES, block)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(differences.mean()), float(low), float(high), len(common), over)
