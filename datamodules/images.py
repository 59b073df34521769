"""Image benchmarks: what classification and pre-training sets share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.base import BenchmarkDataModule
from datamodules.batches import to_float
from datamodules.cache import cache_root
from datamodules.image_sets import (
    NO_LABEL,
    DrawnImages,
    ImageSource,
    ImageSubset,
    as_batch,
    balanced_choice,
)
from datamodules.layout import Layout, LayoutError, LayoutReport, inspect_root, require
from datamodules.sampling import StridedSampler


class ImageDataModule(BenchmarkDataModule):
    """A set of labelled images, for pre-training (with ``views``) or for supervised training (without).

    Loader batches are flat: ``{image: uint8 [B,3,H,W], label: int64 [B], index: int64 [B]}``, in evaluation
    also ``name`` where images are files. After :meth:`on_after_batch_transfer` images are float in [0, 1].
    Training batches then hold ``views``, made by the module of that name, or a random resized crop of
    ``image``, mirrored at random. :meth:`bank_dataloader` shows the labelled training images like evaluation
    images: for k-NN and linear probes.

    Subclasses declare ``layout`` and read its splits with :meth:`read`. Where the official set has no
    validation images (``holds_out_val``), a fixed part of the training images takes their place.

    Args:
        root: folder of the official tree.
        batch_size: training images a step, on every device.
        eval_batch_size: images a batch in validation, test, prediction, and of the bank.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        num_train: use only so many training images, with equal shares of their classes; None uses all.
        num_val: training images held out for validation, where the set has none of its own; None takes
            ``default_num_val``.
        labelled_fraction: share of training images whose labels are used: by supervised training, which sees
            no others, and by the bank. Pre-training still sees all images.
        split_seed: of ``num_train``, ``num_val`` and ``labelled_fraction``; not that of training.
        views: a module that makes the views of pre-training from images ``[B,3,H,W]`` uint8, on the device.
        flip: probability of mirroring in supervised training; None takes 0.5 where a mirrored image keeps its
            class, and otherwise 0.
        crop_scale: bounds of the share of its area that supervised training sees of an image; None shows it
            whole.
        download: let torchvision download the set into ``root`` (default: a folder of the cache) and check
            it.
        skip_broken: leave out damaged files and count them, instead of stopping.
        allow_partial: accept another number of files than was published.

    Raises:
        ValueError: an argument is out of range, or the set cannot be downloaded.
    """

    module_arguments = ("views",)
    collate: ClassVar[Callable[[Any], dict[str, Any]]] = staticmethod(as_batch)
    test_split = "test"
    #: Whether the official set lacks validation images.
    holds_out_val: ClassVar[bool] = False
    default_num_val: ClassVar[int] = 5000
    #: Height and width of what evaluation shows; None: as stored.
    image_size: int | None = None
    #: Whether a mirrored image still shows its class.
    mirrors: ClassVar[bool] = True
    #: Class of ``torchvision.datasets`` that downloads the set, and its arguments for every part.
    torchvision_class: ClassVar[str | None] = None
    download_parts: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        num_train: int | None = None,
        num_val: int | None = None,
        labelled_fraction: float = 1.0,
        split_seed: int = 0,
        views: nn.Module | None = None,
        flip: float | None = None,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        download: bool = False,
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(
            batch_size,
            eval_batch_size,
            num_workers,
            seed,
            skip_broken=skip_broken,
            allow_partial=allow_partial,
        )
        _check_numbers(num_train, num_val, labelled_fraction, flip, crop_scale)
        if download and self.torchvision_class is None:
            raise ValueError(
                f"{type(self).__name__} cannot be downloaded automatically (download: true). Get it from "
                f"{self.layout['root'].origin} and set root."
            )
        self.root = root if root or not download else str(cache_root() / self.name)
        self.num_val = self.default_num_val if num_val is None else num_val
        self.num_train, self.labelled_fraction = num_train, labelled_fraction
        self.split_seed, self.views, self.crop_scale, self.download = split_seed, views, crop_scale, download
        self.flip = flip if flip is not None else 0.5 * self.mirrors
        self._reports: dict[str, LayoutReport] = {}
        self._sources: dict[str, ImageSource] = {}

    # What is on disk.

    @abstractmethod
    def read(self, split: str, report: LayoutReport | None) -> ImageSource:
        """Open an official split; ``report`` tells its files, None where the set has no root."""

    def tree(self) -> Layout:
        """The layout expected at ``root``."""
        return self.layout["root"]

    def folder(self) -> str | None:
        """The folder that :meth:`tree` describes."""
        return self.root

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Official splits of a stage; labels are no files of their own."""
        names = [*(["train"] if stage in (None, "fit") else []), *self.eval_splits(stage).values()]
        return {"root": {self._official(name): False for name in names}} if self.layout else {}

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Compare the root with its layout; raises nothing."""
        return {root: self._inspect(splits) for root, splits in self.needs(stage).items()}

    def _inspect(self, splits: Mapping[str, bool]) -> LayoutReport:
        return inspect_root(self.tree(), self.folder(), splits, "root", self.allow_partial)

    def prepare_data(self) -> None:
        """Download the set, if asked to; torchvision checks its checksums."""
        if self.download and self.torchvision_class is not None:
            import torchvision

            assert self.root is not None
            Path(self.root).expanduser().mkdir(parents=True, exist_ok=True)
            for arguments in self.download_parts:
                getattr(torchvision.datasets, self.torchvision_class)(
                    Path(self.root).expanduser(), download=True, **arguments
                )

    def setup(self, stage: str | None = None) -> None:
        """Check what this stage needs and open its datasets; raises LayoutError at once."""
        for report in self.checked(stage).values():
            self._reports.update(dict.fromkeys(report.splits, report))
        for name, split in self.eval_splits(stage).items():
            self.datasets[name] = self.subset(split)
        if stage in (None, "fit"):
            shown = self.subset("train" if self.views is not None else "labelled")
            self.datasets["train"] = DrawnImages(shown, self.draw_seed)

    # Splits.

    def subset(self, name: str) -> ImageSubset:
        """Images of ``train``, ``labelled`` (its labelled part), ``val`` or ``test``.

        Raises:
            LayoutError: the root does not hold the split.
            ValueError: ``num_train``, ``num_val`` or ``labelled_fraction`` do not fit the set.
        """
        if name == "val" and self.holds_out_val:
            return self._held_out()[1]
        if name not in ("train", "labelled"):
            return ImageSubset(self.source(name))
        train = self._held_out()[0] if self.holds_out_val else ImageSubset(self.source("train"))
        if self.num_train is not None:
            if self.num_train > len(train):
                raise ValueError(f"num_train={self.num_train}, but there are {len(train)} training images.")
            train = train.part(balanced_choice(train.labels, self.num_train, self.split_seed + 1))
        return train if name == "train" else self._labelled(train)

    def source(self, split: str) -> ImageSource:
        """An official split, opened once."""
        official = self._official(split)
        if official not in self._sources:
            if self.layout and official not in self._reports:
                self._reports[official] = self._inspect({official: False})
                require([self._reports[official]])
            source = self.read(official, self._reports.get(official))
            self._check_labels(official, source.labels)
            self._sources[official] = source
        return self._sources[official]

    def held_out_candidates(self, train: ImageSubset) -> np.ndarray:
        """Positions in the official training images of those that may be held out for validation."""
        return self.labelled_candidates(train)

    def labelled_candidates(self, train: ImageSubset) -> np.ndarray:
        """Positions in the training images of those whose labels may be used."""
        return np.flatnonzero(train.labels != NO_LABEL)

    def _official(self, name: str) -> str:
        return "train" if name == "val" and self.holds_out_val else name

    def _held_out(self) -> tuple[ImageSubset, ImageSubset]:
        """Official training images without those held out for validation, and these."""
        everything = ImageSubset(self.source("train"))
        candidates = self.held_out_candidates(everything)
        if self.num_val >= len(candidates):
            raise ValueError(
                f"num_val={self.num_val} must leave some of the {len(candidates)} labelled training images."
            )
        val = candidates[balanced_choice(everything.labels[candidates], self.num_val, self.split_seed)]
        return everything.part(np.delete(np.arange(len(everything)), val)), everything.part(val)

    def _labelled(self, train: ImageSubset) -> ImageSubset:
        labelled = train.part(self.labelled_candidates(train))
        count = round(self.labelled_fraction * len(labelled))
        chosen = labelled.part(balanced_choice(labelled.labels, count, self.split_seed + 2))
        if missing := set(labelled.labels.tolist()) - set(chosen.labels.tolist()):
            raise ValueError(
                f"labelled_fraction={self.labelled_fraction} labels {count} of {len(labelled)} training images "
                f"and none of {len(missing)} classes, e.g. class {min(missing)}. Raise it."
            )
        return chosen

    def _check_labels(self, split: str, labels: np.ndarray) -> None:
        wrong = labels[(labels >= self.num_classes) | (labels < NO_LABEL)]
        if len(wrong):
            raise LayoutError(
                f"{type(self).__name__}: {len(wrong)} labels of {split} are outside the {self.num_classes} "
                f"classes, e.g. {int(wrong[0])} (root={self.root!r})."
            )

    # Loaders and batches.

    def bank_dataloader(self) -> DataLoader[Any]:
        """The labelled training images in order, each exactly once over all ranks, as evaluation shows them."""
        return self.subset_dataloader("labelled")

    def subset_dataloader(self, name: str) -> DataLoader[Any]:
        """Images of a :meth:`subset` in order, each exactly once over all ranks."""
        subset = self.subset(name)
        return self._loader(
            subset, self.eval_batch_size, StridedSampler(len(subset), *self._rank_and_ranks())
        )

    def labelled_dataloader(self, batch_size: int) -> DataLoader[Any]:
        """Shuffled labelled training images, for probes that augment them with :meth:`crop_and_mirror`."""
        draws, (rank, ranks) = DrawnImages(self.subset("labelled"), self.draw_seed), self._rank_and_ranks()
        steps = max(1, len(draws) // (batch_size * ranks))
        sampler = StridedSampler(steps * batch_size * ranks, rank, ranks, endless=True)
        return self._loader(draws, batch_size, sampler)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 → float images in [0, 1]; training batches get their views or are augmented, and are split."""
        if "draw" not in batch:
            return to_float(batch)
        pieces = {key: value.split(self.batch_size) for key, value in batch.items()}
        steps = [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]
        current, *future = [self.augment_images(step) for step in steps]
        return {**current, "future": future} if future else current

    def augment_images(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make ``views`` of a flat training batch, or crop and mirror its images."""
        image = batch["image"]
        if self.views is not None:
            return {**to_float(batch), "views": self.views.to(image.device)(image)}
        return {**batch, "image": self.crop_and_mirror(image)}

    def crop_and_mirror(self, image: Tensor, size: Tensor | None = None) -> Tensor:
        """Random resized crops of images ``[B,3,H,W]`` uint8, some mirrored, as float.

        Args:
            image: squares, whose crops have their size.
            size: (height, width) of images that are padded, int64 ``[B,2]``: their crops have ``image_size``.
        """
        # Importing datamodules must not import the zoo's networks.
        from zoo.nn.multicrop import random_boxes
        from zoo.nn.ranks import this_rank
        from zoo.nn.resample import crop_resize

        B, _, H, W = image.shape
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) + this_rank())
        sizes = torch.tensor([H, W]).expand(B, 2) if size is None else size.cpu()
        boxes = torch.cat((torch.zeros_like(sizes), sizes), 1)
        if self.crop_scale is not None:
            boxes = random_boxes(sizes, self.crop_scale, (3 / 4, 4 / 3), generator)
        mirrored = torch.rand(B, generator=generator) < self.flip
        side = W if size is None or self.image_size is None else self.image_size
        return crop_resize(image, boxes[None], mirrored[None], side)


def _check_numbers(
    num_train: int | None,
    num_val: int | None,
    labelled_fraction: float,
    flip: float | None,
    crop_scale: tuple[float, float] | None,
) -> None:
    """Raise a ValueError that names the first argument out of range."""
    if num_train is not None and num_train < 1:
        raise ValueError(f"num_train must be at least 1, got {num_train}.")
    if num_val is not None and num_val < 1:
        raise ValueError(f"num_val must be at least 1, got {num_val}.")
    if not 0 < labelled_fraction <= 1:
        raise ValueError(f"labelled_fraction must lie in (0, 1], got {labelled_fraction}.")
    if flip is not None and not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability in [0, 1], got {flip}.")
    if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"crop_scale must be two shares 0 < low <= high <= 1, got {crop_scale}.")
