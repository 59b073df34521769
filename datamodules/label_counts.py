"""How often every class occurs in the labels of a dataset: for ``zoo doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any

import numpy as np

from datamodules.audio_sets import AudioSubset, DrawnClips
from datamodules.base import BenchmarkDataModule
from datamodules.image_sets import DrawnImages, ImageSubset
from datamodules.readers import SegmentationDataset, read_label
from datamodules.sampling import JointDataset
from datamodules.volume_classes import VolumeClassification
from datamodules.volume_sets import DrawnVolumes, WholeVolumes

#: Labels that are files of their own are read up to this number, at even distances.
MOST_FILES = 100


@dataclass(frozen=True)
class LabelCounts:
    """What the labels of a dataset hold.

    Args:
        counts: of every class, int64 ``[C]``.
        unit: what is counted: ``images``, ``clips``, ``volumes``, ``pixels`` or ``voxels``.
        ignored: how many of these have no class.
        read: labels that were read.
        total: labels that there are.
    """

    counts: np.ndarray
    unit: str
    ignored: int
    read: int
    total: int

    @property
    def shares(self) -> np.ndarray:
        """Share of every class among what has one, ``[C]``; of clips with several classes, share of clips."""
        whole = self.read if self.unit == "clips" else self.counts.sum()
        return self.counts / max(int(whole), 1)


def label_counts(data: BenchmarkDataModule) -> dict[str, LabelCounts]:
    """Count the labels of training and validation sets that have any.

    Args:
        data: a benchmark after ``setup("fit")``.

    Returns:
        Name of the dataset → counts; of domains ``train/source`` and so on.

    Raises:
        BrokenImageError: a label cannot be decoded.
        ValueError: a label holds values outside its encoding.
    """
    found = {}
    for name in ("train", "val"):
        if isinstance(data, VolumeClassification):  # classes are in names and lists, nothing is read
            classes = [data.class_of(job.pair) for job in data.jobs("fit")[name]]
            if (counts := _of_numbers(np.array(classes), data.num_classes, "volumes")) is not None:
                found[name] = counts
        elif name in data.datasets:
            for part, count in _parts(data.datasets[name]):
                if (counts := count(data.num_classes)) is not None:
                    found["/".join(filter(None, (name, part)))] = counts
    return found


Count = Callable[[int], LabelCounts | None]


@singledispatch
def _parts(dataset: Any) -> Iterator[tuple[str, Count]]:
    """Domains of a dataset, and what counts each; of unknown datasets nothing is counted."""
    yield from ()


@_parts.register
def _(dataset: JointDataset) -> Iterator[tuple[str, Count]]:
    for name, domain in dataset.domains.items():
        yield name, partial(_of_maps, domain)


@_parts.register
def _(dataset: SegmentationDataset) -> Iterator[tuple[str, Count]]:
    yield "", partial(_of_maps, dataset)


@_parts.register
def _(dataset: ImageSubset) -> Iterator[tuple[str, Count]]:
    yield "", partial(_of_numbers, dataset.labels)


@_parts.register
def _(dataset: DrawnImages) -> Iterator[tuple[str, Count]]:
    yield from _parts(dataset.subset)


@_parts.register
def _(dataset: AudioSubset) -> Iterator[tuple[str, Count]]:
    yield "", partial(_of_clips, dataset)


@_parts.register
def _(dataset: DrawnClips) -> Iterator[tuple[str, Count]]:
    yield from _parts(dataset.subset)


@_parts.register(DrawnVolumes)
@_parts.register(WholeVolumes)
def _(dataset: Any) -> Iterator[tuple[str, Count]]:
    yield "", partial(_of_volumes, dataset.records)


def _of_numbers(labels: np.ndarray, num_classes: int, unit: str = "images") -> LabelCounts | None:
    known = labels[labels >= 0]
    counts = np.bincount(known, minlength=num_classes)
    ignored = len(labels) - len(known)
    return LabelCounts(counts, unit, ignored, len(labels), len(labels)) if len(known) else None


def _of_clips(subset: AudioSubset, num_classes: int) -> LabelCounts | None:
    labels = subset.labels  # they know their number of classes
    return None if labels is None else LabelCounts(labels.counts(), "clips", 0, len(labels), len(labels))


def _of_maps(dataset: SegmentationDataset, num_classes: int) -> LabelCounts | None:
    files = [pair.label for pair in dataset.pairs if pair.label is not None]
    encoding = dataset.encoding
    if encoding is None or not files:
        return None
    read = _spread(files)
    counts = _counted((read_label(path, encoding).numpy() for path in read), num_classes)
    return LabelCounts(*counts, len(read), len(files))


def _of_volumes(records: Sequence[Any], num_classes: int) -> LabelCounts | None:
    distinct = [*dict.fromkeys(record.folder for record in records if record.label is not None)]
    by_folder = {record.folder: record for record in records}
    if not distinct:
        return None
    read = _spread(distinct)
    counts = _counted((by_folder[folder].label for folder in read), num_classes, "voxels")
    return LabelCounts(*counts, len(read), sum(record.label is not None for record in records))


def _spread(files: Sequence[Any]) -> list[Any]:
    """At most ``MOST_FILES``, at even distances."""
    count = min(len(files), MOST_FILES)
    return [files[number * len(files) // count] for number in range(count)]


def _counted(
    maps: Iterable[np.ndarray], num_classes: int, unit: str = "pixels"
) -> tuple[np.ndarray, str, int]:
    total = sum((np.bincount(values.ravel(), minlength=256) for values in maps), np.zeros(256, np.int64))
    return total[:num_classes], unit, int(total[num_classes:].sum())
