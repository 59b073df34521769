"""PASCAL VOC 2012 (Everingham et al., IJCV 2015) with SBD (Hariharan et al., ICCV 2011) and few labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from datamodules.label_tables import VOC_CLASSES, VOC_PALETTE
from datamodules.layout import LabelFiles, Layout, LayoutReport, Pair, Split
from datamodules.readers import Size
from datamodules.semi_segmentation import SemiSegmentation

_LISTS: Final = "ImageSets/Segmentation"
VOC: Final = Layout(
    title="PASCAL VOC 2012",
    images="JPEGImages",
    suffix=".jpg",
    labels=(
        LabelFiles("SegmentationClass", ".png", "voc"),
        LabelFiles("SegmentationClassAug", ".png", "voc"),
    ),
    splits={
        "train": Split("*", (1464,), listed=f"{_LISTS}/train.txt"),
        "val": Split("*", (1449,), listed=f"{_LISTS}/val.txt"),
        # VOC's and SBD's labels in one folder: the convention of most code bases.
        "train_aug": Split("*", (10582,), without=f"{_LISTS}/val.txt", only_labelled=True),
    },
    origin="host.robots.ox.ac.uk/pascal/VOC/voc2012: VOCtrainval_11-May-2012.tar, folder VOCdevkit/VOC2012; the "
    "10,582 training labels come from SBD (sbd_root), or as PNGs in SegmentationClassAug",
)
SBD: Final = Layout(
    title="SBD (Semantic Boundaries Dataset)",
    images="dataset/img",
    suffix=".jpg",
    labels=(LabelFiles("dataset/cls", ".mat", "voc"),),
    splits={
        "train": Split("*", (8498,), listed="dataset/train.txt"),
        "val": Split("*", (2857,), listed="dataset/val.txt"),
    },
    origin="www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours: benchmark.tgz, folder "
    "benchmark_RELEASE",
)


class VOCSemi(SemiSegmentation):
    """10,582 training images, some of them labelled, and 1,449 for validation; 21 classes, borders ignored.

    The training images are VOC's 1,464 and SBD's, without VOC's validation images. Labels of the former come from
    VOC, those of the others from ``sbd_root`` or, without it, from ``SegmentationClassAug`` in VOC's tree.

    The defaults are those of U2PL (CVPR 2022) and semi-supervised FST: images resized by 0.5 to 2, windows of
    513×513.

    Args:
        sbd_root: folder of SBD, if its labels are to be read from its ``.mat`` files.
        protocol: which images ``partition`` and ``num_labelled`` choose from: all (``blended``: 662, 1,323,
            2,646, 5,291 labels) or VOC's own 1,464 (``classic``: 92, 183, 366, 732, 1,464).
        crop: see :class:`~datamodules.semi_segmentation.SemiSegmentation`.
        scale: see there.
        **kwargs: see there.

    Raises:
        ValueError: an unknown protocol.
    """

    name = "voc_semi"
    classes = VOC_CLASSES
    palette = VOC_PALETTE
    num_classes = len(VOC_CLASSES)
    eval_classes = tuple(range(len(VOC_CLASSES)))
    layout: ClassVar[Mapping[str, Layout]] = {"root": VOC, "sbd_root": SBD}
    submission = "voc"

    def __init__(
        self,
        sbd_root: str | None = None,
        protocol: Literal["blended", "classic"] = "blended",
        crop: Size | None = (513, 513),
        scale: tuple[float, float] | None = (0.5, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(crop=crop, scale=scale, **kwargs)
        if protocol not in ("blended", "classic"):
            raise ValueError(f"protocol must be 'blended' or 'classic', got {protocol!r}.")
        self.sbd_root, self.protocol = sbd_root, protocol

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """VOC's splits and, in training, SBD's labels from one of their two places."""
        needed = super().needs(stage)
        if "train" in needed["root"]:
            if self.sbd_root is None:
                needed["root"]["train_aug"] = True
            else:
                needed["root"]["val"] = True  # its images are no training images
                needed["sbd_root"] = {"train": True, "val": True}
        return needed

    def training_pairs(self, reports: Mapping[str, LayoutReport]) -> tuple[Sequence[Pair], Collection[str]]:
        """The 10,582 images; ``classic`` labels only VOC's own."""
        own = self.usable_pairs(reports["root"], "train")
        if self.sbd_root is None:
            others = self.usable_pairs(reports["root"], "train_aug")
        else:
            others = [
                pair for split in ("train", "val") for pair in self.usable_pairs(reports["sbd_root"], split)
            ]
        taken = {pair.name for split in ("train", "val") for pair in reports["root"].splits[split].pairs}
        pairs = sorted(
            [*own, *(pair for pair in others if pair.name not in taken)], key=lambda pair: pair.name
        )
        return pairs, {pair.name for pair in (own if self.protocol == "classic" else pairs)}
