"""CREMA-D (Cao et al., 2014): six emotions, twelve sentences, 91 actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.audio_visual_lists import ListedAudioVisual, lists_layout
from datamodules.layout import Layout


class CREMAD(ListedAudioVisual):
    """7,437 clips in the five folds by speaker that HiCMAE was released with; four broken ones are left out.

    ``root`` is the folder that holds ``face_aligned/<clip>/*.jpg`` (OpenFace) and ``AudioWAV/<clip>.wav``.
    """

    name = "crema_d"
    num_classes = 6
    classes: ClassVar[tuple[str, ...]] = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    anchor, folds = "CREMA-D", 5
    published: ClassVar[Mapping[str, int]] = {"train": 5974, "test": 1463}
    layout: ClassVar[Mapping[str, Layout]] = lists_layout(
        "CREMA-D", 5, ("train", "test"), "github.com/sunlicai/HiCMAE: saved/data/crema-d/audio_visual"
    )
