"""Audio-visual benchmarks: what fine-tuning and pre-training sets of video with sound share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import nn

from datamodules.array_cache import disk_cache
from datamodules.audio import AudioDataModule
from datamodules.audio_sets import AudioClips, AudioSubset
from datamodules.audio_visual_sets import AudioVisualClips, AudioVisualSubset, Views
from datamodules.base import coming_stage
from datamodules.readers import Cache
from datamodules.video_cache import VideoCache, VideoJob
from datamodules.video_files import VideoWindows


class AudioVisualDataModule(AudioDataModule):
    """A set of videos with their sound, for pre-training (``labels: false``) or for supervised training.

    Loader batches are flat: ``video`` uint8 ``[B, 3, T, size, size]`` and ``waveform`` float32 ``[B, samples]`` of the
    same moment, with ``length``, ``label``, ``index`` and ``name`` as of :class:`AudioDataModule`; labels that are
    numbers are float ``[B, K]``. In test and prediction every clip has V views, which follow one another: then
    ``video``, ``waveform`` and ``length`` have ``B * V`` rows. On the device videos become float32 in [0, 1],
    ``features(batch, training)`` adds spectrograms, and ``video_augment(batch)`` changes training batches.

    Args:
        root: folder of the tree.
        batch_size: training clips a step, on every device.
        eval_batch_size: clips a batch in evaluation.
        num_frames: T, frames of a window.
        frame_step: from one frame to the next; faces of 25 a second are seen for 2.56 s by default.
        image_size: side to which frames are resized.
        video_augment: module called with training batches on the device, such as :class:`zoo.nn.VideoAugment`; None
            leaves them as they are.
        test_segments: windows of a test clip, evenly over it; 0 shows the one in the middle, as validation does.
        test_crops: squares of a test frame, along its height.
        test_size: side to which test frames are resized before these are cut out; None is ``image_size``, as released
            with HiCMAE: there the crops are all the same, and one is computed.
        cache: true keeps decoded frames on disk, resized to what is seen, in ``$SELFZOO_CACHE``, a folder keeps them
            there: filled once by ``prepare_data``, read memory-mapped. Three bytes a pixel, so of 160 x 160 pixels 25
            times a second 6.9 GB an hour: for the sets of fine-tuning, and for as much of VoxCeleb2 as a disk holds.
        **common: see :class:`AudioDataModule`; there are no ``seconds``, ``train_seconds``, ``crop`` and
            ``fixed_length``: windows of sound are those of the frames.

    Raises:
        ValueError: an argument is out of range.
    """

    module_arguments = ("features", "video_augment")
    #: Numbers that are estimated, in place of classes; 0: there are classes.
    num_values: ClassVar[int] = 0

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 14,
        eval_batch_size: int = 14,
        num_frames: int = 16,
        frame_step: int = 4,
        image_size: int = 160,
        video_augment: nn.Module | None = None,
        test_segments: int = 2,
        test_crops: int = 2,
        test_size: int | None = None,
        cache: Cache = "none",
        **common: Any,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seconds=None,
            train_seconds=None,
            crop="start",
            fixed_length=False,
            **common,
        )
        for argument, value, least in (
            ("image_size", image_size, 1),
            ("test_segments", test_segments, 0),
            ("test_crops", test_crops, 1),
            ("test_size", test_size or image_size, image_size),
        ):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}.")
        windows = VideoWindows(num_frames, frame_step)
        self.views = Views(windows, image_size)
        self.test_views = Views(windows, image_size, test_segments, test_crops, test_size)
        self.video_augment = video_augment
        self.disk_cache: VideoCache | None = disk_cache(cache, VideoCache, "videos")
        self._kept: set[str] = set()

    def prepare_data(self) -> None:
        """Decode what the coming stage shows, where ``cache`` keeps it on disk."""
        super().prepare_data()
        if self.disk_cache is not None:
            jobs: dict[VideoJob, None] = {}
            for name in self._shown_splits(coming_stage(self.trainer)):
                shown = self.subset(name)
                assert isinstance(shown, AudioVisualSubset)
                jobs |= dict.fromkeys(shown.jobs())
            self.disk_cache.ensure(list(jobs), self.num_workers, self.skip_broken)

    def setup(self, stage: str | None = None) -> None:
        """Check what this stage needs and open its datasets; raises LayoutError at once."""
        self._kept |= set(self._shown_splits(stage))
        super().setup(stage)

    def _shown_splits(self, stage: str | None) -> list[str]:
        """Of the coming stage; probes that compare with training clips in others decode these."""
        training = ["labelled"] if self.labels else ["train", "labelled"]
        return [*(training if stage in (None, "fit") else []), *self.eval_splits(stage).values()]

    def usable(self, clips: AudioClips) -> tuple[np.ndarray, list[str]]:
        """Clips of which the sound and the first and last frame can be read, and why others cannot."""
        assert isinstance(clips, AudioVisualClips)
        broken = clips.broken(self.reading)
        return np.setdiff1d(np.arange(len(clips)), list(broken)), list(broken.values())

    def shown(
        self, clips: AudioClips, positions: np.ndarray | None, name: str, training: bool
    ) -> AudioSubset:
        """Windows anywhere in training, in the middle in validation, and several views in test."""
        assert isinstance(clips, AudioVisualClips)
        views = self.test_views if name == "test" else self.views
        cache = self.disk_cache if name in self._kept else None
        return AudioVisualSubset(clips, positions, self.reading, views, training, cache)

    def _with_features(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        batch = super()._with_features(batch, training)
        batch = {**batch, "video": batch["video"].float().div_(255)}
        if training and self.video_augment is not None:
            return self.video_augment.to(batch["video"].device)(batch)
        return batch
