"""Adaptation to your own footage: any folder of frames, of which nobody has labelled one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.layout import (
    CITYSCAPES,
    GTA5,
    LabelFiles,
    Layout,
    LayoutReport,
    Split,
    inspect_files,
    inspect_root,
)
from datamodules.readers import Size
from datamodules.segmentation import UDASegmentation

#: Endings of the files that are taken for frames.
SUFFIXES: Final = (".png", ".jpg", ".jpeg")
FRAMES: Final = Layout(
    title="Footage",
    images="PNG or JPEG frames, at any depth",
    suffix="",
    labels=(),
    splits={"train": Split("**/*")},
    origin="your own; frames of a video: ffmpeg -i video.mp4 -vf fps=2 frames/%06d.png",
    unit="frames",
)
OWN: Final = Layout(
    title="Your labelled images",
    images="images",
    suffix=".png",
    labels=(LabelFiles("labels", ".png", "trainIds"),),
    splits={"train": Split("**/*")},
    origin="your own; labels are PNGs of Cityscapes' trainIds under the names of their images, 255 does not count",
)
SOURCES: Final = {"cityscapes": CITYSCAPES, "gta5": GTA5, "own": OWN}


class OwnFootage(UDASegmentation):
    """From labelled street images to frames of your own, which carry no labels: 19 classes.

    Training draws from all frames, and ``zoo predict`` labels all of them: those it was trained on or, with another
    ``target_root``, further ones. With no labelled frame nothing can measure how well frames are segmented.
    Validation and test are on *source* images, which tells a network that collapses or forgets, and no more;
    ``best.ckpt`` is chosen by it, so predict by ``last.ckpt`` and look at the frames.

    Args:
        source: layout of the labelled tree: ``cityscapes``, ``gta5``, or ``own`` (``images/**/*.png``, and
            ``labels/**/*.png`` of trainIds under the same names).
        num_val: labelled images kept from training for validation, the last by name; Cityscapes has its own.
        source_resize: see :class:`~datamodules.segmentation.UDASegmentation`.
        **kwargs: see there.

    Raises:
        ValueError: an argument is out of range, or asks for labels or splits of the frames.
    """

    name = "own_footage"
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": CITYSCAPES, "target_root": FRAMES}
    eval_root = "source_root"
    predict_root = "target_root"
    predict_split = "train"
    submission = "trainIds"

    def __init__(
        self,
        source: Literal["cityscapes", "gta5", "own"] = "cityscapes",
        num_val: int = 100,
        source_resize: Size | None = (1024, 512),
        **kwargs: Any,
    ) -> None:
        super().__init__(source_resize=source_resize, **kwargs)
        if source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}.")
        if num_val < 1:
            raise ValueError(f"num_val must be at least 1, got {num_val}.")
        if self.oracle or self.predict_split != "train":
            raise ValueError("Footage has neither labels nor splits: leave out oracle and predict_split.")
        self.num_val = num_val
        self.layout = {**type(self).layout, "source_root": SOURCES[source]}  # type: ignore[misc]

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Labelled images of training and evaluation; frames of training and prediction."""
        source = {split: True for name, split in self.eval_splits(stage).items() if name != "predict"}
        if stage in (None, "fit"):
            source["train"] = True
        frames = {"train": False} if stage in (None, "fit", "predict") else {}
        return {root: splits for root, splits in zip(self.layout, (source, frames), strict=True) if splits}

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Compare the source with its layout and look for frames; raises nothing."""
        find = {"source_root": self._find_source, "target_root": self._find_frames}
        return {argument: find[argument](splits) for argument, splits in self.needs(stage).items()}

    def setup(self, stage: str | None = None) -> None:
        """As of every segmentation benchmark; says what is validated on."""
        super().setup(stage)
        if stage == "fit":
            count = len(self.datasets["val"])
            rank_zero_info(
                f"The frames have no labels: val/mIoU is that of {count} source images, and best.ckpt is chosen by it. "
                "It tells nothing about the frames: predict by last.ckpt and look at them."
            )

    def _find_frames(self, splits: Mapping[str, bool]) -> LayoutReport:
        return inspect_files(self.layout["target_root"], self.target_root, splits, SUFFIXES, "target_root")

    def _find_source(self, splits: Mapping[str, bool]) -> LayoutReport:
        layout = self.layout["source_root"]
        has_val = "val" in layout.splits
        wanted = splits if has_val else {"train": True}
        report = inspect_root(layout, self.source_root, wanted, "source_root", self.allow_partial)
        if has_val or not report.ok:
            return report
        train = report.splits["train"]
        if len(train.pairs) <= self.num_val:
            problem = f"num_val={self.num_val} leaves none of {len(train.pairs)} labelled images to train on"
            return dataclasses.replace(report, problems=(problem,))
        # The last ones in a row: frames of one drive resemble each other.
        parts = {"train": train.pairs[: -self.num_val], "val": train.pairs[-self.num_val :]}
        found = {name: dataclasses.replace(train, name=name, pairs=parts[name]) for name in splits}
        return dataclasses.replace(report, splits=found)
