"""Cityscapes (Cordts et al., CVPR 2016) → Dark Zurich (Sakaridis et al., ICCV 2019): from day to night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from datamodules.day_night import PartneredUDA, read_correspondences
from datamodules.layout import CITYSCAPES, LabelFiles, Layout, Pair, Split
from datamodules.readers import Size

SUFFIX: Final = "_rgb_anon.png"
DARK_ZURICH: Final = Layout(
    title="Dark Zurich",
    images="rgb_anon",
    suffix=SUFFIX,
    labels=(
        LabelFiles("gt", "_gt_labelTrainIds.png", "trainIds"),
        LabelFiles("gt", "_gt_labelIds.png", "ids"),
        LabelFiles("gt", "_gt_labelColor.png", "colors"),
    ),
    splits={
        "train": Split("train/night/*/*", (2416,)),
        "val": Split("val/night/*/*", (50,)),
        "test": Split("test/night/*/*", (151,)),
    },
    origin="trace.ethz.ch/publications/2019/GCMA_UIoU: Dark_Zurich_{train,val,test}_anon.zip, extracted into one "
    "folder (rgb_anon/, gt/, corresp/)",
)


class CityscapesDarkZurich(PartneredUDA):
    """2,975 labelled day images, 2,416 unlabelled night images with day partners, 50 for validation.

    The partner of a night image is named by the CSV files in ``corresp/train/night``. The 151 test images have
    no public labels: ``predict`` reads them. The defaults are SePiCo's: Cityscapes 1280×640, Dark Zurich
    1280×720, windows of 640×640 of the source, the target whole.

    Args:
        day: load the day partners (``target.day``); False needs neither them nor ``corresp``.
        source_resize: see :class:`~datamodules.segmentation.UDASegmentation`.
        target_resize: see there.
        crop: see there.
        crop_target: see there.
        **kwargs: see there.
    """

    name = "cityscapes_darkzurich"
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": CITYSCAPES, "target_root": DARK_ZURICH}
    predict_split = "test"
    submission = "trainIds"

    def __init__(
        self,
        day: bool = True,
        source_resize: Size | None = (1280, 640),
        target_resize: Size | None = (1280, 720),
        crop: Size | None = (640, 640),
        crop_target: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            day=day,
            source_resize=source_resize,
            target_resize=target_resize,
            crop=crop,
            crop_target=crop_target,
            **kwargs,
        )

    def partners(self, root: Path, pairs: Sequence[Pair]) -> list[Path | None]:
        """The day image that ``corresp`` names for each night image."""
        images = root / DARK_ZURICH.images
        named = read_correspondences(root / "corresp/train/night")
        stems = (pair.image.relative_to(images).as_posix().removesuffix(SUFFIX) for pair in pairs)
        return [images / f"{named[stem]}{SUFFIX}" if stem in named else None for stem in stems]
