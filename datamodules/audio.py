"""Audio benchmarks: what classification and pre-training sets share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.audio_files import Reading, drop_broken
from datamodules.audio_labels import SingleLabels
from datamodules.audio_sets import AudioClips, AudioSubset, Crop, DrawnClips
from datamodules.audio_statistics import Statistics, feature_statistics
from datamodules.base import BenchmarkDataModule
from datamodules.image_sets import as_batch, balanced_choice
from datamodules.layout import Layout, LayoutError, LayoutReport, inspect_root, require
from datamodules.sampling import StridedSampler


class AudioDataModule(BenchmarkDataModule):
    """A set of audio clips, for pre-training (``labels: false``) or for supervised training.

    Loader batches are flat: ``waveform`` float32 ``[B, samples]``, one channel at ``sample_rate``, zero behind the
    clip; ``length`` int64 ``[B]``, samples of the clip; ``label`` int64 ``[B]``, or float ``[B, C]`` where clips have
    several classes; ``index`` int64 ``[B]``; ``name``. On the device ``features(batch, training)`` adds what networks
    see, such as ``spectrogram`` ``[B, T, mels]``. :meth:`bank_dataloader` shows the labelled training clips like
    evaluation clips.

    Subclasses declare ``layout``, say in :meth:`tree_splits` which of its splits they read, and list the clips of
    ``train``, ``val`` and ``test`` in :meth:`read`. Where the official set has no validation clips
    (``default_val_fraction`` is a number), a fixed part of the training clips may take their place.

    Args:
        root: folder of the official tree.
        batch_size: training clips a step, on every device.
        eval_batch_size: clips a batch in validation, test, prediction, and of the bank.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        features: module called with a batch on the device and whether it is a training batch, such as
            :class:`zoo.nn.AudioFeatures`; None leaves waveforms as they are.
        sample_rate: of the waveforms, in Hz.
        resample: convert files of another rate, instead of refusing them.
        gain: of every clip, in dB.
        seconds: longest part that is read of a clip; None takes what ``features`` reach over, or all.
        train_seconds: the same for training clips; None takes ``seconds``.
        crop: where that part begins in training: at the ``start``, or at ``random``. Evaluation reads the start.
        fixed_length: pad every batch to ``seconds`` (``train_seconds``), not only to its longest clip.
        labels: whether training clips carry labels; ``false`` shows all of them without, for pre-training.
        balanced: draw training clips so that classes become equally frequent, see
            :meth:`~datamodules.audio_labels.Labels.balancing_weights`.
        labelled_fraction: share of training clips whose labels are used, with equal shares of their classes: by
            supervised training, which sees no others, and by the bank. Pre-training still sees all clips.
        num_train: use only so many training clips, with equal shares of their classes; None uses all.
        val_fraction: share of training clips held out for validation, where the set has no validation clips; 0
            validates on the test clips; None takes ``default_val_fraction``.
        split_seed: of ``num_train``, ``val_fraction`` and ``labelled_fraction``; not that of training.
        skip_broken: leave out clips that cannot be read and count them, instead of stopping. Every file is read once
            at the start to find them.
        allow_partial: accept another number of files than was published, and leave out listed clips that are
            missing.

    Raises:
        ValueError: an argument is out of range, or does not fit ``features`` or the set.
    """

    module_arguments: ClassVar[tuple[str, ...]] = ("features",)
    collate: ClassVar[Callable[[Any], dict[str, Any]]] = staticmethod(as_batch)
    test_split = "test"
    num_classes = 0
    #: Share of the training clips that are held out for validation; None: the official set has validation clips.
    default_val_fraction: ClassVar[float | None] = None

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        features: nn.Module | None = None,
        sample_rate: int = 16_000,
        resample: bool = True,
        gain: float = 0.0,
        seconds: float | None = None,
        train_seconds: float | None = None,
        crop: Crop = "start",
        fixed_length: bool = False,
        labels: bool = True,
        balanced: bool = False,
        labelled_fraction: float = 1.0,
        num_train: int | None = None,
        val_fraction: float | None = None,
        split_seed: int = 0,
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, skip_broken, allow_partial)
        self.reading = Reading(sample_rate, resample, gain)
        expected: Any = getattr(features, "sample_rate", sample_rate)
        if expected != sample_rate:
            raise ValueError(f"sample_rate={sample_rate}, but features expect {expected} Hz: set both alike.")
        reach: Any = getattr(features, "samples", None)
        if seconds is None and reach is not None:
            seconds = reach / sample_rate
        _check_numbers(seconds, train_seconds, crop, labelled_fraction, num_train)
        self.root, self.features = root, features
        self.seconds, self.train_seconds = seconds, train_seconds or seconds
        self.crop, self.fixed_length = crop, fixed_length
        self.labels, self.balanced = labels, balanced
        self.labelled_fraction, self.num_train, self.split_seed = labelled_fraction, num_train, split_seed
        self.val_fraction = self._checked_val_fraction(val_fraction)
        self._reports: dict[tuple[str, str], LayoutReport] = {}
        self._clips: dict[str, AudioClips] = {}

    def _checked_val_fraction(self, val_fraction: float | None) -> float:
        default = self.default_val_fraction
        if default is None and val_fraction is not None:
            raise ValueError(
                f"{type(self).__name__} has validation clips of its own: leave out val_fraction."
            )
        fraction = val_fraction if val_fraction is not None else default or 0.0
        if not 0 <= fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}.")
        return fraction

    # What is on disk.

    @abstractmethod
    def read(self, split: str) -> AudioClips:
        """List the clips of ``train``, ``val`` or ``test``; nothing is decoded yet.

        Raises:
            LayoutError: a list names clips that are missing, or classes that do not exist.
        """

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """Root arguments → the splits of their layouts that hold the clips of a split."""
        return {"root": (split,)}

    def tree(self, argument: str) -> Layout:
        """The layout expected at a root."""
        return self.layout[argument]

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """What is read for a stage; labels are no files of their own."""
        needed: dict[str, dict[str, bool]] = {}
        for name in [*(["train"] if stage in (None, "fit") else []), *self.eval_splits(stage).values()]:
            for argument, splits in self.tree_splits(self._official(name)).items():
                needed.setdefault(argument, {}).update(dict.fromkeys(splits, False))
        return needed

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """Compare the roots with their layouts; raises nothing."""
        return {argument: self._inspect(argument, splits) for argument, splits in self.needs(stage).items()}

    def _inspect(self, argument: str, splits: Mapping[str, bool]) -> LayoutReport:
        root = getattr(self, argument)
        return inspect_root(self.tree(argument), root, splits, argument, self.allow_partial)

    def setup(self, stage: str | None = None) -> None:
        """Check what this stage needs and open its datasets; raises LayoutError at once."""
        for argument, report in self.checked(stage).items():
            self._reports.update({(argument, split): report for split in report.splits})
        for name, split in self.eval_splits(stage).items():
            self.datasets[name] = self.subset(split)
        if stage in (None, "fit"):
            shown = self.subset("labelled" if self.labels else "train", training=True)
            self.datasets["train"] = DrawnClips(shown, self.draw_seed, self.draw_weights(shown))

    def files(self, split: str, argument: str = "root") -> tuple[Path, list[str]]:
        """Folder of a root, and the files below it that belong to a split of its layout."""
        if (argument, split) not in self._reports:
            report = self._inspect(argument, {split: False})
            require([report])
            self._reports[argument, split] = report
        report = self._reports[argument, split]
        assert report.root is not None
        below = len(report.root.parts)
        return report.root, ["/".join(pair.image.parts[below:]) for pair in report.splits[split].pairs]

    @property
    def validates_on_test(self) -> bool:
        """Whether no clips were held out for validation."""
        return self._official(self.val_split) == self.test_split

    # Splits.

    def clips(self, split: str) -> AudioClips:
        """The clips of an official split, listed once."""
        if split not in self._clips:
            clips = self.read(split)
            if self.skip_broken:
                usable, reasons = self.usable(clips)
                self.skipped[split] = reasons
                if reasons:
                    shown = "; ".join(reasons[:3])
                    rank_zero_warn(
                        f"skip_broken left out {len(reasons)} of {len(clips)} {split} clips: {shown}"
                    )
                clips = clips.part(usable)
            if not len(clips):
                raise LayoutError(f"{type(self).__name__} has no usable {split} clip (root={self.root!r}).")
            self._clips[split] = clips
        return self._clips[split]

    def usable(self, clips: AudioClips) -> tuple[np.ndarray, list[str]]:
        """Read every clip: positions of those that can be read, int64 ``[n]``, and why the others cannot."""
        return drop_broken([clips.path(n) for n in range(len(clips))], self.reading)

    def subset(self, name: str, training: bool = False) -> AudioSubset:
        """Clips of ``train``, ``labelled`` (its labelled part), ``val``, ``test`` or another split.

        Args:
            name: which.
            training: as training shows them: windows are drawn, and pre-training sees no labels.

        Raises:
            LayoutError: the root does not hold the split.
            ValueError: ``num_train``, ``val_fraction`` or ``labelled_fraction`` do not fit the set.
        """
        clips, positions = self.clips(self._official(name)), None
        if name in ("train", "labelled"):
            positions = self._chosen(clips, name == "labelled")
        elif name == "val" and self.val_fraction:
            positions = self._held_out(clips)
        if training and not self.labels:
            clips = clips.without_labels()
        return self.shown(clips, positions, name, training)

    def shown(
        self, clips: AudioClips, positions: np.ndarray | None, name: str, training: bool
    ) -> AudioSubset:
        """Some clips the way training or evaluation shows them; for the arguments see :meth:`subset`."""
        seconds = self.train_seconds if training else self.seconds
        crop: Crop = self.crop if training else "start"
        return AudioSubset(clips, positions, self.reading, seconds, crop, self.fixed_length)

    def draw_weights(self, subset: AudioSubset) -> np.ndarray | None:
        """How often each training clip is drawn, ``[n]``; None draws all equally often."""
        if not self.balanced:
            return None
        labels = self.subset("train" if not self.labels else "labelled").labels
        if labels is None:
            raise ValueError(f"balanced: true needs labels, and {type(self).__name__} has none.")
        return labels.balancing_weights()

    def feature_statistics(self, max_clips: int | None = None) -> Statistics:
        """Mean and standard deviation of the log-mel cells of the training clips, kept in the cache.

        Raises:
            ValueError: ``features`` make no log-mel cells.
        """
        return feature_statistics(self.subset("train"), self.features, self.name, max_clips)

    def _official(self, name: str) -> str:
        if name == "labelled" or (name == "val" and self.val_fraction):
            return "train"
        if name == "val":
            return self.val_split if self.default_val_fraction is None else "test"
        return name

    def _held_out(self, clips: AudioClips) -> np.ndarray:
        return balanced_choice(clips.strata(), round(self.val_fraction * len(clips)), self.split_seed)

    def _chosen(self, clips: AudioClips, labelled: bool) -> np.ndarray:
        """Positions of the training clips, or of the labelled ones among them."""
        positions, strata = np.delete(np.arange(len(clips)), self._held_out(clips)), clips.strata()
        if self.num_train is not None:
            if self.num_train > len(positions):
                raise ValueError(
                    f"num_train={self.num_train}, but there are {len(positions)} training clips."
                )
            positions = positions[balanced_choice(strata[positions], self.num_train, self.split_seed + 1)]
        if not labelled or self.labelled_fraction == 1:
            return positions
        count = round(self.labelled_fraction * len(positions))
        chosen = positions[balanced_choice(strata[positions], count, self.split_seed + 2)]
        missing = set(strata[positions].tolist()) - set(strata[chosen].tolist())
        if not count or (missing and isinstance(clips.labels, SingleLabels)):
            raise ValueError(
                f"labelled_fraction={self.labelled_fraction} labels {count} of {len(positions)} training clips and "
                f"none of {len(missing)} classes, e.g. class {min(missing)}. Raise it."
            )
        return chosen

    # Loaders and batches.

    def bank_dataloader(self) -> DataLoader[Any]:
        """The labelled training clips in order, each exactly once over all ranks, as evaluation shows them."""
        return self.subset_dataloader("labelled")

    def subset_dataloader(self, name: str) -> DataLoader[Any]:
        """Clips of a :meth:`subset` in order, each exactly once over all ranks."""
        subset = self.subset(name)
        sampler = StridedSampler(len(subset), *self._rank_and_ranks())
        return self._loader(subset, self.eval_batch_size, sampler)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Add the features, and split off the batches of future steps."""
        if "draw" not in batch:
            return self._with_features(batch, training=False)
        pieces = {key: _split(value, self.batch_size) for key, value in batch.items()}
        steps = [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]
        current, *future = [self._with_features(step, training=True) for step in steps]
        return {**current, "future": future} if future else current

    def _with_features(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        if self.features is None:
            return batch
        return self.features.to(batch["waveform"].device)(batch, training)


def _split(values: Tensor | Sequence[Any], size: int) -> Sequence[Any]:
    if isinstance(values, Tensor):
        return values.split(size)
    return [values[start : start + size] for start in range(0, len(values), size)]


def _check_numbers(
    seconds: float | None,
    train_seconds: float | None,
    crop: str,
    labelled_fraction: float,
    num_train: int | None,
) -> None:
    """Raise a ValueError that names the first argument out of range."""
    for argument, value in (("seconds", seconds), ("train_seconds", train_seconds)):
        if value is not None and value <= 0:
            raise ValueError(f"{argument} must be positive, got {value}.")
    if crop not in ("start", "random"):
        raise ValueError(f"crop must be start or random, got {crop!r}.")
    if not 0 < labelled_fraction <= 1:
        raise ValueError(f"labelled_fraction must lie in (0, 1], got {labelled_fraction}.")
    if num_train is not None and num_train < 1:
        raise ValueError(f"num_train must be at least 1, got {num_train}.")
