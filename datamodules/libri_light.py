"""Libri-Light (Kahn et al., ICASSP 2020): 60,000 hours of English audiobooks without transcripts, for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, Split

#: Hours of speech → archives that hold them together.
HOURS: Final = {60_000: ("small", "medium", "large"), 6_000: ("small", "medium"), 600: ("small",)}
#: Files of all three archives.
_FILES: Final = 219_041


def _split(*archives: str) -> Split:
    return Split(tuple(f"{archive}/*/*/*" for archive in archives), (_FILES,) if "large" in archives else ())


LIBRI_LIGHT: Final = Layout(
    title="Libri-Light",
    images=".",
    suffix=".flac",
    labels=(),
    splits={f"train_{hours}": _split(*archives) for hours, archives in HOURS.items()},
    origin="github.com/facebookresearch/libri-light: small.tar, medium.tar and large.tar, extracted into one folder",
    unit="recordings",
)


class LibriLight(AudioDataModule):
    """unlab-60k, unlab-6k or unlab-600: recordings by speaker and book, some an hour long, of which windows are read.

    ``root`` is the folder that the archives were extracted into (``small/<speaker>/<book>/*.flac``, and so on). There
    are no labels. A share of the recordings is held out for validation and test.

    Args:
        hours: of speech: 60000, 6000 or 600.
        val_fraction: share of the recordings held out.
        **common: see :class:`~datamodules.audio.AudioDataModule`; ``crop: random`` reads windows anywhere.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "libri_light"
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {"root": LIBRI_LIGHT}
    test_split = "val"
    default_val_fraction = 0.01

    def __init__(self, hours: int = 60_000, val_fraction: float = 0.01, **common: Any) -> None:
        super().__init__(val_fraction=val_fraction, **common)
        if hours not in HOURS:
            raise ValueError(f"hours must be one of {', '.join(map(str, HOURS))}, got {hours}.")
        if not val_fraction:
            raise ValueError("val_fraction must be above 0: there are no recordings but those of training.")
        self.hours = hours

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The archives with so many hours."""
        return {"root": (f"train_{self.hours}",)}

    def read(self, split: str) -> AudioClips:
        """All recordings."""
        return AudioClips(*self.files(f"train_{self.hours}"))
