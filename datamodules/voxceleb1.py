"""VoxCeleb1 (Nagrani et al., Interspeech 2017): which of 1,251 speakers is it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered, read_lines
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, LayoutError, Split

#: The list under its official name, and as SUPERB calls it.
_LISTS: Final = ("iden_split.txt", "veri_test_class.txt")
_PARTS: Final = {"train": "1", "val": "2", "test": "3"}
_COUNT: Final = (153516,)
_TREE: Final = Layout(
    title="VoxCeleb1",
    images=".",
    suffix=".wav",
    labels=(),
    splits={"clips": Split(("dev/wav/*/*/*", "test/wav/*/*/*"), _COUNT)},
    origin="mm.kaist.ac.kr/datasets/voxceleb: the archives of dev and test, and iden_split.txt",
    unit="clips",
)
_FLAT_TREE: Final = replace(_TREE, splits={"clips": Split("wav/*/*/*", _COUNT)})


class VoxCeleb1(AudioDataModule):
    """Speaker identification: 138,361 utterances to train on, 6,904 to validate and 8,251 to test with.

    ``root`` holds ``dev/wav`` and ``test/wav`` (or both together in ``wav``) with folders
    ``<speaker>/<video>/*.wav``, and the list ``iden_split.txt``: ``1`` (train), ``2`` (val) or ``3`` (test), and a
    path, in every line. Speakers are numbered in the order of their ids.

    Args:
        split_file: the list; None takes ``iden_split.txt`` or ``veri_test_class.txt`` in ``root``.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "voxceleb1"
    num_classes = 1251
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {"root": _TREE}

    def __init__(self, split_file: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.split_file = split_file

    def tree(self, argument: str) -> Layout:
        """Both parts apart, or together where there is a folder ``wav``."""
        together = self.root is not None and (Path(self.root).expanduser() / "wav").is_dir()
        return _FLAT_TREE if together else _TREE

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The splits of identification cut across the folders, which are those of verification."""
        return {"root": ("clips",)}

    def read(self, split: str) -> AudioClips:
        """The utterances of a split with their speakers."""
        root, files = self.files("clips")
        where = {file.partition("wav/")[2]: file for file in files}
        listing = self._listing(root)
        lines = [line.split() for line in read_lines(listing, "the split of every utterance")]
        if bad := [line for line in lines if len(line) != 2 or line[0] not in _PARTS.values()]:
            raise LayoutError(f"{listing}: {' '.join(bad[0])!r} is not 1, 2 or 3 and a path.")
        self.classes = tuple(sorted({_speaker(path) for _, path in lines}))  # type: ignore[misc]
        if len(self.classes) > self.num_classes or (
            len(self.classes) < self.num_classes and not self.allow_partial
        ):
            raise LayoutError(f"{listing} names {len(self.classes)} speakers, expected {self.num_classes}.")
        clips = [
            Listed(where.get(path, path), (_speaker(path),)) for part, path in lines if part == _PARTS[split]
        ]
        return listed_clips(root, clips, numbered(self.classes), listing, self.allow_partial)

    def _listing(self, root: Path) -> Path:
        if self.split_file is not None:
            return Path(self.split_file).expanduser()
        return next((root / name for name in _LISTS if (root / name).is_file()), root / _LISTS[0])


def _speaker(path: str) -> str:
    return path.partition("/")[0]
