"""GTA5 (Richter et al., ECCV 2016) → Cityscapes (Cordts et al., CVPR 2016): from rendered to real streets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datamodules.layout import CITYSCAPES, GTA5, Layout
from datamodules.segmentation import UDASegmentation


class GTA5Cityscapes(UDASegmentation):
    """24,966 labelled game frames, 2,975 unlabelled and 500 labelled validation photographs, 19 classes.

    The defaults of :class:`~datamodules.segmentation.UDASegmentation` are this benchmark's published sizes:
    source frames 1280×704, target images 1024×512, windows of 512×512, two images of each domain; whole
    validation images against labels of 2048×1024.
    """

    name = "gta5_cityscapes"
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": GTA5, "target_root": CITYSCAPES}
