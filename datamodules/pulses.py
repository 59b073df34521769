"""Synthetic pulse waves of synthetic people: who somebody is shows in the shape, how a segment was recorded all over.

A person has a resting rate and a wave of two humps: the ejection, and its reflection, which stiff arteries return early
and strong; how early and strong differs between equally stiff people, too, and so do the humps' widths. A segment has a
momentary rate, drift, noise, artefacts and a sensor that blurs and scales; none of these is a fact about the person.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

RATE: Final = 64
"""Samples a second."""
CHANNELS: Final = 2
#: Raised by every change that alters a sample.
GENERATOR_VERSION: Final = 2


class Person(NamedTuple):
    """Traits: ``stiffness`` in [0, 1] and whether it is ``high``; ``pulse`` at rest, beats a minute."""

    stiffness: float
    high: float
    pulse: float


def render(seed: int, segments: int, samples: int) -> tuple[Person, np.ndarray]:
    """One person, and segments ``[n, C, T]`` float32; a function of its arguments alone.

    Args:
        seed: of the person.
        segments: n.
        samples: T, at 64 Hz.
    """
    rng = np.random.default_rng([GENERATOR_VERSION, seed])
    stiffness = rng.uniform()
    person = Person(stiffness, float(stiffness > 0.5), rng.uniform(55, 90))
    shape = {
        "width": rng.uniform(0.08, 0.10),
        "delay": 0.40 - 0.16 * stiffness + rng.normal(0, 0.03),
        "reflected": 0.30 + 0.45 * stiffness + rng.normal(0, 0.1),
        "wide": rng.uniform(0.11, 0.13),
    }
    return person, np.stack([_segment(rng, person, shape, samples) for _ in range(segments)])


def _segment(rng: np.random.Generator, person: Person, shape: dict[str, float], samples: int) -> np.ndarray:
    """One recording ``[C, T]``."""
    time = np.arange(samples) / RATE
    rate = person.pulse / 60 * rng.uniform(0.8, 1.3)  # rest, or a walk
    breath = 0.03 * np.sin(2 * np.pi * rng.uniform(0.15, 0.35) * time + rng.uniform(0, 2 * np.pi))
    phase = (np.cumsum(rate * (1 + breath)) / RATE + rng.uniform()) % 1
    wave = np.zeros(samples)
    for beat in (-1, 0, 1):  # the tails of the neighbouring beats
        wave += np.exp(-0.5 * ((phase - 0.2 - beat) / shape["width"]) ** 2)
        wave += shape["reflected"] * np.exp(
            -0.5 * ((phase - 0.2 - shape["delay"] - beat) / shape["wide"]) ** 2
        )
    wave = (wave - wave.mean()) / wave.std()

    drift = rng.uniform(0, 0.4) * np.sin(
        2 * np.pi * rng.uniform(0.05, 0.4) * time + rng.uniform(0, 2 * np.pi)
    )
    tone = rng.uniform(0, 0.2) * np.sin(2 * np.pi * rng.uniform(4, 12) * time)  # light that flickers
    taps = int(rng.integers(1, 4))
    noise = rng.uniform(0.05, 0.2)
    channels = []
    for _ in range(CHANNELS):
        channel = rng.uniform(0.6, 1.4) * wave + rng.uniform(0.5, 1) * drift + rng.uniform(0.5, 1) * tone
        channel = np.convolve(channel, np.ones(taps) / taps, mode="same")
        channels.append(channel + noise * rng.standard_normal(samples))
    return (np.stack(channels) * rng.uniform(0.2, 5) + rng.uniform(-10, 10)).astype(np.float32)
