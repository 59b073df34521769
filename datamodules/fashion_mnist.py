"""Fashion-MNIST (Xiao et al., 2017): grey images of clothes, the small real benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from datamodules.image_archives import read_idx
from datamodules.layout import Layout, LayoutError, Split
from datamodules.memory_images import MemoryImageDataModule
from datamodules.readers import BrokenImageError

#: Where Debian's package ``dataset-fashion-mnist`` puts the official files.
DEBIAN_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
_FILE_PREFIX: Final = {"train": "train", "test": "t10k"}


class FashionMNIST(MemoryImageDataModule):
    """Ten classes; 60,000 training images, of which 10,000 are held out for validation, and 10,000 of test.

    Images are grey, 28×28 pixels, and repeated to three channels. ``root`` is the folder of the four official
    idx files, packed (``.gz``) or not, or the one torchvision downloads into. Without ``root`` they are looked
    for where the Debian package ``dataset-fashion-mnist`` puts them.
    """

    name = "fashion_mnist"
    num_classes = 10
    classes: ClassVar[tuple[str, ...]] = (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="Fashion-MNIST",
            images=".",
            suffix="",
            labels=(),
            # torchvision keeps the packed files beside the unpacked ones.
            splits={
                "train": Split("train-*-ubyte*", (2, 4)),
                "test": Split("t10k-*-ubyte*", (2, 4)),
            },
            origin="Debian package dataset-fashion-mnist, github.com/zalandoresearch/fashion-mnist, or "
            "download: true",
            unit="files",
        )
    }
    holds_out_val = True
    default_num_val = 10_000
    torchvision_class = "FashionMNIST"

    def folder(self) -> str | None:
        """The folder of the idx files."""
        if self.root is None:
            return str(DEBIAN_FOLDER)
        downloaded = Path(self.root).expanduser() / "FashionMNIST" / "raw"
        return str(downloaded) if downloaded.is_dir() else self.root

    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of the split's two idx files."""
        prefix = _FILE_PREFIX[split]
        pixels = read_idx(_packed_or_not(folder / f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(_packed_or_not(folder / f"{prefix}-labels-idx1-ubyte"))
        if pixels.ndim != 3 or labels.ndim != 1:
            raise BrokenImageError(
                f"{folder}: images of {split} have {pixels.ndim} dimensions and labels {labels.ndim}, expected 3 and 1."
            )
        return pixels[:, None], labels.astype(np.int64)


def _packed_or_not(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    if path.is_file() or packed.is_file():
        return path if path.is_file() else packed
    raise LayoutError(f"Fashion-MNIST: there is neither {path} nor {packed.name} (argument root).")
