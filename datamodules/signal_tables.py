"""Tables of segments: whose they are, where they lie, which split they belong to, and what is known of the person."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from datamodules.layout import LayoutError

#: The columns every table needs.
COLUMNS: Final = ("participant_id", "segment_path", "start_time", "split")
WHOLE: Final = -1
"""Row of a segment that is a whole file."""


@dataclass(frozen=True)
class Segments:
    """Segments of one split, in order of participant and time.

    Args:
        participants: names of all participants; their positions are the numbers below.
        participant: whose each segment is, int64 ``[N]``.
        paths: file of each, relative to the root, bytes ``[N]``. One array: a million Python objects would be copied
            into every loader process as soon as they are touched.
        rows: which part of that file, int64 ``[N]``; :data:`WHOLE`: all of it.
        traits: what is known of the person at that time, float64 ``[N, K]``, nan where it is not.
    """

    participants: tuple[str, ...]
    participant: np.ndarray
    paths: np.ndarray
    rows: np.ndarray
    traits: np.ndarray

    def __len__(self) -> int:
        return len(self.participant)

    def part(self, positions: np.ndarray) -> Segments:
        """Some of them; participants keep their numbers."""
        chosen = {key: getattr(self, key)[positions] for key in ("participant", "paths", "rows", "traits")}
        return replace(self, **chosen)

    def by_participant(self) -> list[np.ndarray]:
        """Positions of the segments of everybody who has one, in order of the numbers."""
        starts = np.flatnonzero(np.diff(self.participant, prepend=-1))
        return np.split(np.arange(len(self)), starts[1:]) if len(self) else []


def read_table(file: Path) -> dict[str, list[Any]]:
    """Columns of a table, ``.parquet`` or ``.csv`` by its name.

    Raises:
        LayoutError: the file cannot be read.
        ImportError: pyarrow, which reads Parquet, is not installed.
    """
    if file.suffix == ".parquet":
        from zoo.extras import require

        reader = require("pyarrow.parquet", "signals", file.name)
        try:
            return reader.read_table(file).to_pydict()
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise LayoutError(f"{file} is no Parquet table ({error}): write it again") from error
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, restval="", strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LayoutError(f"{file} is no CSV table in UTF-8 ({error}): write it again") from error
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {}) if name is not None}


def check_columns(table: Mapping[str, Sequence[Any]], wanted: Sequence[str], file: str) -> None:
    """Raise a LayoutError that names the columns a table lacks, and those it has."""
    if missing := [name for name in wanted if name not in table]:
        raise LayoutError(
            f"{file} lacks the column {', '.join(missing)}; it has {', '.join(table) or 'none'}"
        )


def numbers(table: Mapping[str, Sequence[Any]], column: str, file: str, gaps: bool = False) -> np.ndarray:
    """A column as float64 ``[N]``; with ``gaps`` an empty cell is nan.

    Raises:
        LayoutError: a cell is no finite number; the message names its row.
    """
    found = np.empty(len(table[column]))
    for row, cell in enumerate(table[column]):
        try:
            empty = cell is None or cell == ""
            found[row] = np.nan if empty else float(cell)
            if not np.isfinite(found[row]) and not gaps:
                raise ValueError
        except (TypeError, ValueError):
            raise LayoutError(f"{file}: {column} of row {row + 1} is {cell!r}: expected a number") from None
    return found


def trait_columns(table: Mapping[str, Sequence[Any]], names: Sequence[str], file: str) -> np.ndarray:
    """Columns of traits as float64 ``[N, K]``, nan where a cell is empty; LayoutError where one is no number."""
    found = [numbers(table, name, file, gaps=True) for name in names]
    return np.stack(found, 1) if found else np.empty((len(next(iter(table.values()))), 0))


def split_segments(
    participant: Sequence[Any],
    paths: Sequence[str],
    rows: np.ndarray,
    start_time: np.ndarray,
    split: Sequence[str],
    traits: np.ndarray,
    file: str,
) -> dict[str, Segments]:
    """Segments of every split, sorted by participant and time.

    Args:
        participant: whose each segment is, ``[N]``.
        paths: its file.
        rows: which part of that.
        start_time: when it was recorded, in any unit.
        split: its split.
        traits: ``[N, K]``.
        file: name of the table, for messages.

    Raises:
        LayoutError: a participant is in two splits.
    """
    names, number = np.unique(np.asarray(participant, str), return_inverse=True)
    of = np.asarray(split, str)
    home: dict[int, str] = {}
    for who, where in zip(number.tolist(), of.tolist(), strict=True):
        if home.setdefault(who, where) != where:
            raise LayoutError(
                f"{file}: participant {names[who]} is in {home[who]} and in {where}: splits must not share people"
            )
    found = {}
    stored = np.array([path.encode() for path in paths])
    for name in dict.fromkeys(of.tolist()):
        chosen = np.flatnonzero(of == name)
        chosen = chosen[np.lexsort((start_time[chosen], number[chosen]))]
        people, who = np.unique(number[chosen], return_inverse=True)
        found[str(name)] = Segments(
            tuple(str(n) for n in names[people]),
            who.astype(np.int64),
            stored[chosen],
            rows[chosen],
            traits[chosen],
        )
    return found
