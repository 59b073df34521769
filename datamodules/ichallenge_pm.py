"""iChallenge-PM (PALM, ISBI 2019): pathologic myopia in photographs of the fundus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from datamodules.eye_sets import EyeImages
from datamodules.layout import Layout, LayoutError, Pair, Split


class IChallengePM(EyeImages):
    """400 photographs with labels, ``PALM-Training400/*.jpg``: P pathologic; N normal and H highly myopic are not."""

    name = "ichallenge_pm"
    classes: ClassVar[tuple[str, ...]] = ("non-pathologic", "pathologic")
    num_classes = 2
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="iChallenge-PM",
            images="PALM-Training400",
            suffix=".jpg",
            labels=(),
            splits={"train": Split("*", (400,))},
            origin="palm.grand-challenge.org or ai.baidu.com/broad (registration): PALM-Training400",
        )
    }
    default_num_val = 80

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """By the first letter of the file's name."""
        wrong = [pair.image.name for pair in pairs if pair.name[:1] not in ("H", "N", "P")]
        if wrong:
            raise LayoutError(
                f"{wrong[0]} in {base} begins with none of H, N and P, which tell the diagnosis"
            )
        return [self.classes[pair.name[0] == "P"] for pair in pairs]
