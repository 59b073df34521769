"""Processed volumes on disk: made once, read memory-mapped, complete and undamaged or made again."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.cache import cache_root, write_atomically
from datamodules.layout import Pair
from datamodules.volume_files import BrokenVolumeError
from datamodules.volume_processing import Processing, process

#: Counts up whenever processing changes what it writes.
_VERSION: Final = 1
#: Voxels of foreground, and of background, that are remembered for drawing crops around them.
_PLACES: Final = 65536
_BROKEN: Final = "broken.txt"
_CHUNK: Final = 1 << 24


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


class VolumeCache:
    """Processed volumes below a folder, one folder each.

    A volume's folder is named by its file (path, size and time), that of its label, and the settings of processing:
    what changes, is made again. A record is written last, so what was interrupted goes on with the next volume.

    Args:
        folder: where to keep them; None takes ``volumes`` in the cache of selfzoo.
        verify: compare checksums of what is there (reads all of it, about a second a gigabyte); otherwise only
            whether all files are there.
    """

    def __init__(self, folder: str | Path | None = None, verify: bool = True) -> None:
        self.folder = Path(folder).expanduser() if folder else cache_root() / "volumes"
        self.verify = verify

    def place(self, job: Job) -> Path:
        """The folder of a volume.

        Raises:
            FileNotFoundError: there is no such file.
        """
        files = [path.resolve() for path in (job.pair.image, job.pair.label) if path is not None]
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        described = json.dumps([_VERSION, stats, asdict(job.processing)])
        return self.folder / f"{job.pair.name[:80]}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"

    def find(self, job: Job) -> Record | None:
        """The record of a processed volume; None where there is none yet."""
        folder = self.place(job)
        try:
            content = json.loads((folder / "record.json").read_text())
            return Record(folder=folder, **content)
        except (OSError, ValueError, TypeError):
            return None

    def reason(self, job: Job) -> str | None:
        """Why a volume could not be processed, where :meth:`ensure` went on without it."""
        file = self.place(job) / _BROKEN
        return file.read_text() if file.is_file() else None

    def ensure(self, jobs: Sequence[Job], num_workers: int = 0, skip_broken: bool = False) -> None:
        """Process what is not there, or not undamaged; safe from several processes at once.

        Args:
            jobs: the volumes.
            num_workers: processes that share the work; 0 works in this one.
            skip_broken: go on where a volume cannot be used, and remember the :meth:`reason`.

        Raises:
            BrokenVolumeError: a volume cannot be used; those before it stay processed.
        """
        missing = [job for job in jobs if not self._intact(job)]
        if not missing:
            return
        rank_zero_info(f"Processing {len(missing)} of {len(jobs)} volumes to {self.folder} (once).")
        # Not the loader's own batching: a volume is a job. Its own generator: a loader draws a number when it starts,
        # and the run that fills the cache has to train as those that find it full.
        loader: Any = DataLoader(
            _Jobs(self, missing), batch_size=None, num_workers=num_workers, generator=torch.Generator()
        )
        for job, reason in zip(missing, loader, strict=True):
            if reason and not skip_broken:
                raise BrokenVolumeError(reason)
            if reason:
                write_atomically(self.place(job) / _BROKEN, _text(reason))

    def make(self, job: Job) -> None:
        """Process one volume.

        Raises:
            BrokenVolumeError: it cannot be used.
        """
        made, folder = process(job.pair.image, job.pair.label, job.processing), self.place(job)
        arrays = {"volume": made.volume.astype(np.float16)}
        if made.label is not None:
            arrays["label"] = made.label
            rng = np.random.default_rng(0)
            arrays["foreground"] = _places(made.label > 0, rng)
            arrays["background"] = _places((made.label == 0) & (made.volume > 0).any(0), rng)
        checksums = {}
        for name, array in arrays.items():
            write_atomically(folder / f"{name}.npy", _saver(array))
            checksums[name] = _checksum(folder / f"{name}.npy")
        content = {
            "name": job.pair.name,
            "source": str(job.pair.image),
            "affine": made.affine.tolist(),
            "spacing": np.linalg.norm(made.affine[:3, :3], axis=0).tolist(),
            "original_size": list(made.original_size),
            "original_affine": made.original_affine.tolist(),
            "classes": [] if made.label is None else np.unique(made.label).tolist(),
            "checksums": checksums,
        }
        write_atomically(folder / "record.json", _text(json.dumps(content)))

    def _intact(self, job: Job) -> bool:
        record = self.find(job)
        if record is None:
            return False
        for name, checksum in record.checksums.items():
            path = record.folder / f"{name}.npy"
            if not path.is_file() or (self.verify and _checksum(path) != checksum):
                rank_zero_warn(f"{path} is damaged: processing {job.pair.image} again.")
                return False
        return True


class _Jobs(Dataset[str]):
    """Works when it is indexed, so that a loader's processes share the work; gives what went wrong, or nothing."""

    def __init__(self, cache: VolumeCache, jobs: Sequence[Job]) -> None:
        self._cache, self._jobs = cache, jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, index: int) -> str:
        try:
            self._cache.make(self._jobs[index])
        except BrokenVolumeError as error:
            return str(error)
        return ""


def _saver(array: np.ndarray) -> Callable[[Any], None]:
    return lambda file: np.save(file, array)


def _text(text: str) -> Callable[[Any], object]:
    return lambda file: file.write(text.encode())


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _places(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some voxels of a mask, at random: int16 ``[n, 3]``."""
    flat = np.flatnonzero(mask)
    if len(flat) > _PLACES:
        flat = rng.choice(flat, _PLACES, replace=False)
    return np.stack(np.unravel_index(flat, mask.shape), -1).astype(np.int16)
