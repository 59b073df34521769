"""Sets of segments: pairs of one participant for training, single ones in order for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampling import ShuffledPicker
from datamodules.signal_tables import Segments

Pairs = Literal["participant", "segment"]
Load = Callable[[str, int], np.ndarray]
"""File, relative to the root, and row → samples ``[C, T]``."""


class BrokenSignalError(ValueError):
    """A segment cannot be used; the message names its file and says why."""


class SegmentReader:
    """Segments as tensors, checked.

    Args:
        segments: of one split.
        load: reads one.
        samples: length that is used of every segment, from its start; None: segments must be as long as the first.
        channels: channels every segment must have; None: as many as the first.
    """

    def __init__(
        self, segments: Segments, load: Load, samples: int | None = None, channels: int | None = None
    ) -> None:
        self.segments, self._load, self._samples, self._channels = segments, load, samples, channels

    def __call__(self, position: int) -> Tensor:
        """Segment ``[C, T]``, float32.

        Raises:
            BrokenSignalError: it cannot be read, has another shape than it should have, or samples that are no numbers.
        """
        path, row = self.segments.paths[position].decode(), int(self.segments.rows[position])
        signal = self._load(path, row)
        where = path if row < 0 else f"{path}, row {row}"
        if signal.ndim != 2 or not signal.size or signal.dtype.kind not in "fiu":
            raise BrokenSignalError(
                f"{where} holds {signal.dtype} {list(signal.shape)}: expected numbers [channels, samples]"
            )
        if self._channels is None:
            self._channels = len(signal)
        if len(signal) != self._channels:
            raise BrokenSignalError(f"{where} has {len(signal)} channels, others have {self._channels}")
        wanted = signal.shape[1] if self._samples is None else self._samples
        if self._length is not None and signal.shape[1] != self._length and self._samples is None:
            raise BrokenSignalError(
                f"{where} has {signal.shape[1]} samples, others have {self._length}: set data.samples to the number "
                "that is used of each"
            )
        if signal.shape[1] < wanted:
            raise BrokenSignalError(
                f"{where} has {signal.shape[1]} samples, fewer than data.samples={wanted}: lower that, or leave the "
                "segment out (data.skip_broken)"
            )
        self._length = signal.shape[1]
        part = np.array(signal[:, :wanted], np.float32)
        if not np.isfinite(part).all():
            raise BrokenSignalError(
                f"{where} holds {int((~np.isfinite(part)).sum())} samples that are nan or inf: fill gaps, or leave the "
                "segment out (data.skip_broken)"
            )
        return torch.from_numpy(part)

    _length: int | None = None


class SegmentsInOrder(Dataset[dict[str, Any]]):
    """Segments in order: ``signal`` ``[C, T]``, ``participant``, ``trait`` float32 ``[K]``, ``index`` and ``name``.

    Args:
        reader: of the segments.
    """

    def __init__(self, reader: SegmentReader) -> None:
        self.reader, self.segments = reader, reader.segments

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        who = int(self.segments.participant[index])
        return {
            "signal": self.reader(index),
            "participant": who,
            "trait": torch.from_numpy(self.segments.traits[index]).float(),
            "index": index,
            "name": f"{self.segments.participants[who]}/{index:06d}",
        }


class DrawnPairs(Dataset[dict[str, Any]]):
    """Numbered draws of pairs: every participant once a pass, passes without end; draw k depends on (seed, k) alone.

    Samples hold ``pair`` ``[2, C, T]``, ``participant``, ``index`` (of the first segment) and ``draw``, and, where
    asked for, ``trait`` ``[K]``.

    Args:
        reader: of the segments.
        seed: of every draw.
        pairs: two different segments of a ``participant``, or one ``segment`` twice.
        labels: whether samples hold traits.

    Raises:
        ValueError: fewer than two participants can be drawn.
    """

    def __init__(
        self, reader: SegmentReader, seed: int, pairs: Pairs = "participant", labels: bool = False
    ) -> None:
        self.reader, self._seed, self._pairs, self._labels = reader, seed, pairs, labels
        needed = 2 if pairs == "participant" else 1
        groups = reader.segments.by_participant()
        self.groups = [rows for rows in groups if len(rows) >= needed]
        #: Names of participants with one segment, who cannot be paired with themselves.
        self.single = [
            reader.segments.participants[int(reader.segments.participant[rows[0]])]
            for rows in groups
            if len(rows) < needed
        ]
        if len(self.groups) < 2:
            raise ValueError(
                f"{len(self.groups)} of {len(groups)} participants have {needed} segments or more, and a contrast "
                "needs two such people; pairs: segment makes pairs of single segments"
            )
        self._picker = ShuffledPicker(len(self.groups), (seed, 0, 1))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        rows, rng = self.groups[self._picker.position(draw)], np.random.default_rng([self._seed, 0, 0, draw])
        chosen = rng.choice(rows, 2, replace=False) if self._pairs == "participant" else [rng.choice(rows)]
        segments = [self.reader(int(row)) for row in chosen]
        known = self.reader.segments
        trait = {"trait": torch.from_numpy(known.traits[int(chosen[0])]).float()} if self._labels else {}
        return {
            **trait,
            "pair": torch.stack([segments[0], segments[-1]]),
            "participant": int(known.participant[rows[0]]),
            "index": int(chosen[0]),
            "draw": draw,
        }
