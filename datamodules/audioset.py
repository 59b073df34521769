"""AudioSet (Gemmeke et al., ICASSP 2017), alone and with LibriSpeech as SSAST is pre-trained."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import (
    Listed,
    by_stem,
    listed_clips,
    read_label_index,
    read_lines,
    read_manifest,
)
from datamodules.audio_sets import AudioClips, AudioSubset
from datamodules.layout import Layout, LayoutError, Split
from datamodules.librispeech import LIBRISPEECH

Subset = Literal["balanced", "unbalanced", "full"]

LABEL_CSV: Final = "class_labels_indices.csv"
_SEGMENTS: Final[dict[str, tuple[str, ...]]] = {
    "balanced": ("balanced_train_segments",),
    "unbalanced": ("unbalanced_train_segments",),
    "full": ("balanced_train_segments", "unbalanced_train_segments"),
    "test": ("eval_segments",),
}
#: Nobody has all clips: videos disappear. So the lists tell what is missing, not the number of files.
_LAYOUT: Final = Layout(
    title="AudioSet",
    images=".",
    suffix="",
    labels=(),
    splits={part: Split(f"{part}/*.*") for part in (*_SEGMENTS["full"], *_SEGMENTS["test"])},
    origin=f"research.google.com/audioset: the three lists of segments and {LABEL_CSV}; clips by their YouTube ids",
    unit="clips",
)


class AudioSet(AudioDataModule):
    """527 classes, several a clip; 22,160 clips to train on (full: 2,063,949) and 20,371 to evaluate with.

    Clips are found in one of two ways. By the official lists: ``root`` holds ``balanced_train_segments.csv``,
    ``unbalanced_train_segments.csv``, ``eval_segments.csv``, ``class_labels_indices.csv`` and, for each list, a
    folder of its name with one file a clip. Or by manifests of AST and SSAST (``{"data": [{"wav": path, "labels":
    "mid,mid"}]}``): ``train_json`` and ``eval_json``, whose relative paths start at ``root``.

    Results are those of the evaluation clips, which are also what is validated on.

    Args:
        subset: ``balanced`` (AudioSet-20K), ``unbalanced`` or ``full`` (AudioSet-2M, both together).
        clip_name: file name without ending; may use ``ytid``, and ``start`` and ``end`` in seconds.
        train_json: manifest of the training clips, in place of the lists.
        eval_json: manifest of the evaluation clips, in place of the list.
        label_csv: file ``index,mid,display_name``; None takes ``class_labels_indices.csv`` in ``root``.
        weight_file: how often each training clip is drawn, one number a line in the order of the list (AST:
            ``<train manifest>_weight.csv``); None leaves it to ``balanced``.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "audioset"
    num_classes = 527
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {"root": _LAYOUT}
    val_split = "test"

    def __init__(
        self,
        subset: Subset = "balanced",
        clip_name: str = "{ytid}_{start:g}",
        train_json: str | None = None,
        eval_json: str | None = None,
        label_csv: str | None = None,
        weight_file: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if subset not in ("balanced", "unbalanced", "full"):
            raise ValueError(f"subset must be balanced, unbalanced or full, got {subset!r}.")
        self.part, self.clip_name, self.label_csv, self.weight_file = (
            subset,
            clip_name,
            label_csv,
            weight_file,
        )
        self.manifests = {"train": train_json, "test": eval_json}

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The folders of the official lists; manifests say themselves where clips lie."""
        if self.manifests[split] is not None:
            return {}
        return {"root": _SEGMENTS[self.part if split == "train" else split]}

    def read(self, split: str) -> AudioClips:
        """The clips of a manifest, or of the official lists."""
        root = Path(self.root or ".").expanduser()
        label_csv = Path(self.label_csv).expanduser() if self.label_csv else root / LABEL_CSV
        number, self.classes = read_label_index(label_csv)  # type: ignore[misc]
        if len(number) != self.num_classes:
            raise LayoutError(f"{label_csv} lists {len(number)} classes, expected {self.num_classes}.")
        manifest = self.manifests[split]
        if manifest is not None:
            listing = Path(manifest).expanduser()
            clips = read_manifest(listing)
        else:
            listing, clips = root, []
            for part in self.tree_splits(split)["root"]:
                listing = root / f"{part}.csv"
                clips += self._segments(listing, part)
        return listed_clips(root, clips, number, listing, self.allow_partial, several=True)

    def _segments(self, listing: Path, part: str) -> list[Listed]:
        """Clips of an official list: id, start and end in seconds, and mids, below a few lines of comment."""
        files = by_stem(self.files(part)[1])
        lines = [line for line in read_lines(listing, "the segments of a part") if not line.startswith("#")]
        clips = []
        for ytid, start, end, labels in csv.reader(lines, skipinitialspace=True):
            stem = self.clip_name.format(ytid=ytid, start=float(start), end=float(end))
            clips.append(Listed(files.get(stem, f"{part}/{stem}"), tuple(labels.split(","))))
        return clips

    def draw_weights(self, subset: AudioSubset) -> np.ndarray | None:
        """Those of ``weight_file``, or as the base class makes them."""
        if self.weight_file is None:
            return super().draw_weights(subset)
        weights = np.loadtxt(Path(self.weight_file).expanduser(), ndmin=1)
        if len(weights) != len(self.clips("train")):
            raise LayoutError(
                f"{self.weight_file} holds {len(weights)} weights for {len(self.clips('train'))} training clips: it "
                "belongs to another list."
            )
        return weights[subset.positions]


class AudioSetLibriSpeech(AudioSet):
    """What SSAST is pre-trained on: AudioSet's training clips and LibriSpeech's utterances, without labels.

    AudioSet's evaluation clips are validated on.

    Args:
        librispeech_root: folder ``LibriSpeech``, see :class:`~datamodules.librispeech.LibriSpeech`.
        subset: of AudioSet, see :class:`AudioSet`.
        labels: there are none.
        **common: see :class:`AudioSet`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "audioset_librispeech"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": replace(_LAYOUT, title="AudioSet for pre-training"),
        "librispeech_root": LIBRISPEECH,
    }

    def __init__(
        self,
        librispeech_root: str | None = None,
        subset: Subset = "full",
        labels: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(subset=subset, labels=labels, **common)
        if labels:
            raise ValueError("labels: true: LibriSpeech's utterances have no classes; use AudioSet alone.")
        self.librispeech_root = librispeech_root

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """Both trees, in training."""
        return {
            **super().tree_splits(split),
            **({"librispeech_root": ("train",)} if split == "train" else {}),
        }

    def read(self, split: str) -> AudioClips:
        """AudioSet's clips, in training followed by LibriSpeech's."""
        clips = super().read(split)
        if split != "train":
            return clips
        return clips.followed_by(AudioClips(*self.files("train", "librispeech_root")))
