"""Any set of segments: a table, and array files beside it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.layout import Layout, LayoutError, Split
from datamodules.signal_cache import SignalJob
from datamodules.signal_sets import BrokenSignalError
from datamodules.signal_tables import (
    COLUMNS,
    WHOLE,
    Segments,
    check_columns,
    numbers,
    read_table,
    split_segments,
    trait_columns,
)
from datamodules.signals import SignalDataModule

TABLES = ("segments.parquet", "segments.csv")
SPLITS = ("train", "val", "test")


class SignalFolders(SignalDataModule):
    """Your own signals: ``segments.parquet`` (extra ``signals``) or ``segments.csv``, a row per segment.

    Columns: ``participant_id``; ``segment_path``, a ``.npy`` or ``.npz`` file below the root (key ``signal``, or its
    only array) with ``[C, T]``; ``start_time``, a number that orders a participant's segments; ``split``, which is
    train, val or test and the same for all segments of a participant. With the optional column ``segment`` a file holds
    ``[n, C, T]`` and the column says which of the n: one ``.npy`` per participant, of which only what is needed is
    read. Further columns of numbers are ``traits``.

    Args:
        **common: see :class:`~datamodules.signals.SignalDataModule`. ``cache`` keeps arrays of ``.npz`` files, of which
            otherwise all is read for every segment.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "signal_folders"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="Folder of segments",
            images="segments.parquet",
            suffix="",
            labels=(),
            splits={split: Split("*") for split in SPLITS},
            origin="your own; see the card",
            unit="files",
        )
    }

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)

    def read(self, root: Path) -> dict[str, Segments]:
        """The table."""
        file = next((root / name for name in TABLES if (root / name).is_file()), None)
        if file is None:
            raise LayoutError(f"there is neither {' nor '.join(TABLES)} in {root}")
        table = read_table(file)
        check_columns(table, (*COLUMNS, *self.traits), file.name)
        count = len(table["split"])
        if wrong := sorted({str(split) for split in table["split"]} - set(SPLITS)):
            raise LayoutError(f"{file.name}: split {wrong[0]!r} is none of {', '.join(SPLITS)}")
        rows = numbers(table, "segment", file.name) if "segment" in table else np.full(count, WHOLE)
        if (rows != np.round(rows)).any() or ("segment" in table and (rows < 0).any()):
            raise LayoutError(f"{file.name}: segment must number the parts of a file from 0")
        return split_segments(
            table["participant_id"],
            [str(path) for path in table["segment_path"]],
            rows.astype(np.int64),
            numbers(table, "start_time", file.name),
            table["split"],
            trait_columns(table, self.traits, file.name),
            file.name,
        )

    def load(self, path: str, row: int) -> np.ndarray:
        """An array of a file; of ``.npy`` only what is needed is read."""
        array = self.decode(path)
        if row == WHOLE:
            return array
        if array.ndim != 3 or row >= len(array):
            raise BrokenSignalError(
                f"{self._place(path)} holds {list(array.shape)}, and the table names its segment {row}: expected "
                "[n, C, T] with more than that"
            )
        return array[row]

    def job(self, root: Path, path: str) -> SignalJob | None:
        """Only what is packed."""
        return SignalJob(path, (root / path,)) if path.endswith(".npz") else None

    def _place(self, path: str) -> Path:
        assert self.root is not None
        return Path(self.root).expanduser() / path

    def decode(self, path: str) -> np.ndarray:
        """The array of a file."""
        file = self._place(path)
        try:
            # An empty file, a cut archive and a pickle each fail in their own way.
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                with array as archive:
                    array = archive["signal" if "signal" in archive.files else archive.files[0]]
        except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
            raise BrokenSignalError(f"{file} cannot be read ({error}): write it again") from error
        return array
