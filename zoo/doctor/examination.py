"""The checks of one config, each on what the ones before it have built."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from datamodules.base import BenchmarkDataModule
from zoo.checkpoints import CheckpointError
from zoo.cli import QUIET, QUIET_EVALUATION, Unstarted, import_classes, names
from zoo.cli_errors import plain_message
from zoo.config_files import UsageError, resolve_configs
from zoo.config_hash import config_hash
from zoo.doctor import data as data_checks
from zoo.doctor.checks import Check, Report
from zoo.doctor.environment import devices, disk
from zoo.doctor.estimate import Plan, estimate
from zoo.doctor.trial import try_out
from zoo.doctor.weights import weights
from zoo.method import Method
from zoo.run_folder import wandb_mode
from zoo.series import Earlier

Made = TypeVar("Made")
LOGGERS = ("lightning.pytorch", "lightning.fabric")


class Examination:
    """Goes from cheap to costly; what fails is told, and the rest goes on as far as it can without it.

    Args:
        report: takes the checks.
        out: folder of the pictures; None takes ``runs/<method>/<benchmark>/doctor``.
        warm_up: steps before the clock counts.
        steps: steps that are timed.
        debug: let errors through, with their tracebacks.
    """

    def __init__(self, report: Report, out: Path | None, warm_up: int, steps: int, debug: bool) -> None:
        self.report, self.out, self.warm_up, self.steps, self.debug = report, out, warm_up, steps, debug

    def run(self, options: Sequence[str]) -> None:
        """Check the run that ``zoo fit <options>`` would be."""
        with quiet():
            cli = self._attempt("config", "", lambda: _parsed(options))
            if cli is None:
                return
            self._config(cli)
            data = self._attempt("data", "correct data.*", cli.build_data)
            method = self._attempt("method", "correct model.*", cli.build_method)
            if method is not None:
                held = self._attempt("weights", "", lambda: [*weights(method, cli.settings.ckpt_path)])
                self.report.add(*(held or []))
            loading = None if data is None else self._data(data)
            if method is not None and data is not None and loading is not None and not self.report.stops:
                self._trial(cli, method, data, loading)

    def _config(self, cli: Unstarted) -> None:
        """What the run is called, where it goes, what was noticed while parsing."""
        run, plain = cli.settings, cli.plain_settings
        method, benchmark = names(run)
        self.folder = Path(run.run_dir) if run.run_dir else Path("runs", method, benchmark)
        mode = wandb_mode() if run.wandb == "auto" else run.wandb
        found = f"{method} on {benchmark}, hash {config_hash(plain)}; kept below {self.folder}, W&B {mode}"
        self.report.add(Check("config", "ok", found), *(Check("config", "note", note) for note in cli.notes))
        earlier = Earlier.find(plain, method, benchmark)
        if not earlier.starts:
            found = f"a run of equal config and seed exists: {earlier.told.removeprefix('skipped, ')}"
            self.report.add(
                Check("config", "note", found, "set another --seed_everything, or compare with that")
            )
        if run.run_dir:
            self.report.add(disk("run_dir", self.folder, "set --run_dir to a folder on another disk"))
        if run.trainer.accelerator in ("gpu", "cuda", "mps"):
            self.report.add(devices(run.trainer.accelerator))
        self.out = self.out or Path("runs", method, benchmark, "doctor")
        self.out.mkdir(parents=True, exist_ok=True)

    def _data(self, data: BenchmarkDataModule) -> float | None:
        """Layout, labels, samples, statistics; the seconds that a batch takes to load, None where none can be."""
        assert self.out is not None
        layouts = self._attempt("layout", "", lambda: [*data_checks.layout(data)])
        self.report.add(*(layouts or []))
        if layouts is None or any(check.status == "stop" for check in layouts):
            return None
        if self._attempt("data", "", lambda: data_checks.opened(data)) is None:
            return None
        counted = self._attempt("labels", "correct or leave out that label", lambda: data_checks.labels(data))
        if counted is not None:
            checks, counts = counted
            self.report.add(*checks)
            if counts:
                chart = self.out / "labels.png"
                data_checks.label_chart(counts, data.classes).savefig(chart, dpi=110)
                self.report.files.append(str(chart))
        remedy = "repair or remove that file, or set data.skip_broken: true"
        sampled = self._attempt("samples", remedy, lambda: data_checks.samples(data, self._file("samples")))
        if sampled is None:
            return None
        check, batch, seconds = sampled
        self._tell(check, self._file("samples"))
        further = self._attempt(
            "statistics",
            "",
            lambda: [data_checks.shared_memory(batch, data.num_workers), data_checks.statistics(data)],
        )
        self.report.add(*filter(None, further or []))
        return seconds

    def _trial(self, cli: Unstarted, method: Method, data: BenchmarkDataModule, loading: float) -> None:
        """A few steps, what the method saw, and the estimate."""
        settings = self._attempt("trial", "correct trainer.*", cli.trainer_settings)
        if settings is None:
            return
        remedy = "see the message; --traceback shows where it comes from"
        trial = self._attempt(
            "trial", remedy, lambda: try_out(method, data, settings, self.warm_up, self.steps)
        )
        if trial is None:
            return
        validated = "" if trial.validation_seconds is None else " and validated a few batches"
        found = f"trained {trial.trained} steps{validated}"
        check = data_checks.drawn("trial", found, trial.batch, data, self._file("training"))
        self._tell(check, self._file("training"))
        accumulated = settings["accumulate_grad_batches"] or 1
        plan = Plan(
            settings, data.batch_size * accumulated, loading, data.num_workers, method.monitor, self.folder
        )
        self.report.add(*estimate(trial, plan))

    def _tell(self, check: Check, file: Path) -> None:
        self.report.add(check)
        if check.status == "ok":
            self.report.files.append(str(file))

    def _file(self, name: str) -> Path:
        assert self.out is not None
        return self.out / f"{name}.png"

    def _attempt(self, name: str, remedy: str, make: Callable[[], Made]) -> Made | None:
        """What ``make`` returns; None and a check that says stop where it fails."""
        try:
            return make()
        except Exception as error:
            if self.debug:
                raise
            if _about_weights(error):
                name, remedy = "weights", "zoo import FILE shows what a file of weights is"
            if isinstance(error, torch.cuda.OutOfMemoryError):
                remedy = (
                    "lower data.batch_size, raise trainer.accumulate_grad_batches, or set trainer.precision"
                )
            told = plain_message(error) or f"{type(error).__name__}: {error}"
            self.report.add(Check(name, "stop", told, remedy))
            return None


def _about_weights(error: BaseException | None) -> bool:
    """Whether it is a CheckpointError, or was caused by one."""
    while error is not None and not isinstance(error, CheckpointError):
        error = error.__cause__
    return error is not None


def _parsed(options: Sequence[str]) -> Unstarted:
    import_classes()
    try:
        return Unstarted(resolve_configs(["fit", *options]))
    except SystemExit as end:  # --help, --print_config
        raise UsageError("zoo doctor takes the options of a run, without those that only print") from end


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says of every run."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for pattern in (*QUIET, *QUIET_EVALUATION, r".*smaller than the logging interval.*"):
            warnings.filterwarnings("ignore", message=pattern)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
