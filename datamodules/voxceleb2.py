"""VoxCeleb2 (Chung et al., Interspeech 2018): talking faces of six thousand celebrities, for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from datamodules.audio_lists import present
from datamodules.audio_sets import AudioClips
from datamodules.audio_visual import AudioVisualDataModule
from datamodules.audio_visual_sets import AudioVisualClips
from datamodules.layout import Layout, Split


class VoxCeleb2(AudioVisualDataModule):
    """1,092,009 clips without labels, for pre-training.

    ``root`` holds ``dev/mp4/id<speaker>/<video>/<clip>.mp4`` and beside it ``dev/wav`` with the sound of the same
    clips (the official ``aac`` files converted to WAV of 16 kHz), and for testing ``test/mp4`` and ``test/wav``. Video
    files are read with PyAV (extra ``video``).

    Args:
        root: folder of the tree.
        val_fraction: share of the clips of ``dev`` that is held out for validation.
        **common: see :class:`~datamodules.audio_visual.AudioVisualDataModule`.

    Raises:
        ValueError: an argument is out of range, or ``labels: true``: there are none.
    """

    name = "voxceleb2"
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="VoxCeleb2",
            images=".",
            suffix=".mp4",
            labels=(),
            splits={"train": Split("dev/mp4/*/*/*", (1_092_009,)), "test": Split("test/mp4/*/*/*")},
            origin="mm.kaist.ac.kr/datasets/voxceleb: the archives of dev (mp4 and aac)",
            unit="clips",
        )
    }
    default_val_fraction = 0.001

    def __init__(
        self, root: str | None = None, val_fraction: float | None = None, labels: bool = False, **common: Any
    ) -> None:
        if labels:
            raise ValueError("VoxCeleb2 has no labels here: set labels: false.")
        super().__init__(root=root, val_fraction=val_fraction, labels=False, **common)

    def read(self, split: str) -> AudioClips:
        """The clips of ``dev`` or ``test`` that have sound."""
        root, videos = self.files(split)
        sounds = [path.replace("/mp4/", "/wav/", 1).removesuffix(".mp4") + ".wav" for path in videos]
        there = present(root, sounds, root, self.allow_partial)
        clips = AudioVisualClips(root, videos, sounds)
        return clips if len(there) == len(clips) else clips.part(np.asarray(there))
