"""Reading audio clips: decode, mix down, resample, cut, and nothing else.

16-bit PCM WAV files, which nearly every benchmark consists of, are read with Python's own reader; FLAC, Ogg, GSM and
other kinds of WAV need soundfile (extra ``audio``). torchaudio reads no files any more.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

#: Endings of the files that are taken for audio.
SUFFIXES: Final = (".wav", ".flac", ".ogg", ".gsm")
#: Telephone speech in bare GSM 06.10 frames has no header that says so.
_HEADERLESS: Final[dict[str, dict[str, Any]]] = {
    ".gsm": {"format": "RAW", "subtype": "GSM610", "samplerate": 8000, "channels": 1}
}
#: From the number of samples in a file and its sampling rate to the first one wanted and how many.
Window = Callable[[int, int], tuple[int, int]]


class BrokenAudioError(ValueError):
    """A file that cannot be decoded, or that holds no usable sound."""


@dataclass(frozen=True)
class Reading:
    """How clips are read. Several channels are averaged; silence is a clip like any other.

    Args:
        sample_rate: of what is returned, in Hz.
        resample: convert files of another rate (windowed sinc, as in torchaudio), instead of refusing them.
        gain: in dB, applied to every clip; SUPERB's keyword spotting has -3.

    Raises:
        ValueError: the sampling rate is not positive.
    """

    sample_rate: int = 16_000
    resample: bool = True
    gain: float = 0.0

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate must be at least 1 Hz, got {self.sample_rate}.")

    def clip(
        self, path: Path, seconds: float | None = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Samples ``[n]`` float32 in [-1, 1] of one file.

        Args:
            path: the file.
            seconds: longest part that is read; None reads all.
            rng: draws where a part begins; None reads the beginning.

        Raises:
            BrokenAudioError: the file cannot be decoded, is truncated, holds no samples or some that are not finite,
                or has another sampling rate and is not to be resampled; it is named.
            FileNotFoundError: there is none.
            ImportError: only soundfile reads such files, and it is not installed.
        """

        def window(samples: int, rate: int) -> tuple[int, int]:
            wanted = samples if seconds is None else min(samples, math.ceil(seconds * rate))
            return (0 if rng is None else int(rng.integers(samples - wanted + 1))), wanted

        longest = None if seconds is None else round(seconds * self.sample_rate)
        return self._mono(path, window)[:longest]

    def between(self, path: Path, start: float, end: float, least: int = 1024) -> Tensor:
        """Samples ``[n]`` between two shares of a file; all of it where those are ``least`` or fewer.

        Args:
            path: the file.
            start: where the part begins, as a share of the whole.
            end: where it ends.
            least: so many samples say nothing.

        Raises:
            BrokenAudioError: as of :meth:`clip`; also if the file itself is as short.
            FileNotFoundError: there is none.
            ImportError: only soundfile reads such files, and it is not installed.
        """

        def window(samples: int, rate: int) -> tuple[int, int]:
            if samples <= least:
                raise BrokenAudioError(f"{path} holds {samples} samples, too few to be sound: {_REMEDY}.")
            first, last = int(start * samples), int(end * samples)
            return (first, last - first) if last - first > least else (0, samples)

        return self._mono(path, window)

    def _mono(self, path: Path, window: Window) -> Tensor:
        samples, rate = _decode(path, window)
        if not np.isfinite(samples).all():
            raise BrokenAudioError(f"{path} holds samples that are nan or infinite: {_REMEDY}.")
        if rate != self.sample_rate and not self.resample:
            raise BrokenAudioError(
                f"{path} has {rate} Hz, not sample_rate={self.sample_rate}: convert it, or set resample: true."
            )
        mono = torch.from_numpy(samples.mean(1, dtype=np.float32))
        if rate != self.sample_rate:
            mono = _resampler(rate, self.sample_rate)(mono)
        return mono * 10 ** (self.gain / 20)


def drop_broken(paths: Sequence[Path], reading: Reading) -> tuple[np.ndarray, list[str]]:
    """Read every file: positions of those that can be read, int64 ``[n]``, and why the others cannot."""
    usable, reasons = [], []
    for position, path in enumerate(paths):
        try:
            reading.clip(path)
        except (BrokenAudioError, FileNotFoundError) as error:
            reasons.append(str(error))
        else:
            usable.append(position)
    return np.array(usable, np.int64), reasons


_REMEDY: Final = "replace it, or set skip_broken: true to leave out such files"


def _decode(path: Path, window: Window) -> tuple[np.ndarray, int]:
    """Samples ``[n, channels]`` float32 and their rate."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix.lower() == ".wav":
        try:
            return _decode_pcm16(path, window)
        except (wave.Error, EOFError):
            pass  # of another kind, or damaged: soundfile tells which
    return _decode_any(path, window)


def _decode_pcm16(path: Path, window: Window) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise wave.Error("not 16 bits a sample")
        rate, channels = file.getframerate(), file.getnchannels()
        start, count = window(_some(path, file.getnframes()), rate)
        file.setpos(start)
        content = file.readframes(count)
    _check_complete(path, len(content) // (2 * channels), count)
    return np.frombuffer(content, "<i2").reshape(-1, channels).astype(np.float32) / 32768, rate


def _decode_any(path: Path, window: Window) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            f"{path} is read with soundfile, which is not installed: pip install 'selfzoo[audio]' (without it only "
            "16-bit PCM WAV files are read)."
        ) from error
    try:
        with soundfile.SoundFile(path, **_HEADERLESS.get(path.suffix.lower(), {})) as file:
            start, count = window(_some(path, file.frames), file.samplerate)
            rate, before = file.samplerate, start
            if file.seekable():  # frames of GSM build upon one another
                before -= file.seek(start)
            samples = file.read(before + count, dtype="float32", always_2d=True)[before:]
    except soundfile.SoundFileError as error:
        raise BrokenAudioError(f"{path} cannot be decoded ({error}): {_REMEDY}.") from error
    _check_complete(path, len(samples), count)
    return samples, rate


def _some(path: Path, samples: int) -> int:
    if samples == 0:
        raise BrokenAudioError(f"{path} holds no samples: {_REMEDY}.")
    return samples


def _check_complete(path: Path, found: int, promised: int) -> None:
    if found < promised:
        raise BrokenAudioError(
            f"{path} is truncated: its header promises {promised} samples where {found} are: {_REMEDY}."
        )


@lru_cache(maxsize=16)
def _resampler(rate: int, wanted: int) -> nn.Module:
    """The filter is made once for each pair of rates, which takes longer than its use."""
    from torchaudio.transforms import Resample

    return Resample(rate, wanted)
