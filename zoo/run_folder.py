"""One folder per run: the resolved config, metrics, checkpoints, pictures and the W&B files."""

from __future__ import annotations

import itertools
import netrc
import os
import socket
import sys
from configparser import ConfigParser
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from zoo.notices import dropped_callbacks, tell

Wandb = Literal["auto", "online", "offline", "disabled"]


def open_run_folder(run_dir: str | None, method: str, benchmark: str, seed: Any, verb: str) -> Path:
    """``run_dir``, or a new ``runs/<method>/<benchmark>/<time>-seed<seed>`` with a number behind it if taken.

    Only the first process creates anything: the others never write, and what all must agree on (the
    checkpoints' folder, the trainer's ``log_dir``) Lightning broadcasts.
    """
    if run_dir:
        return Path(run_dir)
    seeded = "unseeded" if seed is False else f"seed{seed}"
    stem = "-".join([f"{datetime.now():%Y%m%d-%H%M%S}", seeded, *([] if verb == "fit" else [verb])])
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(
        folder for name in names if _claim(folder := Path("runs", method, benchmark, name)) is not False
    )


@rank_zero_only
def _claim(folder: Path) -> bool:
    """Create the folder, or say that somebody else has (two runs may start within the same second)."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


@rank_zero_only
def set_aside(path: Path) -> None:
    """Rename an existing file to ``<stem>-<n><suffix>``: what is written next must not overwrite it."""
    if path.exists():
        numbers = itertools.count(1)
        path.rename(next(p for n in numbers if not (p := path.with_stem(f"{path.stem}-{n}")).exists()))


def run_loggers(
    folder: Path,
    wandb: Wandb,
    method: str,
    benchmark: str,
    tags: list[str],
    resumes: bool = False,
    tensorboard: bool = False,
) -> list[Logger]:
    """A CSV logger writing ``metrics.csv`` and, unless disabled, a W&B logger writing ``wandb/``.

    Args:
        folder: the run's folder.
        wandb: ``auto`` follows ``WANDB_MODE``, is online with an API key and offline without one.
        method: the job type of the W&B run.
        benchmark: the group of the W&B run.
        tags: tags of the W&B run.
        resumes: training goes on from a checkpoint, and so does the W&B run that the folder holds.
        tensorboard: also write event files for TensorBoard into ``tensorboard/``.
    """
    set_aside(folder / "metrics.csv")  # the logger would delete the metrics of a run resumed here
    loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
    if tensorboard:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    mode = wandb_mode() if wandb == "auto" else wandb
    if mode == "online" and not wandb_answers():
        if wandb == "online":
            raise ConnectionError(
                f"--wandb online: nobody answers at {wandb_url()}. Check the network, or use --wandb offline and send "
                "the run later with wandb sync"
            )
        tell([f"nobody answers at {wandb_url()}: W&B keeps this run offline; send it later with wandb sync"])
        mode = "offline"
    if mode != "disabled":
        loggers.append(
            WandbLogger(
                name=folder.name,
                project="selfzoo",
                save_dir=folder.absolute(),  # W&B's own process has a working directory of its own
                id=last_wandb_id(folder) if resumes else None,
                group=benchmark,
                job_type=method,
                tags=tags,
                mode=mode,
            )
        )
    return loggers


def last_wandb_id(folder: Path) -> str | None:
    """Id of the W&B run that the folder of a run holds, the newest of several; None without one.

    W&B calls its folders ``[offline-]run-<time>-<id>``.
    """
    runs = [path.name.split("-") for path in folder.glob("wandb/*run-*-*")]
    return max(
        ((name[-2], name[-1]) for name in runs if name[0] in ("run", "offline")), default=(None, None)
    )[1]


def finish_wandb(exit_code: int) -> None:
    """End the W&B run of this process, if there is one: the next run of the process is another."""
    wandb = sys.modules.get("wandb")  # importing it takes a second
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code)


def wandb_mode() -> str:
    """What ``--wandb auto`` means here: ``WANDB_MODE``, or online with an API key and offline without one."""
    if mode := os.environ.get("WANDB_MODE"):
        return "offline" if mode == "dryrun" else mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(wandb_url()).netloc
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    except (FileNotFoundError, netrc.NetrcParseError):
        return "offline"


def wandb_url() -> str:
    """Where W&B is: as the environment says, or else ``wandb login --host``."""
    stored = ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    stored.read([folder / "settings", Path("wandb", "settings")])
    default = stored.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL", default)


def wandb_answers() -> bool:
    """Whether a connection to W&B can be opened; W&B itself tries for a minute and a half. Proxies are trusted."""
    place = urlsplit(wandb_url())
    if place.hostname is None or getproxies().get(place.scheme):
        return True
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        with socket.create_connection((place.hostname, port), timeout=5):
            return True
    except OSError:
        return False


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt``: rewritten after every validation (after every epoch, without one) and at the end.

    ModelCheckpoint's ``save_last`` follows the best checkpoint, so it misses validations that were no better
    and a last step without validation. Saved from these two hooks a resumed run counts steps and epochs on as
    if unbroken; what ``on_train_epoch_end`` or ``on_train_end`` save, Lightning 2.6 resumes one off.
    ``weights_only=False`` is about what is written: optimiser, loops and callbacks too, or nothing could be
    resumed; all of it plain values, so that ``read_checkpoint`` can insist on a safe load.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder.absolute() / "last.ckpt")
        self._waits = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Agree on the path: sharded strategies write from every process."""
        self.path = trainer.strategy.broadcast(self.path)
        self._waits = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what was just evaluated."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._waits = trainer.fit_loop._should_accumulate()
            if not self._waits:
                self._save(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the last step, the last of an epoch that ends without validation, and what waited."""
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        ends = trainer.is_last_batch and (last_epoch or not trainer.enable_validation)
        waited = self._waits and not trainer.fit_loop._should_accumulate()
        if stops or ends or waited:
            self._save(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Lose no work to what went wrong outside a step: a signal, the data, validation.

        Within a step weights, teachers and counters may disagree, so the file of before stays.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        between_steps = progress.ready == progress.completed and not trainer.sanity_checking
        if trainer.state.fn != TrainerFn.FITTING or not between_steps or not trainer.global_step:
            return
        alone = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        if isinstance(exception, FloatingPointError) or not alone:
            return  # other processes may be elsewhere, and saving needs all of them
        try:
            self._save(trainer)
        except Exception as error:  # what went wrong first is what the user has to see
            rank_zero_warn(f"{self.path} could not be written at the end of the run: {error}")

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._waits = False


def run_checkpoints(folder: Path, monitor: str | None, mode: str) -> list[Callback]:
    """``checkpoints/last.ckpt`` and, if the method monitors a metric, ``checkpoints/best.ckpt``."""
    checkpoints = folder / "checkpoints"
    if monitor is None:
        return [LastCheckpoint(checkpoints)]
    best = ModelCheckpoint(
        checkpoints,
        "best",
        monitor=monitor,
        mode=mode,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return [best, LastCheckpoint(checkpoints)]  # the last one knows what was the best up to it


class RunRecorder(SaveConfigCallback):
    """Write the resolved config into the run's folder and to W&B, whatever the folder already holds.

    Lightning's own callback aborts where a config exists, as in a folder in which a run is resumed; here the
    older file is kept as ``config-1.yaml`` and so on. The saved config names no folder and no
    checkpoint, so that running it again starts a new run.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, folder: Path, configured: list[Callback]
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder, self.configured = folder, configured

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called once, on the first process, when all callbacks are in place."""
        tell(dropped_callbacks(self.configured, trainer.callbacks))  # type: ignore[attr-defined]
        text = dump_config(self.parser, self.config)
        self.folder.mkdir(parents=True, exist_ok=True)
        set_aside(self.folder / "config.yaml")
        (self.folder / "config.yaml").write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(yaml.safe_load(text))
                monitor = getattr(pl_module, "monitor", None)
                if monitor is not None:  # W&B's tables show the best beside the last value
                    kinds = f"{pl_module.monitor_mode},last"
                    logger.experiment.define_metric(monitor, "trainer/global_step", summary=kinds)


def dump_config(parser: LightningArgumentParser, config: Namespace) -> str:
    """A resolved config as YAML, without the folder of the run and the checkpoint it went on from."""
    config = config.clone()
    config.run_dir = config.ckpt_path = None
    return parser.dump(config, skip_unset=False)  # a null may differ from the default
