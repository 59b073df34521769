"""MSP-IMPROV (Busso et al., 2017): four emotions in improvised scenes, six sessions of two actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.audio_visual_lists import ListedAudioVisual, lists_layout
from datamodules.layout import Layout


class MSPIMPROV(ListedAudioVisual):
    """7,787 turns; in each of six folds one session is tested on, the other five are trained on.

    ``root`` is the folder ``MSP-IMPROV`` of the released paths. Lists called ``val.csv`` are not read: those of the
    first fold's training and test clips already hold every turn.
    """

    name = "msp_improv"
    num_classes = 4
    classes: ClassVar[tuple[str, ...]] = ("angry", "happy", "neutral", "sad")
    anchor, folds = "MSP-IMPROV", 6
    published: ClassVar[Mapping[str, int]] = {"train": 6871, "test": 916}
    layout: ClassVar[Mapping[str, Layout]] = lists_layout(
        "MSP-IMPROV", 6, ("train", "test"), "github.com/sunlicai/HiCMAE: saved/data/msp-improv/audio_visual"
    )
