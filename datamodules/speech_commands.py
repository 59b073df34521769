"""Google Speech Commands (Warden, 2018): spoken words of one second, all of them or ten keywords."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered, read_lines
from datamodules.audio_sets import AudioClips, Crop
from datamodules.layout import Layout, LayoutError, Split

Task = Literal["words", "keywords"]

_KEYWORDS: Final = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN: Final = "_unknown_"
SILENCE: Final = "_silence_"
NOISE: Final = "_background_noise_"
#: In the order of SUPERB.
KEYWORD_CLASSES: Final = (*_KEYWORDS, UNKNOWN, SILENCE)
_WORDS_V1: Final = (
    "bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy", "house", "left", "marvin", "nine",
    "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree", "two", "up", "wow", "yes",
    "zero",
)  # fmt: skip
_WORDS_V2: Final = tuple(sorted((*_WORDS_V1, "backward", "follow", "forward", "learn", "visual")))
_LISTS: Final = {"val": "validation_list.txt", "test": "testing_list.txt"}


def _layouts(version: str, clips: int, tested: int) -> dict[str, Layout]:
    name, archive = f"Speech Commands {version}", f"speech_commands_{version}.tar.gz"
    return {
        "root": Layout(
            title=name,
            images=".",
            suffix=".wav",
            labels=(),
            splits={"words": Split("[a-z]*/*", (clips,)), "noise": Split(f"{NOISE}/*", (6,))},
            origin=f"download.tensorflow.org/data/{archive}",
            unit="clips",
        ),
        "test_root": Layout(
            title=f"{name}, test set of the twelve classes",
            images=".",
            suffix=".wav",
            labels=(),
            splits={"test": Split("*/*", (tested,))},
            origin=f"download.tensorflow.org/data/speech_commands_test_set_{version}.tar.gz",
            unit="clips",
        ),
    }


class SpeechCommandsV2(AudioDataModule):
    """Version 0.02: 105,829 clips of 35 words.

    ``root`` holds a folder for every word and the two official lists. Words in ``validation_list.txt`` and
    ``testing_list.txt`` make those splits, all others are trained on.

    The twelve classes of ``task: keywords`` are ten words; ``_unknown_``, which is every other word; and
    ``_silence_``, which is a second of one of the files of background noise, at random where ``crop`` is and
    else their first (as in SUPERB, training and validation have them, test clips come from the separate test set).
    Use ``balanced: true`` with it: there are six files of noise.

    Args:
        task: ``words`` (all of them, in alphabetical order) or ``keywords``.
        test_root: folder of the separate test set, for ``keywords``; without it the words of ``testing_list.txt``
            are tested, and no silence.
        seconds: longest part that is read of a clip.
        crop: where that part begins in training. Only noise is longer than a second.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "speech_commands_v2"
    words: ClassVar[tuple[str, ...]] = _WORDS_V2
    layout: ClassVar[Mapping[str, Layout]] = _layouts("v0.02", 105829, 4890)
    default_task: ClassVar[Task] = "words"

    def __init__(
        self,
        task: Task | None = None,
        test_root: str | None = None,
        seconds: float | None = 1.0,
        crop: Crop = "random",
        **common: Any,
    ) -> None:
        super().__init__(seconds=seconds, crop=crop, **common)
        if task not in (None, "words", "keywords"):
            raise ValueError(f"task must be words or keywords, got {task!r}.")
        self.task, self.test_root = task or self.default_task, test_root
        self.classes = self.words if self.task == "words" else KEYWORD_CLASSES  # type: ignore[misc]
        self.num_classes = len(self.classes)  # type: ignore[misc]

    @property
    def _tests_apart(self) -> bool:
        return self.task == "keywords" and self.test_root is not None

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """Words, and noise for training; or the separate test set."""
        if split == "test" and self._tests_apart:
            return {"test_root": ("test",)}
        silence = self.task == "keywords" and split != "test"
        return {"root": ("words", "noise") if silence else ("words",)}

    def read(self, split: str) -> AudioClips:
        """The clips of a list, or of none, with their words as classes."""
        if split == "test" and self._tests_apart:
            root, paths = self.files("test", "test_root")
            return self._labelled(root, paths, root)
        root, paths = self.files("words")
        named = {name: read_lines(root / file, f"the {name} clips") for name, file in _LISTS.items()}
        if split == "train":
            others = {path for listed in named.values() for path in listed}
            paths = [path for path in paths if path not in others]
        else:
            paths = named[split]
        if self.task == "keywords" and split != "test":
            paths = paths + self.files("noise")[1]
        return self._labelled(root, paths, root / _LISTS.get(split, ""))

    def _labelled(self, root: Path, paths: list[str], listing: Path) -> AudioClips:
        words = [path.partition("/")[0] for path in paths]
        if self.task == "keywords":
            known = {*self.words, *KEYWORD_CLASSES}
            if strange := set(words) - known - {NOISE}:
                raise LayoutError(f"{root} holds the folder {min(strange)!r}, which is none of the words.")
            silence = {NOISE: SILENCE}
            words = [silence.get(w, w if w in KEYWORD_CLASSES else UNKNOWN) for w in words]
        clips = [Listed(path, (word,)) for path, word in zip(paths, words, strict=True)]
        return listed_clips(root, clips, numbered(self.classes), listing, self.allow_partial)


class SpeechCommandsV1(SpeechCommandsV2):
    """Version 0.01: 64,721 clips of 30 words, by default for the twelve classes of SUPERB's keyword spotting."""

    name = "speech_commands_v1"
    words = _WORDS_V1
    layout: ClassVar[Mapping[str, Layout]] = _layouts("v0.01", 64721, 3081)
    default_task = "keywords"
