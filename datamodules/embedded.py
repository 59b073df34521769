"""Benchmarks that make their own data: StreetShift, rendered on first use outside the repository.

The source becomes a GTA5 tree and the target a Cityscapes tree, with the official names, label ids and
palette, so that the embedded benchmark runs the same code as the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import nn

from datamodules.cache import cache_root
from datamodules.layout import Layout
from datamodules.readers import Cache, Size
from datamodules.segmentation import UDASegmentation
from datamodules.semi_segmentation import SemiSegmentation
from datamodules.streetshift import TRAIN_IDS
from datamodules.streetshift_tree import SOURCE_TREE, TARGET_TREE, RenderedTree


class StreetShift(UDASegmentation):
    """Adaptation from rendered to photograph-like streets: StreetShift source → StreetShift target.

    Nine of Cityscapes' classes occur and count in the mean. Settings are to be chosen on ``val``; ``test`` is
    another range of seeds, for reporting.

    Args:
        shift: distance between the domains in [0, 1].
        num_source: labelled source images.
        num_target: unlabelled target images.
        num_val: target images of validation.
        num_test: target images of test and prediction.
        height: rows in pixels, even.
        width: columns in pixels, even.
        root: folder for the rendered trees; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        batch_size: source images, and target images, a step on every device.
        eval_batch_size: images a batch in validation, test and prediction.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``. The scenes never change.
        crop: height and width of training windows; None takes whole images.
        flip: probability of mirroring a training image.
        source_augment: photometric augmentation of labelled images, see ``UDASegmentation``.
        oracle: labelled images are those of the target: the upper bound of adaptation.
        rare_class_temperature: draw source images by the rarity of their classes; None draws them uniformly.
        rare_class_min_pixels: an image is a candidate for a class if it has more pixels of it than this.
        cache: ``ram`` keeps decoded images in memory; see ``UDASegmentation``.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "streetshift"
    keeps_truth = True
    eval_classes = TRAIN_IDS
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": SOURCE_TREE, "target_root": TARGET_TREE}
    test_split = "test"

    def __init__(
        self,
        shift: float = 0.9,
        num_source: int = 300,
        num_target: int = 300,
        num_val: int = 100,
        num_test: int = 100,
        height: int = 64,
        width: int = 128,
        root: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 20,
        num_workers: int = 0,
        seed: int | None = None,
        crop: Size | None = None,
        flip: float = 0.5,
        source_augment: nn.Module | bool = False,
        oracle: bool = False,
        rare_class_temperature: float | None = None,
        rare_class_min_pixels: int = 8,
        cache: Cache = "ram",
    ) -> None:
        self._base = Path(root).expanduser() if root else cache_root()
        target = {"train": num_target, "val": num_val, "test": num_test}
        self._source_tree = RenderedTree("source", {"source": num_source}, height, width)
        self._target_tree = RenderedTree("target", target, height, width, shift)
        super().__init__(
            source_root=str(self._source_tree.folder(self._base)),
            target_root=str(self._target_tree.folder(self._base)),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            source_resize=None,
            target_resize=None,
            crop=crop,
            flip=flip,
            source_augment=source_augment,
            oracle=oracle,
            rare_class_temperature=rare_class_temperature,
            rare_class_min_pixels=rare_class_min_pixels,
            cache=cache,
        )

    def prepare_data(self) -> None:
        """Render both domains, unless they are there already."""
        self._source_tree.ensure(self._base)
        self._target_tree.ensure(self._base)
        super().prepare_data()


class StreetShiftSemi(SemiSegmentation):
    """Semi-supervised learning on StreetShift's target domain: the images of ``StreetShift``, some of them
    labelled.

    Args:
        num_labelled: labelled images of ``num_target``.
        shift: strength of the photographic look in [0, 1].
        num_target: training images, labelled and unlabelled.
        num_val: images of validation.
        num_test: images of test and prediction.
        height: rows in pixels, even.
        width: columns in pixels, even.
        root: folder for the rendered tree; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        split_seed: of the choice of labelled images.
        batch_size: labelled images, and unlabelled images, a step on every device.
        eval_batch_size: images a batch in validation, test and prediction.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``. The scenes never change.
        crop: height and width of training windows; None takes whole images.
        flip: probability of mirroring a training image.
        cache: ``ram`` keeps decoded images in memory; see ``UDASegmentation``.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "streetshift_semi"
    keeps_truth = True
    eval_classes = TRAIN_IDS
    layout: ClassVar[Mapping[str, Layout]] = {"root": TARGET_TREE}
    test_split = "test"

    def __init__(
        self,
        num_labelled: int = 30,
        shift: float = 0.9,
        num_target: int = 300,
        num_val: int = 100,
        num_test: int = 100,
        height: int = 64,
        width: int = 128,
        root: str | None = None,
        split_seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 20,
        num_workers: int = 0,
        seed: int | None = None,
        crop: Size | None = None,
        flip: float = 0.5,
        cache: Cache = "ram",
    ) -> None:
        if num_labelled >= num_target:
            raise ValueError(f"num_labelled must be less than num_target={num_target}, got {num_labelled}.")
        self._base = Path(root).expanduser() if root else cache_root()
        target = {"train": num_target, "val": num_val, "test": num_test}
        self._tree = RenderedTree("target", target, height, width, shift)
        super().__init__(
            root=str(self._tree.folder(self._base)),
            num_labelled=num_labelled,
            split_seed=split_seed,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            crop=crop,
            flip=flip,
            cache=cache,
        )

    def prepare_data(self) -> None:
        """Render the target domain, unless it is there already."""
        self._tree.ensure(self._base)
        super().prepare_data()
