"""MAFW (Liu et al., ACM MM 2022): eleven emotions in the wild."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.audio_visual_lists import ListedAudioVisual, lists_layout
from datamodules.layout import Layout


class MAFW(ListedAudioVisual):
    """9,156 clips with one emotion each and sound, in the official five folds.

    ``root`` is the folder that the released paths call ``MAFW``: with ``data/frames/frames/<clip>/*.png`` and
    ``audio/<clip>.wav`` of 16 kHz.
    """

    name = "mafw"
    num_classes = 11
    classes: ClassVar[tuple[str, ...]] = (
        *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
        *("contempt", "anxiety", "helplessness", "disappointment"),
    )
    anchor, folds = "MAFW", 5
    published: ClassVar[Mapping[str, int]] = {"train": 7320, "test": 1836}
    layout: ClassVar[Mapping[str, Layout]] = lists_layout(
        "MAFW", 5, ("train", "test"), "github.com/sunlicai/HiCMAE: saved/data/mafw/audio_visual/single"
    )
