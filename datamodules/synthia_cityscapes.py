"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016) → Cityscapes (Cordts et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from datamodules.label_tables import SYNTHIA_13, SYNTHIA_16
from datamodules.layout import CITYSCAPES, LabelFiles, Layout, Split
from datamodules.readers import Size
from datamodules.segmentation import UDASegmentation

SYNTHIA: Final = Layout(
    title="SYNTHIA-RAND-CITYSCAPES",
    images="RGB",
    suffix=".png",
    labels=(
        LabelFiles("GT/LABELS", "_labelTrainIds.png", "trainIds"),
        LabelFiles("GT/LABELS", ".png", "synthia"),
        LabelFiles("GT/COLOR", ".png", "synthia colors"),
    ),
    splits={"train": Split("*", (9400,))},
    origin="synthia-dataset.net: SYNTHIA_RAND_CITYSCAPES.rar",
)


class SYNTHIACityscapes(UDASegmentation):
    """9,400 labelled renderings, 2,975 unlabelled and 500 labelled validation photographs.

    Networks keep Cityscapes' 19 classes. Terrain, truck and train do not occur in the source: ``mIoU`` is the
    mean over the other 16, ``mIoU13`` also leaves out wall, fence and pole. Source images are 1280×760 as
    stored; everything else is as in GTA5 → Cityscapes.

    Args:
        source_resize: see :class:`~datamodules.segmentation.UDASegmentation`.
        **kwargs: see there.
    """

    name = "synthia_cityscapes"
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": SYNTHIA, "target_root": CITYSCAPES}
    eval_classes = SYNTHIA_16
    eval_subsets: ClassVar[Mapping[str, tuple[int, ...]]] = {"mIoU13": SYNTHIA_13}

    def __init__(self, source_resize: Size | None = (1280, 760), **kwargs: object) -> None:
        super().__init__(source_resize=source_resize, **kwargs)  # type: ignore[arg-type]
