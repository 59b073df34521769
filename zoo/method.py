"""Method: the one base LightningModule of the zoo."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from zoo.checkpoints.start import InitFrom
from zoo.deployable import Deployable
from zoo.finite import NonFinite
from zoo.idle_hooks import leave_out_idle_hooks
from zoo.optim import Optim, build_optimizer, clip_gradients, drop_frozen_gradients
from zoo.optim_schedule import OptimSchedule

Batch = dict[str, Any]

TRAINING_PARTS = "training_parts"
"""Submodule that callbacks hang their stateful parts on: in checkpoints, but not part of the network."""


class Method(Deployable):
    """Base class of every paper method.

    A method assigns ``self.student`` (and, if it has any, :class:`~zoo.teacher.Teacher` submodules) in
    ``__init__``, implements :meth:`losses`, and says in :meth:`default_callbacks` what moves its teachers and
    labels its data. The base sums and logs the losses, builds the optimiser, has :class:`~zoo.finite.NonFinite`
    watch the numbers, and checks that every teacher has somebody who moves it.

    Args:
        optim: optimiser, parameter rules and schedule; ``None`` takes :meth:`default_optim`.
        init_from: where the student starts when training does: another run's checkpoint, or any source of
            weights that :func:`zoo.checkpoints.load_pretrained` takes. Resuming, evaluating and loading a
            checkpoint of this run need it no more.

    Attributes:
        monitor: name of the validation metric by which checkpoints are kept; ``None`` keeps the last.
        monitor_mode: whether a larger (``max``) or smaller (``min``) value of it is better.
        has_started: whether a checkpoint or ``init_from`` has brought the weights.
    """

    monitor: str | None = None
    monitor_mode: Literal["max", "min"] = "max"
    #: Overlay of the trainer (``compile``, ``channels_last``, ``checkpointing``, ``fused``) → why it does not go with
    #: this method; its callback refuses to start.
    refuses: ClassVar[Mapping[str, str]] = {}
    student: nn.Module

    def __init__(self, optim: Optim | None = None, init_from: str | None = None) -> None:
        super().__init__()
        # Collected from every constructor up to the leaf class; dataclasses become dicts, since checkpoints
        # hold plain values only (they are loaded with weights_only=True).
        self.save_hyperparameters()
        plain = {key: _plain(value) for key, value in self.hparams.items()}
        self._set_hparams(plain)
        self._hparams_initial = dict(self.hparams)
        # A checkpoint brings a dict; annotated as one, the command line would accept any key in it.
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim or self.default_optim()
        self.init_from = init_from
        self.benchmark = {}
        #: When the loader handed over the last batch (``time.perf_counter``); monitors read it.
        self.batch_arrived = 0.0
        self._loss_watchers: list[Any] = []
        self.has_started = False

    # -- what a method says -----------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms of ``batch``; their sum is what is minimised.

        Pure: no logging, no optimiser, no global state, so that a look-ahead may call it any number of times.
        """
        raise MisconfigurationException(
            f"{type(self).__name__} must implement losses(batch) -> dict of scalars"
        )

    def default_optim(self) -> Optim:
        """The paper's optimiser and schedule, used where ``optim`` is not given."""
        return Optim()

    def default_callbacks(self) -> list[Callback]:
        """Callbacks the paper's recipe needs; each is added unless the user configured that kind."""
        return []

    def trained_modules(self) -> list[nn.Module]:
        """Modules whose parameters the optimiser gets; parameter rules see names relative to each."""
        return [self.student]

    # -- training ---------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Add the default callbacks of which the user configured none of that kind.

        They are put into the trainer's list here, and nothing is returned: Lightning would drop user callbacks
        of a parent class (an ``EMATeacher`` of another teacher) in favour of what is returned.
        """
        callbacks = trainer_callbacks(self.trainer)
        present = [callback_kind(callback) for callback in callbacks]
        present += [(family, None) for c in callbacks for family in getattr(c, "stands_for", ())]
        defaults = [*self.default_callbacks(), NonFinite()]
        callbacks[:0] = [c for c in defaults if callback_kind(c) not in present]
        if self.init_from:
            callbacks.insert(0, InitFrom(self.init_from))
        return []

    def setup(self, stage: str) -> None:
        """Put callbacks into order, take the benchmark's facts, check strategy, clipping and who moves the teachers.

        Raises:
            MisconfigurationException: parameters would be sharded; gradients would be clipped twice; nobody moves
                a teacher.
        """
        if (datamodule := getattr(self.trainer, "datamodule", None)) is not None:
            self.take_facts(datamodule)
        callbacks = trainer_callbacks(self.trainer)
        callbacks.sort(key=lambda callback: getattr(callback, "step_order", 100))
        # It does nothing but look at the clock.
        warnings.filterwarnings(
            "ignore", message="You have overridden `on_before_batch_transfer` in `LightningModule` but"
        )
        strategy = self.trainer.strategy
        whole = isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
        if isinstance(strategy, ParallelStrategy) and not whole:
            raise MisconfigurationException(
                f"trainer.strategy={type(strategy).__name__} shards parameters over processes, and "
                f"{type(self).__name__} needs whole ones on each: teachers and look-aheads move parameter by "
                "parameter, elastic networks are slices of them, and checkpoints are single files. Set "
                "trainer.strategy to ddp"
            )
        self._loss_watchers = [callback for callback in callbacks if hasattr(callback, "on_losses")]
        if stage != "fit":
            return
        leave_out_idle_hooks(callbacks)
        if self.optim.clip_norm is not None and self.trainer.gradient_clip_val:
            raise MisconfigurationException(
                f"optim.clip_norm={self.optim.clip_norm} and trainer.gradient_clip_val="
                f"{self.trainer.gradient_clip_val} both clip gradients: set one of them to null"
            )
        # Teachers are in evaluation mode on purpose.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        kinds = [callback_kind(callback) for callback in callbacks]
        for name, _ in self.named_teachers():
            if ("ema_teacher", name) not in kinds:
                raise MisconfigurationException(
                    f"{type(self).__name__} declares the teacher {name!r} but no callback moves it. Add "
                    f"EMATeacher(teacher={name!r}) to trainer.callbacks, or timing='manual' if the method "
                    "moves it by itself."
                )

    def refuse_plain_ddp(self, why: str, instead: str = "") -> None:
        """Raise where ranks would wait for gradients that do not come.

        Args:
            why: which parameters have none, and when.
            instead: what else could be set.

        Raises:
            MisconfigurationException: the strategy is DDP without ``find_unused_parameters``.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise MisconfigurationException(
                f"{why}, which plain DDP does not accept. Set trainer.strategy to ddp_find_unused_parameters_true"
                f"{instead}."
            )

    def forward_context(self) -> AbstractContextManager[Any]:
        """The trainer's autocast context, for forwards outside ``training_step``."""
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Have DDP hand out rank 0's buffers in every step: it would not in the one after a validation."""
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model.require_forward_param_sync = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum the losses and log them on the steps the logger writes (logging every step costs 4 ms).

        Callbacks with a method ``on_losses(pl_module, losses)`` see the terms first.
        """
        losses = self.losses(batch)
        for callback in self._loss_watchers:
            callback.on_losses(self, losses)
        total = torch.stack(list(losses.values())).sum()
        if self.writes_logs():
            self._forget_logged()
            self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
            self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def _forget_logged(self) -> None:
        """Terms that this step has not (2-D and 3-D in turn): Lightning would write those of an earlier step again."""
        for metric in (self.trainer._results or {}).values():
            if metric.meta.fx == "training_step" and not metric.meta.on_epoch:
                metric.has_reset = True

    def place(self, batch_idx: int) -> str:
        """Where in training this is, for :mod:`zoo.draws`: rank, optimiser step and micro-batch."""
        return f"{self.global_rank}/{self.global_step}/{batch_idx}"

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note when the batch arrived."""
        self.batch_arrived = perf_counter()
        return batch

    def writes_logs(self) -> bool:
        """Whether the logger writes at the step that is running."""
        return self.trainer._logger_connector.should_update_logs

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build optimiser groups and the per-step schedule from ``self.optim``."""
        optimizer = build_optimizer(self.trained_modules(), self.optim)
        total = self.total_steps
        if self.optim.has_end and total == float("inf"):
            raise MisconfigurationException(
                f"optim.schedule={self.optim.schedule!r} needs an end: set trainer.max_steps, trainer.max_epochs "
                "or optim.total_steps"
            )
        schedule = OptimSchedule(
            optimizer, self.optim, total, self.steps_per_epoch if self.optim.in_epochs else 0
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def total_steps(self) -> float:
        """Optimiser steps of the whole run, the T of every schedule; inf where nothing ends it."""
        return self.optim.total_steps or self.trainer.estimated_stepping_batches

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the training loader.

        Raises:
            MisconfigurationException: the loader has no length.
        """
        self.trainer.fit_loop.setup_data()  # does nothing once the loader is there
        batches = self.trainer.num_training_batches
        if batches == float("inf"):
            raise MisconfigurationException(
                "the training loader has no length, so nothing can be counted in epochs: use options in steps, or "
                "set trainer.limit_train_batches"
            )
        return math.ceil(batches / self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Have ``optim.clip_norm`` see true gradients: Lightning leaves those of fused optimisers scaled under fp16."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        unscales = getattr(
            optimizer, "_step_supports_amp_scaling", False
        )  # in its step, unless this is done before
        if scaler is not None and unscales and self.optim.clip_norm is not None:
            scaler.unscale_(optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as ``optim.clip_norm`` says, or else as the trainer does; then drop what is frozen."""
        if self.optim.clip_norm is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_gradients(self.trained_modules(), self.optim)
        if self.optim.freeze_by == "gradient":
            drop_frozen_gradients(optimizer)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = "cpu", strict: bool | None = None, **changes: Any
    ) -> Any:
        """:meth:`from_pretrained` under Lightning's name, in training mode; ``changes`` are constructor arguments.

        Unlike Lightning's, it calls nothing that the file names, and it is always strict.

        Raises:
            MisconfigurationException: ``strict=False``.
        """
        if strict is False:
            raise MisconfigurationException(
                "load_from_checkpoint(strict=False) would load a part without a word: use load_pretrained, which tells"
            )
        return cls.from_pretrained(checkpoint_path, map_location, **changes).train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep of which method it is, and what prediction needs to know of the benchmark."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["benchmark"] = dict(self.benchmark)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Without the callbacks that own it (evaluation, prediction), the state of training parts is left out."""
        self.has_started = True
        self.benchmark = self.benchmark or checkpoint.get("benchmark", {})
        if not hasattr(self, TRAINING_PARTS):
            state = checkpoint["state_dict"]
            for key in [key for key in state if key.startswith(f"{TRAINING_PARTS}.")]:
                del state[key]


def trainer_callbacks(trainer: L.Trainer) -> list[Callback]:
    """The trainer's own list; Lightning sets it where type checkers do not see it."""
    return trainer.callbacks  # type: ignore[attr-defined]


def callback_kind(callback: Callback) -> tuple[str, Any]:
    """What a default callback would double: its family and, for teachers, the teacher it moves."""
    family = getattr(callback, "family", None)
    return family or type(callback).__name__, getattr(callback, "teacher", None) if family else None


def _plain(value: Any) -> Any:
    return (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
