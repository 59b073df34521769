"""The base of every benchmark: facts, checked roots, loaders, and augmentation batched on the device."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.array_cache import ArrayCache
from datamodules.batches import Domain, collate, split_future, to_float
from datamodules.labels import IGNORE_INDEX, RGB
from datamodules.layout import Layout, LayoutError, LayoutReport, Pair, inspect_root, require
from datamodules.readers import drop_broken
from datamodules.sampling import ResumableLoader, StridedSampler


class BenchmarkDataModule(L.LightningDataModule, ABC):
    """A benchmark: which data, which classes count, and how batches are made.

    Subclasses declare the facts below, say with :meth:`needs` which splits a stage reads, and fill
    :attr:`datasets` in ``setup``: ``train`` (indexed by the number of the draw, without end, such as
    :class:`~datamodules.sampling.JointDataset`), ``val`` and ``test``. Training batches are nested per
    domain; evaluation batches are flat and carry ``name`` (``docs/architecture.md``).

    Args:
        batch_size: training images of every domain a step, on every device.
        eval_batch_size: images a batch in validation, test and prediction; 1 where their sizes differ.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``, or 0 without one.
        skip_broken: leave out pairs that are damaged or of unequal size (:attr:`skipped`) instead of
            stopping. Every file is read once at the start to find them.
        allow_partial: accept another number of images than was published.

    Raises:
        ValueError: a size or number is out of range.
    """

    name: str
    classes: ClassVar[tuple[str, ...]]
    palette: ClassVar[tuple[RGB, ...]]
    num_classes: ClassVar[int]
    ignore_index: ClassVar[int] = IGNORE_INDEX
    #: trainIds that count in the mean.
    eval_classes: ClassVar[tuple[int, ...]]
    #: Further means to report: metric → the trainIds that count in it.
    eval_subsets: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    #: Constructor argument that names a root → the tree expected there.
    layout: ClassVar[Mapping[str, Layout]]
    val_split: ClassVar[str] = "val"
    #: Cityscapes publishes no test labels, so results are customarily reported on its validation images.
    test_split: ClassVar[str] = "val"
    #: Images without public labels, for the evaluation server; None predicts the test images.
    predict_split: str | None = None
    #: How the benchmark's evaluation server wants classes stored: a key of ``datamodules.labels.ENCODINGS``.
    submission: ClassVar[str] = "ids"
    #: Arguments that are modules: no hyper-parameters.
    module_arguments: ClassVar[tuple[str, ...]] = ("source_augment",)
    #: Makes the batch of what a dataset returns for its positions.
    collate: ClassVar[Callable[[Any], dict[str, Any]]] = staticmethod(collate)
    #: Where decoded files are kept, in benchmarks whose argument ``cache`` asks for it.
    disk_cache: ArrayCache[Any, Any] | None = None

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__()
        for argument, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}.")
        # The logger gets the method's: equal names in both would abort the run.
        arguments = [name for name in constructor_arguments(type(self)) if name not in self.module_arguments]
        # The command line tells Lightning what was typed: without what a class fixes for its base, and, for a
        # benchmark within another one, what was typed for that.
        typed = _given_hyperparameters.get()
        if known := [name for name in arguments if typed is None or name in typed]:
            self.save_hyperparameters(*known, logger=False)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.skip_broken, self.allow_partial = seed, skip_broken, allow_partial
        #: Further batches of every step (``batch["future"]``); FutureTeacher sets it before loaders are made.
        self.future_batches = 0
        self.datasets: dict[str, Any] = {}
        #: "argument/split" → why pairs were left out (``skip_broken``).
        self.skipped: dict[str, list[str]] = {}
        #: What :meth:`checked` found last, by root argument; the run card quotes it.
        self.reports: dict[str, LayoutReport] = {}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to every image or volume before a network sees it, plain values: prediction repeats it.

        The keys are those of :func:`zoo.pictures.prepared`; ``volume`` holds the settings of volumes.
        """
        return {}

    # What is on disk.

    @abstractmethod
    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Which splits a stage (None: all stages) reads: root argument → split → whether labels are read."""

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Compare the roots with their layouts, for ``setup`` and for ``zoo doctor``; raises nothing."""
        return {
            argument: inspect_root(
                self.layout[argument], getattr(self, argument), splits, argument, self.allow_partial
            )
            for argument, splits in self.needs(stage).items()
        }

    def checked(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """:meth:`inspect`, with one :class:`~datamodules.layout.LayoutError` for everything that is wrong."""
        self.reports = self.inspect(stage)
        require(self.reports.values())
        return self.reports

    def usable_pairs(self, report: LayoutReport, split: str) -> Sequence[Pair]:
        """The pairs of a split, without the broken ones if ``skip_broken``."""
        pairs = report.splits[split].pairs
        if not self.skip_broken:
            return pairs
        usable, reasons = drop_broken(pairs)
        self.skipped[f"{report.argument}/{split}"] = reasons
        if not usable:
            raise LayoutError(f"skip_broken: no {split} pair of {report.root} is usable, e.g. {reasons[0]}.")
        if reasons:
            shown = "; ".join(reasons[:3])
            rank_zero_warn(
                f"skip_broken left out {len(reasons)} of {len(pairs)} {split} pairs of {report.root}: {shown}"
            )
        return usable

    def eval_splits(self, stage: str | None) -> dict[str, str]:
        """The evaluation datasets of a stage → the split each reads."""
        splits = {}
        if stage in (None, "fit", "validate"):
            splits["val"] = self.val_split
        if stage in (None, "test") or (stage == "predict" and self.predict_split is None):
            splits["test"] = self.test_split
        if stage in (None, "predict") and self.predict_split is not None:
            splits["predict"] = self.predict_split
        return splits

    def eval_needs(self, stage: str | None) -> dict[str, bool]:
        """The splits a stage evaluates or predicts → whether their labels are read."""
        return {split: split != self.predict_split for split in self.eval_splits(stage).values()}

    @property
    def validates_on_test(self) -> bool:
        """Whether what is validated on is what is tested on, so that a best step was chosen by its test score."""
        return self.val_split == self.test_split

    # Loaders.

    @property
    def draw_seed(self) -> int:
        """The seed in use, see ``seed``."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of ``(1 + future_batches) * batch_size`` draws; an epoch passes over the largest domain."""
        dataset = self._dataset("train", "fit")
        rank, ranks = self._rank_and_ranks()
        # A step's future batches come on top: look-ahead does not change the number of steps of an epoch.
        steps = max(1, len(dataset) // (self.batch_size * ranks))
        size = self.batch_size * (1 + self.future_batches)
        return self._loader(dataset, size, StridedSampler(steps * size * ranks, rank, ranks, endless=True))

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole images with labels, each exactly once over all ranks."""
        return self._eval_loader("val", "validate")

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole images with labels, each exactly once over all ranks."""
        return self._eval_loader("test", "test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images, or those of ``predict_split``."""
        return self._eval_loader("test" if self.predict_split is None else "predict", "predict")

    def _eval_loader(self, name: str, stage: str) -> DataLoader[Any]:
        dataset = self._dataset(name, stage)
        rank, ranks = self._rank_and_ranks()
        if len(dataset) < ranks:
            raise ValueError(
                f"{type(self).__name__} has {len(dataset)} {name} images for {ranks} processes, and each needs one to "
                "agree on metrics: use fewer trainer.devices or more images, or set trainer.limit_val_batches to 0"
            )
        return self._loader(dataset, self.eval_batch_size, StridedSampler(len(dataset), rank, ranks))

    def _dataset(self, name: str, stage: str) -> Any:
        if name not in self.datasets:
            raise RuntimeError(
                f"{type(self).__name__} has no {name!r} dataset yet: call setup({stage!r}) first."
            )
        return self.datasets[name]

    def _rank_and_ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, dataset: Dataset[Any], batch_size: int, sampler: StridedSampler) -> DataLoader[Any]:
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=type(self).collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    # Batched work on the device.

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """uint8 → float images in [0, 1] and int64 labels; training batches are also augmented and split."""
        if "image" in batch:
            return to_float(batch)
        return split_future(self.augment(batch), self.batch_size)

    def augment(self, batch: dict[str, Domain]) -> dict[str, Domain]:
        """Augment a training batch: uint8 tensors nested per domain in, float images and int64 labels out."""
        return {domain: to_float(tensors) for domain, tensors in batch.items()}


def constructor_arguments(cls: type) -> list[str]:
    """What a class takes, not what it derives for its bases: theirs count only behind its ``**kwargs``."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return names


def coming_stage(trainer: Any) -> str | None:
    """The stage of ``setup`` that a trainer is about to run; None without one."""
    return None if trainer is None or trainer.state.fn is None else trainer.state.fn.value
