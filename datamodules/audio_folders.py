"""Any set of recordings in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from datamodules.audio import AudioDataModule
from datamodules.audio_files import SUFFIXES
from datamodules.audio_labels import SingleLabels
from datamodules.audio_lists import numbered
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, LayoutError, LayoutReport, Split, inspect_files

_KINDS: Final = f"files that end in {', '.join(SUFFIXES)}"


class AudioFolders(AudioDataModule):
    """Your own recordings: every WAV, FLAC, Ogg or GSM file below ``root``, at any depth.

    Without ``class_names`` there are no labels: pre-train with ``labels: false``. With them the recordings are those
    below the folders of these names in ``root``, and the folder is the class. A share of the recordings, of every class
    alike, is held out for validation and test; pre-training with the same ``class_names`` holds out the same ones. It
    is chosen by file, so one speaker may be on both sides.

    Args:
        class_names: folders right below ``root``, in the order of their numbers; None has no classes.
        val_fraction: share of the recordings held out.
        **common: see :class:`~datamodules.audio.AudioDataModule`; ``crop: random`` reads windows anywhere.

    Raises:
        ValueError: an argument is out of range, or labels are wanted without ``class_names``.
    """

    name = "audio_folders"
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="Folder of recordings",
            images=f"{_KINDS}, at any depth",
            suffix="",
            labels=(),
            splits={"recordings": Split("**/*")},
            origin="your own; see the card",
            unit="recordings",
        )
    }
    test_split = "val"
    default_val_fraction = 0.1

    def __init__(
        self, class_names: tuple[str, ...] | None = None, val_fraction: float = 0.1, **common: Any
    ) -> None:
        super().__init__(val_fraction=val_fraction, **common)
        if not val_fraction:
            raise ValueError("val_fraction must be above 0: there are no recordings but those of training.")
        if self.labels and not class_names:
            raise ValueError(
                "labels: true needs class_names, the folders below root that are classes. Set labels: false to "
                "pre-train without."
            )
        self.classes = tuple(class_names or ())  # type: ignore[misc]
        self.num_classes = len(self.classes)  # type: ignore[misc]

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """There is one tree."""
        return {"root": ("recordings",)}

    def _inspect(self, argument: str, splits: Mapping[str, bool]) -> LayoutReport:
        advice = ": convert other kinds, e.g. ffmpeg -i a.mp3 a.flac"
        return inspect_files(self.tree(argument), self.root, splits, SUFFIXES, argument, advice)

    def read(self, split: str) -> AudioClips:
        """All recordings, or those of the classes."""
        root, files = self.files("recordings")
        labels = None
        if self.classes:
            number = numbered(self.classes)
            labelled = {
                file: number[folder] for file in files if (folder := file.partition("/")[0]) in number
            }
            if absent := [name for name, of in number.items() if of not in labelled.values()]:
                raise LayoutError(f"class_names: there are no {_KINDS} below {root / absent[0]}.")
            files, classes = list(labelled), np.array(list(labelled.values()), np.int64)
            labels = SingleLabels(classes, self.num_classes)
        if not 0 < (held_out := round(self.val_fraction * len(files))) < len(files):
            raise LayoutError(
                f"val_fraction={self.val_fraction} holds out {held_out} of {len(files)} recordings."
            )
        return AudioClips(root, files, labels)
