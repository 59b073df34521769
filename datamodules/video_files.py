"""Reading the frames of videos, as folders of images or as files, and which frames a window takes.

Video files need PyAV (extra ``video``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.extras import require

#: Endings of files that are taken for frames.
FRAME_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp")
#: Endings of paths that are taken for files, not for folders of frames.
VIDEO_SUFFIXES: Final = (".mp4", ".avi", ".mkv", ".mov")
_REMEDY: Final = "extract it again, or set skip_broken: true to leave out such clips"


class BrokenVideoError(ValueError):
    """A video without frames, or with one that cannot be decoded."""


class Frames(Protocol):
    """Frames of a video."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int], size: int) -> Tensor:
        """Frames of these numbers, resized to squares (bilinear): uint8 ``[3, T, size, size]``."""
        ...


def is_frame(name: str) -> bool:
    """Whether a file of a folder is taken for a frame, by its name."""
    return name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")


class FrameFolder:
    """A folder of images, one for each frame, in the order of their names.

    Args:
        folder: where they lie.

    Raises:
        BrokenVideoError: it is missing, or holds no image; it is named.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise BrokenVideoError(f"There is no folder of frames {folder}: {_REMEDY}.")
        self.files = sorted(path for path in folder.iterdir() if is_frame(path.name))
        if not self.files:
            raise BrokenVideoError(f"{folder} holds no frames ({', '.join(FRAME_SUFFIXES)}): {_REMEDY}.")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, numbers: Sequence[int], size: int) -> Tensor:
        """Frames of these numbers, see :class:`Frames`.

        Raises:
            BrokenVideoError: one of them cannot be decoded; it is named.
        """
        distinct = dict(self.decoded(numbers, size))
        return stacked([distinct[number] for number in numbers])

    def decoded(self, numbers: Sequence[int], size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers and frames ``[size, size, 3]``, each once.

        Raises:
            BrokenVideoError: one of them cannot be decoded; it is named.
        """
        return ((number, self._frame(self.files[number], size)) for number in dict.fromkeys(numbers))

    def _frame(self, path: Path, size: int) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return squared(image, size)
        except (OSError, SyntaxError, ValueError) as error:
            raise BrokenVideoError(f"{path} cannot be decoded ({error}): {_REMEDY}.") from error


class VideoFile:
    """A video file, decoded from its beginning to the last frame that is asked for.

    Args:
        path: the file.

    Raises:
        BrokenVideoError: it is missing, holds no video, or cannot be decoded; it is named.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._av = path, require("av", "video", f"reading {path.suffix} files")
        if not path.is_file():
            raise BrokenVideoError(f"There is no video {path}: {_REMEDY}.")
        self._count = self._counted()

    def __len__(self) -> int:
        return self._count

    def read(self, numbers: Sequence[int], size: int) -> Tensor:
        """Frames of these numbers, see :class:`Frames`."""
        found = dict(self.decoded(numbers, size))
        if absent := set(numbers) - found.keys():
            raise truncated(self.path, min(absent), len(self))
        return stacked([found[number] for number in numbers])

    def decoded(self, numbers: Sequence[int], size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers and frames ``[size, size, 3]`` in their order, each once; those behind the end do not come.

        Raises:
            BrokenVideoError: the file cannot be decoded so far; it is named.
        """
        wanted = set(numbers)
        last = max(wanted)
        with self._opened() as container:
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        yield number, squared(frame.to_image(), size)
                    if number >= last:
                        break
            except self._av.error.FFmpegError as error:
                raise BrokenVideoError(f"{self.path} cannot be decoded ({error}): {_REMEDY}.") from error

    def _opened(self) -> Any:
        try:
            container = self._av.open(str(self.path))
        except self._av.error.FFmpegError as error:
            raise BrokenVideoError(f"{self.path} cannot be decoded ({error}): {_REMEDY}.") from error
        if not container.streams.video:
            raise BrokenVideoError(f"{self.path} holds no video: {_REMEDY}.")
        return container

    def _counted(self) -> int:
        with self._opened() as container:
            # Files that do not say how many frames they have are decoded once to count them.
            count: int = container.streams.video[0].frames or sum(1 for _ in container.decode(video=0))
        if not count:
            raise BrokenVideoError(f"{self.path} holds no frames: {_REMEDY}.")
        return count


def is_video_file(path: Path) -> bool:
    """Whether a path has the ending of a video; others are folders of frames."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def open_frames(path: Path) -> FrameFolder | VideoFile:
    """Frames of a folder, or of a file if the path has the ending of one."""
    return VideoFile(path) if is_video_file(path) else FrameFolder(path)


def truncated(path: Path | str, number: int, total: int) -> BrokenVideoError:
    """The error of a video that ends before this frame."""
    return BrokenVideoError(f"{path} is truncated: frame {number} of {total} is missing: {_REMEDY}.")


def squared(image: Image.Image, size: int) -> np.ndarray:
    """RGB bytes ``[size, size, 3]``; the aspect ratio is not kept, as released with HiCMAE."""
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def stacked(frames: Sequence[np.ndarray]) -> Tensor:
    """``[size, size, 3]`` each → uint8 ``[3, T, size, size]``."""
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


class Window(NamedTuple):
    """A part of a clip: numbers of its frames, and where its sound begins and ends as shares of the whole."""

    frames: list[int]
    start: float
    end: float


@dataclass(frozen=True)
class VideoWindows:
    """Which frames are seen at once, and which sound belongs to them; as released with HiCMAE.

    Where a clip is too short its last frame is repeated. Sound is cut in proportion to the frames' numbers, so nothing
    depends on frame rates.

    Args:
        frames: T, of a window.
        step: from one frame to the next, in frames of the clip.

    Raises:
        ValueError: one of the two is not positive.
    """

    frames: int = 16
    step: int = 4

    def __post_init__(self) -> None:
        if self.frames < 1 or self.step < 1:
            raise ValueError(f"frames={self.frames} and frame_step={self.step} must be at least 1.")

    def at(self, total: int, place: float) -> Window:
        """The window of a clip with ``total`` frames whose beginning lies at ``place`` of those possible, 0 to 1.

        In clips longer than a window the T frames are spread evenly over ``T * step`` frames, the last of which they
        reach; that is a little more than ``step`` from one to the next.
        """
        reach = self.frames * self.step
        if total <= reach:
            picked = np.linspace(0, total, total // self.step)
            picked = np.concatenate((picked, np.full(self.frames - len(picked), total)))
            start, last = 0, total - 1
        else:
            start = min(int(place * (total - reach)), total - reach - 1)
            picked, last = np.linspace(start, start + reach, self.frames), start + reach - 1
        numbers = np.clip(picked, start, last).astype(np.int64).tolist()
        return Window(numbers, *self._shares(numbers[0], min(numbers[0] + reach, total - 1), total))

    def drawn(self, total: int, rng: np.random.Generator) -> Window:
        """A window anywhere."""
        return self.at(total, rng.random())

    def segments(self, total: int, count: int) -> list[Window]:
        """Windows of every ``step``-th frame, evenly over the clip, the first at its beginning, the last at its end."""
        every = list(range(0, total, self.step))
        every += [every[-1]] * (self.frames - len(every))
        windows = []
        for number in range(count):
            start = int(number * (len(every) - self.frames) / (count - 1)) if count > 1 else 0
            picked = every[start : start + self.frames]
            windows.append(
                Window(picked, *self._shares(picked[0], min(picked[-1] + self.step, total - 1), total))
            )
        return windows

    @staticmethod
    def _shares(first: int, last: int, total: int) -> tuple[float, float]:
        return (first / (total - 1), last / (total - 1)) if total > 1 else (0.0, 0.0)
