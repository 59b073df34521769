"""iChallenge-AMD (ADAM, ISBI 2020): age-related macular degeneration in photographs of the fundus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from datamodules.eye_sets import EyeImages
from datamodules.layout import Layout, Pair, Split


class IChallengeAMD(EyeImages):
    """400 photographs with labels, 89 of them with AMD: ``Training400/{AMD,Non-AMD}/*.jpg``."""

    name = "ichallenge_amd"
    classes: ClassVar[tuple[str, ...]] = ("Non-AMD", "AMD")
    num_classes = 2
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="iChallenge-AMD",
            images="Training400",
            suffix=".jpg",
            labels=(),
            splits={"train": Split(("AMD/*", "Non-AMD/*"), (400,))},
            origin="amd.grand-challenge.org or ai.baidu.com/broad (registration): AMD-Training400",
        )
    }
    default_num_val = 80

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """The folder's name."""
        return [pair.image.parent.name for pair in pairs]
