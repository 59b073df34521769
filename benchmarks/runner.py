"""Run `zoo fit` and `zoo test` for a list of jobs, side by side, and collect their numbers."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.report import default_workers, listed, spread


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: a config, a seed, what is overridden, and the metric that tells how good it is."""

    name: str
    config: str
    seed: int = 0
    steps: int = 800
    overrides: tuple[str, ...] = ()
    metric: str = "mIoU"

    @property
    def folder(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def command(self) -> list[str]:
        return [
            "--config", self.config, "--seed_everything", str(self.seed), "--trainer.max_steps", str(self.steps),
            "--trainer.log_every_n_steps", "10", "--trainer.enable_progress_bar", "false", *self.overrides,
        ]  # fmt: skip


@dataclasses.dataclass
class Result:
    """What a finished job reports; scores in percent, CPU time of the training process in seconds."""

    name: str
    seed: int
    steps: int
    command: list[str]
    folder: str
    test: dict[str, float]
    metric: str
    val_score: float
    wall_seconds: float
    cpu_seconds: float

    @property
    def score(self) -> float:
        """The metric on the test images."""
        return self.test[f"test/{self.metric}"]

    def record(self) -> dict[str, Any]:
        """What is published of it: all but where it lies on this machine."""
        return {key: value for key, value in vars(self).items() if key != "folder"}


def run_jobs(jobs: list[Job], folder: Path, workers: int | None = None) -> list[Result]:
    """Run all jobs with a progress bar each; finished ones (same command) are taken from their folder.

    Raises:
        SystemExit: a run failed; the last lines of its log are printed.
    """
    workers = workers or default_workers()
    columns = [
        TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.completed:>4.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[state]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bars:
        tasks = {
            job: bars.add_task(f"{job.name} seed {job.seed}", total=job.steps, start=False, state="waits")
            for job in jobs
        }
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda job: _run(job, folder, bars, tasks[job]), jobs))


def finished(job: Job, folder: Path) -> Result | None:
    """The result of a run that is done, if it ran with the same command."""
    done = folder / job.folder / "result.json"
    if not done.is_file():
        return None
    result = Result(**json.loads(done.read_text()))
    return result if result.command == job.command else None


def _run(job: Job, parent: Path, bars: Progress, task: TaskID) -> Result:
    if result := finished(job, parent):
        bars.update(task, completed=job.steps, state="done before")
        return result
    folder = parent / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    bars.start_task(task)
    start = time.monotonic()
    cpu = _zoo(["fit", *job.command, "--run_dir", str(folder)], folder, bars, task)
    wall = time.monotonic() - start
    bars.update(task, completed=job.steps, state="tests")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    where = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint)]
    _zoo(["test", *where, "--run_dir", str(folder / "test"), "--wandb", "disabled"], folder, None, task)
    result = Result(
        job.name, job.seed, job.steps, job.command, str(folder), last_row(folder / "test", "test/"),
        job.metric, last_row(folder, "val/")[f"val/{job.metric}"], round(wall, 1), round(cpu, 1),
    )  # fmt: skip
    (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result), indent=1))
    bars.update(task, state=f"{job.metric} {result.score:.1f}")
    return result


def _zoo(arguments: list[str], folder: Path, bars: Progress | None, task: TaskID) -> float:
    """Run one `zoo` command on one thread; returns its CPU seconds."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
    }
    log = folder / f"{arguments[0]}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo", *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:  # wait4 tells this process's own CPU time
            time.sleep(0.5)
            if bars is not None and (step := _progress(folder)):
                bars.update(task, completed=step, state="trains")
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(
            f"`zoo {' '.join(arguments)}` failed with exit code {process.returncode}:\n{tail}\nlog: {log}"
        )
    return ended[2].ru_utime + ended[2].ru_stime


def _progress(folder: Path) -> int:
    path = folder / "metrics.csv"
    if not path.is_file():
        return 0
    steps = [row["step"] for row in csv.DictReader(path.open()) if row.get("step")]
    return int(steps[-1]) + 1 if steps else 0


def last_row(folder: Path, prefix: str) -> dict[str, float]:
    """The last value of every metric of a run whose name starts with ``prefix``."""
    path = folder / "metrics.csv"
    if not path.is_file():
        raise SystemExit(f"{folder} holds no metrics.csv: did its run finish?")
    values: dict[str, float] = {}
    for row in csv.DictReader(path.open()):
        values |= {key: float(value) for key, value in row.items() if key.startswith(prefix) and value}
    return values


def leads(results: list[Result], ours: str, *others: str) -> dict[str, dict[int, float]]:
    """ "Ours - other" → seed → by how much ours is ahead, for :func:`benchmarks.report.verdict`."""
    by: dict[str, dict[int, float]] = {}
    for result in results:
        by.setdefault(result.name, {})[result.seed] = result.score
    return {
        f"{ours} - {other}": {seed: score - by[other][seed] for seed, score in by[ours].items()}
        for other in others
    }


def summary(results: list[Result], order: list[str], seeds: list[int]) -> str:
    """A Markdown row per method: test score mean ± std and per seed, steps, CPU seconds."""
    metric = results[0].metric if results else "score"
    lines = [f"| run | steps | test {metric} | per seed | CPU s |", "|---|---|---|---|---|"]
    for name in order:
        rows = sorted((r for r in results if r.name == name), key=lambda r: seeds.index(r.seed))
        if not rows:
            continue
        values = [row.score for row in rows]
        cpu = statistics.mean(row.cpu_seconds for row in rows)
        lines.append(f"| {name} | {rows[0].steps} | {spread(values)} | {listed(values)} | {cpu:.0f} |")
    return "\n".join(lines)
