"""Arrays made of files, on disk: made once, read memory-mapped, complete and undamaged or made again."""

from __future__ import annotations

import hashlib
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.cache import cache_root, write_atomically
from datamodules.readers import Cache

_BROKEN: Final = "broken.txt"
_CHUNK: Final = 1 << 24


class CacheError(RuntimeError):
    """The cache does not hold what is asked for, or holds it damaged; the message says what to do."""


class ArrayRecord(Protocol):
    """What a cache knows of an entry: where its arrays lie, and array → CRC-32 of its file."""

    @property
    def folder(self) -> Path:
        """Of the arrays."""

    @property
    def checksums(self) -> dict[str, int]:
        """Of the arrays."""


Job = TypeVar("Job", bound=Hashable)
Record = TypeVar("Record", bound=ArrayRecord)


class ArrayCache(ABC, Generic[Job, Record]):
    """Arrays below a folder, one folder for each job.

    A job's folder is named by its files (path, size and time), the settings and the version of what makes it: what
    changes, is made again. A record is written last, so what was interrupted goes on with the next job.

    Args:
        folder: where to keep them; None takes :attr:`default_folder` in the cache of selfzoo.
        verify: compare checksums of all that is there (True reads all of it, about a second a gigabyte), or of arrays
            that were written after their record (``changed``), or only see whether all files are there (False).
    """

    #: Counts up whenever what is written changes.
    version: ClassVar[int]
    #: Below the cache of selfzoo.
    default_folder: ClassVar[str]
    #: What is done to what, for messages.
    verb: ClassVar[str]
    unit: ClassVar[str]
    #: What :meth:`make` raises of a file that cannot be used.
    broken: ClassVar[type[Exception]]

    def __init__(self, folder: str | Path | None = None, verify: bool | Literal["changed"] = True) -> None:
        self.folder = Path(folder).expanduser() if folder else cache_root() / self.default_folder
        self.verify = verify

    @abstractmethod
    def files(self, job: Job) -> list[Path]:
        """What a job reads; the first is what it is of."""

    @abstractmethod
    def settings(self, job: Job) -> Any:
        """What is done, plain values."""

    @abstractmethod
    def title(self, job: Job) -> str:
        """How its folder begins."""

    @abstractmethod
    def record(self, folder: Path, content: dict[str, Any]) -> Record:
        """The record of what was :meth:`kept <keep>`; a TypeError where it is none."""

    @abstractmethod
    def make(self, job: Job) -> None:
        """Make the arrays of one job and :meth:`keep` them; raises :attr:`broken`."""

    def stats(self, job: Job) -> list[Any]:
        """Path, size and time of what a job reads, by which files are told that have changed; plain values."""
        files = [path.resolve() for path in self.files(job)]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    def place(self, job: Job) -> Path:
        """The folder of a job.

        Raises:
            FileNotFoundError: there is no such file.
        """
        described = json.dumps([self.version, self.stats(job), self.settings(job)])
        return self.folder / f"{self.title(job)[:80]}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"

    def find(self, job: Job) -> Record | None:
        """The record of a job; None where it is not done."""
        folder = self.place(job)
        try:
            return self.record(folder, json.loads((folder / "record.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def records(self, jobs: Sequence[Job]) -> list[Record]:
        """What :meth:`ensure` has made of the jobs.

        Raises:
            CacheError: something is not there, or of a file that has changed since.
        """
        found = [self.find(job) for job in jobs]
        lost = [self.files(job)[0] for job, record in zip(jobs, found, strict=True) if record is None]
        if lost:
            raise CacheError(
                f"{len(lost)} of {len(jobs)} files are not in {self.folder} as they are now ({lost[0]}): call "
                "prepare_data() first, or start again if they have changed since"
            )
        return [record for record in found if record is not None]

    def kept(self, job: Job) -> Record | None:
        """What :meth:`ensure` has made of a job; None where it went on without it.

        Raises:
            CacheError: neither, or of a file that has changed since.
        """
        record = self.find(job)
        return record if record is not None or self.reason(job) is not None else self.records([job])[0]

    def reason(self, job: Job) -> str | None:
        """Why a file could not be used, where :meth:`ensure` went on without it."""
        file = self.place(job) / _BROKEN
        return file.read_text() if file.is_file() else None

    def ensure(self, jobs: Sequence[Job], num_workers: int = 0, skip_broken: bool = False) -> None:
        """Make what is not there, or not undamaged; safe from several processes at once.

        Args:
            jobs: what is to be there.
            num_workers: processes that share the work; 0 works in this one.
            skip_broken: go on where a file cannot be used, and remember the :meth:`reason`.

        Raises:
            Exception: :attr:`broken`, a file cannot be used; what was made before stays.
        """
        missing = [job for job in jobs if not self._intact(job)]
        if not missing:
            return
        rank_zero_info(f"{self.verb} {len(missing)} of {len(jobs)} {self.unit} to {self.folder} (once).")
        # Not the loader's own batching: each is a job. Its own generator: a loader draws a number when it starts,
        # and the run that fills the cache has to train as those that find it full.
        loader: Any = DataLoader(
            _Jobs(self, missing), batch_size=None, num_workers=num_workers, generator=torch.Generator()
        )
        for job, reason in zip(missing, loader, strict=True):
            if reason and not skip_broken:
                raise self.broken(reason)
            if reason:
                write_atomically(self.place(job) / _BROKEN, _text(reason))

    def keep(self, job: Job, arrays: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> None:
        """Write arrays, each in one step, and then the record."""
        folder, checksums = self.place(job), {}
        for name, array in arrays.items():
            write_atomically(folder / f"{name}.npy", _saver(array))
            checksums[name] = _checksum(folder / f"{name}.npy")
        write_atomically(folder / "record.json", _text(json.dumps({**content, "checksums": checksums})))

    def _intact(self, job: Job) -> bool:
        record = self.find(job)
        if record is None:
            return False
        written = (record.folder / "record.json").stat().st_mtime_ns
        for name, checksum in record.checksums.items():
            path = record.folder / f"{name}.npy"
            there = path.is_file()
            doubtful = there and (
                path.stat().st_mtime_ns > written if self.verify == "changed" else self.verify
            )
            if not there or (doubtful and _checksum(path) != checksum):
                rank_zero_warn(f"{path} is damaged: {self.verb.lower()} {self.files(job)[0]} again.")
                return False
        return True


class FileCache(ArrayCache[Job, Record]):
    """A cache of decoded files, too large to be read at every start: checksums of what was written since are compared.

    Args:
        folder: where to keep them; None takes :attr:`default_folder` in the cache of selfzoo.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(folder, verify="changed")


class _Jobs(Dataset[str]):
    """Works when it is indexed, so that a loader's processes share the work; gives what went wrong, or nothing."""

    def __init__(self, cache: ArrayCache[Any, Any], jobs: Sequence[Any]) -> None:
        self._cache, self._jobs = cache, jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, index: int) -> str:
        try:
            self._cache.make(self._jobs[index])
        except self._cache.broken as error:
            return str(error)
        return ""


Kept = TypeVar("Kept", bound=ArrayCache[Any, Any])


def disk_cache(cache: Cache, kind: Callable[[str | None], Kept], files: str = "") -> Kept | None:
    """What the argument ``cache`` of a benchmark asks for on disk: None for ``none``, ``ram`` and False.

    Args:
        cache: the argument.
        kind: makes a cache in a folder; None stands for its default.
        files: what is read, where ``ram`` is not offered.

    Raises:
        ValueError: it is neither one of these words nor looks like a folder.
    """
    if cache == "ram" and files:
        raise ValueError(f"cache of {files} must be none, true or a folder, got 'ram'.")
    if cache in (False, "none", "ram", "false"):
        return None
    if cache in (True, "true"):
        return kind(None)
    if not isinstance(cache, str) or not {"/", "\\", "~", "."} & set(cache):
        words = "none, true" if files else "none, ram, true"
        raise ValueError(
            f"cache must be {words} or a folder (written with a slash, such as ./{cache}), got {cache!r}."
        )
    return kind(cache)


def mapped(path: Path, source: str) -> np.ndarray:
    """An array of a cache, memory-mapped: only what is indexed is read. Do not write to it.

    Args:
        path: its file.
        source: what it was made of.

    Raises:
        CacheError: the file is gone or damaged.
    """
    try:
        # Copy on write: tensors cannot be read-only, and nothing that is written would reach the file.
        array: np.ndarray = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(
            f"{path}, made of {source}, is damaged ({error}): start again, which mends it, or delete {path.parent}"
        ) from error
    return array


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
