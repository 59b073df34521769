"""Who says the keywords: the command-line synthesisers espeak-ng and flite, or our own formant synthesiser.

The voices of a synthesiser are shared out to splits: recognising a word said by a voice one has heard is easy
(99.7 % by logistic regression), by an unheard one it is not (93.8 %), and by another synthesiser it is hard (49.2 %).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

import numpy as np

from datamodules.formant_speech import RATE, WORDS, Speaker, say

#: The ten core words of Speech Commands.
KEYWORDS: Final = tuple(WORDS)


class SynthesiserError(RuntimeError):
    """A synthesiser is missing, or does not say what it should; the message says how to get it."""


class Voices(ABC):
    """A synthesiser and its voices.

    Attributes:
        splits: split → voices that speak in it.
        program: command that must be installed; empty where there is none.
    """

    splits: ClassVar[Mapping[str, tuple[str, ...]]]
    program: ClassVar[str] = ""

    @abstractmethod
    def say(self, word: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """One rendition, float32 ``[n]``, and its sampling rate; ``rng`` draws pace and melody.

        Raises:
            SynthesiserError: the program fails.
        """

    def version(self) -> str:
        """What the renditions depend on."""
        return ""

    def _run(self, *arguments: str) -> bytes:
        done = subprocess.run([self.program, *arguments], capture_output=True, check=False)
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            raise SynthesiserError(f"{self.program} {' '.join(arguments)} failed: {message}")
        return done.stdout


class Espeak(Voices):
    """espeak-ng (GPL-3; what it says is unencumbered): 13 timbres, six accents, any pace and pitch."""

    program = "espeak-ng"
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("m1", "m2", "m3", "m5", "m7", "f1", "f2"),
        "val": ("m6", "f4"),
        "test": ("m4", "m8", "f3", "f5"),
    }
    _ACCENTS: ClassVar = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-us-nyc")

    def say(self, word: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Words a minute, pitch and accent are drawn."""
        accent = self._ACCENTS[rng.integers(len(self._ACCENTS))]
        pace, pitch = rng.integers(120, 211), rng.integers(25, 76)
        return _samples(
            self._run("-v", f"{accent}+{voice}", "-s", str(pace), "-p", str(pitch), "--stdout", word)
        )

    def version(self) -> str:
        """Of espeak-ng; its sound changes from one to the next."""
        return self._run("--version").decode().partition("Data at")[0].strip()


class FurtherEspeak(Espeak):
    """The same to train on, but tested by twelve voices that :class:`Espeak` has in no split: to choose settings by."""

    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **Espeak.splits,
        "test": (
            "adam", "Alicia", "Andy", "Annie", "belinda", "Denis", "Diogo", "edward", "linda", "marcelo", "Michael",
            "steph",
        ),
    }  # fmt: skip


class Flite(Voices):
    """flite (licence like BSD's): four voices recorded from people."""

    program = "flite"
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {"target": ("kal16", "awb", "rms", "slt")}

    def say(self, word: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Length and pitch are drawn."""
        stretch, pitch = rng.uniform(0.85, 1.25), rng.uniform(90, 150)
        settings = ("--setf", f"duration_stretch={stretch:.3f}", "--setf", f"int_f0_target_mean={pitch:.1f}")
        return _samples(self._run("-voice", voice, *settings, "-t", word, "-o", "/dev/stdout"))

    def version(self) -> str:
        """Of flite."""
        # flite ends with status 1 after saying it.
        told = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"version: (\S+)", told)
        return found[1] if found else "flite of unknown version"


class Formant(Voices):
    """Speech-like sounds made in NumPy, see :mod:`datamodules.formant_speech`; no speech, but always there."""

    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": tuple(f"s{n:02d}" for n in range(8)),
        "val": tuple(f"s{n:02d}" for n in range(8, 10)),
        "test": tuple(f"s{n:02d}" for n in range(10, 14)),
    }
    whispers: ClassVar[bool] = False

    def say(self, word: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Pace, melody and small deviations are drawn."""
        return say(word, Speaker.numbered(int(voice[1:]), self.whispers), rng), RATE


class Whisper(Formant):
    """The same, whispered."""

    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {"target": tuple(f"w{n:02d}" for n in range(4))}
    whispers = True


#: What ``synthesiser`` can be → who speaks in the source domain and in the target domain.
SYNTHESISERS: Final[dict[str, tuple[Voices, Voices]]] = {
    "espeak": (Espeak(), Flite()),
    "espeak_further": (FurtherEspeak(), Flite()),
    "formant": (Formant(), Whisper()),
}


def require_programs(*speakers: Voices) -> None:
    """Raise one :class:`SynthesiserError` that names every program that is not installed."""
    absent = [voices.program for voices in speakers if voices.program and not shutil.which(voices.program)]
    if absent:
        raise SynthesiserError(
            f"The spoken keywords are made with {' and '.join(absent)}, not found on this machine: install the Debian "
            "packages espeak-ng and flite (`apt-get install espeak-ng flite`), or set synthesiser: formant for "
            "speech-like sounds that need no program."
        )


def _samples(wav: bytes) -> tuple[np.ndarray, int]:
    """Samples of a WAV file that was written to a pipe, so that the lengths in its 44-byte header are wrong."""
    if len(wav) <= 44 or wav[:4] != b"RIFF":
        raise SynthesiserError("the synthesiser wrote no sound")
    rate = int.from_bytes(wav[24:28], "little")
    return np.frombuffer(wav[44 : len(wav) // 2 * 2], "<i2").astype(np.float32) / 32768, rate
