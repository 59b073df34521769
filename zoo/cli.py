"""`zoo fit | validate | test | predict`: the one place that knows LightningCLI."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks import ExactResume, Interrupts, RunCard, RunProgress, SampleScores, WandbCheckpoint
from datamodules.base import BenchmarkDataModule
from zoo import notices, registry
from zoo.cards import Card
from zoo.class_paths import take_allowed
from zoo.cli_errors import ZooParser, plain_message
from zoo.config_files import UsageError, last_value, read_sources, replaced_lists, resolve_configs
from zoo.heap import keep_freed_memory
from zoo.method import Method
from zoo.pretrained import restoring
from zoo.resume import Trained
from zoo.run_folder import (
    RunRecorder,
    Wandb,
    dump_config,
    finish_wandb,
    open_run_folder,
    run_checkpoints,
    run_loggers,
)
from zoo.series import is_series, run_series

INTERRUPTED = {"SIGINT": 130, "SIGTERM": 143}
"""Exit codes of runs that a signal ended, as shells report them."""

# Said by libraries about each other, or made untrue by what happens here; nothing a user could act on.
QUIET = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r"Experiment logs directory .* exists and is not empty.*",  # set_aside has kept the older metrics
    r"Checkpoint directory .* exists and is not empty.*",
    r"`ModelCheckpoint\(monitor=.* could not find the monitored key.*",  # an error once validation has run
    r"`max_epochs` was not set.*",  # told before anything is built
    r"Found \d+ module\(s\) in eval mode.*",  # teachers are, on purpose
)
# Evaluating needs none of the callbacks that kept state while training; resuming does.
QUIET_EVALUATION = (r".*callbacks used to create the checkpoint need to be provided.*",)


def run(argv: Sequence[str]) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` and return the exit code.

    Wrong usage is one line and 2; a run that one of our own checks stops is one line and 1. Everything else
    keeps its traceback, and with ``--traceback`` or ``SELFZOO_DEBUG=1`` these two do as well.
    """
    code = 1  # also of what passes through here
    try:
        code = _run(argv)
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            code = INTERRUPTED["SIGINT"]
        elif isinstance(ended, SIGTERMException):
            code = INTERRUPTED[getattr(ended, "received", "SIGTERM")]
        else:
            raise
    finally:
        finish_wandb(code)
    return code


def _run(argv: Sequence[str]) -> int:
    debug = "--traceback" in argv or os.environ.get("SELFZOO_DEBUG") == "1"
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
    with warnings.catch_warnings():
        for pattern in QUIET if argv[0] == "fit" else (*QUIET, *QUIET_EVALUATION):
            warnings.filterwarnings("ignore", message=pattern)
        try:
            if is_series(argv):
                take_allowed(argv)  # the runs of a series take it again
                return run_series(argv, resolve)
            argv = take_allowed(argv)
            import_classes()
            ZooCLI(resolve_configs([token for token in argv if token != "--traceback"]))
        except Exception as error:
            message = plain_message(error)
            if debug or message is None:
                raise
            print(f"zoo {argv[0]}: error: {message}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
    return 0


def _is_no_tip(record: logging.LogRecord) -> bool:
    """Lightning advertises further products on every start."""
    return " Tip: " not in record.getMessage()


def import_classes() -> None:
    """Import what configs may name by class alone: ``FST``, ``StreetShift``, ``EMATeacher``."""
    methods = map(registry.method_card, registry.list_methods())
    benchmarks = map(registry.benchmark_card, registry.list_benchmarks())
    for module in ("callbacks", "datamodules", *(card.module for card in (*methods, *benchmarks))):
        importlib.import_module(module)


class ZooCLI(LightningCLI):
    """LightningCLI with a run folder, W&B, checkpoints by default, and nothing done silently.

    Args:
        argv: the verb and its options; configs are given by path.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.verb, *self.options = argv
        super().__init__(
            Method,
            BenchmarkDataModule,
            save_config_callback=RunRecorder,
            seed_everything_default=0,
            parser_class=ZooParser,
            parser_kwargs={"prog": "zoo"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
        )

    # -- settings ---------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the run itself."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run (default: runs/<method>/<benchmark>/<time>-seed<seed>).",
        )
        parser.add_argument(
            "--wandb",
            type=Wandb,
            default="auto",
            help="auto follows WANDB_MODE, is online with an API key and offline without one.",
        )
        parser.add_argument(
            "--wandb_checkpoint",
            type=bool,
            default=False,
            help="Log the checkpoint as a W&B artifact at the end.",
        )
        parser.add_argument(
            "--tensorboard", type=bool, default=False, help="Also write event files for TensorBoard."
        )
        parser.add_argument(
            "--run_card", type=bool, default=True, help="Keep run_card.json, the record of the run."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with the checkpoint's hyper-parameters below everything that was typed."""
        sources = read_sources(self.options)
        fits = self.verb == "fit"
        self.trained = trained = Trained(
            last_value(sources, "ckpt_path"), last_value(sources, "run_dir"), fits
        )
        # Nobody reads them here; callbacks write what is to be kept, batch by batch.
        defaults = ["--return_predictions", "false"] if self.verb == "predict" else []
        self.config = parser.parse_args([self.verb, *defaults, *trained.as_options(), *self.options])
        config = self.config[self.verb]
        config.ckpt_path = trained.path
        plain = yaml.safe_load(self._parser(self.verb).dump(config, skip_unset=False))
        self.notes = replaced_lists(sources) + trained.compare(plain["model"], resumes=fits)
        self.notes += notices.endless_training(config.trainer) if fits else notices.untrained(trained.path)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint override what was typed here."""

    # -- the run ----------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Tell what was noticed before anything is built."""
        notices.tell(self.notes)

    def instantiate_classes(self) -> None:
        """Where a checkpoint brings all weights, none are fetched before it."""
        with restoring() if self.config[self.verb].ckpt_path else nullcontext():
            super().instantiate_classes()

    def before_fit(self) -> None:
        """A CPU trains in memory that the process keeps."""
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, loggers and checkpoints where the config has none of its own."""
        self.trained.refuse_other_networks(self.model.state_dict())
        del self.trained  # or the run would hold on to a file that it is about to replace
        config = self.config_init[self.verb].trainer
        configured = config.callbacks or []
        configured = configured if isinstance(configured, list) else [configured]
        notices.tell(notices.replaced_defaults(configured, self.model.default_callbacks()))
        if config.fast_dev_run or config.barebones:  # a trial leaves nothing behind
            self.save_config_callback = None
            return super().instantiate_trainer(**kwargs)

        run = self.config[self.verb]
        method, benchmark = names(run)
        folder = open_run_folder(run.run_dir, method, benchmark, run.seed_everything, self.verb)
        self.save_config_kwargs = {"folder": folder, "configured": configured}
        kwargs.setdefault("default_root_dir", config.default_root_dir or folder)
        if config.logger is None or config.logger is True:
            backbone = run.model.get("init_args", {}).get("backbone")
            tags = [*([backbone] if isinstance(backbone, str) else []), f"seed{run.seed_everything}"]
            kwargs["logger"] = run_loggers(
                folder, run.wandb, method, benchmark, tags, bool(run.ckpt_path), run.tensorboard
            )
        callbacks = [*configured]
        watched = any(isinstance(callback, ProgressBar) for callback in configured)
        if self.verb == "fit" and config.enable_progress_bar is not False and not watched:
            callbacks.append(RunProgress())
        if run.run_card and not any(isinstance(callback, RunCard) for callback in configured):
            plain = yaml.safe_load(dump_config(self._parser(self.verb), run))
            seed = None if run.seed_everything is False else run.seed_everything
            callbacks.append(RunCard(str(folder), plain, method, benchmark, seed))
        if self.verb == "test" and not any(isinstance(callback, SampleScores) for callback in configured):
            callbacks.append(SampleScores(str(folder)))
        if self.verb == "fit" and config.enable_checkpointing is not False:
            if not any(isinstance(callback, ExactResume) for callback in configured):
                callbacks.append(ExactResume())
            callbacks.append(Interrupts())
            if any(isinstance(callback, Checkpoint) for callback in configured):
                notices.tell(["your checkpoint callback takes the place of best.ckpt and last.ckpt"])
            else:
                checkpoints = run_checkpoints(folder, self.model.monitor, self.model.monitor_mode)
                callbacks += checkpoints
            if run.wandb_checkpoint:
                last = str(folder / "checkpoints" / "last.ckpt")
                callbacks.append(
                    WandbCheckpoint(f"{method}-{benchmark}", [f"seed{run.seed_everything}"], last)
                )
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)


class Unstarted(ZooCLI):
    """A parsed and seeded command of which each part is built when it is asked for, and nothing runs."""

    def before_instantiate_classes(self) -> None:
        """Tell nothing: who builds may read ``notes``."""

    def instantiate_classes(self) -> None:
        """Build nothing yet."""

    def _run_subcommand(self, subcommand: str) -> None: ...

    @property
    def settings(self) -> Namespace:
        """The resolved options of the verb."""
        return self.config[self.verb]

    @property
    def plain_settings(self) -> dict[str, Any]:
        """The same as plain values."""
        return yaml.safe_load(dump_config(self._parser(self.verb), self.settings))

    def build_data(self) -> BenchmarkDataModule:
        """The benchmark."""
        return self._built("data").data

    def build_method(self) -> Method:
        """The method; where a checkpoint brings all weights, none are fetched before it."""
        with restoring() if self.settings.ckpt_path else nullcontext():
            return self._built("model").model

    def trainer_settings(self) -> dict[str, Any]:
        """What the Trainer is built with, callbacks built and in a list."""
        built = dict(self._built("trainer").trainer)
        callbacks = built["callbacks"] or []
        return built | {"callbacks": [*callbacks] if isinstance(callbacks, list) else [callbacks]}

    def _built(self, wanted: str) -> Namespace:
        config = self.config.clone()
        for part in {"model", "data", "trainer"} - {wanted}:
            del config[self.verb][part]
        return self.parser.instantiate_classes(config)[self.verb]


class ParsedOnly(Unstarted):
    """What a command would do, without even seeding."""

    def _set_seed(self) -> None: ...


def resolve(options: Sequence[str]) -> tuple[dict[str, Any], str, str]:
    """The resolved config of ``zoo fit <options>``, the method's and the benchmark's name.

    Raises:
        UsageError: an option is wrong.
    """
    options = take_allowed(options)
    import_classes()
    cli = ParsedOnly(resolve_configs(["fit", *options]))
    config = cli.config["fit"]
    return yaml.safe_load(dump_config(cli._parser("fit"), config)), *names(config)


def names(config: Namespace) -> tuple[str, str]:
    """Registry names of the method and the benchmark of a resolved config."""
    method = card_name(config.model, map(registry.method_card, registry.list_methods()))
    return method, card_name(config.data, map(registry.benchmark_card, registry.list_benchmarks()))


def card_name(config: Namespace, cards: Iterable[Card]) -> str:
    """Registry name of a configured class, or for a class without a card its own name in lower case."""
    class_name = config.class_path.rpartition(".")[2]
    return next((card.name for card in cards if card.class_name == class_name), class_name.lower())
