"""Cityscapes (Cordts et al., CVPR 2016) → ACDC (Sakaridis et al., ICCV 2021): fog, night, rain and snow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from datamodules.day_night import PartneredUDA
from datamodules.layout import CITYSCAPES, LabelFiles, Layout, Pair, Split
from datamodules.readers import Size

#: Images a condition: train, val, test.
CONDITIONS: Final = {
    "fog": (400, 100, 500),
    "night": (400, 106, 500),
    "rain": (400, 100, 500),
    "snow": (400, 100, 500),
}


def _splits(conditions: Sequence[str]) -> dict[str, Split]:
    return {
        split: Split(
            tuple(f"{condition}/{split}/*/*" for condition in conditions),
            (sum(CONDITIONS[condition][number] for condition in conditions),),
        )
        for number, split in enumerate(("train", "val", "test"))
    }


ACDC: Final = Layout(
    title="ACDC",
    images="rgb_anon",
    suffix="_rgb_anon.png",
    labels=(
        LabelFiles("gt", "_gt_labelTrainIds.png", "trainIds"),
        LabelFiles("gt", "_gt_labelIds.png", "ids"),
        LabelFiles("gt", "_gt_labelColor.png", "colors"),
    ),
    splits=_splits(tuple(CONDITIONS)),
    origin="acdc.vision.ee.ethz.ch (registration): rgb_anon_trainvaltest.zip, gt_trainval.zip",
)


class CityscapesACDC(PartneredUDA):
    """2,975 labelled images in good weather, 1,600 unlabelled ones in bad conditions, 406 for validation.

    The 2,000 test images have no public labels: ``predict`` reads them. Every image has a reference of the same
    place in good conditions; with ``day`` they come as ``target.day``.

    Args:
        conditions: which of fog, night, rain and snow, in training and evaluation.
        day: load the reference images of training.
        target_resize: see :class:`~datamodules.segmentation.UDASegmentation`.
        source_resize: see there.
        **kwargs: see there.

    Raises:
        ValueError: an unknown condition, or none.
    """

    name = "cityscapes_acdc"
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": CITYSCAPES, "target_root": ACDC}
    predict_split = "test"
    submission = "trainIds"

    def __init__(
        self,
        conditions: Sequence[str] = tuple(CONDITIONS),
        day: bool = False,
        source_resize: Size | None = (1024, 512),
        target_resize: Size | None = (960, 540),
        **kwargs: Any,
    ) -> None:
        super().__init__(day=day, source_resize=source_resize, target_resize=target_resize, **kwargs)
        unknown = [condition for condition in conditions if condition not in CONDITIONS]
        if unknown or not conditions:
            raise ValueError(f"conditions must name some of {', '.join(CONDITIONS)}, got {list(conditions)}.")
        # Only what is asked for need be there.
        layout = dataclasses.replace(ACDC, splits=_splits(conditions))
        self.layout = {**type(self).layout, "target_root": layout}  # type: ignore[misc]

    def partners(self, root: Path, pairs: Sequence[Pair]) -> list[Path | None]:
        """``<split>_ref/<sequence>/<stem>_rgb_ref_anon.png`` of the same condition."""
        folders = (pair.image.parent for pair in pairs)
        return [
            folder.parent.with_name(f"{folder.parent.name}_ref")
            / folder.name
            / f"{pair.name}_rgb_ref_anon.png"
            for folder, pair in zip(folders, pairs, strict=True)
        ]
