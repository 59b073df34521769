"""LibriSpeech (Panayotov et al., ICASSP 2015): read English, here without its transcripts, for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, Split

_UTTERANCES: Final = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}


def _split(*parts: str) -> Split:
    return Split(tuple(f"{part}/*/*/*" for part in parts), (sum(_UTTERANCES[part] for part in parts),))


LIBRISPEECH: Final = Layout(
    title="LibriSpeech",
    images=".",
    suffix=".flac",
    labels=(),
    splits={
        "train": _split("train-clean-100", "train-clean-360", "train-other-500"),
        "train_clean": _split("train-clean-100", "train-clean-360"),
        "train_100": _split("train-clean-100"),
        "val": _split("dev-clean", "dev-other"),
        "test": _split("test-clean", "test-other"),
    },
    origin="openslr.org/12: the seven archives, extracted (folder LibriSpeech)",
    unit="clips",
)
#: Hours of training speech → split of the layout.
HOURS: Final = {960: "train", 460: "train_clean", 100: "train_100"}


class LibriSpeech(AudioDataModule):
    """Up to 960 hours: 281,241 utterances to train on, 5,567 to validate and 5,559 to test with.

    ``root`` is the folder ``LibriSpeech`` of the archives, with a folder for each part
    (``train-clean-100/<speaker>/<chapter>/*.flac``). There are no labels.

    Args:
        hours: of training speech: 960, or the clean 460 or 100.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "librispeech"
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {"root": LIBRISPEECH}

    def __init__(self, hours: int = 960, **common: Any) -> None:
        super().__init__(**common)
        if hours not in HOURS:
            raise ValueError(f"hours must be one of {', '.join(map(str, HOURS))}, got {hours}.")
        self.hours = hours

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The parts with so many hours."""
        return {"root": (HOURS[self.hours] if split == "train" else split,)}

    def read(self, split: str) -> AudioClips:
        """All utterances of a split."""
        return AudioClips(*self.files(*self.tree_splits(split)["root"]))
