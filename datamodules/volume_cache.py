"""Processed volumes on disk: made once, read memory-mapped, complete and undamaged or made again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from datamodules.array_cache import ArrayCache
from datamodules.layout import Pair
from datamodules.volume_files import BrokenVolumeError
from datamodules.volume_processing import Processing, process

#: Voxels of foreground, and of background, that are remembered for drawing crops around them.
_PLACES: Final = 65536


class Job(NamedTuple):
    """A volume, its label where it is wanted, and what is done to them."""

    pair: Pair
    processing: Processing


@dataclass(frozen=True)
class Record:
    """A processed volume in the cache. Arrays are memory-mapped anew each time: only what is indexed is read, and no
    map is held, of which a process may have 65,530.

    Args:
        folder: where its arrays lie.
        name: of the volume.
        source: its file.
        affine: voxel numbers → millimetres ``[4, 4]``.
        spacing: millimetres between voxels ``[3]``.
        original_size: voxels of the file along its own axes.
        original_affine: of the file.
        classes: numbers that its label map holds; empty without one.
        checksums: array → CRC-32 of its file.
    """

    folder: Path
    name: str
    source: str
    affine: list[list[float]]
    spacing: list[float]
    original_size: list[int]
    original_affine: list[list[float]]
    classes: list[int]
    checksums: dict[str, int]

    @property
    def volume(self) -> np.ndarray:
        """Float16 ``[C, X, Y, Z]`` in [0, 1]: steps of at most 1/2048 of the window, finer than whole HU in CT's."""
        return np.load(self.folder / "volume.npy", mmap_mode="r")

    @property
    def label(self) -> np.ndarray | None:
        """Uint8 ``[X, Y, Z]``, None without."""
        return self._optional("label")

    @property
    def foreground(self) -> np.ndarray | None:
        """Int16 ``[n, 3]``: voxels with a label above 0, at most 65,536 of them, spread at random."""
        return self._optional("foreground")

    @property
    def background(self) -> np.ndarray | None:
        """The same of voxels with label 0 whose intensity is above 0."""
        return self._optional("background")

    def _optional(self, name: str) -> np.ndarray | None:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r") if name in self.checksums else None


class VolumeCache(ArrayCache[Job, Record]):
    """Processed volumes, see :class:`~datamodules.array_cache.ArrayCache`.

    A volume that cannot be used raises :class:`BrokenVolumeError`.
    """

    version = 1
    default_folder = "volumes"
    verb, unit = "Processing", "volumes"
    broken = BrokenVolumeError

    def files(self, job: Job) -> list[Path]:
        """The volume and its label."""
        return [path for path in (job.pair.image, job.pair.label) if path is not None]

    def settings(self, job: Job) -> dict[str, Any]:
        """Those of processing."""
        return asdict(job.processing)

    def title(self, job: Job) -> str:
        """The volume's name."""
        return job.pair.name

    def record(self, folder: Path, content: dict[str, Any]) -> Record:
        """See :class:`Record`."""
        return Record(folder=folder, **content)

    def make(self, job: Job) -> None:
        """Process one volume.

        Raises:
            BrokenVolumeError: it cannot be used.
        """
        made = process(job.pair.image, job.pair.label, job.processing)
        arrays = {"volume": made.volume.astype(np.float16)}
        if made.label is not None:
            arrays["label"] = made.label
            rng = np.random.default_rng(0)
            arrays["foreground"] = _places(made.label > 0, rng)
            arrays["background"] = _places((made.label == 0) & (made.volume > 0).any(0), rng)
        content = {
            "name": job.pair.name,
            "source": str(job.pair.image),
            "affine": made.affine.tolist(),
            "spacing": np.linalg.norm(made.affine[:3, :3], axis=0).tolist(),
            "original_size": list(made.original_size),
            "original_affine": made.original_affine.tolist(),
            "classes": [] if made.label is None else np.unique(made.label).tolist(),
        }
        self.keep(job, arrays, content)


def _places(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some voxels of a mask, at random: int16 ``[n, 3]``."""
    flat = np.flatnonzero(mask)
    if len(flat) > _PLACES:
        flat = rng.choice(flat, _PLACES, replace=False)
    return np.stack(np.unravel_index(flat, mask.shape), -1).astype(np.int16)
