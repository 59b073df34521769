"""Cityscapes (Cordts et al., CVPR 2016) with few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datamodules.layout import CITYSCAPES, Layout
from datamodules.readers import Size
from datamodules.semi_segmentation import SemiSegmentation


class CityscapesSemi(SemiSegmentation):
    """2,975 training images, of which 186, 372, 744 or 1,488 are labelled, and 500 for validation; 19 classes.

    The defaults are those of U2PL (CVPR 2022) and semi-supervised FST: images resized by 0.5 to 2, windows of
    769×769.

    Args:
        crop: see :class:`~datamodules.semi_segmentation.SemiSegmentation`.
        scale: see there.
        **kwargs: see there.
    """

    name = "cityscapes_semi"
    layout: ClassVar[Mapping[str, Layout]] = {"root": CITYSCAPES}

    def __init__(
        self,
        crop: Size | None = (769, 769),
        scale: tuple[float, float] | None = (0.5, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(crop=crop, scale=scale, **kwargs)
