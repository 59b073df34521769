"""Volumes: what pre-training and segmentation sets share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from datamodules.base import BenchmarkDataModule, coming_stage
from datamodules.layout import Layout, LayoutError, LayoutReport, Pair, absent_root
from datamodules.volume_augment import VolumeAugment
from datamodules.volume_cache import Job, Record, VolumeCache
from datamodules.volume_lists import listed_pairs, read_list, report_pairs
from datamodules.volume_processing import Processing, plain_settings
from datamodules.volume_sets import DrawnVolumes, Size3, WholeVolumes, collate_volumes


class VolumeDataModule(BenchmarkDataModule):
    """A set of volumes, for pre-training (with ``views``) or for segmentation (without).

    Files are processed once (:class:`~datamodules.volume_processing.Processing`) into a cache that is read
    memory-mapped. Axes of tensors are X, Y, Z: to the right, front and top of the patient. After
    :meth:`on_after_batch_transfer` batches hold

    * in pre-training ``volume`` float ``[B, C, *crop]`` in [0, 1], a random window of each volume, ``index``, and what
      ``views`` makes of it (:class:`zoo.nn.VolumeCrops`: ``crops``, ``base`` and their boxes);
    * in supervised training ``volume`` ``[B * num_crops, C, *crop]`` and ``label`` int64, augmented;
    * in evaluation whole volumes ``[B, C, X, Y, Z]``, ``label`` int64 unless predicting, ``spacing`` ``[B, 3]`` in
      millimetres, ``affine`` ``[B, 4, 4]``, ``index`` and ``name``. With ``views`` validation batches get them too,
      always the same ones of a volume; with ``views`` volumes are their middle (``crop``), without labels.

    Rule for small volumes: axes shorter than ``crop`` are filled up with zeros on both sides. The default finds volumes
    in a list at the root (``list_file``) whose sections are the patterns of the layout's splits.

    Args:
        root: folder of the official tree.
        batch_size: training volumes a step, on every device.
        eval_batch_size: volumes a batch in evaluation; 1 where their sizes differ.
        num_workers: loader processes, also of processing; 0 works in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        crop: sides of training windows in voxels; None gives whole volumes.
        num_crops: windows of each volume in supervised training.
        foreground_share: probability that a window is centred on a labelled organ.
        augment: of supervised training: a module that maps ``{volume, label}`` to the same, such as
            :class:`~datamodules.volume_augment.VolumeAugment`; True takes that.
        views: a module that makes the views of pre-training from volumes ``[B, C, *crop]`` on the device.
        num_train: use only so many training volumes; None uses all.
        num_val: training volumes held out for validation where the set has none; None takes ``default_num_val``.
        labelled_fraction: share of the training volumes whose labels are used, in supervised training, which sees
            no others; at least one.
        split_seed: of ``num_train``, ``num_val`` and ``labelled_fraction``.
        processing: what is done to volumes; None takes that of the benchmark.
        predict_split: split that ``zoo predict`` labels; None takes that of test.
        cache_folder: where processed volumes are kept; None takes the cache of selfzoo.
        verify_cache: compare checksums of processed volumes at the start.
        skip_broken: leave out volumes that cannot be used, instead of stopping.
        allow_partial: accept another number of volumes than was published.

    Raises:
        ValueError: an argument is out of range.
    """

    module_arguments = ("views", "augment", "processing")
    collate: ClassVar[Callable[[Any], dict[str, Any]]] = staticmethod(collate_volumes)
    test_split = "test"
    #: The list below the root.
    list_file: ClassVar[str] = "dataset.json"
    #: Whether labels are maps, in files of their own.
    label_maps: ClassVar[bool] = True
    #: Whether the official set lacks validation volumes.
    holds_out_val: ClassVar[bool] = False
    default_num_val: ClassVar[int] = 1

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int | None = None,
        crop: Size3 | None = (96, 96, 96),
        num_crops: int = 4,
        foreground_share: float = 0.9,
        augment: nn.Module | bool = True,
        views: nn.Module | None = None,
        num_train: int | None = None,
        num_val: int | None = None,
        labelled_fraction: float = 1.0,
        split_seed: int = 0,
        processing: Processing | None = None,
        predict_split: str | None = None,
        cache_folder: str | None = None,
        verify_cache: bool = True,
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
        for argument, value in (("num_crops", num_crops), ("num_train", num_train), ("num_val", num_val)):
            if value is not None and value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}.")
        if crop is not None and min(crop) < 1:
            raise ValueError(f"crop must be three positive sides, got {list(crop)}.")
        if not 0 <= foreground_share <= 1:
            raise ValueError(f"foreground_share must be a probability in [0, 1], got {foreground_share}.")
        if not 0 < labelled_fraction <= 1:
            raise ValueError(f"labelled_fraction must lie in (0, 1], got {labelled_fraction}.")
        if predict_split is not None:
            known = self.layout["root"].splits
            if predict_split not in known:
                raise ValueError(f"predict_split must be one of {', '.join(known)}, got {predict_split!r}.")
            self.predict_split = predict_split
        self.root, self.crop, self.num_crops, self.views = root, crop, num_crops, views
        self.foreground_share, self.num_train = foreground_share, num_train
        self.num_val = self.default_num_val if num_val is None else num_val
        self.labelled_fraction, self.split_seed = labelled_fraction, split_seed
        self.augmentation = (
            augment if isinstance(augment, nn.Module) else VolumeAugment() if augment else None
        )
        self.processing = processing or self.default_processing()
        self.cache = VolumeCache(cache_folder, verify_cache)
        #: ``zoo doctor``: process only so many volumes of every split; they stand in for all others.
        self.preview: int | None = None

    # What is on disk.

    @classmethod
    def default_processing(cls) -> Processing:
        """What the benchmark's recipe does to volumes."""
        return Processing()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings that volumes are processed with."""
        return {"volume": plain_settings(self.processing)}

    def processing_of(self, pair: Pair) -> Processing:
        """What is done to one volume."""
        return self.processing

    def repetitions(self, pair: Pair) -> int:
        """How often a pass of training shows a volume."""
        return 1

    def tree(self) -> Layout:
        """What is expected at the root."""
        return self.layout["root"]

    def find(self, root: Path, split: str) -> list[Pair]:
        """The volumes of an official split; ValueError or OSError where its list cannot be read."""
        content = read_list(root / self.list_file)
        return [p for key in self.tree().splits[split].patterns for p in listed_pairs(content, key, root)]

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Official splits of a stage; pre-training reads no labels."""
        labelled = self.label_maps and self.views is None
        splits = {self._official(split): labelled for split in self.eval_splits(stage).values()}
        if self.predict_split in splits:
            splits[self.predict_split] = False
        if stage in (None, "fit"):
            splits["train"] = labelled
        return {"root": splits}

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Compare the root with its layout; raises nothing."""
        splits, layout = self.needs(stage)["root"], self.tree()
        if (absent := absent_root(layout, self.root)) is not None:
            return {"root": absent}
        assert self.root is not None
        root = Path(self.root).expanduser()
        try:
            found = {split: self.find(root, split) for split in splits}
        except (OSError, ValueError) as error:
            return {"root": LayoutReport(layout, root, "root", problems=(str(error),))}
        return {"root": report_pairs(layout, root, found, splits, self.allow_partial)}

    def prepare_data(self) -> None:
        """Process what the coming stage reads, unless it is there undamaged."""
        stage = coming_stage(self.trainer) if self.preview is None else "fit"
        jobs = dict.fromkeys(job for group in self.jobs(stage).values() for job in group[: self.preview])
        self.cache.ensure(list(jobs), self.num_workers, self.skip_broken)

    def setup(self, stage: str | None = None) -> None:
        """Open the processed volumes of a stage.

        Raises:
            LayoutError: the root is not as its layout declares.
            RuntimeError: the volumes were not processed yet.
        """
        for name, jobs in self.jobs(stage).items():
            shown = jobs[: self.preview]
            used = [(job, record) for job in shown if (record := self._record(name, job)) is not None]
            if not used:
                reason = "; ".join(self.skipped.get(f"root/{name}", ["there is none"])[:1])
                raise LayoutError(
                    f"no {name} volume of {self.root} can be used: {reason}; of a set that is split here, "
                    "raise data.num_val or change data.split_seed"
                )
            used = [used[n % len(used)] for n in range(len(jobs))] if self.preview else used
            records = [record for _, record in used]
            if name == "train":
                repeated = np.repeat(np.arange(len(used)), [self.repetitions(job.pair) for job, _ in used])
                self.datasets[name] = self.drawn(records, repeated)
            else:
                self.datasets[name] = WholeVolumes(records, None if self.views is None else self.crop)
        for where, reasons in self.skipped.items():
            rank_zero_warn(f"skip_broken left out {len(reasons)} volumes of {where}, e.g. {reasons[0]}")

    def drawn(self, records: Sequence[Record], positions: np.ndarray) -> DrawnVolumes:
        """The draws of training."""
        supervised = self.views is None
        return DrawnVolumes(
            records,
            self.draw_seed,
            self.crop,
            self.num_crops if supervised else 1,
            self.foreground_share,
            supervised and self.label_maps,
            positions,
        )

    def jobs(self, stage: str | None) -> dict[str, list[Job]]:
        """What a stage reads: ``train`` (in supervised training the volumes in use), ``val``, ``test``, ``predict``."""
        splits = self.checked(stage)["root"].splits
        official = {name: list(report.pairs) for name, report in splits.items()}
        if self.holds_out_val and "train" in official:
            official["train"], official["val"] = self._held_out(official["train"])
        chosen = {name: official[split] for name, split in self.eval_splits(stage).items()}
        if stage in (None, "fit"):
            chosen["train"] = self._used(official["train"])
        return {
            name: [Job(pair, self.processing_of(pair)) for pair in pairs] for name, pairs in chosen.items()
        }

    def _official(self, split: str) -> str:
        return "train" if split == "val" and self.holds_out_val else split

    def _held_out(self, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Training volumes without those held out for validation, and these."""
        if self.num_val >= len(pairs):
            raise ValueError(f"num_val={self.num_val} must leave some of the {len(pairs)} training volumes.")
        order = np.random.default_rng(self.split_seed).permutation(len(pairs))
        val, train = np.sort(order[: self.num_val]), np.sort(order[self.num_val :])
        return [pairs[i] for i in train], [pairs[i] for i in val]

    def _used(self, pairs: list[Pair]) -> list[Pair]:
        """The training volumes of ``num_train`` and, in supervised training, ``labelled_fraction``."""
        count = len(pairs) if self.num_train is None else self.num_train
        if count > len(pairs):
            raise ValueError(f"num_train={self.num_train}, but there are {len(pairs)} training volumes.")
        order = np.random.default_rng([self.split_seed, 1]).permutation(len(pairs))[:count]
        if self.views is None:
            order = order[: max(1, round(self.labelled_fraction * count))]
        return [pairs[index] for index in np.sort(order)]

    def _record(self, name: str, job: Job) -> Record | None:
        """A processed volume; None for one that is left out."""
        record = self.cache.find(job)
        if record is None:
            reason = self.cache.reason(job)
            if reason is None or not self.skip_broken:
                raise RuntimeError(f"{job.pair.image} is not processed yet: call prepare_data() first.")
            self.skipped.setdefault(f"root/{name}", []).append(reason)
            return None
        wrong = [c for c in record.classes if c >= self.num_classes and c != self.ignore_index]
        if wrong:
            raise LayoutError(
                f"{job.pair.label} holds label {wrong[0]}, but {type(self).__name__} has {self.num_classes} classes "
                f"(0..{self.num_classes - 1})."
            )
        return record

    # Batches.

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Float volumes and int64 labels; training batches get their views or are augmented, and are split."""
        if "draw" not in batch:
            return self._validated(_converted(batch))
        rows = self.batch_size * (self.num_crops if self.views is None else 1)
        starts = range(0, len(batch["volume"]), rows)
        steps = [{key: value[at : at + rows] for key, value in batch.items()} for at in starts]
        current, *future = [self._trained(_converted(step)) for step in steps]
        return {**current, "future": future} if future else current

    def _trained(self, batch: dict[str, Any]) -> dict[str, Any]:
        volume = batch["volume"]
        if self.views is not None:
            return {**batch, **self.views.to(volume.device)(volume)}
        if self.augmentation is None:
            return batch
        maps = {"label": batch["label"]} if self.label_maps else {}
        return {**batch, **self.augmentation.to(volume.device)({"volume": volume, **maps})}

    def _validated(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With the views of validation, drawn alike in every run."""
        if self.views is None or self.trainer is None:
            return batch
        if not (self.trainer.validating or self.trainer.sanity_checking):
            return batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(batch["name"][0].encode()))
            return {**batch, **self.views.to(batch["volume"].device)(batch["volume"])}


def _converted(batch: dict[str, Any]) -> dict[str, Any]:
    converted = {**batch, "volume": batch["volume"].float()}
    return {**converted, "label": batch["label"].long()} if "label" in batch else converted
