"""Decoded segments of signals on disk, read memory-mapped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.array_cache import FileCache, mapped
from datamodules.signal_sets import BrokenSignalError


class SignalJob(NamedTuple):
    """A file of a table of segments.

    Args:
        path: as the table names it.
        files: what is read for it.
        settings: how, plain values.
    """

    path: str
    files: tuple[Path, ...]
    settings: tuple[Any, ...] = ()


@dataclass(frozen=True)
class SignalRecord:
    """What a file holds, in the cache.

    Args:
        folder: where its array lies.
        source: the file.
        checksums: array → CRC-32 of its file.
    """

    folder: Path
    source: str
    checksums: dict[str, int]

    def read(self) -> np.ndarray:
        """A segment ``[C, T]``, or several ``[n, C, T]``, memory-mapped. Do not write to it.

        Raises:
            CacheError: the array is gone or damaged.
        """
        return mapped(self.folder / "signal.npy", self.source)


class SignalCache(FileCache[SignalJob, SignalRecord]):
    """Signals, see :class:`~datamodules.array_cache.FileCache`.

    A file that cannot be read raises :class:`~datamodules.signal_sets.BrokenSignalError`.

    Args:
        decode: reads all of a file that a table names, ``[C, T]`` or ``[n, C, T]``.
        folder: where to keep them; None takes ``signals`` in the cache of selfzoo.
    """

    version = 1
    default_folder = "signals"
    verb, unit = "Decoding", "files of signals"
    broken = BrokenSignalError

    def __init__(self, decode: Callable[[str], np.ndarray], folder: str | Path | None = None) -> None:
        super().__init__(folder)
        self._decode = decode

    def files(self, job: SignalJob) -> list[Path]:
        """What is read."""
        return list(job.files)

    def settings(self, job: SignalJob) -> list[Any]:
        """How."""
        return list(job.settings)

    def title(self, job: SignalJob) -> str:
        """The file's name."""
        return job.files[0].stem

    def record(self, folder: Path, content: dict[str, Any]) -> SignalRecord:
        """See :class:`SignalRecord`."""
        return SignalRecord(folder=folder, **content)

    def make(self, job: SignalJob) -> None:
        """Decode one file.

        Raises:
            BrokenSignalError: it cannot be read.
        """
        self.keep(job, {"signal": self._decode(job.path)}, {"source": str(job.files[0])})
