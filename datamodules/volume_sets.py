"""Sets of processed volumes: windows of them for training, whole ones for evaluation.

Every sample is a small batch of its own (windows of one volume, or one whole volume), so that collating joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampling import ShuffledPicker
from datamodules.volume_cache import Record

Size3 = tuple[int, int, int]


class WholeVolumes(Dataset[dict[str, Any]]):
    """Whole volumes in order, or the middle of each.

    Samples hold ``volume`` float16 ``[1,C,X,Y,Z]``, ``label`` uint8 ``[1,X,Y,Z]`` where there is one, ``spacing``
    ``[1,3]``, ``affine`` ``[1,4,4]``, ``index`` and ``name``.

    Args:
        records: the volumes.
        window: sides of the window in the middle; None gives whole volumes.
    """

    def __init__(self, records: Sequence[Record], window: Size3 | None = None) -> None:
        self.records, self._window = list(records), window

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        size = record.volume.shape[1:]
        window = size if self._window is None else self._window
        start = [(have - want) // 2 for have, want in zip(size, window, strict=True)]
        affine = np.array(record.affine)
        affine[:3, 3] += affine[:3, :3] @ start
        sample: dict[str, Any] = {"volume": _stacked(record.volume, [start], window)}
        if record.label is not None:
            sample["label"] = _stacked(record.label, [start], window)
        return {
            **sample,
            "spacing": torch.tensor([record.spacing], dtype=torch.float32),
            "affine": torch.from_numpy(affine)[None],
            "index": torch.tensor([index]),
            "name": [record.name],
        }


class DrawnVolumes(Dataset[dict[str, Any]]):
    """Numbered draws of volumes: every volume once a pass, passes without end; draw ``k`` depends on (seed, k) alone.

    Rule for volumes smaller than a window: they are set in the middle of zeros (background).

    Labelled volumes give windows around a voxel: of the foreground with probability ``foreground_share``, otherwise of
    labelled background that is not empty; near borders windows are moved inside. Volumes without a label, or without
    foreground, give windows anywhere.

    Args:
        records: the volumes.
        seed: of every draw.
        window: sides in voxels; None gives whole volumes, which must be equally large within a batch.
        count: windows of each volume.
        foreground_share: probability that a window's middle is foreground.
        labelled: whether labels are read.
        pass_positions: which volumes a pass shows, with repetitions; None shows each once.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        window: Size3 | None = None,
        count: int = 1,
        foreground_share: float = 0.9,
        labelled: bool = False,
        pass_positions: np.ndarray | None = None,
    ) -> None:
        self.records = list(records)
        self.positions = np.arange(len(self.records)) if pass_positions is None else pass_positions
        self._seed, self._window, self._count = seed, window, count
        self._share, self._labelled = foreground_share, labelled
        self._picker = ShuffledPicker(len(self.positions), (seed, 0, 1))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        index = int(self.positions[self._picker.position(draw)])
        record, rng = self.records[index], np.random.default_rng([self._seed, 0, 0, draw])
        size = record.volume.shape[1:]
        window = size if self._window is None else self._window
        starts = [self._start(record, window, rng) for _ in range(self._count)]
        sample: dict[str, Any] = {"volume": _stacked(record.volume, starts, window)}
        if self._labelled and record.label is not None:
            sample["label"] = _stacked(record.label, starts, window)
        numbers = {"index": torch.tensor([index]), "draw": torch.tensor([draw])}
        sample |= {key: value.expand(self._count) for key, value in numbers.items()}
        return {**sample, "name": [record.name] * self._count}

    def _start(self, record: Record, window: Sequence[int], rng: np.random.Generator) -> list[int]:
        """First voxels of one window."""
        size = record.volume.shape[1:]
        foreground = record.foreground if self._labelled else None
        if foreground is not None and len(foreground):
            near = rng.random() < self._share
            background = record.background
            places = foreground if near or background is None or not len(background) else background
            middle = places[rng.integers(len(places))]
            return [
                min(max(int(at) - want // 2, 0), have - want) if have >= want else -((want - have) // 2)
                for at, have, want in zip(middle, size, window, strict=True)
            ]
        return [
            int(rng.integers(have - want + 1)) if have >= want else -((want - have) // 2)
            for have, want in zip(size, window, strict=True)
        ]


def cut(array: np.ndarray, start: Sequence[int], window: Sequence[int]) -> np.ndarray:
    """A window of the last three axes; what lies outside is 0.

    Args:
        array: ``[..., X, Y, Z]``; of a memory map only the window is read.
        start: its first voxels, which may be negative.
        window: its sides.

    Returns:
        ``[..., *window]``.
    """
    inside = tuple(
        slice(max(at, 0), min(at + want, have))
        for at, want, have in zip(start, window, array.shape[-3:], strict=True)
    )
    placed = tuple(slice(part.start - at, part.stop - at) for part, at in zip(inside, start, strict=True))
    piece = np.zeros((*array.shape[:-3], *window), array.dtype)
    piece[..., placed[0], placed[1], placed[2]] = array[..., inside[0], inside[1], inside[2]]
    return piece


def collate_volumes(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join samples along their first axis.

    Raises:
        ValueError: volumes of one batch differ in size.
    """
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples if key in sample]
        if isinstance(first, dict):
            batch[key] = collate_volumes(values)
        elif isinstance(first, Tensor):
            sizes = {tuple(value.shape[1:]) for value in values}
            if len(sizes) > 1 or len(values) < len(samples):
                raise ValueError(
                    f"One batch holds {key}s of different sizes: {sorted(sizes)}. Set eval_batch_size: 1 for "
                    "evaluation; for training set crop, or processing.resize."
                )
            batch[key] = torch.cat(values)
        else:
            batch[key] = [entry for value in values for entry in value]
    return batch


def _stacked(array: np.ndarray, starts: Sequence[Sequence[int]], window: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.stack([cut(array, start, window) for start in starts]))
