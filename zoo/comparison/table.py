"""Runs as rows: one per benchmark, method, backbone and setting, averaged over seeds."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo import registry
from zoo.comparison.runs import Run
from zoo.comparison.statistics import Difference, paired_difference
from zoo.config_files import UsageError
from zoo.config_hash import settings_of


@dataclasses.dataclass
class Row:
    """One setting.

    Args:
        method: registry name.
        backbone: its name, or ``-``.
        runs: one per seed.
        values: seed → value of the metric.
        variant: the settings that tell rows of one method and backbone apart.
        published: the authors' numbers for method, backbone and benchmark.
        is_best: whether its mean is the best.
        difference: of the best row to this one; None for the best itself, or where nothing can be said.
    """

    method: str
    backbone: str
    runs: list[Run]
    values: dict[str, float]
    variant: str = ""
    published: str = ""
    is_best: bool = False
    difference: Difference | None = None

    @property
    def label(self) -> str:
        """Short and unique within its table."""
        return " ".join(filter(None, [self.method, self.backbone, self.variant]))

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; not a number for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan

    @property
    def mark(self) -> str:
        """``best``, ``same`` (cannot be told from the best), ``worse``, or ``?`` with too few pairs."""
        if self.is_best:
            return "best"
        return "?" if self.difference is None else "worse" if self.difference.is_real else "same"

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted key → value, of the first run."""
        return dict(settings_of(self.runs[0].card["config"]))

    def average(self, key: str) -> float | None:
        """Mean over runs of a number of the card, such as ``seconds``; None where a run lacks it."""
        numbers = [number for run in self.runs if (number := run.card.get(key)) is not None]
        return statistics.fmean(numbers) if len(numbers) == len(self.runs) else None

    @property
    def memory(self) -> tuple[int, str] | None:
        """Most bytes of any run, and whether they are the device's or the host's."""
        for where in ("device", "host"):
            used = [peak for run in self.runs if (peak := run.card.get("peak_memory", {}).get(where))]
            if used:
                return max(used), where
        return None


@dataclasses.dataclass
class Table:
    """All rows of one benchmark, best first.

    Args:
        benchmark: registry name.
        metric: what is compared, e.g. ``val/mIoU``.
        mode: whether larger (``max``) or smaller (``min``) is better.
        rows: best first.
        notes: what was left out, and why.
    """

    benchmark: str
    metric: str
    mode: str
    rows: list[Row]
    notes: list[str]

    def row(self, name: str) -> Row | None:
        """The row of that label, or the one that holds the run or run folder of that name."""
        wanted = name.rstrip("/")
        for row in self.rows:
            names = {run.name for run in row.runs}
            if wanted == row.label or wanted in names | {n.rpartition("/")[2] for n in names}:
                return row
        return None


def compare(
    runs: Sequence[Run],
    metric: str | None = None,
    mode: str | None = None,
    at: str = "best",
    unfinished: bool = False,
) -> list[Table]:
    """Put runs into one table per benchmark.

    Args:
        runs: what to compare.
        metric: by which; default: what the runs of a benchmark monitor.
        mode: ``max`` or ``min``; default: as the runs monitor it, ``max`` for another metric.
        at: ``best`` or ``last`` step.
        unfinished: take runs that failed, were stopped, or still run.

    Raises:
        UsageError: runs of a benchmark monitor different metrics, or none has the metric.
    """
    tables = []
    for benchmark in sorted({str(run.card.get("benchmark")) for run in runs}):
        # Evaluations are runs of their own; they count where their metric is asked for.
        members = [run for run in runs if str(run.card.get("benchmark")) == benchmark]
        trained = [run for run in members if run.card.get("verb") == "fit"]
        wanted = metric or _common_metric(benchmark, trained or members)
        tables.append(_table(benchmark, wanted, mode, members, at, unfinished))
    return tables


def _common_metric(benchmark: str, runs: Sequence[Run]) -> str:
    monitored = sorted({str(run.card.get("monitor")) for run in runs})
    logged = sorted({name for run in runs for name in run.metrics})
    if not logged:
        raise UsageError(f"{benchmark}: its runs logged no metric, so there is nothing to compare")
    if len(monitored) != 1 or monitored == ["None"]:
        raise UsageError(
            f"{benchmark}: the runs monitor {', '.join(monitored).replace('None', 'no metric')}: choose one with "
            f"--metric; there are {', '.join(logged)}"
        )
    return monitored[0]


def _table(
    benchmark: str, metric: str, mode: str | None, runs: Sequence[Run], at: str, unfinished: bool
) -> Table:
    notes: list[str] = []
    groups: dict[tuple[str, str, str], dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: str(run.card.get("started"))):
        if run.value(metric, at) is None:
            if run.card.get("verb") == "fit":
                notes.append(f"{run.name} has no {metric}")
            continue
        if run.card.get("status") != "finished" and not unfinished:
            reason = run.card.get("reason") or "ended without a word, or still at it"
            notes.append(
                f"{run.name} is left out: {run.card.get('status')} ({reason}); --unfinished takes it"
            )
            continue
        key = (str(run.card["method"]), run.card.get("backbone") or "-", run.card["config_hash"])
        seeds = groups.setdefault(key, {})
        seed = str(run.card.get("seed"))
        if seed in seeds:
            notes.append(f"{seeds[seed].name} is left out: {run.name} is newer and of the same seed")
        seeds[seed] = run
    if not groups:
        there = sorted({name for run in runs for name in run.metrics})
        raise UsageError(
            f"{benchmark}: no run to compare by {metric}; there are {', '.join(there)}. {'; '.join(notes)}"
        )
    rows = [
        Row(method, backbone, [*seeds.values()], {s: r.value(metric, at) or 0.0 for s, r in seeds.items()})
        for (method, backbone, _), seeds in groups.items()
    ]
    monitors = {(run.card.get("monitor"), run.card.get("monitor_mode")) for run in runs}
    mode = mode or next((m for name, m in monitors if name == metric and m), "max")
    rows.sort(key=lambda row: row.mean, reverse=mode == "max")
    _tell_apart(rows)
    for row in rows:
        row.published = published(row.method, row.backbone, benchmark, metric)
    rows[0].is_best = True
    for row in rows[1:]:
        row.difference = difference(rows[0], row, metric)
    return Table(benchmark, metric, mode, rows, notes)


def difference(first: Row, second: Row, metric: str) -> Difference | None:
    """Of two rows: over samples where both kept scores, else over common seeds."""
    scores = _sample_means(first, metric), _sample_means(second, metric)
    over_samples = paired_difference(*scores, over="samples") if all(scores) else None
    return over_samples or paired_difference(first.values, second.values, over="seeds")


def _sample_means(row: Row, metric: str) -> dict[str, float]:
    """Score of every sample that all runs of the row have, averaged over them."""
    scores = [run.sample_scores(metric) for run in row.runs]
    common = set.intersection(*({*one} for one in scores))
    return {name: statistics.fmean(one[name] for one in scores) for name in common}


def _tell_apart(rows: Iterable[Row]) -> None:
    """Name the settings in which rows of one method and backbone differ."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.backbone), []).append(row)
    for group in groups.values():
        if len(group) > 1:
            keys = differing(*(row.settings for row in group))
            for row in group:
                named = [f"{key.rpartition('.')[2]}={row.settings.get(key)}" for key in keys]
                row.variant = ", ".join(named[:3]) + (f", ... ({len(named)})" if len(named) > 3 else "")
            if len({row.variant for row in group}) < len(group):  # cut off where they differ
                for row in group:
                    row.variant = f"{row.variant} #{row.runs[0].card['config_hash'][:6]}"


def differing(*settings: Mapping[str, Any]) -> list[str]:
    """Keys whose values are not the same everywhere."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def published(method: str, backbone: str, benchmark: str, metric: str) -> str:
    """The authors' numbers for a row, from the method's card; empty where there are none.

    A metric ``val/mIoU`` is any ``mIoU<number of classes>`` of the card: which classes count is the benchmark's.
    """
    if method not in registry.list_methods():
        return ""
    name = metric.rpartition("/")[2]
    return ", ".join(
        f"{number.value:g}"
        for number in registry.method_card(method).published
        if number.benchmark == benchmark
        and number.backbone == backbone
        and re.fullmatch(rf"{re.escape(name)}\d*", number.metric)
    )
