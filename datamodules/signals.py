"""Biosignals: what sets of segments with participants share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.utils.data import DataLoader

from datamodules.array_cache import disk_cache
from datamodules.base import BenchmarkDataModule, coming_stage
from datamodules.layout import Layout, LayoutError, LayoutReport, Pair, SplitReport, absent_root
from datamodules.readers import Cache
from datamodules.sampling import StridedSampler
from datamodules.signal_cache import SignalCache, SignalJob
from datamodules.signal_sets import BrokenSignalError, DrawnPairs, Load, Pairs, SegmentReader, SegmentsInOrder
from datamodules.signal_tables import WHOLE, Segments


class SignalDataModule(BenchmarkDataModule):
    """Segments of people's signals; no person is in two splits.

    Training batches hold ``pair`` float32 ``[B, 2, C, T]``, two segments of each of B participants after ``views``, and
    ``participant`` int64 ``[B]``. An epoch visits every participant once. Evaluation batches, and those of
    :meth:`bank_dataloader` (the labelled training participants), hold single segments in order of participant and
    time: ``signal`` ``[B, C, T]`` as recorded, ``participant``, ``trait`` float32 ``[B, K]`` (nan where unknown),
    ``index`` and ``name``.

    Args:
        root: folder of the tree.
        batch_size: participants a step, on every device.
        eval_batch_size: segments a batch in evaluation.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        views: module that augments segments ``[N, C, T]`` on the device, such as :class:`zoo.nn.SignalAugment`; None
            only standardises them.
        pairs: two different segments of a ``participant``, as published, or one ``segment`` twice, so that only
            augmentation tells the two apart. Participants with one segment are left out of the former.
        samples: length T that is used of every segment, from its start; None: all must be equally long.
        traits: columns that are known of participants; pre-training reads none.
        labelled_fraction: share of the training participants whose traits are known, to probes and supervised training.
        labelled_only: train with these participants alone, and give training batches their ``trait``.
        split_seed: of the choice of these.
        cache: true keeps decoded segments on disk, in ``$SELFZOO_CACHE``, a folder keeps them there: filled once by
            ``prepare_data``, read memory-mapped. Arrays that are memory-mapped anyway are not kept twice.
        skip_broken: leave out segments that cannot be used, instead of stopping. Every file is read at the start.
        allow_partial: accept another number of files than was published.

    Raises:
        ValueError: an argument is out of range.
    """

    module_arguments = ("views",)
    test_split = "test"
    num_classes = 0
    classes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        views: nn.Module | None = None,
        pairs: Pairs = "participant",
        samples: int | None = None,
        traits: Sequence[str] = (),
        labelled_fraction: float = 1.0,
        labelled_only: bool = False,
        split_seed: int = 0,
        cache: Cache = "none",
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, skip_broken, allow_partial)
        if pairs not in ("participant", "segment"):
            raise ValueError(f"pairs={pairs!r}: expected participant or segment.")
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        if not 0 < labelled_fraction <= 1:
            raise ValueError(f"labelled_fraction must lie in (0, 1], got {labelled_fraction}.")
        self.root, self.views, self.samples = root, views, samples
        self.pairs: Pairs = pairs
        self.traits = tuple(traits)
        self.labelled_fraction, self.labelled_only = labelled_fraction, labelled_only
        self.split_seed = split_seed
        self._table: dict[str, Segments] | None = None
        self._usable: dict[str, Segments] = {}
        self.disk_cache = disk_cache(cache, partial(SignalCache, self.decode), "signals")
        self._kept: set[str] = set()

    # What is on disk.

    @abstractmethod
    def read(self, root: Path) -> dict[str, Segments]:
        """List the segments of every split; nothing of them is read yet.

        Raises:
            LayoutError: the table is missing or wrong.
        """

    @abstractmethod
    def load(self, path: str, row: int) -> np.ndarray:
        """One segment ``[C, T]``: part ``row`` of a file, or all of it where that is negative.

        Raises:
            BrokenSignalError: it cannot be read.
        """

    @abstractmethod
    def job(self, root: Path, path: str) -> SignalJob | None:
        """What a cache is told of a file; None where reading it anew costs as little."""

    @abstractmethod
    def decode(self, path: str) -> np.ndarray:
        """All of a file, as a cache keeps it: its segments by row ``[n, C, T]``, or the only one ``[C, T]``.

        Raises:
            BrokenSignalError: it cannot be read.
        """

    def tree(self) -> Layout:
        """What is expected at the root."""
        return self.layout["root"]

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Splits of a stage; traits are no files of their own. Probes read training segments in evaluation, too."""
        names = [*(["train"] if stage in (None, "fit") else []), *self.eval_splits(stage).values()]
        return {"root": dict.fromkeys(names, False)}

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Compare the root with its table; raises nothing."""
        splits, layout = self.needs(stage)["root"], self.tree()
        if (absent := absent_root(layout, self.root)) is not None:
            return {"root": absent}
        assert self.root is not None
        root = Path(self.root).expanduser()
        try:
            table = self.table()
        except (OSError, ValueError) as error:
            return {"root": LayoutReport(layout, root, "root", problems=(str(error),))}
        found = {split: self._report(root, split, table.get(split)) for split in splits}
        return {"root": LayoutReport(layout, root, "root", found)}

    def _report(self, root: Path, split: str, segments: Segments | None) -> SplitReport:
        if segments is None:
            return SplitReport(split, problems=("the table lists no segment of it",))
        files = [path.decode() for path in np.unique(segments.paths)]
        absent = [file for file in files if not self.file(root, file).is_file()]
        problems = []
        if absent:
            shown = ", ".join(absent[:3])
            problems.append(f"{len(absent)} of {len(files)} files are missing: {shown}")
        counts = self.tree().splits[split].counts
        if counts and len(files) not in counts and not self.allow_partial:
            problems.append(
                f"expected {counts[0]} {self.tree().unit}, the table lists {len(files)}: another version? "
                "(allow_partial: true accepts it)"
            )
        pairs = tuple(Pair(self.file(root, file), None, file) for file in files)
        return SplitReport(split, pairs, None, tuple(problems))

    def file(self, root: Path, path: str) -> Path:
        """The file that a path of the table names."""
        return root / path

    def table(self) -> dict[str, Segments]:
        """:meth:`read`, once."""
        if self._table is None:
            assert self.root is not None
            self._table = self.read(Path(self.root).expanduser())
        return self._table

    def prepare_data(self) -> None:
        """Decode what the coming stage reads, where ``cache`` keeps it on disk."""
        super().prepare_data()
        if self.disk_cache is None:
            return
        stage = coming_stage(self.trainer)
        self.checked(stage)
        assert self.root is not None
        root = Path(self.root).expanduser()
        paths = {path.decode() for split in self.needs(stage)["root"] for path in self.table()[split].paths}
        jobs = [self.job(root, path) for path in sorted(paths)]
        self.disk_cache.ensure([job for job in jobs if job], self.num_workers, self.skip_broken)

    def stored(self, path: str, row: int) -> np.ndarray:
        """A segment from the cache, or :meth:`load`, where the cache could not keep it.

        Raises:
            BrokenSignalError: it cannot be read.
            CacheError: the cache does not hold it, or holds it damaged.
        """
        assert self.root is not None
        job = self.job(Path(self.root).expanduser(), path)
        # Found anew each time: a million records would fill the memory of every process.
        kept = None if self.disk_cache is None or job is None else self.disk_cache.kept(job)
        if kept is None:
            return self.load(path, row)
        array = kept.read()
        if row == WHOLE:
            return array
        return array[row] if array.ndim == 3 and row < len(array) else self.load(path, row)

    def setup(self, stage: str | None = None) -> None:
        """Check what this stage needs and open its datasets; raises LayoutError at once."""
        self.checked(stage)
        self._kept |= set(self.needs(stage)["root"])
        for name, split in self.eval_splits(stage).items():
            self.datasets[name] = SegmentsInOrder(self.reader(split))
        if stage in (None, "fit"):
            reader = self.labelled_reader() if self.labelled_only else self.reader("train")
            pairs = DrawnPairs(reader, self.draw_seed, self.pairs, self.labelled_only)
            if pairs.single:
                rank_zero_warn(
                    f"{len(pairs.single)} of {len(pairs) + len(pairs.single)} training participants have one segment, "
                    f"which makes no pair, and are left out, e.g. {pairs.single[0]} (pairs: segment keeps them)"
                )
            self.datasets["train"] = pairs

    def reader(self, split: str) -> SegmentReader:
        """Reader of the usable segments of a split."""
        if split not in self._usable:
            if split not in self.table():
                raise LayoutError(f"the table of {self.root} lists no segment of {split}")
            segments = self.table()[split]
            self._usable[split] = self._without_broken(split, segments) if self.skip_broken else segments
        return SegmentReader(self._usable[split], self._load(split), self.samples)

    def labelled_reader(self) -> SegmentReader:
        """Reader of the segments of the labelled training participants."""
        segments = self.reader("train").segments
        people = segments.by_participant()
        count = max(1, round(self.labelled_fraction * len(people)))
        chosen = np.sort(np.random.default_rng(self.split_seed).permutation(len(people))[:count])
        part = segments.part(np.concatenate([people[n] for n in chosen]))
        return SegmentReader(part, self._load("train"), self.samples)

    def _load(self, split: str) -> Load:
        """Probes read training segments in evaluation, too, for which these were not kept."""
        return self.load if self.disk_cache is None or split not in self._kept else self.stored

    def _without_broken(self, split: str, segments: Segments) -> Segments:
        read, usable, reasons = SegmentReader(segments, self._load(split), self.samples), [], []
        for position in range(len(segments)):
            try:
                read(position)
                usable.append(position)
            except BrokenSignalError as error:
                reasons.append(str(error))
        self.skipped[f"root/{split}"] = reasons
        if not usable:
            raise LayoutError(f"skip_broken: no {split} segment of {self.root} is usable, e.g. {reasons[0]}.")
        if reasons:
            shown = "; ".join(reasons[:3])
            rank_zero_warn(
                f"skip_broken left out {len(reasons)} of {len(segments)} {split} segments: {shown}"
            )
        return segments.part(np.array(usable))

    # Loaders and batches.

    def bank_dataloader(self) -> DataLoader[Any]:
        """Segments of the labelled training participants in order, each exactly once over all ranks."""
        subset = SegmentsInOrder(self.labelled_reader())
        return self._loader(
            subset, self.eval_batch_size, StridedSampler(len(subset), *self._rank_and_ranks())
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Training batches get their views, and are split; evaluation batches stay as they are."""
        if "draw" not in batch:
            return batch
        pieces = {key: value.split(self.batch_size) for key, value in batch.items()}
        steps = [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]
        current, *future = [{**step, "pair": self._views(step["pair"])} for step in steps]
        return {**current, "future": future} if future else current

    def _views(self, pair: Any) -> Any:
        # Importing datamodules must not import the zoo's networks.
        from zoo.nn.signal_augment import zscore

        make = zscore if self.views is None else self.views.to(pair.device)
        return make(pair.flatten(0, 1)).unflatten(0, pair.shape[:2])
