"""RAVDESS (Livingstone and Russo, 2018): eight emotions, two sentences, 24 actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.audio_visual_lists import ListedAudioVisual, lists_layout
from datamodules.layout import Layout


class RAVDESS(ListedAudioVisual):
    """1,440 spoken clips in six folds by actor.

    ``root`` is the folder that holds ``face_aligned/Actor_<n>/<clip>/*.jpg`` and ``audio_16k/Actor_<n>/<clip>.wav``.
    """

    name = "ravdess"
    num_classes = 8
    classes: ClassVar[tuple[str, ...]] = (
        *("neutral", "calm", "happy", "sad"),
        *("angry", "fearful", "disgust", "surprised"),
    )
    anchor, folds = "RAVDESS", 6
    published: ClassVar[Mapping[str, int]] = {"train": 1200, "test": 240}
    layout: ClassVar[Mapping[str, Layout]] = lists_layout(
        "RAVDESS", 6, ("train", "test"), "github.com/sunlicai/HiCMAE: saved/data/ravdess/audio_visual"
    )
