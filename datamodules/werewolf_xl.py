"""Werewolf-XL (Zhang et al., 2021): valence, arousal and dominance in group games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.audio_visual_lists import ListedAudioVisual, lists_layout
from datamodules.layout import Layout


class WerewolfXL(ListedAudioVisual):
    """14,457 clips with three numbers each, in five folds.

    ``root`` is the folder that holds ``openface/<clip>/<clip>_aligned`` and ``audio_16k/<clip>.wav``.
    """

    name = "werewolf_xl"
    num_values = 3
    classes: ClassVar[tuple[str, ...]] = ("valence", "arousal", "dominance")
    anchor, folds = "Werewolf-XL", 5
    published: ClassVar[Mapping[str, int]] = {"train": 11111, "test": 3346}
    layout: ClassVar[Mapping[str, Layout]] = lists_layout(
        "Werewolf-XL", 5, ("train", "test"), "github.com/sunlicai/HiCMAE: saved/data/werewolf-xl/audio_visual"
    )
