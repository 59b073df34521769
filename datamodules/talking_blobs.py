"""TalkingBlobs: faces and voices made in memory, whose feelings neither shows alone; nothing to download."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.audio_files import Reading
from datamodules.audio_labels import SingleLabels
from datamodules.audio_sets import AudioClips
from datamodules.audio_visual import AudioVisualDataModule
from datamodules.audio_visual_sets import AudioVisualClips
from datamodules.layout import Layout
from datamodules.video_files import Frames, Window

RATE: Final = 16_000
SIZE: Final = 32
FRAMES: Final = 8
SAMPLES: Final = 10_640  # 65 frames of the filter bank
PIPS: Final = 24  # short tones in every clip, at random
#: First identity of every split: nobody who is tested was seen in training.
FIRST: Final = {"train": 0, "val": 1000, "test": 2000}
CLASSES: Final = ("frown, falling", "frown, rising", "smile, falling", "smile, rising")


class Person(NamedTuple):
    """What stays the same of somebody: colours, size and place of the face, and the voice."""

    face: np.ndarray
    behind: np.ndarray
    radius: float
    place: np.ndarray
    pitch: float
    harmonics: np.ndarray


class Rendered(NamedTuple):
    """Clips: ``[N, FRAMES, SIZE, SIZE, 3]`` uint8, ``[N, SAMPLES]`` float32, classes and people."""

    video: np.ndarray
    sound: np.ndarray
    label: np.ndarray
    person: np.ndarray


def person(number: int) -> Person:
    """One of them; a function of the number."""
    rng = np.random.default_rng([number, 0])
    return Person(
        rng.uniform(0.6, 0.95, 3),
        rng.uniform(0.05, 0.35, 3),
        rng.uniform(13.0, 15.0),
        rng.uniform(15.5, 16.5, 2),
        rng.uniform(180.0, 250.0),
        rng.uniform(0.4, 1.0, 5),
    )


@lru_cache(maxsize=4)
def rendered(first: int, people: int, takes: int) -> Rendered:
    """All clips of some people, always the same ones; every feeling equally often."""
    clips = []
    for number in range(first, first + people):
        who = person(number)
        for take in range(takes):
            rng = np.random.default_rng([number, 1, take])
            smiles, rises = divmod(take % 4, 2)
            # How loud one speaks is how wide the mouth opens: both share this, whatever the feeling.
            beats, phase = rng.uniform(1.0, 3.0), rng.uniform(0, 2 * np.pi)
            video = _video(who, bool(smiles), beats, phase, rng)
            clips.append((video, _sound(who, bool(rises), beats, phase, rng), take % 4, number))
    video, sound, label, of = zip(*clips, strict=True)
    return Rendered(np.stack(video), np.stack(sound), np.array(label), np.array(of))


def _envelope(time: np.ndarray, beats: float, phase: float) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(2 * np.pi * beats * time + phase)


def _video(who: Person, smiles: bool, beats: float, phase: float, rng: np.random.Generator) -> np.ndarray:
    """A disc with eyes, and mouth and brows that smile or frown, lit from a side; ``[FRAMES, SIZE, SIZE, 3]`` uint8."""
    time = np.linspace(0, 1, FRAMES, dtype=np.float32)[:, None, None]
    sway, light = rng.uniform(-0.7, 0.7, (2, 2)), rng.uniform(0.9, 1.1)
    rows, columns = (
        axis - centre - start - (end - start) * time
        for axis, centre, start, end in zip(np.mgrid[:SIZE, :SIZE], who.place, *sway, strict=True)
    )  # from the middle of the face, [FRAMES, SIZE, SIZE]
    inside = _soft(who.radius - np.hypot(rows, columns))[..., None]
    image = who.behind + inside * (who.face - who.behind)
    up = 1 if smiles else -1
    for side in (-1, 1):
        eye = _soft(1.5 - np.hypot(rows + 0.15 * who.radius, columns - 0.4 * side * who.radius))
        # Brows slope as the mouth bends: what is hidden of one can be told by the other.
        outwards = side * columns / who.radius - 0.42
        brow = _soft(1.0 - np.abs(rows + (0.5 - 0.6 * up * outwards) * who.radius)) * (
            np.abs(outwards) < 0.27
        )
        image *= 1 - np.maximum(eye, 0.8 * brow)[..., None]
    across = columns / (0.55 * who.radius)
    curve = 0.35 * up * who.radius * (0.5 - across**2)
    open_by = 0.6 + 1.6 * _envelope(time, beats, phase)
    mouth = _soft(open_by - np.abs(rows - 0.42 * who.radius - curve)) * (np.abs(across) < 1)
    image *= 1 - mouth[..., None] * np.array([0.3, 0.9, 0.9])
    # Light falls from one side: where nothing is to be seen, masked patches can be guessed all the same.
    turn = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(turn) * np.mgrid[:SIZE, :SIZE][0] + np.sin(turn) * np.mgrid[:SIZE, :SIZE][1]) / SIZE
    slope -= slope.mean()
    image *= (light + 0.2 * slope)[..., None]
    # Grain, which nobody can guess: few labels are learned by heart from it, masked patches are not.
    noise = 0.3 * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image + noise, 0, 1) * 255).astype(np.uint8)


def _soft(distance: np.ndarray) -> np.ndarray:
    """1 inside, 0 outside, a pixel in between."""
    return np.clip(distance + 0.5, 0, 1)


def _sound(who: Person, rises: bool, beats: float, phase: float, rng: np.random.Generator) -> np.ndarray:
    """A hum of harmonics whose pitch rises or falls, as loud as the mouth is open; ``[SAMPLES]`` float32."""
    time = np.arange(SAMPLES) / SAMPLES
    turn = (1 if rises else -1) * rng.uniform(0.8, 1.0)
    pitch = who.pitch * rng.uniform(0.95, 1.05) * 2 ** (turn * (time - 0.5))
    angle = 2 * np.pi * np.cumsum(pitch) / RATE
    hum = sum(level * np.sin((k + 1) * angle) for k, level in enumerate(who.harmonics))
    loud = 0.4 + 0.6 * _envelope(time, beats, phase)
    sound = 0.15 * hum * loud + rng.normal(0, 0.02, SAMPLES)
    # Pips, anywhere in time and pitch, are to the sound what grain is to the picture.
    places, tones = rng.uniform(0, 1, PIPS), 150.0 * (5000 / 150) ** rng.uniform(0, 1, PIPS)
    for at, tone in zip(places, tones, strict=True):
        sound += 0.3 * np.exp(-(((time - at) / 0.02) ** 2)) * np.sin(2 * np.pi * tone * SAMPLES / RATE * time)
    return np.clip(sound * rng.uniform(0.5, 1.0), -1, 1).astype(np.float32)


class _Frames:
    """Frames in memory."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = torch.from_numpy(frames)

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, numbers: Sequence[int], size: int) -> Tensor:
        """See :class:`datamodules.video_files.Frames`."""
        if size != SIZE:
            raise ValueError(f"TalkingBlobs are {SIZE} pixels wide: set image_size to that, got {size}.")
        return self._frames[list(numbers)].permute(3, 0, 1, 2)


class _RenderedClips(AudioVisualClips):
    """Clips in memory; of paths only the names count."""

    def __init__(self, clips: Rendered) -> None:
        names = [f"{number:04d}_{place:05d}" for place, number in enumerate(clips.person.tolist())]
        super().__init__(Path(), names, names, SingleLabels(clips.label, len(CLASSES)))
        self._clips, self._where = clips, np.arange(len(names))

    def part(self, positions: np.ndarray) -> _RenderedClips:
        """Some of them."""
        part = super().part(positions)
        part._where = self._where[positions]
        return part

    def identity(self, position: int) -> str:
        """There is no file, but its samples."""
        return f"{self.path(position)}/{zlib.crc32(self._clips.sound[self._where[position]].tobytes())}"

    def frames(self, position: int) -> Frames:
        """Frames of a clip."""
        return _Frames(self._clips.video[self._where[position]])

    def sound(self, position: int, window: Window, reading: Reading) -> Tensor:
        """All of its samples."""
        return torch.from_numpy(self._clips.sound[self._where[position]])


class TalkingBlobs(AudioVisualDataModule):
    """Faces that smile or frown while their voice rises or falls: four feelings, of which either sense tells half.

    The mouth opens as the voice gets louder, so that sound and video of a clip belong together. Colours, sizes, voices
    and everything else change from person to person; training, validation and test have people of their own. Pictures
    are grainy, and short pips disturb the sound: few labels can be learned by heart from these, and the rest of a clip
    does not tell them. Frames are 32 x 32, eight of a clip; sound lasts two thirds of a second. Rendered in memory
    when first used, always alike.

    Args:
        people: in training.
        val_people: in validation.
        test_people: in test.
        takes: clips of everybody; a multiple of 4 has all feelings equally often.
        **common: see :class:`~datamodules.audio_visual.AudioVisualDataModule`. There is no ``root``, no ``cache``, and
            windows are whole clips.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "talking_blobs"
    num_classes = len(CLASSES)
    classes: ClassVar[tuple[str, ...]] = CLASSES
    layout: ClassVar[Mapping[str, Layout]] = {}

    def __init__(
        self, people: int = 48, val_people: int = 10, test_people: int = 20, takes: int = 16, **common: Any
    ) -> None:
        counts = {"train": people, "val": val_people, "test": test_people}
        if min(*counts.values(), takes) < 1 or max(counts.values()) > 1000:
            raise ValueError(f"people={counts} must lie in 1..1000, takes={takes} be positive.")
        super().__init__(
            num_frames=FRAMES,
            frame_step=1,
            image_size=SIZE,
            test_segments=0,
            test_crops=1,
            cache="none",
            **common,
        )
        self.people, self.takes = counts, takes

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """Nothing is on disk."""
        return {}

    def read(self, split: str) -> AudioClips:
        """The clips of a split."""
        return _RenderedClips(rendered(FIRST[split], self.people[split], self.takes))
