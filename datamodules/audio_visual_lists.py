"""Sets given by lists, as HiCMAE was released with: ``<frame folder> <wav file> <class or numbers>`` in every line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from datamodules.audio_labels import Labels, SingleLabels, Values
from datamodules.audio_lists import present, read_text
from datamodules.audio_sets import AudioClips
from datamodules.audio_visual import AudioVisualDataModule
from datamodules.audio_visual_sets import AudioVisualClips
from datamodules.layout import Layout, LayoutError, Split


class Line(NamedTuple):
    """A clip as a list names it."""

    video: str
    sound: str
    label: tuple[float, ...]


def read_list(path: Path, num_classes: int, num_values: int = 0) -> list[Line]:
    """Clips of a list; paths hold no spaces.

    Args:
        path: the list.
        num_classes: C; labels are 0 to C - 1.
        num_values: K, where labels are numbers, in place of classes.

    Raises:
        LayoutError: there is none, it is empty, or a line is of another form; its number is told.
    """
    fields = 2 + (num_values or 1)
    form = "<frame folder> <wav file> " + (f"<{num_values} numbers>" if num_values else "<class>")
    lines = []
    for number, text in enumerate(read_text(path, f"a clip in every line: {form}").splitlines(), 1):
        if not text.strip():
            continue
        parts = text.split()
        if len(parts) != fields:
            raise LayoutError(
                f"{path}, line {number}: {text.strip()!r} has {len(parts)} fields, expected {fields}: {form}, "
                "with spaces between them and none in paths."
            )
        try:
            label = tuple(float(part) if num_values else int(part) for part in parts[2:])
        except ValueError:
            label = (math.nan,)
        if not all(map(math.isfinite, label)):
            wanted = "finite numbers" if num_values else "a class number"
            raise LayoutError(f"{path}, line {number}: {' '.join(parts[2:])!r} is not {wanted}.")
        if not num_values and not 0 <= label[0] < num_classes:
            raise LayoutError(
                f"{path}, line {number}: class {parts[2]} is none of the {num_classes} classes (0 to "
                f"{num_classes - 1}): correct the list, or num_classes."
            )
        lines.append(Line(parts[0], parts[1], label))
    if not lines:
        raise LayoutError(f"{path} lists no clip.")
    return lines


def below(path: str, anchor: str) -> str:
    """What follows the folder ``anchor`` in a path, or the whole of it: released lists hold paths of their authors."""
    _, found, tail = path.rpartition(f"/{anchor}/")
    return tail if anchor and found else path


class ListedAudioVisual(AudioVisualDataModule):
    """Base of sets that are given by lists: one folder of lists for each fold, one list for each split.

    ``lists`` holds ``split01`` and so on with ``train.csv``, ``test.csv`` and, where the set has validation clips,
    ``val.csv``. Paths in them are relative to ``root``; of those that lead through a folder of the set's name (the
    released lists hold paths of their authors' machine) what follows that folder.

    Args:
        root: folder that paths in the lists are relative to.
        lists: folder of the lists.
        fold: which of the set's folds.
        **common: see :class:`AudioVisualDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    #: Folder of the set, which released paths lead through.
    anchor: ClassVar[str] = ""
    folds: ClassVar[int] = 1
    #: Clips of the splits of the first fold.
    published: ClassVar[Mapping[str, int]] = {}
    default_val_fraction: ClassVar[float | None] = 0.0

    def __init__(
        self, root: str | None = None, lists: str | None = None, fold: int = 1, **common: Any
    ) -> None:
        super().__init__(root=root, **common)
        if not 1 <= fold <= self.folds:
            raise ValueError(f"fold must lie in 1..{self.folds}, got {fold}.")
        self.lists, self.fold = lists, fold

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The list of a split of the fold."""
        return {"lists": (f"{split}{self.fold}",)}

    def read(self, split: str) -> AudioClips:
        """The clips of a list."""
        folder, (name,) = self.files(f"{split}{self.fold}", "lists")
        listing = folder / name
        lines = read_list(listing, self.num_classes, self.num_values)
        wanted = self.published.get(split, 0) if self.fold == 1 else 0
        if wanted and len(lines) != wanted and not self.allow_partial:
            raise LayoutError(
                f"{listing} lists {len(lines)} clips, expected {wanted}: take the released list (allow_partial: true "
                "accepts another one)."
            )
        if self.root is None or not (root := Path(self.root).expanduser()).is_dir():
            raise LayoutError(
                f"There is no folder root={self.root!r}, which the paths in {listing} are relative to."
            )
        videos, sounds = ([below(path, self.anchor) for path in paths] for paths in _columns(lines))
        there = np.intersect1d(
            present(root, videos, listing, self.allow_partial),
            present(root, sounds, listing, self.allow_partial),
        )
        clips = AudioVisualClips(root, videos, sounds, self._labels(lines))
        return clips if len(there) == len(clips) else clips.part(there)

    def _labels(self, lines: Sequence[Line]) -> Labels:
        table = np.array([line.label for line in lines])
        if self.num_values:
            return Values(table.astype(np.float32))
        return SingleLabels(table[:, 0].astype(np.int64), self.num_classes)


def _columns(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    return [line.video for line in lines], [line.sound for line in lines]


def lists_layout(title: str, folds: int, parts: Sequence[str], origin: str) -> dict[str, Layout]:
    """Where the lists of a set lie below ``lists``."""
    splits = {f"{part}{n}": Split(f"split{n:02d}/{part}") for n in range(1, folds + 1) for part in parts}
    return {"lists": Layout(title, ".", ".csv", (), splits, origin, "lists")}


class AudioVisualLists(ListedAudioVisual):
    """Any set given by lists of ``<frame folder> <wav file> <class>``, or with ``num_values`` numbers for a class.

    For sets whose lists were not published (DFEW, IEMOCAP, MER2023, AVCAffe, ...) and for one's own. ``lists`` holds
    ``train.csv``, ``test.csv`` and, with ``val_list``, ``val.csv``; without one the test clips validate, or
    ``val_fraction`` of the training clips.

    Args:
        root: folder that paths in the lists are relative to.
        lists: folder of the lists.
        num_classes: C; 0 with ``num_values``.
        num_values: K numbers a clip; 0 with ``num_classes``.
        classes: names of the classes.
        val_list: whether there is a ``val.csv``.
        **common: see :class:`AudioVisualDataModule`.

    Raises:
        ValueError: an argument is out of range; neither classes nor numbers, or both.
    """

    name = "audio_visual_lists"
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {
        "lists": Layout(
            title="Audio-visual lists",
            images=".",
            suffix=".csv",
            labels=(),
            splits={f"{part}1": Split(part) for part in ("train", "val", "test")},
            origin="written by yourself: '<frame folder> <wav file> <class>' in every line",
            unit="lists",
        )
    }

    def __init__(
        self,
        root: str | None = None,
        lists: str | None = None,
        num_classes: int = 0,
        num_values: int = 0,
        classes: Sequence[str] = (),
        val_list: bool = False,
        **common: Any,
    ) -> None:
        if (num_classes > 0) == (num_values > 0):
            raise ValueError(
                f"num_classes={num_classes} and num_values={num_values}: one of the two must be positive."
            )
        if classes and len(classes) != num_classes:
            raise ValueError(f"classes names {len(classes)} of num_classes={num_classes} classes.")
        self.num_classes, self.num_values = num_classes, num_values  # type: ignore[misc]
        self.classes = tuple(classes)  # type: ignore[misc]
        self.default_val_fraction = None if val_list else 0.0  # type: ignore[misc]
        super().__init__(root=root, lists=lists, **common)
