"""What learning proofs share before and after training: arguments, means over seeds, the verdict. Needs no torch."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path


def proof_parser(description: str | None, name: str, workers: bool = True) -> argparse.ArgumentParser:
    """Arguments of every proof: ``--folder``, ``--seeds`` and, of those that train, ``--workers``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning") / name)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    if workers:
        parser.add_argument("--workers", type=int, default=default_workers(), help="runs side by side")
    return parser


def default_workers() -> int:
    """One run per core: a run gains little from a second thread, two runs side by side gain everything."""
    return max(
        1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds; of one seed, 0."""
    each = list(values)
    deviation = statistics.stdev(each) if len(each) > 1 else 0.0
    return f"{statistics.mean(each):.{digits}f} ± {deviation:.{digits}f}"


def listed(values: Iterable[float], digits: int = 1) -> str:
    """The value of each seed."""
    return " ".join(f"{value:.{digits}f}" for value in values)


def verdict(
    wanted: Mapping[str, Mapping[int, float]],
    reported: Mapping[str, Mapping[int, float]] | None = None,
    digits: int = 1,
) -> None:
    """Print by how much each comparison is won, seed by seed.

    Args:
        wanted: comparison → seed → gain, all of which must be above 0.
        reported: comparisons that are printed as well.
        digits: of gains.

    Raises:
        SystemExit: a gain that is wanted is none; names each.
    """
    for title, gains in {**wanted, **(reported or {})}.items():
        each = ", ".join(f"seed {seed} {gain:+.{digits}f}" for seed, gain in gains.items())
        print(f"{title}: {each}")
    lost = [
        f"{title}, seed {s}" for title, gains in wanted.items() for s, gain in gains.items() if not gain > 0
    ]
    if lost:
        raise SystemExit(f"no gain: {'; '.join(lost)}")
