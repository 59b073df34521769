"""What a cross-validation comes to: `zoo fit --folds 1 2 3 4 5` ends with the mean over folds."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.cache import write_atomically
from zoo.comparison.runs import Run, read_folder
from zoo.config_files import UsageError

Start = Callable[[Sequence[str]], int]
"""Runs ``zoo`` with these arguments; the exit code."""


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """Scores of all folds.

    Args:
        metric: what they are scores in, such as ``test/accuracy``.
        chosen: in words, which weights of every fold were scored.
        steps: optimiser steps after which all folds are read; None where each fold has its own best checkpoint.
        scores: fold → metrics.
        folders: fold → folder of its run.
    """

    metric: str
    chosen: str
    steps: int | None
    scores: Mapping[str, Mapping[str, float]]
    folders: Mapping[str, str]

    def values(self, metric: str) -> list[float]:
        """A metric by fold, where all folds have it."""
        return [scores[metric] for scores in self.scores.values() if metric in scores]

    @property
    def metrics(self) -> list[str]:
        """Metrics that all folds have, the one asked for first."""
        shared = set.intersection(*(set(scores) for scores in self.scores.values())) - {self.metric}
        return [self.metric, *sorted(shared)]

    def table(self) -> str:
        """A Markdown row for every metric: mean ± standard deviation over folds, and the folds."""
        lines = [f"| {self.chosen} | mean ± std | {' | '.join(f'fold {name}' for name in self.scores)} |"]
        lines.append("|---" * (2 + len(self.scores)) + "|")
        for metric in self.metrics:
            values = self.values(metric)
            cells = " | ".join(f"{value:.2f}" for value in values)
            lines.append(
                f"| {metric} | {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} | {cells} |"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same for a file; spreads are those of a sample (n - 1)."""
        summary = {
            metric: {"mean": statistics.mean(values), "std": statistics.stdev(values)}
            for metric in self.metrics
            if (values := self.values(metric))
        }
        return {**dataclasses.asdict(self), "summary": summary}

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        content = json.dumps(self.as_dict(), indent=1).encode()
        write_atomically(path, lambda file: file.write(content))


def cross_validate(folders: Mapping[str, Path], start: Start) -> CrossValidation:
    """Score the finished runs of all folds.

    Where clips of its own validate, every fold's best checkpoint is tested (tests that are there already are not run
    again). Where the tested fold itself validates, as is customary on ESC-50, its best step would be chosen by its
    test score: instead the curves are averaged over folds, and all folds are read at the step where the mean is best
    (SSAST's protocol).

    Args:
        folders: fold → folder of its finished run.
        start: runs a test.

    Raises:
        UsageError: fewer than two folds, runs that monitor nothing or were validated at different steps, or a test
            that fails.
    """
    if len(folders) < 2:
        raise UsageError(f"--folds needs two folds at least, found {', '.join(folders) or 'none'}")
    runs = {name: read_folder(folder) for name, folder in folders.items()}
    cards = [run.card for run in runs.values()]
    monitor, mode = cards[0]["monitor"], cards[0]["monitor_mode"]
    if monitor is None:
        raise UsageError(f"the method {cards[0]['method']} monitors no metric, so folds cannot be averaged")
    places = {name: folder.as_posix() for name, folder in folders.items()}
    if any(card["data"]["validates_on_test"] for card in cards):
        step = best_step([_curve(run, monitor) for run in runs.values()], mode)
        scores = {
            name: {metric: curve[step] for metric in run.metrics if step in (curve := _curve(run, metric))}
            for name, run in runs.items()
        }
        chosen = f"after {step + 1} steps, where the mean is best"  # loggers count from 0
        return CrossValidation(monitor, chosen, step + 1, scores, places)
    scores = {name: tested(folder, start) for name, folder in folders.items()}
    metric = f"test/{monitor.rpartition('/')[2]}"
    if missing := [name for name, found in scores.items() if metric not in found]:
        raise UsageError(
            f"the test of fold {missing[0]} logged no {metric}, only {', '.join(scores[missing[0]])}"
        )
    return CrossValidation(metric, "best checkpoint of each fold", None, scores, places)


def best_step(curves: Sequence[Mapping[int, float]], mode: str) -> int:
    """The step where the mean of all curves (step → value) is best; the first of several.

    Raises:
        UsageError: the curves share no step.
    """
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not shared:
        raise UsageError(
            "the folds were validated at different steps: set trainer.val_check_interval to a number"
        )
    choose = max if mode == "max" else min
    return choose(shared, key=lambda step: statistics.fmean(curve[step] for curve in curves))


def tested(folder: Path, start: Start) -> dict[str, float]:
    """Test metrics of a run's best checkpoint (its last one, where nothing was monitored), tested once.

    Raises:
        UsageError: the test fails.
    """
    into, checkpoints = folder / "test", folder / "checkpoints"
    if not _is_finished(into):
        best = next(path for name in ("best", "last") if (path := checkpoints / f"{name}.ckpt").is_file())
        where = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(best), "--run_dir", str(into)]
        if start(["test", *where]) != 0:
            raise UsageError(f"the test of {folder} failed; `zoo test {' '.join(where)}` tells why")
    last = read_folder(into).card["last"]["metrics"]  # a number that is not finite is null there
    return {metric: float(v) for metric, v in last.items() if metric.startswith("test/") and v is not None}


def _is_finished(folder: Path) -> bool:
    return (folder / "run_card.json").is_file() and read_folder(folder).card["status"] == "finished"


def _curve(run: Run, metric: str) -> dict[int, float]:
    """Step → value of a validation metric where it is finite; d' has no end where nothing is mistaken."""
    values = run.read_curve(metric) if metric.startswith("val/") else []
    return {step: value for step, value in values if math.isfinite(value)}
