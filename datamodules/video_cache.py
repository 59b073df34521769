"""Decoded frames of videos on disk, resized to the squares that are seen, read memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.array_cache import FileCache, mapped
from datamodules.video_files import BrokenVideoError, is_frame, is_video_file, open_frames, truncated


class VideoJob(NamedTuple):
    """A video and the side to which its frames are resized.

    Args:
        video: a file, or a folder of frames.
        size: in pixels.
    """

    video: Path
    size: int


@dataclass(frozen=True)
class VideoRecord:
    """Frames of a video in the cache: :class:`~datamodules.video_files.Frames` of one size.

    Args:
        folder: where their array ``[N, 3, size, size]`` lies.
        source: the file or folder they were decoded from.
        count: frames that it is said to have; a file may end before.
        size: side of the frames.
        checksums: array → CRC-32 of its file.
    """

    folder: Path
    source: str
    count: int
    size: int
    checksums: dict[str, int]

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: Sequence[int], size: int) -> Tensor:
        """Frames of these numbers, uint8 ``[3, T, size, size]``.

        Raises:
            BrokenVideoError: the video ends before one of them.
            CacheError: the array is gone or damaged.
            ValueError: they are kept in another size.
        """
        if size != self.size:
            raise ValueError(f"frames of {self.source} are kept with {self.size} pixels a side, not {size}.")
        frames = torch.from_numpy(mapped(self.folder / "frames.npy", self.source))
        if absent := [number for number in numbers if number >= len(frames)]:
            raise truncated(self.source, min(absent), len(self))
        return torch.stack([frames[number] for number in numbers], 1)


class VideoCache(FileCache[VideoJob, VideoRecord]):
    """All frames of videos, see :class:`~datamodules.array_cache.FileCache`.

    A video that cannot be decoded raises :class:`~datamodules.video_files.BrokenVideoError`.

    Args:
        folder: where to keep them; None takes ``videos`` in the cache of selfzoo.
    """

    version = 1
    default_folder = "videos"
    verb, unit = "Decoding", "videos"
    broken = BrokenVideoError

    def files(self, job: VideoJob) -> list[Path]:
        """The one file or folder."""
        return [job.video]

    def stats(self, job: VideoJob) -> list[Any]:
        """Those of the file; of a folder, name, size and time of every frame."""
        if is_video_file(job.video):
            return super().stats(job)
        # Looked up at every draw, for a hundred frames: a Path for each would take longer than reading a window.
        with os.scandir(job.video) as entries:
            found = [(entry.name, entry.stat()) for entry in entries if is_frame(entry.name)]
        return [str(job.video.resolve()), *sorted((name, at.st_size, at.st_mtime_ns) for name, at in found)]

    def settings(self, job: VideoJob) -> int:
        """The size."""
        return job.size

    def title(self, job: VideoJob) -> str:
        """The video's name."""
        return job.video.stem

    def record(self, folder: Path, content: dict[str, Any]) -> VideoRecord:
        """See :class:`VideoRecord`."""
        return VideoRecord(folder=folder, **content)

    def make(self, job: VideoJob) -> None:
        """Decode one video.

        Raises:
            BrokenVideoError: there is none, or a frame cannot be decoded.
        """
        frames, held = open_frames(job.video), 0
        kept = np.empty((len(frames), 3, job.size, job.size), np.uint8)
        for number, frame in frames.decoded(range(len(frames)), job.size):
            kept[number], held = frame.transpose(2, 0, 1), number + 1
        if not held:
            raise truncated(job.video, 0, len(frames))
        content = {"source": str(job.video), "count": len(frames), "size": job.size}
        self.keep(job, {"frames": kept[:held]}, content)
