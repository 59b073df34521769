"""SpokenKeywords: ten words said by speech synthesisers, made once on this machine."""

from __future__ import annotations

import hashlib
import json
import wave
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered
from datamodules.audio_sets import AudioClips, AudioSubset, padded
from datamodules.cache import cache_root, ensure_folder, write_atomically
from datamodules.formant_speech import RATE
from datamodules.keyword_voices import KEYWORDS, SYNTHESISERS, Voices, require_programs
from datamodules.layout import Layout, Split

#: Raised by every change that alters a sample.
_VERSION: Final = 1
_LOUD: Final = 0.01  # what comes before and after is cut off
_PEAK: Final = (0.2, 0.8)
_PAUSE: Final = 0.08  # longest between words of a phrase, in seconds


@dataclass(frozen=True)
class SpokenTree:
    """The clips on disk: ``<split>/<word>/<voice>_<number>.wav``, one second, 16 bits, 16 kHz.

    Args:
        synthesiser: a key of ``SYNTHESISERS``.
        per_voice: renditions of every word by every voice of the source domain.
        per_target_voice: the same for the target domain.

    Raises:
        ValueError: a number is not positive, or there is no such synthesiser.
    """

    synthesiser: str
    per_voice: int
    per_target_voice: int

    def __post_init__(self) -> None:
        if self.synthesiser not in SYNTHESISERS:
            raise ValueError(
                f"synthesiser must be one of {', '.join(SYNTHESISERS)}, got {self.synthesiser!r}."
            )
        for name, value in (("per_voice", self.per_voice), ("per_target_voice", self.per_target_voice)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def folder(self, base: Path) -> Path:
        """Where the tree lies below ``base``: every setting that changes a sample is part of the name."""
        settings = json.dumps([_VERSION, asdict(self)], sort_keys=True)
        return base / f"spoken-keywords-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def ensure(self, base: Path) -> Path:
        """Make the tree unless it is there undamaged; an interrupted run goes on where it was.

        Raises:
            SynthesiserError: a program is missing or fails. Complete trees need none.
        """
        clips = list(self._clips())
        ensure_folder(self.folder(base), f"{len(clips)} spoken keywords", self._write, resume=True)
        return self.folder(base)

    def _write(self, folder: Path) -> None:
        speakers = SYNTHESISERS[self.synthesiser]
        require_programs(*speakers)
        versions = "\n".join(voices.version() for voices in speakers).strip()
        (folder / "synthesisers.txt").write_text(versions + "\n")
        for path, voices, word, voice, number in self._clips():
            if not (folder / path).is_file():
                rng = np.random.default_rng([zlib.crc32(f"{voice}/{word}".encode()), number])
                clip = _placed(*voices.say(word, voice, rng), rng)
                write_atomically(folder / path, partial(_write_wav, clip))

    def _clips(self) -> Iterator[tuple[str, Voices, str, str, int]]:
        for voices in SYNTHESISERS[self.synthesiser]:
            for split, names in voices.splits.items():
                count = self.per_target_voice if split == "target" else self.per_voice
                for voice in names:
                    for word in KEYWORDS:
                        for number in range(count):
                            yield f"{split}/{word}/{voice}_{number:02d}.wav", voices, word, voice, number


class SpokenKeywords(AudioDataModule):
    """Ten words by synthetic voices, split by voice: nobody who is tested was heard in training.

    Made once into ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``. ``synthesiser: espeak`` takes the Debian packages
    espeak-ng (source domain) and flite (target domain, whose clips are split ``target``); ``formant`` takes
    speech-like sounds made in NumPy (whispered in the target domain), which need no program but are no speech.

    Args:
        root: folder below which the clips are kept, in place of the cache.
        synthesiser: ``espeak``, ``formant``, or ``espeak_further``: ``espeak`` tested by twelve other voices, to choose
            settings by.
        per_voice: renditions of every word by every source voice.
        per_target_voice: renditions of every word by every target voice.
        test_on: clips that are tested on: of the ``source`` domain by unheard voices, or of the ``target`` domain.
        with_target: pre-training (``labels: false``) sees the target domain's clips as well.
        words: pre-training sees phrases of so many words in place of single ones, see :class:`SpokenPhrases`; so do
            its validation and test.
        one_voice: a phrase is said by one voice, as people do; else every word by any.
        trimmed: pre-training sees single words without the silence around them, too, as it always does phrases.
        seconds: longest part that is read of a clip; clips of one word last one second.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "spoken_keywords"
    num_classes = len(KEYWORDS)
    classes: ClassVar[tuple[str, ...]] = KEYWORDS
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="SpokenKeywords",
            images=".",
            suffix=".wav",
            labels=(),
            splits={split: Split(f"{split}/*/*") for split in ("train", "val", "test", "target")},
            origin="made on first use (prepare_data) by the Debian packages espeak-ng and flite, or in NumPy",
            unit="clips",
        )
    }

    def __init__(
        self,
        root: str | None = None,
        synthesiser: Literal["espeak", "espeak_further", "formant"] = "espeak",
        per_voice: int = 12,
        per_target_voice: int = 6,
        test_on: Literal["source", "target"] = "source",
        with_target: bool = False,
        words: int = 1,
        one_voice: bool = False,
        trimmed: bool = False,
        seconds: float | None = 1.0,
        **common: Any,
    ) -> None:
        self._base = Path(root).expanduser() if root else cache_root()
        self._tree = SpokenTree(synthesiser, per_voice, per_target_voice)
        super().__init__(root=str(self._tree.folder(self._base)), seconds=seconds, **common)
        if test_on not in ("source", "target"):
            raise ValueError(f"test_on must be source or target, got {test_on!r}.")
        if with_target and self.labels:
            raise ValueError("with_target: true shows the target's clips without labels: set labels: false.")
        if words < 1 or (words > 1 and self.labels):
            raise ValueError(
                f"words={words} must be at least 1, and above it set labels: false: phrases have no one label."
            )
        if one_voice and words == 1:
            raise ValueError("one_voice: true is about phrases: set words above 1.")
        if trimmed and self.labels:
            raise ValueError("trimmed: true is about pre-training: set labels: false.")
        self.test_on, self.with_target = test_on, with_target
        self.words, self.one_voice, self.trimmed = words, one_voice, trimmed

    def prepare_data(self) -> None:
        """Make the clips, unless they are there already; raises SynthesiserError where a program is missing."""
        self._tree.ensure(self._base)

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The folder of a split; two for pre-training that sees the target."""
        if split == "test" and self.test_on == "target":
            return {"root": ("target",)}
        return {"root": (split, "target") if split == "train" and self.with_target else (split,)}

    def read(self, split: str) -> AudioClips:
        """The clips of a split, whose folders are their words."""
        clips: list[Listed] = []
        for folder in self.tree_splits(split)["root"]:
            root, files = self.files(folder)
            clips += [Listed(file, (file.split("/")[1],)) for file in files]
        return listed_clips(root, clips, numbered(KEYWORDS), root)

    def shown(
        self, clips: AudioClips, positions: np.ndarray | None, name: str, training: bool
    ) -> AudioSubset:
        """The clips, or phrases of them."""
        subset = super().shown(clips, positions, name, training)
        whole = self.words == 1 and not self.trimmed
        return subset if whole else SpokenPhrases(subset, self.words, self.one_voice)


class SpokenPhrases(AudioSubset):
    """Phrases of words that follow one another: a clip without the silence around it, then others of the subset.

    Between them lie pauses of up to 0.08 s. A word alone in its second is mostly silence, and little can be guessed
    about it from what comes before and after.

    Args:
        subset: clips of one word.
        words: of every phrase; the end is cut off where it gets longer than the subset's ``seconds``.
        one_voice: all of them are said by the voice of the first.
    """

    def __init__(self, subset: AudioSubset, words: int, one_voice: bool = False) -> None:
        # Draws belong to a phrase, so that training has others in each pass.
        super().__init__(
            subset.clips.without_labels(), subset.positions, subset.reading, subset.seconds, "random"
        )
        self.words, self._padded_to = words, subset._padded_to
        voices = [
            self.path(number).stem.partition("_")[0] if one_voice else "" for number in range(len(self))
        ]
        self._voices = np.unique(voices, return_inverse=True)[1]

    def batch(self, index: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> dict[str, Any]:
        """As of the base; ``rngs`` draw what follows the first word, None the same whenever it is asked for."""
        draws = rngs or [np.random.default_rng([0, int(number)]) for number in index]
        phrases = [self._phrase(int(first), rng) for first, rng in zip(index, draws, strict=True)]
        waveform, length = padded(phrases, self._padded_to)
        names = [self.path(int(number)).stem for number in index]
        return {"waveform": waveform, "length": length, "index": torch.from_numpy(index), "name": names}

    def _phrase(self, first: int, rng: np.random.Generator) -> Tensor:
        rate, parts = self.reading.sample_rate, list[Tensor]()
        following = np.flatnonzero(self._voices == self._voices[first])
        for number in (first, *following[rng.integers(len(following), size=self.words - 1)]):
            clip = self.reading.clip(self.path(int(number)))
            sounding = clip.nonzero()[:, 0]
            pause = int(rng.integers(round(_PAUSE * rate) + 1))
            parts.append(F.pad(clip[sounding[0] : sounding[-1] + 1], (0, pause)))
        longest = None if self.seconds is None else round(self.seconds * rate)
        return torch.cat(parts)[:longest]


def _placed(sound: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A word without what surrounds it, at a random place of one second and of random loudness, ``[RATE]``."""
    if rate != RATE:
        from torchaudio.functional import resample

        sound = resample(torch.from_numpy(sound), rate, RATE).numpy()
    loud = np.flatnonzero(np.abs(sound) > _LOUD * np.abs(sound).max())
    word = sound[loud[0] : loud[-1] + 1][:RATE]
    start = rng.integers(RATE - len(word) + 1)
    clip = np.zeros(RATE, np.float32)
    clip[start : start + len(word)] = word * rng.uniform(*_PEAK) / np.abs(word).max()
    return clip


def _write_wav(clip: np.ndarray, file: BinaryIO) -> None:
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes(np.round(clip * 32767).astype("<i2").tobytes())
