"""Words from a formant synthesiser in NumPy: speech-like sounds for machines without a speech synthesiser.

A word is a string of phones, each with target frequencies of three formants (vowels about as measured by Peterson
and Barney, 1952), loudness of voice and noise, and the noise's place in the spectrum. Targets are joined linearly; the
voice is a sum of harmonics shaped by the formants, the noise is shaped frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

RATE: Final = 16_000
_HOP: Final = 80  # samples of a frame: 5 ms
_BANDWIDTHS: Final = (80.0, 110.0, 160.0)
#: Phone → F1, F2, F3 in Hz, voice, noise, centre and width of the noise in Hz, duration in ms.
_PHONES: Final[dict[str, tuple[float, ...]]] = {
    "a": (730, 1240, 2440, 1.0, 0.0, 2500, 2000, 130),
    "e": (530, 1840, 2480, 1.0, 0.0, 2500, 2000, 110),
    "i": (300, 2250, 2950, 0.9, 0.0, 2500, 2000, 90),
    "o": (570, 880, 2410, 1.0, 0.0, 2500, 2000, 130),
    "u": (320, 900, 2240, 0.8, 0.0, 2500, 2000, 90),
    "A": (640, 1190, 2390, 1.0, 0.0, 2500, 2000, 120),
    "j": (280, 2200, 2900, 0.7, 0.0, 2500, 2000, 60),
    "l": (360, 1200, 2700, 0.6, 0.0, 2500, 2000, 60),
    "r": (420, 1250, 1600, 0.6, 0.0, 2500, 2000, 70),
    "n": (280, 1500, 2500, 0.4, 0.0, 2500, 2000, 80),
    "s": (350, 1700, 2600, 0.0, 0.5, 6000, 1200, 110),
    "f": (350, 1100, 2300, 0.0, 0.2, 5000, 3000, 100),
    ".": (350, 1500, 2500, 0.0, 0.0, 2500, 2000, 50),  # closed
    "T": (350, 1700, 2600, 0.0, 0.7, 4500, 1500, 20),  # bursts
    "D": (350, 1700, 2600, 0.3, 0.5, 4000, 1500, 20),
    "P": (350, 900, 2300, 0.0, 0.6, 900, 700, 20),
    "G": (350, 1600, 2200, 0.3, 0.5, 1800, 600, 25),
}
WORDS: Final[dict[str, str]] = {
    "yes": "jes",
    "no": "nou",
    "up": "A.P",
    "down": ".Daun",
    "left": "lef.T",
    "right": "rai.T",
    "on": "on",
    "off": "of",
    "stop": "s.To.P",
    "go": ".Gou",
}


@dataclass(frozen=True)
class Speaker:
    """A voice.

    Args:
        pitch: fundamental frequency in Hz.
        tract: factor on all formants; short vocal tracts have high ones.
        tilt: loss towards high frequencies, in dB an octave.
        breath: noise in place of that share of the voice; 1 whispers.
        accent: ``[3]`` factors on the formants of vowels.
    """

    pitch: float
    tract: float
    tilt: float
    breath: float
    accent: tuple[float, float, float]

    @classmethod
    def numbered(cls, number: int, whispers: bool = False) -> Speaker:
        """One of as many speakers as wanted; even numbers have high voices."""
        rng = np.random.default_rng([number, int(whispers)])
        low, high, tract = ((165, 250, 1.15), (85, 140, 1.0))[number % 2]
        return cls(
            pitch=rng.uniform(low, high),
            tract=tract * rng.uniform(0.93, 1.07),
            tilt=rng.uniform(3.0, 9.0),
            breath=1.0 if whispers else rng.uniform(0.02, 0.3),
            accent=tuple(rng.uniform(0.9, 1.1, 3)),
        )


def say(word: str, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """One rendition ``[n]`` float32 at ``RATE``; ``rng`` draws pace, melody and small deviations.

    Raises:
        KeyError: the word is none of ``WORDS``.
    """
    track = _track(WORDS[word], speaker, rng)
    frames, samples = len(track), len(track) * _HOP
    seconds = np.arange(frames) * _HOP / RATE
    melody = (
        1 + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, frames) + 0.01 * np.sin(2 * np.pi * 5 * seconds)
    )
    pitch = speaker.pitch * rng.uniform(0.9, 1.1) * melody
    voice = _voiced(track, pitch, speaker) * (1 - speaker.breath)
    noise = _noise(track, speaker, rng.standard_normal(samples))
    sound = voice / (np.abs(voice).max() + 1e-9) * (1 - speaker.breath) + 0.6 * noise
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def _track(phones: str, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Formants, voice, noise, its centre and its width for every frame, ``[frames, 7]``."""
    targets = np.array([_PHONES[phone] for phone in phones])
    pace = rng.uniform(0.8, 1.3)
    lasting = np.maximum(targets[:, 7] * pace * rng.uniform(0.85, 1.15, len(targets)) / 5, 2)
    vowels = np.array([phone in "aeiouA" for phone in phones])[:, None]
    formants = targets[:, :3] * np.where(vowels, speaker.accent, 1.0) * speaker.tract
    formants = formants * rng.normal(1, 0.02, formants.shape)
    controls = np.concatenate([formants, targets[:, 3:7]], axis=1)
    # Each phone holds its target for the middle half of its time; silence at both ends.
    ends = np.cumsum(lasting)
    starts = ends - lasting
    knots = np.stack([starts + lasting / 4, ends - lasting / 4], axis=1).ravel()
    held = np.repeat(controls, 2, axis=0)
    sounding = np.array([1, 1, 1, 0, 0, 1, 1])
    held = np.stack([held[0] * sounding, *held, held[-1] * sounding])
    knots = np.concatenate([[-2.0], knots, [ends[-1] + 4]])
    times = np.arange(int(ends[-1]) + 5)
    return np.stack([np.interp(times, knots, column) for column in held.T], axis=1)


def _response(frequency: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Gain of the three resonances; ``frequency`` and the tracks' frames broadcast, ``[frames, k]``."""
    gain = np.ones(np.broadcast_shapes(frequency.shape, (len(track), 1)))
    for number, width in enumerate(_BANDWIDTHS):
        centre = track[:, number, None]
        gain = gain * centre**2 / np.hypot(centre**2 - frequency**2, width * frequency)
    return gain


def _voiced(track: np.ndarray, pitch: np.ndarray, speaker: Speaker) -> np.ndarray:
    harmonics = np.arange(1, int(RATE / 2 / pitch.max()) + 1)
    frequency = pitch[:, None] * harmonics
    gain = _response(frequency, track) * (frequency / 100) ** (-speaker.tilt / 6.02) * track[:, 3, None]
    phase = 2 * np.pi * np.cumsum(_between(pitch[:, None]).ravel()) / RATE % (2 * np.pi)
    waves = np.sin((phase[:, None] * harmonics).astype(np.float32))
    return np.einsum("nk,nk->n", waves, _between(gain).reshape(waves.shape))


def _between(frames: np.ndarray) -> np.ndarray:
    """Values ``[frames, k]`` for every sample, ``[frames, _HOP, k]``, joined linearly."""
    share = (np.arange(_HOP) / _HOP).astype(np.float32)[:, None]
    following = np.concatenate([frames[1:], frames[-1:]])[:, None].astype(np.float32)
    return frames[:, None].astype(np.float32) * (1 - share) + following * share


def _noise(track: np.ndarray, speaker: Speaker, white: np.ndarray) -> np.ndarray:
    """Noise in its band and, for breath, behind the formants, by overlapping windows of two frames."""
    window = np.hanning(2 * _HOP + 1)[:-1]
    padded = np.pad(white, (_HOP, _HOP))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 2 * _HOP)[::_HOP][: len(track)]
    spectrum = np.fft.rfft(pieces * window)
    frequency = np.fft.rfftfreq(2 * _HOP, 1 / RATE)[None]
    band = np.exp(-(((frequency - track[:, 5, None]) / track[:, 6, None]) ** 2)) * track[:, 4, None]
    breath = _response(frequency, track)
    breath = breath / breath.max(1, keepdims=True) * track[:, 3, None] * speaker.breath
    shaped = np.fft.irfft(spectrum * (band + 2 * breath), n=2 * _HOP)
    sound = np.zeros(len(padded))
    for number, piece in enumerate(shaped):
        sound[number * _HOP : (number + 2) * _HOP] += piece
    return sound[_HOP:-_HOP] / 3
