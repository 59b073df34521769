"""Tiny-ImageNet (Stanford CS231n, 2015): 200 classes of ImageNet at 64×64 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from datamodules.file_images import FileImageDataModule
from datamodules.layout import Layout, LayoutError, Pair, Split


class TinyImageNet(FileImageDataModule):
    """100,000 training and 10,000 validation images, on which results are reported; test labels are secret.

    ``root`` is the folder that holds ``tiny-imagenet-200``.

    Args:
        image_size: height and width of the square that is cut out.
        resize: length of the short side before that (bicubic); None keeps the stored 64 pixels.
        batch_size: training images a step, on every device.
        **common: see :class:`~datamodules.file_images.FileImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "tiny_imagenet"
    num_classes = 200
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="Tiny-ImageNet",
            images="tiny-imagenet-200",
            suffix=".JPEG",
            labels=(),
            splits={"train": Split("train/*/images/*", (100000,)), "val": Split("val/images/*", (10000,))},
            origin="cs231n.stanford.edu/tiny-imagenet-200.zip",
        )
    }
    test_split = "val"

    def __init__(
        self, image_size: int = 64, resize: int | None = None, batch_size: int = 256, **common: Any
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, batch_size=batch_size, **common)

    def class_names(self, root: Path) -> tuple[str, ...]:
        """The wnids of ``wnids.txt``, in order of their names as everywhere in the field."""
        path = root / "wnids.txt"
        if not path.is_file():
            raise LayoutError(f"{path} is missing; it is part of tiny-imagenet-200.zip.")
        return tuple(sorted(path.read_text().split()))

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """The folder's name; of validation images what ``val_annotations.txt`` says."""
        if split == "train":
            return super().class_of(split, base, pairs)
        path = base / "val" / "val_annotations.txt"
        if not path.is_file():
            raise LayoutError(f"{path} is missing; it is part of tiny-imagenet-200.zip.")
        # File name, wnid, and a box: separated by tabs.
        rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
        truth = {row[0]: row[1] for row in rows if len(row) > 1}
        if unlisted := [pair.image.name for pair in pairs if pair.image.name not in truth]:
            raise LayoutError(
                f"{path} does not name {len(unlisted)} of {len(pairs)} images, e.g. {unlisted[0]}."
            )
        return [truth[pair.image.name] for pair in pairs]
