"""Lists of clips as audio benchmarks publish them: manifests, label indices, tables, and whether the files exist."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.audio_files import SUFFIXES
from datamodules.audio_labels import Labels, MultiLabels, SingleLabels
from datamodules.audio_sets import AudioClips
from datamodules.layout import LayoutError


class Listed(NamedTuple):
    """A clip as a list names it: its path, and its classes as they are spelled there."""

    path: str
    labels: tuple[str, ...]


def read_text(path: Path, what: str) -> str:
    """Contents of a list. Raises :class:`LayoutError` where there is none."""
    if not path.is_file():
        raise LayoutError(f"There is no file {path}: it holds {what}.")
    return path.read_text(encoding="utf-8-sig")


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a list that are not blank."""
    return [line.strip() for line in read_text(path, what).splitlines() if line.strip()]


def read_table(path: Path, columns: Sequence[str], what: str) -> list[dict[str, str]]:
    """Rows of a CSV file with a header that has at least ``columns``.

    Raises:
        LayoutError: the file or a column is missing.
    """
    reader = csv.DictReader(read_text(path, what).splitlines())
    if absent := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise LayoutError(f"{path} has no column {absent[0]!r}, only {', '.join(reader.fieldnames or ())}.")
    return list(reader)


def read_manifest(path: Path) -> list[Listed]:
    """Clips of a manifest of AST and SSAST: ``{"data": [{"wav": path, "labels": "mid,mid"}, ...]}``.

    Raises:
        LayoutError: there is none, or it is of another form.
    """
    try:
        entries = json.loads(read_text(path, "the clips of a split"))["data"]
        return [Listed(entry["wav"], tuple(entry["labels"].split(","))) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(
            f'{path} is no manifest of the form {{"data": [{{"wav": path, "labels": "mid,mid"}}]}}: {error!r}.'
        ) from error


def read_label_index(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class numbers by mid, and names in their order, of a CSV file ``index,mid,display_name``.

    Raises:
        LayoutError: there is none, or its indices are not 0, 1, 2, ...
    """
    rows = read_table(path, ("index", "mid", "display_name"), "the classes: index, mid, display_name")
    rows.sort(key=lambda row: int(row["index"]))
    if [int(row["index"]) for row in rows] != list(range(len(rows))):
        raise LayoutError(f"{path}: indices of the {len(rows)} classes are not 0 to {len(rows) - 1}.")
    return {row["mid"]: int(row["index"]) for row in rows}, tuple(row["display_name"] for row in rows)


def listed_clips(
    base: Path,
    clips: Sequence[Listed],
    number: Mapping[str, int],
    listing: Path,
    allow_partial: bool = False,
    several: bool = False,
) -> AudioClips:
    """Clips with their classes.

    Args:
        base: folder that their paths are relative to.
        clips: what the list says.
        number: class numbers by label.
        listing: where the clips are listed, for messages.
        allow_partial: leave out clips that are missing.
        several: whether clips have several classes, instead of exactly one.

    Raises:
        LayoutError: files are missing, or a label is none of the classes; clip and label are named.
    """
    there = present(base, [clip.path for clip in clips], listing, allow_partial)
    clips = [clips[position] for position in there]
    numbers = _class_numbers(clips, number, listing)
    labels: Labels
    if several:
        labels = MultiLabels.of(numbers, len(number))
    else:
        labels = SingleLabels(np.array([classes[0] for classes in numbers], np.int64), len(number))
    return AudioClips(base, [clip.path for clip in clips], labels)


def _class_numbers(clips: Iterable[Listed], number: Mapping[str, int], listing: Path) -> list[list[int]]:
    numbers = []
    for clip in clips:
        for label in clip.labels:
            if label not in number:
                shown = ", ".join(list(number)[:3])
                raise LayoutError(
                    f"{listing}: {clip.path} has the label {label!r}, which is none of the {len(number)} classes "
                    f"({shown}, ...): correct the list, or the index of the labels."
                )
        numbers.append([number[label] for label in clip.labels])
    return numbers


def present(base: Path, paths: Sequence[str], listing: Path, allow_partial: bool) -> np.ndarray:
    """Positions of the listed files that exist, int64 ``[n]``; folders are listed once each.

    Raises:
        LayoutError: some do not, unless ``allow_partial``.
    """
    folders = [os.path.split(path) for path in paths]
    inside = {folder: _names(base / folder) for folder in {folder for folder, _ in folders}}
    there = np.array([name in inside[folder] for folder, name in folders], bool)
    if not there.all() and not allow_partial:
        absent = [paths[position] for position in np.flatnonzero(~there).tolist()]
        raise LayoutError(
            f"{len(absent)} of {len(paths)} clips listed in {listing} are missing below {base}: "
            f"{', '.join(absent[:3])}: not fully extracted? (allow_partial: true leaves them out)"
        )
    return np.flatnonzero(there)


def numbered(classes: Iterable[str]) -> dict[str, int]:
    """Numbers of classes in this order."""
    return {name: number for number, name in enumerate(classes)}


def by_stem(files: Iterable[str]) -> dict[str, str]:
    """Paths of audio files by their file names without ending."""
    # Two million times, so without Path.
    found = {}
    for file in files:
        stem, dot, suffix = file.rpartition("/")[2].rpartition(".")
        if (dot + suffix).lower() in SUFFIXES:
            found[stem] = file
    return found


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
