"""Image sets that are read file by file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.array_cache import disk_cache
from datamodules.base import coming_stage
from datamodules.image_cache import ImageCache
from datamodules.image_sets import FileImages, ImageSource
from datamodules.images import ImageDataModule
from datamodules.layout import LayoutError, LayoutReport, Pair
from datamodules.readers import Cache


class FileImageDataModule(ImageDataModule):
    """A set of image files, decoded, resized and cut to a square by the loaders.

    Evaluation cuts the centre. Training cuts a square at a random place, of which views or crops are then
    made on the device.

    Args:
        image_size: height and width of the square.
        resize: length of the short side before that (bicubic); None keeps the stored size.
        num_workers: loader processes; 0 loads in the training process.
        batch_size: training images a step, on every device.
        eval_batch_size: images a batch in validation, test, prediction, and of the bank.
        cache: true keeps decoded and resized images on disk, in ``$SELFZOO_CACHE``, a folder keeps them there: filled
            once by ``prepare_data``, read memory-mapped. Three bytes a pixel of the resized images.
        **common: see :class:`ImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    #: Whether files of classes that are not asked for are left out, instead of being an error.
    skips_other_classes: ClassVar[bool] = False

    def __init__(
        self,
        image_size: int = 224,
        resize: int | None = 256,
        num_workers: int = 4,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        cache: Cache = "none",
        **common: Any,
    ) -> None:
        super().__init__(
            num_workers=num_workers, batch_size=batch_size, eval_batch_size=eval_batch_size, **common
        )
        if image_size < 1 or (resize is not None and resize < image_size):
            raise ValueError(
                f"image_size={image_size} must be at least 1 and fit into images resized to resize={resize} "
                "pixels (short side): raise resize or lower image_size."
            )
        self.image_size, self.resize = image_size, resize
        self.disk_cache: ImageCache | None = disk_cache(cache, ImageCache, "image files")
        self._prepared: set[str] = set()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The resize and centre crop of evaluation images."""
        resize = {} if self.resize is None else {"short_side": self.resize}
        return {**resize, "crop": self.image_size}

    @abstractmethod
    def class_names(self, root: Path) -> tuple[str, ...]:
        """Names of the classes as files tell them, in the order of their numbers."""

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """The class name of every file: by default the folder below that of the split."""
        return [pair.image.relative_to(base).parts[1] for pair in pairs]

    def prepare_data(self) -> None:
        """Download the set, if asked to; decode what the coming stage reads, where ``cache`` keeps it on disk."""
        super().prepare_data()
        if self.disk_cache is None:
            return
        for split in self._prepare(coming_stage(self.trainer)):
            source = self.source(split)
            assert isinstance(source, FileImages)
            self.disk_cache.ensure(source.jobs(), self.num_workers)

    def setup(self, stage: str | None = None) -> None:
        """Check what this stage needs and open its datasets; raises LayoutError at once."""
        self._prepare(stage)
        super().setup(stage)

    def _prepare(self, stage: str | None) -> list[str]:
        splits = [*self.needs(stage)["root"]]
        self._prepared |= set(splits)
        return splits

    def cache_of(self, split: str) -> ImageCache | None:
        """Where the images of a split are kept; probes of a stage that does not show the split decode its files."""
        return self.disk_cache if split in self._prepared else None

    def read(self, split: str, report: LayoutReport | None) -> ImageSource:
        """List the files of a split with their labels; nothing is decoded yet."""
        assert report is not None
        assert report.root is not None
        base = report.root / report.layout.images
        self.classes = self.class_names(base)  # type: ignore[misc]
        number = {name: index for index, name in enumerate(self.classes)}
        pairs = self.usable_pairs(report, split)
        labels, paths = [], []
        for pair, name in zip(pairs, self.class_of(split, base, pairs), strict=True):
            if name in number:
                labels.append(number[name])
                paths.append(pair.image.relative_to(base).as_posix())
            elif not self.skips_other_classes:
                raise LayoutError(
                    f"{pair.image} is of class {name!r}, which is none of the {len(number)} classes "
                    f"({', '.join(self.classes[:3])}, ...): remove it, or correct the class list."
                )
        if not labels:
            raise LayoutError(f"{report.root} holds no {split} image of the {len(number)} classes.")
        return FileImages(
            base, paths, np.array(labels, np.int64), self.image_size, self.resize, self.cache_of(split)
        )
