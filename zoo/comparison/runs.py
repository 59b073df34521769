"""Runs to compare: folders with a run card, or runs of a W&B project."""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from zoo.config_files import UsageError

CARD = "run_card.json"
SCORES = "sample_scores.csv"
Curve = list[tuple[int, float]]
#: What a W&B filter may be given by: short name → field of W&B's filters.
FILTERS = {"group": "group", "job_type": "jobType", "tag": "tags", "state": "state", "name": "display_name"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: how to call it: its folder, or its name in W&B.
        card: what ``callbacks.RunCard`` wrote.
        read_curve: metric → (step, value) pairs in order of the steps.
        pictures: prediction panels, oldest first.
        scores: metric → name of a sample → its score, where the run kept them; ``score`` stands for any metric.
    """

    name: str
    card: Mapping[str, Any]
    read_curve: Callable[[str], Curve]
    pictures: tuple[Path, ...] = ()
    scores: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def value(self, metric: str, at: str = "best") -> float | None:
        """The metric at the best or last step; at the end, where it is none of the validation's."""
        for moment in dict.fromkeys((at, "last")):
            metrics = (self.card.get(moment) or {}).get("metrics", {})
            if metrics.get(metric) is not None:
                return float(metrics[metric])
        return None

    def sample_scores(self, metric: str) -> Mapping[str, float]:
        """Scores by sample that belong to a metric such as ``test/mIoU``; empty where there are none."""
        return self.scores.get(metric.rpartition("/")[2]) or self.scores.get("score", {})

    @property
    def metrics(self) -> set[str]:
        """Names of all metrics of the card."""
        return {
            key for moment in ("best", "last") for key in (self.card.get(moment) or {}).get("metrics", {})
        }


def find_runs(sources: Iterable[str]) -> list[Run]:
    """Read runs, each once.

    Args:
        sources: folders of runs, folders above them, shell patterns of such, or ``wandb:entity/project``, with
            ``?group=...&job_type=...&tag=...&state=...&name=...`` or a W&B filter as JSON behind the question mark.

    Raises:
        UsageError: a source holds no run, or a card cannot be read.
    """
    runs: dict[str, Run] = {}
    for source in sources:
        found = _from_wandb(source) if source.startswith("wandb:") else _from_folders(source)
        if not found:
            raise UsageError(
                f"{source}: no run there: expected a folder with {CARD} (written by every `zoo fit`), a folder above "
                "such, a pattern, or wandb:entity/project?group=..."
            )
        runs |= {run.name: run for run in found}
    return list(runs.values())


# -- folders ---------------------------------------------------------------------------------------------


def _from_folders(pattern: str) -> list[Run]:
    places = sorted(map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True)))  # noqa: PTH207
    cards = {path.resolve(): path for place in places for path in sorted(place.rglob(CARD))}
    return [read_folder(path.parent) for path in cards.values()]


def read_folder(folder: Path) -> Run:
    """The run kept in ``folder``.

    Raises:
        UsageError: its card is no JSON.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{folder / CARD} cannot be read: {error}") from error
    return Run(
        folder.as_posix(),
        card,
        lambda metric: read_curve(folder, metric),
        tuple(sorted((folder / "pictures").glob("val-*.png"))),
        read_scores(folder / SCORES),
    )


def read_curve(folder: Path, metric: str) -> Curve:
    """A metric from ``metrics.csv`` and, of a resumed run, from the ``metrics-<n>.csv`` before it."""
    numbered = sorted(folder.glob("metrics-*.csv"), key=lambda p: int(re.findall(r"\d+", p.stem)[-1]))
    values: dict[int, float] = {}
    for path in (*numbered, folder / "metrics.csv"):
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                values |= {int(r["step"]): float(r[metric]) for r in csv.DictReader(file) if r.get(metric)}
    return sorted(values.items())


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores by metric and sample, see :class:`callbacks.SampleScores`; empty where there is no such file.

    Raises:
        UsageError: there is no column ``name``, or none beside it; a score is no number.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = [*(rows.fieldnames or ())]
        if "name" not in columns or len(columns) < 2:
            raise UsageError(f"{path}: expected the column name and one for every metric, found {columns}")
        lines = [*rows]
    try:
        return {
            column: {row["name"]: float(row[column]) for row in lines if math.isfinite(float(row[column]))}
            for column in columns
            if column != "name"
        }
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: a score is no number: {error}") from error


# -- W&B -------------------------------------------------------------------------------------------------


def wandb_filters(query: str) -> dict[str, Any]:
    """W&B's filters for what follows the question mark.

    Raises:
        UsageError: neither JSON nor ``name=value`` pairs of known names.
    """
    if query.startswith("{"):
        try:
            return json.loads(query)
        except json.JSONDecodeError as error:
            raise UsageError(f"wandb: the filter {query} is no JSON: {error}") from error
    pairs = parse_qsl(query, keep_blank_values=True)
    unknown = [name for name, _ in pairs if name not in FILTERS]
    if unknown or (query and not pairs):
        raise UsageError(
            f"wandb: unknown filter {(unknown or [query])[0]!r}: use {', '.join(FILTERS)}, as in "
            "?group=streetshift&state=finished, or W&B's own as JSON"
        )
    return {FILTERS[name]: value for name, value in pairs}


def _from_wandb(source: str) -> list[Run]:
    import wandb

    path, _, query = source.removeprefix("wandb:").partition("?")
    if not re.fullmatch(r"[^/]+/[^/]+", path):
        raise UsageError(f"{source}: expected wandb:entity/project, found {path!r}")
    filters = wandb_filters(query)
    try:
        return [run for one in wandb.Api().runs(path, filters=filters) if (run := _read_wandb(path, one))]
    except (wandb.errors.CommError, wandb.errors.UsageError, ValueError) as error:
        raise UsageError(f"{source}: W&B answers: {error}") from error


def _read_wandb(path: str, run: Any) -> Run | None:
    """A run of W&B; None where no run card was kept."""
    config = {key: value for key, value in _plain(run.config).items() if not key.startswith("_")}
    facts, outcome = config.pop("card", None), _plain(dict(run.summary)).get("card")
    if not facts or not outcome:
        return None
    step = "trainer/global_step"

    def curve(metric: str) -> Curve:
        rows = run.scan_history(keys=[step, metric])
        return sorted({int(r[step]): float(r[metric]) for r in rows if r.get(metric) is not None}.items())

    return Run(f"wandb:{path}/{run.name}-{run.id}", {**facts, **outcome, "config": config}, curve)


def _plain(value: Any) -> Any:
    """W&B's own mappings as dicts."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {key: _plain(inner) for key, inner in value.items()}
    return value
