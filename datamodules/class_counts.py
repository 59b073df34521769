"""How many pixels of every class every label holds: counted once, then kept beside the data."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.cache import cache_root, write_atomically
from datamodules.labels import CITYSCAPES_CLASSES
from datamodules.layout import Pair
from datamodules.readers import read_label

FILE_NAME = "selfzoo_class_counts.npz"


def count_classes(pairs: Sequence[Pair], encoding: str, root: str | Path) -> np.ndarray:
    """Pixels of every class in every label, at the stored size: ``[N, 19]`` int64.

    The counts are read from ``root`` or, where that cannot be written, from the cache folder, if they were
    made for exactly these files (names, sizes, times of change and encoding); otherwise they are counted and
    saved.

    Raises:
        BrokenImageError: a label cannot be decoded.
        ValueError: a pair has no label, or a label holds values outside its encoding.
        OSError: the counts can be saved neither beside the data nor in the cache folder.
    """
    root = Path(root)
    labels = [pair.label for pair in pairs if pair.label is not None]
    if len(labels) < len(pairs):
        raise ValueError(
            f"{len(pairs) - len(labels)} of {len(pairs)} images below {root} have no label to count."
        )
    checksum = _checksum(labels, encoding, root)
    places = root / FILE_NAME, cache_root() / "class-counts" / f"{checksum[:16]}.npz"
    for place in places:
        counts = _load(place, checksum)
        if counts is not None:
            return counts
    rank_zero_info(f"Counting the classes in {len(labels)} labels below {root} (once).")
    with ThreadPoolExecutor() as pool:
        counts = np.stack(list(pool.map(lambda label: _count(label, encoding), labels)))
    _save(counts, checksum, places)
    return counts


def _count(label: Path, encoding: str) -> np.ndarray:
    pixels = read_label(label, encoding).numpy()
    return np.bincount(pixels.ravel(), minlength=256)[: len(CITYSCAPES_CLASSES)]


def _checksum(labels: Sequence[Path], encoding: str, root: Path) -> str:
    digest = hashlib.sha256(encoding.encode())
    for label in labels:
        stat = label.stat()
        digest.update(f"{label.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _load(place: Path, checksum: str) -> np.ndarray | None:
    """Saved counts, or None when there are none, they are damaged, or they belong to other files."""
    if not place.is_file():
        return None
    try:
        with np.load(place) as saved:
            return saved["counts"] if str(saved["checksum"]) == checksum else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        rank_zero_info(f"{place} is damaged: counting again.")
        return None


def _save(counts: np.ndarray, checksum: str, places: Sequence[Path]) -> None:
    """Write to the first place that can be written."""
    *others, last = places
    for place in others:
        try:
            return write_atomically(
                place, lambda file: np.savez_compressed(file, counts=counts, checksum=checksum)
            )
        except OSError as error:
            rank_zero_info(f"{place} cannot be written ({error}): using {last}.")
    return write_atomically(last, lambda file: np.savez_compressed(file, counts=counts, checksum=checksum))
