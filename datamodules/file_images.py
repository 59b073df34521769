"""Image sets that are read file by file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.array_cache import disk_cache
from datamodules.base import coming_stage
from datamodules.image_cache import ImageCache
from datamodules.image_sets import FileImages, ImageSource
from datamodules.image_sizes import centre_boxes
from datamodules.images import ImageDataModule
from datamodules.layout import LayoutError, LayoutReport, Pair
from datamodules.readers import Cache


class FileImageDataModule(ImageDataModule):
    """A set of image files, decoded and resized by the loaders.

    Evaluation cuts the central square. Training cuts a square at a random place, of which views or crops are made
    on the device: scales of crops are then shares of that square. With ``window: whole`` they are shares of the
    whole image, as in the recipes of DINO, iBOT, DINOv2 and POA (``RandomResizedCrop`` of the file). Loaders then hand
    over whole images, padded to the longest side of the batch, and their ``size``; once views or crops are made,
    ``image`` is a square like those of evaluation, and monitors see no padding.

    Args:
        image_size: height and width of the square.
        resize: length of the short side before that (bicubic); None keeps the stored size.
        window: what training draws of an image: a random ``square``, or the ``whole`` image.
        longest_side: whole images that are larger are shrunk to it. Of 512 x 384 pixels the least boxes of DINOv2's
            recipe (32 % of the area for views of 224 pixels, 5 % for those of 96) have some 250 and 99 pixels a side,
            so that views are rarely magnified by what was lost, and ImageNet's usual photographs (500 x 375) stay as
            they are. Loaders hand over up to 0.8 MB an image, five times a square of 224.
        views: see :class:`ImageDataModule`; of whole images its ``forward`` also takes their ``size``, int64 ``[B,2]``,
            as :class:`zoo.nn.MultiCrop` does.
        num_workers: loader processes; 0 loads in the training process.
        batch_size: training images a step, on every device.
        eval_batch_size: images a batch in validation, test, prediction, and of the bank.
        cache: true keeps decoded and resized images on disk, in ``$SELFZOO_CACHE``, a folder keeps them there: filled
            once by ``prepare_data``, read memory-mapped. Three bytes a pixel of the resized images; training
            images are kept in both forms where ``window`` is ``whole``: for training, and for probes.
        **common: see :class:`ImageDataModule`.

    Raises:
        ValueError: an argument is out of range, or one that whole images exclude.
    """

    #: Whether files of classes that are not asked for are left out, instead of being an error.
    skips_other_classes: ClassVar[bool] = False

    def __init__(
        self,
        image_size: int = 224,
        resize: int | None = 256,
        window: Literal["square", "whole"] = "square",
        longest_side: int = 512,
        views: nn.Module | None = None,
        num_workers: int = 4,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        cache: Cache = "none",
        **common: Any,
    ) -> None:
        super().__init__(
            num_workers=num_workers,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            views=views,
            **common,
        )
        if image_size < 1 or (resize is not None and resize < image_size):
            raise ValueError(
                f"image_size={image_size} must be at least 1 and fit into images resized to resize={resize} "
                "pixels (short side): raise resize or lower image_size."
            )
        self.image_size: int = image_size
        self.resize, self.window, self.longest_side = resize, window, longest_side
        self._check_window()
        self.disk_cache: ImageCache | None = disk_cache(cache, ImageCache, "image files")
        self._prepared: set[str] = set()

    def _check_window(self) -> None:
        """Raise a ValueError that names the first argument that does not go with ``window``."""
        if self.window not in ("square", "whole"):
            raise ValueError(f"window must be square or whole, got {self.window!r}.")
        if self.window == "square":
            return
        if self.longest_side < self.image_size:
            raise ValueError(
                f"longest_side={self.longest_side} shrinks whole images below image_size={self.image_size}: raise it, "
                "or lower image_size."
            )
        if self.crop_scale is None:
            raise ValueError(
                "crop_scale: null would squeeze whole images into squares: give its bounds, or set window: square."
            )
        if self.views is not None and "size" not in signature(self.views.forward).parameters:
            raise ValueError(
                f"window: whole pads images, and views={type(self.views).__name__} takes no size that tells where they "
                "end: use zoo.nn.MultiCrop, or set window: square."
            )

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
        return self.images_of(split, base, paths, np.array(labels, np.int64))

    def images_of(self, split: str, root: Path, paths: Sequence[str], labels: np.ndarray) -> FileImages:
        """The files of a split, by paths relative to ``root``, with their labels."""
        whole = self.longest_side if self.window == "whole" and split == "train" else None
        cache = self.cache_of(split)
        return FileImages(root, paths, labels, self.image_size, self.resize, cache, whole)

    # Batches of whole images.

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Everything but ``size``, which stays on the host, where boxes are drawn: a step never waits for it."""
        here = {key: value for key, value in batch.items() if key == "size"}
        there = {key: value for key, value in batch.items() if key != "size"}
        return {**super().transfer_batch_to_device(there, device, dataloader_idx), **here}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """As in every set of images; padded ones that are not for training become :meth:`centred` squares."""
        if "size" in batch and "draw" not in batch:
            return self.centred(batch)
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def augment_images(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make ``views`` of a flat training batch, or crop and mirror its images; neither sees any padding."""
        if "size" not in batch:
            return super().augment_images(batch)
        image, size = batch["image"], batch["size"]
        if self.views is not None:
            return {**self.centred(batch), "views": self.views.to(image.device)(image, size)}
        crops = self.crop_and_mirror(image, size)
        return {**{key: value for key, value in batch.items() if key != "size"}, "image": crops}

    def centred(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of padded images with the squares that evaluation would see in their place, and without sizes."""
        from zoo.nn.resample import crop_resize  # importing datamodules must not import the zoo's networks

        image: Tensor = batch["image"]
        boxes = centre_boxes(batch["size"].cpu(), self.image_size, self.resize)
        upright = torch.zeros(1, len(image), dtype=torch.bool)
        squares = crop_resize(image, boxes[None], upright, self.image_size)
        return {**{key: value for key, value in batch.items() if key != "size"}, "image": squares}
