"""Semantic segmentation of street scenes: what its benchmarks share, and unsupervised domain adaptation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from datamodules.array_cache import disk_cache
from datamodules.base import BenchmarkDataModule, coming_stage
from datamodules.batches import Domain, random_flip, set_aside
from datamodules.class_counts import count_classes
from datamodules.image_cache import ImageCache
from datamodules.labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from datamodules.layout import LayoutReport, Pair
from datamodules.readers import Cache, RandomCrop, SegmentationDataset, Size
from datamodules.sampling import JointDataset, RareClassPicker


class SegmentationDataModule(BenchmarkDataModule):
    """What the tasks share: Cityscapes' classes, evaluation on whole images, and the flip.

    Images are resized as in training; labels keep their stored size, at which predictions are to be
    evaluated. Subclasses spell out all arguments; ``loading`` are those of
    :class:`~datamodules.base.BenchmarkDataModule`.
    """

    classes = CITYSCAPES_CLASSES
    palette = CITYSCAPES_PALETTE
    num_classes = len(CITYSCAPES_CLASSES)
    eval_classes = tuple(range(len(CITYSCAPES_CLASSES)))
    #: The argument whose root holds the images of evaluation.
    eval_root: ClassVar[str]
    #: The argument whose root holds the images of ``predict_split``, where that is another one.
    predict_root: ClassVar[str | None] = None
    #: Whether labels of unlabelled training images are read, for monitors alone: benchmarks that render them.
    keeps_truth: ClassVar[bool] = False
    #: Labels ``[B, H, W]`` of the unlabelled images of the batch that is trained on, trainIds. They are taken out of a
    #: batch before anybody gets it, so that no method, loss or labeller can see them.
    truth: Tensor | None = None

    def __init__(
        self, resize: Size | None, crop: Size | None, flip: float, cache: Cache, **loading: Any
    ) -> None:
        super().__init__(**loading)
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got {flip}.")
        self.resize, self.flip, self.cache = resize, flip, cache
        self.crop = None if crop is None else RandomCrop(crop)
        self.disk_cache = disk_cache(cache, ImageCache)

    @abstractmethod
    def train_dataset(self, reports: Mapping[str, LayoutReport]) -> JointDataset:
        """The draws of training, from the checked roots."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The resize of evaluation images."""
        return {} if self.resize is None else {"resize": list(self.resize)}

    def prepare_data(self) -> None:
        """Decode what the coming stage reads, where ``cache`` keeps it on disk."""
        if self.disk_cache is not None:
            opened = self._opened(coming_stage(self.trainer)).values()
            jobs = dict.fromkeys(job for dataset in opened for part in _parts(dataset) for job in part.jobs())
            self.disk_cache.ensure(list(jobs), self.num_workers)

    def setup(self, stage: str | None = None) -> None:
        """Check the roots this stage needs and open their datasets.

        Raises:
            LayoutError: a root is not as its layout declares.
            CacheError: a file is not in the cache on disk, or has changed since.
        """
        opened = self._opened(stage)
        if self.disk_cache is not None:
            for part in (part for dataset in opened.values() for part in _parts(dataset)):
                part.read_from(self.disk_cache)
        self.datasets |= opened

    def _opened(self, stage: str | None) -> dict[str, SegmentationDataset | JointDataset]:
        reports = self.checked(stage)
        datasets: dict[str, SegmentationDataset | JointDataset] = {}
        for name, split in self.eval_splits(stage).items():
            report = reports[(name == "predict" and self.predict_root) or self.eval_root]
            datasets[name] = SegmentationDataset(
                self.usable_pairs(report, split),
                # None for images whose labels are kept by the benchmark's server.
                report.splits[split].encoding,
                self.resize,
                resize_label=False,
                cache=self.cache,
            )
        if stage in (None, "fit"):
            datasets["train"] = self.train_dataset(reports)
        return datasets

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """As every benchmark's; the truth of unlabelled images is set aside."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if "image" not in batch:
            truth = set_aside(batch)
            self.truth = None if truth is None else truth.long()
        return batch

    def augment(self, batch: dict[str, Domain]) -> dict[str, Domain]:
        """Mirror images at random, then convert them."""
        # Flipping bytes moves a quarter of the memory that flipping floats would.
        return super().augment({domain: random_flip(tensors, self.flip) for domain, tensors in batch.items()})


class UDASegmentation(SegmentationDataModule):
    """Unsupervised domain adaptation: labelled source images, unlabelled target images.

    Training batches are ``{"source": {image, label, index}, "target": {image, index}}``; target labels are not even
    opened, except by benchmarks that render them, which keep them aside (:attr:`truth`). The defaults are those of
    GTA5 → Cityscapes (DAFormer, CVPR 2022, and FST, NeurIPS 2022).

    Args:
        source_root: folder of the source tree.
        target_root: folder of the target tree.
        batch_size: source images, and target images, a step on every device.
        eval_batch_size: images a batch in validation, test and prediction; 1 where their sizes differ.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        source_resize: bounds of the long and short side of source images; the aspect ratio is kept.
        target_resize: the same for target images, in training and evaluation.
        crop: height and width of training windows; None takes whole images.
        crop_target: False hands target images over whole, for methods that cut them by their pseudo-labels.
        flip: probability of mirroring a training image.
        source_augment: photometric augmentation of labelled images on the device: a module that maps float
            images ``[B,3,H,W]`` in [0, 1] to the same. True takes ``zoo.nn.augment.PhotometricJitter()``.
        predict_split: split of the target that ``zoo predict`` labels, without reading labels: ``test`` makes the
            files of an evaluation server. None takes the benchmark's own.
        oracle: labelled images are those of the target: the upper bound of adaptation.
        rare_class_temperature: draw labelled images by the rarity of their classes, see
            :func:`~datamodules.sampling.rare_class_probabilities` (published: 0.01); None draws them
            uniformly.
        rare_class_min_pixels: an image is a candidate for a class if it has more pixels of it than this.
        rare_class_min_crop_pixels: its window is drawn again, up to ten times, until it holds more than this
            many.
        cache: ``ram`` keeps decoded images in memory, for small sets; true keeps them on disk, decoded and resized, in
            ``$SELFZOO_CACHE``, a folder keeps them there: filled once by ``prepare_data``, read memory-mapped.
        skip_broken: leave out damaged pairs and count them, instead of stopping.
        allow_partial: accept another number of images than was published.
    """

    eval_root = "target_root"

    def __init__(
        self,
        source_root: str | None = None,
        target_root: str | None = None,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int | None = None,
        source_resize: Size | None = (1280, 720),
        target_resize: Size | None = (1024, 512),
        crop: Size | None = (512, 512),
        crop_target: bool = True,
        flip: float = 0.5,
        source_augment: nn.Module | bool = False,
        predict_split: str | None = None,
        oracle: bool = False,
        rare_class_temperature: float | None = None,
        rare_class_min_pixels: int = 3000,
        rare_class_min_crop_pixels: int = 1500,
        cache: Cache = "none",
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(
            target_resize,
            crop,
            flip,
            cache,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            skip_broken=skip_broken,
            allow_partial=allow_partial,
        )
        self.source_root, self.target_root = source_root, target_root
        if predict_split is not None:
            known = self.layout[self.eval_root].splits
            if predict_split not in known:
                raise ValueError(f"predict_split must be one of {', '.join(known)}, got {predict_split!r}.")
            self.predict_split = predict_split
        self.source_resize, self.oracle, self.crop_target = source_resize, oracle, crop_target
        self.source_augment = _resolve_augment(source_augment)
        self.rare_class_temperature, self.rare_class_min_pixels = (
            rare_class_temperature,
            rare_class_min_pixels,
        )
        self.labelled_crop = (
            None if crop is None else RandomCrop(crop, min_rare_pixels=rare_class_min_crop_pixels)
        )

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Training images of both domains (source ones labelled), evaluation images of the target."""
        target = self.eval_needs(stage)
        if stage not in (None, "fit"):
            return {"target_root": target}
        if self.oracle:
            return {"target_root": {"train": True, **target}}
        return {"source_root": {"train": True}, "target_root": {"train": self.keeps_truth, **target}}

    def prepare_data(self) -> None:
        """Count the classes of labelled images once, if rare ones are to be preferred; fill a cache on disk."""
        if self.rare_class_temperature is not None and coming_stage(self.trainer) in (None, "fit"):
            report = self.checked("fit")[self._labelled_root]
            self._rare_class_picker(report, self.usable_pairs(report, "train"))
        super().prepare_data()

    def train_dataset(self, reports: Mapping[str, LayoutReport]) -> JointDataset:
        """Independent draws of both domains."""
        report = reports[self._labelled_root]
        pairs = self.usable_pairs(report, "train")
        labelled = SegmentationDataset(
            pairs,
            report.splits["train"].encoding,
            self.resize if self.oracle else self.source_resize,
            crop=self.labelled_crop,
            cache=self.cache,
        )
        unlabelled = self.target_dataset(reports["target_root"])
        pickers = {}
        if self.rare_class_temperature is not None:
            pickers["source"] = self._rare_class_picker(report, pairs)
        return JointDataset({"source": labelled, "target": unlabelled}, self.draw_seed, pickers)

    def target_dataset(self, report: LayoutReport) -> SegmentationDataset:
        """The unlabelled images."""
        return SegmentationDataset(
            self.usable_pairs(report, "train"),
            report.splits["train"].encoding if self.keeps_truth else None,
            self.resize,
            crop=self.crop if self.crop_target else None,
            cache=self.cache,
            truth=True,
        )

    def augment(self, batch: dict[str, Domain]) -> dict[str, Domain]:
        """Mirror both domains at random; then ``source_augment``."""
        batch = super().augment(batch)
        if self.source_augment is not None:
            image = batch["source"]["image"]
            batch["source"]["image"] = self.source_augment.to(image.device)(image)
        return batch

    @property
    def _labelled_root(self) -> str:
        return "target_root" if self.oracle else "source_root"

    def _rare_class_picker(self, report: LayoutReport, pairs: Sequence[Pair]) -> RareClassPicker:
        encoding = report.splits["train"].encoding
        if self.rare_class_temperature is None or encoding is None or report.root is None:
            raise ValueError("Rare-class sampling needs rare_class_temperature and labelled images.")
        counts = count_classes(pairs, encoding, report.root)[:, : self.num_classes]
        return RareClassPicker(counts, self.rare_class_temperature, self.rare_class_min_pixels, self.classes)


def _parts(dataset: SegmentationDataset | JointDataset) -> list[SegmentationDataset]:
    return list(dataset.domains.values()) if isinstance(dataset, JointDataset) else [dataset]


def _resolve_augment(augment: nn.Module | bool) -> nn.Module | None:
    if isinstance(augment, nn.Module):
        return augment
    if not augment:
        return None
    from zoo.nn.augment import PhotometricJitter  # importing datamodules must not import the zoo's networks

    return PhotometricJitter()
