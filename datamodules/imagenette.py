"""Imagenette (Howard, 2019): ten easily told classes of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from datamodules.file_images import FileImageDataModule
from datamodules.layout import Layout, Split

Variant = Literal["full", "320px", "160px"]

_FOLDER: Final = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}
_TITLE: Final = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player",
    "n03000684": "chain saw", "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck",
    "n03425413": "gas pump", "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


def _layout(variant: Variant) -> Layout:
    folder = _FOLDER[variant]
    return Layout(
        title=f"Imagenette ({variant})",
        images=folder,
        suffix=".JPEG",
        labels=(),
        splits={"train": Split("train/*/*", (9469,)), "val": Split("val/*/*", (3925,))},
        origin=f"github.com/fastai/imagenette: {folder}.tgz, or download: true",
    )


class Imagenette(FileImageDataModule):
    """9,469 training and 3,925 validation images, on which results are reported.

    ``root`` is the folder that holds ``imagenette2-320`` (or the one of another variant).

    Args:
        variant: size of the stored images: ``full``, or short sides of ``320px`` or ``160px``.
        **common: see :class:`~datamodules.file_images.FileImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "imagenette"
    num_classes = 10
    classes: ClassVar[tuple[str, ...]] = tuple(_TITLE)
    layout: ClassVar[Mapping[str, Layout]] = {"root": _layout("320px")}
    test_split = "val"
    torchvision_class = "Imagenette"

    def __init__(self, variant: Variant = "320px", **common: Any) -> None:
        super().__init__(**common)
        if variant not in _FOLDER:
            raise ValueError(f"variant must be one of {', '.join(_FOLDER)}, got {variant!r}.")
        self.variant = variant
        self.download_parts: Sequence[Mapping[str, Any]] = ({"size": variant},)  # type: ignore[misc]

    def tree(self) -> Layout:
        """The variant's layout."""
        return _layout(self.variant)

    def class_names(self, root: Path) -> tuple[str, ...]:
        """The ten wnids."""
        return tuple(_TITLE)
