"""FSD50K (Fonseca et al., TASLP 2022): sound events from Freesound, several a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered, read_lines, read_table
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, LayoutError, Split

_PARTS: Final = {"train": "dev", "val": "dev", "test": "eval"}


class FSD50K(AudioDataModule):
    """200 classes; 36,796 clips to train on, 4,170 to validate and 10,231 to test with, 0.3 to 30 s long.

    ``root`` holds ``FSD50K.dev_audio``, ``FSD50K.eval_audio`` and ``FSD50K.ground_truth``. Clips have 44.1 kHz and
    are resampled when they are read.
    """

    name = "fsd50k"
    num_classes = 200
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="FSD50K",
            images=".",
            suffix=".wav",
            labels=(),
            splits={
                "dev": Split("FSD50K.dev_audio/*", (40966,)),
                "eval": Split("FSD50K.eval_audio/*", (10231,)),
            },
            origin="zenodo.org/records/4060432: FSD50K.dev_audio, FSD50K.eval_audio, FSD50K.ground_truth",
            unit="clips",
        )
    }

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """Training and validation clips lie in one folder."""
        return {"root": (_PARTS[split],)}

    def read(self, split: str) -> AudioClips:
        """The clips of ``dev.csv`` with this split, or those of ``eval.csv``."""
        part = _PARTS[split]
        root, _ = self.files(part)
        truth = root / "FSD50K.ground_truth"
        vocabulary = truth / "vocabulary.csv"
        self.classes = tuple(  # type: ignore[misc]
            line.split(",")[1] for line in read_lines(vocabulary, "the classes: number, name, mid")
        )
        if len(self.classes) != self.num_classes:
            raise LayoutError(f"{vocabulary} lists {len(self.classes)} classes, expected {self.num_classes}.")
        listing = truth / f"{part}.csv"
        columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
        clips = [
            Listed(f"FSD50K.{part}_audio/{row['fname']}.wav", tuple(row["labels"].split(",")))
            for row in read_table(listing, columns, "the classes of every clip")
            if part == "eval" or row["split"] == split
        ]
        return listed_clips(root, clips, numbered(self.classes), listing, self.allow_partial, several=True)
