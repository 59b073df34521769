"""Miniatures of the ophthalmic benchmarks: generated eyes in small numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: A few eyes of every split.
FEW: dict[str, Any] = {"num_train": 8, "num_val": 4, "num_test": 4, "num_workers": 0}


def photographs(folder: Path) -> dict[str, Any]:
    return {**FEW, "root": folder / "photographs", "batch_size": 2, "labelled_fraction": 1.0}


def scans(folder: Path) -> dict[str, Any]:
    return {
        **FEW, "root": folder / "scans", "cache_folder": folder / "volumes", "batch_size": 2, "labelled_fraction": 1.0,
    }  # fmt: skip


def taking_turns(folder: Path) -> dict[str, Any]:
    """Both parts of TakingTurns."""
    parts = {"images": photographs(folder), "volumes": scans(folder)}
    return {f"{part}.{key}": value for part, of in parts.items() for key, value in of.items()}
