"""Checks of a benchmark: is it there, what are its labels, what does a sample look like."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from callbacks.preview import preview
from datamodules.audio import AudioDataModule
from datamodules.base import BenchmarkDataModule
from datamodules.batches import to_float
from datamodules.label_counts import LabelCounts, label_counts
from datamodules.layout import LayoutError, LayoutReport
from datamodules.volumes import VolumeDataModule
from zoo.doctor.checks import Check, gib

#: Volumes of every split that are processed; clips over which statistics are taken.
VOLUMES, CLIPS = 2, 1000
#: Log-mel statistics further than this from the settings (in standard deviations, and as a factor) are told.
SHIFT, STRETCH = 0.5, 1.5
#: Batches that each loader process keeps ready.
PREFETCHED = 2


def layout(data: BenchmarkDataModule) -> Iterator[Check]:
    """One check per root; what is not there yet is fetched or made, where a benchmark does that by itself."""
    if isinstance(data, VolumeDataModule):
        data.preview = VOLUMES
    data.disk_cache = None  # decoding a few files takes less than filling it
    reports = data.inspect("fit")
    if not all(report.ok for report in reports.values()):
        with suppress(LayoutError):  # the same complaint
            data.prepare_data()
        reports = data.inspect("fit")
    for report in reports.values():
        yield _layout(report)
    if not reports:
        yield Check("layout", "ok", f"{type(data).__name__} reads no folder of yours")


def _layout(report: LayoutReport) -> Check:
    if report.ok:
        return Check("layout", "ok", str(report))
    problems = [*report.problems]
    problems += [f"{name}: {problem}" for name, split in report.splits.items() for problem in split.problems]
    title = f"{report.layout.title} ({report.argument}={str(report.root) if report.root else None!r})"
    folders = ", ".join(report.layout.folders)
    remedy = (
        f"get it from {report.layout.origin}; set data.{report.argument} to the folder that holds {folders}"
    )
    return Check("layout", "stop", f"{title}: {'; '.join(problems)}", remedy)


def opened(data: BenchmarkDataModule) -> BenchmarkDataModule:
    """Prepare and open what training reads, and return it; of volumes a few stand in for the others."""
    data.prepare_data()
    data.setup("fit")
    return data


# -- labels ----------------------------------------------------------------------------------------------


def labels(data: BenchmarkDataModule) -> tuple[list[Check], dict[str, LabelCounts]]:
    """How often every class occurs, and classes that do not."""
    counts = label_counts(data) if getattr(data, "num_classes", 0) else {}
    checks = []
    for name, found in counts.items():
        wanted = getattr(data, "eval_classes", range(data.num_classes))
        checks.append(_labels(name, found, data.classes, set(wanted)))
    return checks or [
        Check("labels", "ok", "training and validation read no labels that can be counted")
    ], counts


def _labels(name: str, found: LabelCounts, classes: tuple[str, ...], wanted: set[int]) -> Check:
    """``wanted``: classes that count in the benchmark's mean."""
    names = [classes[c] if c < len(classes) else f"class {c}" for c in range(len(found.counts))]
    there = [c for c in np.argsort(found.shares) if found.counts[c]]
    missing = [names[c] for c in np.flatnonzero(found.counts == 0) if c in wanted]
    parts = [f"{name}: {len(there)} of {len(names)} classes"]
    if there:
        most, least = there[-1], there[0]
        shares = [
            f"{what} {names[c]} {_percent(found.shares[c])}" for what, c in (("most", most), ("least", least))
        ]
        parts.append(f"of {found.unit} {', '.join(shares)}")
    if found.ignored:
        parts.append(f"{_percent(found.ignored / (found.ignored + found.counts.sum()))} without a class")
    if found.read < found.total:
        parts.append(f"{found.read} of {found.total} labels read")
    details = dict(zip(names, found.counts.tolist(), strict=True))
    if not there:
        return Check("labels", "stop", "; ".join(parts), "look at how labels are encoded", details)
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        parts.append(f"none of {shown}")
        return Check("labels", "note", "; ".join(parts), "see whether that is meant", details)
    return Check("labels", "ok", "; ".join(parts), details=details)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def label_chart(counts: Mapping[str, LabelCounts], classes: tuple[str, ...]) -> Figure:
    """Bars of the share of every class, a panel per dataset; at most the 60 most frequent classes."""
    figure = Figure(figsize=(6.4 * len(counts), 7.0), layout="constrained")
    for axes, (name, found) in zip(np.ravel(figure.subplots(1, len(counts))), counts.items(), strict=True):
        order = np.argsort(found.shares)[-60:]
        axes.barh(np.arange(len(order)), 100 * found.shares[order])
        names = [classes[c] if c < len(classes) else f"class {c}" for c in order]
        axes.set_yticks(np.arange(len(order)), names, fontsize=7)
        axes.set(xlabel=f"% of {found.unit}", title=name)
        axes.set_ylim(-1, len(order))
    return figure


# -- samples ---------------------------------------------------------------------------------------------


def samples(data: BenchmarkDataModule, file: Path) -> tuple[Check, dict[str, Any], float]:
    """Decode a training batch in this process, draw it, and take the time of a second one.

    Returns:
        The check, the batch, and seconds.
    """
    workers, data.num_workers = data.num_workers, 0
    batches = iter(data.train_dataloader())
    data.num_workers = workers
    first = next(batches)
    start = perf_counter()
    next(batches, None)
    seconds = perf_counter() - start
    found = f"a batch is decoded in {1000 * seconds:.0f} ms by one process"
    return drawn("samples", found, decoded(first, data), data, file), first, seconds


def drawn(name: str, found: str, batch: Mapping[str, Any], data: BenchmarkDataModule, file: Path) -> Check:
    """Draw a batch; one of a kind that nobody knows how to draw is worth a note, but no reason to stop."""
    try:
        preview(batch, data).save(file)
    except Exception as error:
        told = f"{found}; the batch cannot be drawn: {type(error).__name__}: {error}"
        return Check(name, "note", told)
    return Check(name, "ok", found)


def decoded(batch: dict[str, Any], data: BenchmarkDataModule) -> dict[str, Any]:
    """A raw training batch as evaluation would see it: nothing augmented."""
    if all(isinstance(part, Mapping) for part in batch.values()):
        return {name: to_float(part) for name, part in batch.items()}
    return data.on_after_batch_transfer({key: value for key, value in batch.items() if key != "draw"}, 0)


def shared_memory(batch: Mapping[str, Any], workers: int) -> Check | None:
    """Whether loader processes can hand batches over; containers are often started with 64 MiB."""
    place = Path("/dev/shm")
    if not workers or not place.is_dir():
        return None
    free, needed = shutil.disk_usage(place).free, (PREFETCHED * workers + 1) * _size(batch)
    found = f"{workers} loader processes hand over {gib(needed)} at once; {gib(free)} of shared memory free"
    if needed > free:
        remedy = "give the container more (docker run --shm-size 8g), or lower data.num_workers"
        return Check("loaders", "stop", found, remedy)
    return Check("loaders", "ok", found)


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value.values())) if isinstance(value, Mapping) else 0


# -- statistics ------------------------------------------------------------------------------------------


def statistics(data: BenchmarkDataModule) -> Check | None:
    """Mean and deviation of log-mel cells against those that the config normalises by; kept in the cache."""
    features: Any = getattr(data, "features", None)
    if not isinstance(data, AudioDataModule) or not hasattr(features, "bank"):
        return None
    found = data.feature_statistics(CLIPS)
    measured = f"log-mel cells of {found.clips} clips: mean {found.mean:.3f}, std {found.std:.3f}"
    given = f"the config normalises by {features.mean:.3f} and {features.std:.3f}"
    details = {"mean": found.mean, "std": found.std, "clips": found.clips}
    stretch = max(found.std / features.std, features.std / max(found.std, 1e-12))
    if abs(found.mean - features.mean) > SHIFT * features.std or stretch > STRETCH:
        remedy = (
            f"set data.features.mean: {found.mean:.3f} and std: {found.std:.3f}, unless weights need others"
        )
        return Check("statistics", "note", f"{measured}; {given}", remedy, details)
    return Check("statistics", "ok", f"{measured}; {given}", details=details)
