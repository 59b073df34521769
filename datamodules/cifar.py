"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 60,000 colour images of 32×32 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from datamodules.image_archives import read_pickle
from datamodules.layout import Layout, LayoutError, Split
from datamodules.memory_images import MemoryImageDataModule
from datamodules.readers import BrokenImageError

_ORIGIN: Final = "www.cs.toronto.edu/~kriz/cifar.html: {}, or download: true"


class CIFAR10(MemoryImageDataModule):
    """Ten classes; 50,000 training images, of which 5,000 are held out for validation, and 10,000 of test.

    ``root`` is the folder that holds ``cifar-10-batches-py``, the extracted Python version of the set.
    """

    name = "cifar10"
    num_classes = 10
    classes: ClassVar[tuple[str, ...]] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="CIFAR-10",
            images="cifar-10-batches-py",
            suffix="",
            labels=(),
            splits={"train": Split("data_batch_*", (5,)), "test": Split("test_batch", (1,))},
            origin=_ORIGIN.format("cifar-10-python.tar.gz"),
            unit="files",
        )
    }
    holds_out_val = True
    torchvision_class = "CIFAR10"
    label_key: ClassVar[str] = "labels"

    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of the split's batches, in the order of their names."""
        tree = self.tree()
        files = [path for p in tree.splits[split].patterns for path in (folder / tree.images).glob(p)]
        parts = [self._batch(path) for path in sorted(files)]
        pixels = np.concatenate([part[0] for part in parts])
        return pixels, np.concatenate([part[1] for part in parts])

    def _batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        content = read_pickle(path)
        pixels, labels = content.get("data"), content.get(self.label_key)
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.ndim != 2
            or pixels.shape[1] != 3072
            or labels is None
        ):
            raise BrokenImageError(
                f"{path} is no batch of {type(self).__name__}: expected 'data' of 3072 bytes an image and "
                f"{self.label_key!r}, found {sorted(map(str, content))}."
            )
        if len(pixels) != len(labels):
            raise LayoutError(f"{path} holds {len(pixels)} images but {len(labels)} labels.")
        return pixels.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


class CIFAR100(CIFAR10):
    """A hundred classes of 600 images; the split is that of :class:`CIFAR10`. Fine labels are used.

    ``root`` is the folder that holds ``cifar-100-python``. Class names are read from its file ``meta``.
    """

    name = "cifar100"
    num_classes = 100
    classes: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="CIFAR-100",
            images="cifar-100-python",
            suffix="",
            labels=(),
            splits={"train": Split("train", (1,)), "test": Split("test", (1,))},
            origin=_ORIGIN.format("cifar-100-python.tar.gz"),
            unit="files",
        )
    }
    torchvision_class = "CIFAR100"
    download_parts: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    label_key = "fine_labels"

    def arrays(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and fine labels; also takes the class names from ``meta``."""
        names = read_pickle(folder / self.tree().images / "meta").get("fine_label_names", ())
        self.classes = tuple(names)  # type: ignore[misc]
        return super().arrays(split, folder)
