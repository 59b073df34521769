"""Sets of audio clips, labelled or not, read a batch at a time.

The counterpart of :mod:`datamodules.image_sets`: :class:`AudioSubset` shows some clips of a set in order, for
evaluation; :class:`DrawnClips` gives numbered draws of a subset, for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.audio_files import Reading
from datamodules.audio_labels import Labels
from datamodules.sampling import ShuffledPicker, WeightedPicker

Crop = Literal["start", "random"]


class AudioClips:
    """Audio files with their labels.

    Args:
        root: folder that ``paths`` are relative to.
        paths: ``[N]`` paths. Kept as one array of bytes: a million Python objects would be copied into every loader
            process as soon as they are touched.
        labels: classes of the clips; None where they have none.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Labels | None = None) -> None:
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"{len(paths)} clips of {root} have {len(labels)} labels.")
        self.root, self.labels = root, labels
        self._paths = np.array([path.encode() for path in paths])

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, position: int) -> Path:
        """Where a clip lies."""
        return self.root / self._paths[position].decode()

    def identity(self, position: int) -> str:
        """What tells a clip's sound from others: here the name and size of its file."""
        path = self.path(position)
        return f"{path.name}/{path.stat().st_size}"

    def part(self, positions: np.ndarray) -> AudioClips:
        """Some of the clips."""
        labels = None if self.labels is None else self.labels.part(positions)
        part = AudioClips(self.root, (), None)
        part._paths, part.labels = self._paths[positions], labels
        return part

    def without_labels(self) -> AudioClips:
        """The same clips."""
        clips = self.part(np.arange(len(self)))
        clips.labels = None
        return clips

    def strata(self) -> np.ndarray:
        """One class for every clip, int64 ``[N]``, by which parts are chosen; 0 where there are no labels."""
        return np.zeros(len(self), np.int64) if self.labels is None else self.labels.strata()

    def followed_by(self, other: AudioClips) -> AudioClips:
        """These clips, then the other ones, all without labels."""
        paths = [str(clips.path(n)) for clips in (self, other) for n in range(len(clips))]
        return AudioClips(Path(), paths)


class AudioSubset(Dataset[dict[str, Any]]):
    """Some clips in order: ``waveform``, ``length``, ``index``, ``name`` and, where there are any, ``label``.

    Args:
        clips: where they come from.
        positions: ``[n]`` int64, which of them; None takes all.
        reading: how they are read.
        seconds: longest part that is read of a clip; None reads all.
        crop: whether draws begin at the ``start`` of a clip, or at ``random`` where it is longer.
        fixed_length: pad every batch to ``seconds``, not only to its longest clip.
    """

    def __init__(
        self,
        clips: AudioClips,
        positions: np.ndarray | None = None,
        reading: Reading | None = None,
        seconds: float | None = None,
        crop: Crop = "start",
        fixed_length: bool = False,
    ) -> None:
        self.clips, self.reading = clips, reading or Reading()
        self.positions = np.arange(len(clips)) if positions is None else positions
        self.seconds, self.crop = seconds, crop
        self._padded_to = round(seconds * self.reading.sample_rate) if seconds and fixed_length else 0

    @property
    def labels(self) -> Labels | None:
        """Labels of the subset."""
        return None if self.clips.labels is None else self.clips.labels.part(self.positions)

    def path(self, index: int) -> Path:
        """Where a clip of the subset lies."""
        return self.clips.path(int(self.positions[index]))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        return self.batch(np.asarray(indices))

    def batch(self, index: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> dict[str, Any]:
        """``waveform`` float32 ``[B, samples]``, ``length`` and ``index`` int64 ``[B]``, ``name`` file stems.

        ``label`` is int64 ``[B]``, or float ``[B, C]`` where clips have several.

        Args:
            index: ``[B]`` positions in the subset.
            rngs: one for every clip, of its window; None reads the beginning.
        """
        paths = [self.path(int(number)) for number in index]
        draws: Sequence[np.random.Generator | None] = rngs or [None] * len(paths)
        clips = [self.reading.clip(path, self.seconds, rng) for path, rng in zip(paths, draws, strict=True)]
        waveform, length = padded(clips, self._padded_to)
        batch: dict[str, Any] = {"waveform": waveform, "length": length, "index": torch.from_numpy(index)}
        if self.clips.labels is not None:
            batch["label"] = self.clips.labels.tensor(self.positions[index])
        return {**batch, "name": [path.stem for path in paths]}


class DrawnClips(Dataset[dict[str, Any]]):
    """Numbered draws of a subset: every clip once a pass, in a new order each pass, or by weight; without end.

    Draw ``k`` is a pure function of ``(seed, k)``, as in :mod:`datamodules.sampling`. Batches also hold ``draw``,
    int64 ``[B]``, by which training batches are told from others.

    Args:
        subset: the clips.
        seed: of order and windows.
        weights: ``[n]``, how often each clip is drawn in proportion to the others; None draws all equally often.
    """

    def __init__(self, subset: AudioSubset, seed: int, weights: np.ndarray | None = None) -> None:
        self.subset, self._seed = subset, seed
        self._picker = (
            ShuffledPicker(len(subset), (seed, 0, 1)) if weights is None else WeightedPicker(weights)
        )

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([draw]).items()}

    def __getitems__(self, draws: Sequence[int]) -> dict[str, Any]:
        rngs = [np.random.default_rng([self._seed, 0, 0, draw]) for draw in draws]
        index = [self._picker(draw, rng).index for draw, rng in zip(draws, rngs, strict=True)]
        windows = rngs if self.subset.crop == "random" else None
        return {**self.subset.batch(np.array(index), windows), "draw": torch.tensor(draws)}


def padded(clips: Sequence[Tensor], samples: int = 0) -> tuple[Tensor, Tensor]:
    """Stack clips ``[n]`` of unequal length, zeros behind: waveforms ``[B, n]`` and lengths int64 ``[B]``.

    Args:
        clips: one or more.
        samples: least length of the result.
    """
    length = torch.tensor([len(clip) for clip in clips])
    waveform = torch.zeros(len(clips), max(samples, int(length.max())))
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = clip
    return waveform, length
