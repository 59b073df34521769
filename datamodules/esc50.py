"""ESC-50 (Piczak, ACM Multimedia 2015): environmental sounds in five folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered, read_table
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, Split

_STORED: Final = Layout(
    title="ESC-50",
    images="audio",
    suffix=".wav",
    labels=(),
    splits={"clips": Split("*", (2000,))},
    origin="github.com/karolpiczak/ESC-50: the repository's archive",
    unit="clips",
)
_RESAMPLED: Final = replace(_STORED, title="ESC-50 at 16 kHz", images="audio_16k")


class ESC50(AudioDataModule):
    """2,000 clips of 5 s in 50 classes; each fold in turn is tested on, the other four are trained on.

    ``root`` holds ``meta/esc50.csv`` and the clips in ``audio`` (44.1 kHz, resampled when they are read) or, which
    is preferred where it exists, in ``audio_16k`` (SSAST's resampled copies). Without ``val_fraction`` the tested
    fold is also what is validated on, as in the literature: choose no settings by it.

    Args:
        fold: the fold that is tested on, 1 to 5.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "esc50"
    num_classes = 50
    #: In the order of the set's own numbers, which is that of SSAST, too.
    classes: ClassVar[tuple[str, ...]] = (
        "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow",
        "rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds", "water_drops", "wind", "pouring_water",
        "toilet_flush", "thunderstorm", "crying_baby", "sneezing", "clapping", "breathing", "coughing", "footsteps",
        "laughing", "brushing_teeth", "snoring", "drinking_sipping", "door_wood_knock", "mouse_click",
        "keyboard_typing", "door_wood_creaks", "can_opening", "washing_machine", "vacuum_cleaner", "clock_alarm",
        "clock_tick", "glass_breaking", "helicopter", "chainsaw", "siren", "car_horn", "engine", "train",
        "church_bells", "airplane", "fireworks", "hand_saw",
    )  # fmt: skip
    layout: ClassVar[Mapping[str, Layout]] = {"root": _STORED}
    default_val_fraction = 0.0

    def __init__(self, fold: int = 1, **common: Any) -> None:
        super().__init__(**common)
        if not 1 <= fold <= 5:
            raise ValueError(f"fold must lie in 1..5, got {fold}.")
        self.fold = fold

    def tree(self, argument: str) -> Layout:
        """The resampled clips where there are any."""
        resampled = self.root is not None and (Path(self.root).expanduser() / "audio_16k").is_dir()
        return _RESAMPLED if resampled else _STORED

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """All folds lie in one folder."""
        return {"root": ("clips",)}

    def read(self, split: str) -> AudioClips:
        """The clips of ``fold`` (test), or of the others (train)."""
        root, _ = self.files("clips")
        listing, base = root / "meta" / "esc50.csv", root / self.tree("root").images
        table = read_table(listing, ("filename", "fold", "category"), "fold and class of every clip")
        tested = split == "test"
        clips = [
            Listed(row["filename"], (row["category"],))
            for row in table
            if (int(row["fold"]) == self.fold) == tested
        ]
        return listed_clips(base, clips, numbered(self.classes), listing, self.allow_partial)
