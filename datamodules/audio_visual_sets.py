"""Sets of video with sound, labelled or not: the counterpart of :mod:`datamodules.audio_sets`, which it builds on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from datamodules.audio_files import BrokenAudioError, Reading
from datamodules.audio_labels import Labels
from datamodules.audio_sets import AudioClips, AudioSubset, padded
from datamodules.video_cache import VideoCache, VideoJob
from datamodules.video_files import BrokenVideoError, Frames, VideoWindows, Window, open_frames


class AudioVisualClips(AudioClips):
    """Videos, as folders of frames or as files, each with a file of its sound.

    Args:
        root: folder that paths are relative to; absolute ones are taken as they are.
        videos: ``[N]`` folders or files.
        sounds: ``[N]`` files, in the same order.
        labels: of the clips; None where they have none.
    """

    def __init__(
        self, root: Path, videos: Sequence[str], sounds: Sequence[str], labels: Labels | None = None
    ) -> None:
        super().__init__(root, sounds, labels)
        if len(videos) != len(sounds):
            raise ValueError(f"{len(videos)} videos of {root} have {len(sounds)} files of sound.")
        self._videos = np.array([path.encode() for path in videos])

    def part(self, positions: np.ndarray) -> Self:
        """Some of the clips."""
        part = type(self).__new__(type(self))
        vars(part).update(vars(self))
        part._paths, part._videos = self._paths[positions], self._videos[positions]
        part.labels = None if self.labels is None else self.labels.part(positions)
        return part

    def video_path(self, position: int) -> Path:
        """Where a video lies."""
        return self.root / self._videos[position].decode()

    def frames(self, position: int) -> Frames:
        """Frames of a video.

        Raises:
            BrokenVideoError: there are none; the video is named.
        """
        return open_frames(self.video_path(position))

    def sound(self, position: int, window: Window, reading: Reading) -> Tensor:
        """Samples ``[n]`` of a window.

        Raises:
            BrokenAudioError: the file cannot be used; it is named.
        """
        return reading.between(self.path(position), window.start, window.end)

    def broken(self, reading: Reading) -> dict[int, str]:
        """Positions of the clips of which the sound, or the first or last frame, cannot be read, and why."""
        reasons = {}
        for position in range(len(self)):
            try:
                frames = self.frames(position)
                frames.read([0, len(frames) - 1], 8)
                self.sound(position, Window([], 0.0, 1.0), reading)
            except (BrokenVideoError, BrokenAudioError, FileNotFoundError) as error:
                reasons[position] = str(error)
        return reasons


@dataclass(frozen=True)
class Views:
    """How a clip is shown.

    Args:
        windows: which frames belong together.
        size: side of the frames, in pixels.
        segments: windows of a clip, in evaluation; 0 shows the one in the middle.
        crops: squares of a frame, in evaluation, along its height.
        wide: side to which frames are resized before these are cut out; None is ``size``. Then all crops are the same
            (as released with HiCMAE), and one of them is shown.
    """

    windows: VideoWindows
    size: int
    segments: int = 0
    crops: int = 1
    wide: int | None = None

    def of(self, total: int, rng: np.random.Generator | None) -> list[Window]:
        """The windows of a clip with ``total`` frames: one that is drawn, or those of evaluation."""
        if rng is not None:
            return [self.windows.drawn(total, rng)]
        return self.windows.segments(total, self.segments) if self.segments else [self.windows.at(total, 0.5)]

    def side(self, evaluation: bool) -> int:
        """To which frames are resized."""
        return self.wide or self.size if evaluation else self.size

    def read(self, frames: Frames, window: Window, evaluation: bool) -> list[Tensor]:
        """Videos uint8 ``[3, T, size, size]`` of a window, one for each crop."""
        wide = self.side(evaluation)
        video = frames.read(window.frames, wide)
        if wide == self.size:
            return [video]
        step = (wide - self.size) / max(self.crops - 1, 1)
        tops = dict.fromkeys(int(number * step) for number in range(self.crops))
        left = (wide - self.size) // 2
        return [video[:, :, top : top + self.size, left : left + self.size] for top in tops]


class AudioVisualSubset(AudioSubset):
    """Some clips in order: ``video``, ``waveform``, ``length``, ``index``, ``name`` and, if there are any, ``label``.

    Args:
        clips: where they come from.
        positions: ``[n]`` int64, which of them; None takes all.
        reading: how sound is read.
        views: how clips are shown.
        drawn: whether draws take windows anywhere.
        cache: where frames are read from, once all :meth:`jobs` are there; None decodes them.
    """

    clips: AudioVisualClips

    def __init__(
        self,
        clips: AudioVisualClips,
        positions: np.ndarray | None,
        reading: Reading,
        views: Views,
        drawn: bool = False,
        cache: VideoCache | None = None,
    ) -> None:
        super().__init__(clips, positions, reading, crop="random" if drawn else "start")
        self.views, self.cache = views, cache

    def jobs(self) -> list[VideoJob]:
        """All videos, with the size in which frames are seen."""
        return [self._job(position, self.crop == "start") for position in self.positions.tolist()]

    def _job(self, position: int, evaluation: bool) -> VideoJob:
        return VideoJob(self.clips.video_path(position), self.views.side(evaluation))

    def _frames(self, position: int, evaluation: bool) -> Frames:
        # Found anew each time: a million records would fill the memory of every process.
        kept = None if self.cache is None else self.cache.kept(self._job(position, evaluation))
        return self.clips.frames(position) if kept is None else kept

    def batch(self, index: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> dict[str, Any]:
        """Views of B clips, those of one clip beside each other; ``index``, ``label`` and ``name`` are of the clips.

        ``video`` is uint8 ``[B * V, 3, T, size, size]``, ``waveform`` float32 ``[B * V, samples]``, ``length`` int64
        ``[B * V]``.

        Args:
            index: ``[B]`` positions in the subset.
            rngs: one for every clip, of its window; None shows the windows of evaluation.
        """
        positions = self.positions[index]
        draws: Sequence[np.random.Generator | None] = rngs or [None] * len(index)
        videos: list[Tensor] = []
        sounds: list[Tensor] = []
        for position, rng in zip(positions.tolist(), draws, strict=True):
            frames = self._frames(position, rng is None)
            for window in self.views.of(len(frames), rng):
                crops = self.views.read(frames, window, rng is None)
                videos += crops
                sounds += [self.clips.sound(position, window, self.reading)] * len(crops)
        waveform, length = padded(sounds)
        batch: dict[str, Any] = {"video": torch.stack(videos), "waveform": waveform, "length": length}
        batch["index"] = torch.from_numpy(index)
        if self.clips.labels is not None:
            batch["label"] = self.clips.labels.tensor(positions)
        return {**batch, "name": [self.clips.path(position).stem for position in positions.tolist()]}
