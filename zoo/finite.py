"""NonFinite: nan and inf end a run, or are stepped over, with the batch that made them."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from zoo.broken_batch import BrokenBatch, samples_of
from zoo.nn.magnitudes import magnitudes
from zoo.teacher import Teacher

AHEAD = 2
"""Micro-batches that the host may be ahead of the device before it waits for the values of the oldest."""


@dataclasses.dataclass
class Seen:
    """A micro-batch of which is not known yet whether it is broken.

    Args:
        step: optimiser steps before it.
        batch_idx: its number in the epoch.
        batch: what ``training_step`` got, by reference.
        rng: random states before ``training_step``.
        looked_at: names of what was looked at, and of each a value that is finite if it is, on the device.
        arrived: the event after which the values are on the host; ``None`` where they always are.
    """

    step: int
    batch_idx: int
    batch: dict[str, Any]
    rng: dict[str, Tensor]
    looked_at: list[tuple[Callable[[], list[str]], Tensor]] = dataclasses.field(default_factory=list)
    arrived: Any = None

    def send(self) -> None:
        """Start to copy the values to the host, without waiting for the device."""
        if not self.looked_at or self.looked_at[0][1].device.type != "cuda" or self.arrived is not None:
            return
        names, values = zip(*self.looked_at, strict=True)
        sent = [torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for value in values]
        for host, value in zip(sent, values, strict=True):
            host.copy_(value, non_blocking=True)
        self.looked_at = list(zip(names, sent, strict=True))
        self.arrived = torch.cuda.Event()
        self.arrived.record()

    def broken(self) -> list[str]:
        """Names of what was not finite; waits for the device if it must."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found = []
        for names, tensor in self.looked_at:
            values = tensor.tolist()  # cheaper than kernels that compare them, on any device
            if not all(map(math.isfinite, values)):
                found += [
                    name for name, value in zip(names(), values, strict=True) if not math.isfinite(value)
                ]
        return found


class NonFinite(Callback):
    """Watch every loss term, gradient and teacher; every method has one by default.

    A broken step ends the run with one error that names step, samples and terms, and with a file that holds the
    batch, the random state and the method: ``zoo rerun FILE`` computes the step again. On the CPU, and with ``wait``,
    nothing has been changed by the step when the run ends. Elsewhere the host never waits for the device: values are
    computed there, copied while it works on, and looked at up to two micro-batches later, before any checkpoint is
    written. The file then holds the right batch, but the weights have taken the broken step, so they are left out:
    run it again from a checkpoint.

    Gradients are looked at once per optimiser step. With a gradient scaler (fp16) they overflow by design, and the
    scaler leaves out such a step by itself; then losses and teachers alone count.

    Args:
        action: ``stop``, or ``skip``: leave the step out and go on. Student, optimiser and all buffers are then as
            if the step's batches had not been there; its number, and the schedules with it, count on. Costs one
            wait for the device and one copy of the method's buffers in every step.
        wait: look at the values before the optimiser steps; default: on the CPU, where it costs nothing.
        folder: where files go; default: the trainer's ``default_root_dir``, the run's folder with ``zoo``. A trainer
            that was given none writes none.
        max_skipped: so many broken steps in a row end the run after all.
        max_files: write no further files after so many.

    Attributes:
        skipped: numbers of the steps left out.

    Raises:
        FloatingPointError: something became nan or inf (``stop``), too often, or in a parameter of a teacher.
        MisconfigurationException: an argument is out of range.
    """

    family = "non_finite"
    step_order = (
        15  # after teachers moved with what the last step made; before anything of this batch is kept
    )

    def __init__(
        self,
        action: Literal["stop", "skip"] = "stop",
        wait: bool | None = None,
        folder: str | None = None,
        max_skipped: int = 10,
        max_files: int = 3,
    ) -> None:
        if action not in ("stop", "skip"):
            raise MisconfigurationException(f"NonFinite(action={action!r}): expected stop or skip")
        if action == "skip" and wait is False:
            raise MisconfigurationException("NonFinite(action='skip') has to wait: leave out wait=False")
        if max_skipped < 1 or max_files < 0:
            raise MisconfigurationException(
                f"NonFinite(max_skipped={max_skipped}, max_files={max_files}): at least 1 and 0"
            )
        self.action, self.wait, self.folder = action, wait, folder
        self.max_skipped, self.max_files = max_skipped, max_files
        self.skipped: list[int] = []
        self._waits = True
        self._in_row, self._files = 0, 0
        self._now: Seen | None = None
        self._step: list[Seen] = []
        self._sent: deque[Seen] = deque()
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._teachers: list[tuple[str, Teacher]] = []

    # -- hooks ------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier run."""
        on_cpu = trainer.strategy.root_device.type == "cpu"
        self._waits = self.action == "skip" or (on_cpu if self.wait is None else self.wait)
        self._now, self._in_row, self._files = None, 0, 0
        self._step.clear()
        self._sent.clear()
        # Once: going through all modules in every step would cost a millisecond for every thousand.
        self._teachers = [(n, m) for n, m in pl_module.named_modules() if isinstance(m, Teacher)]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hold on to the batch; to skip exactly, keep a copy of the buffers as well."""
        rng = {"torch": torch.get_rng_state()}
        if trainer.strategy.root_device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(trainer.strategy.root_device)
        self._now = Seen(trainer.global_step, batch_idx, batch, rng)
        if self.action == "skip" and not self._step:
            teachers = [teacher.step for _, teacher in self._teachers]
            kept = [b for b in pl_module.buffers() if not any(b is step for step in teachers)]
            self._buffers = [(buffer, buffer.clone()) for buffer in kept]
        self._step.append(self._now)

    def on_losses(self, pl_module: L.LightningModule, losses: Mapping[str, Tensor]) -> None:
        """Called by the method between its losses and whatever it does with them."""
        if self._now is None:
            return
        names = list(losses)  # and not the terms themselves, whose graph would live on
        told = torch.stack(list(losses.values())).detach()
        self._now.looked_at.append((lambda: [f"loss {name!r}" for name in names], told))
        # Several processes stop together, when gradients have been averaged: one alone would leave the others waiting.
        if self._waits and self.action == "stop" and pl_module.trainer.world_size == 1:
            self._judge(pl_module, [self._now])

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at gradients and teachers, and, where that is free or asked for, at their values."""
        if self._now is None:
            return
        trained = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None and p.numel()
        ]
        if trained and getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = magnitudes(p.grad for p in trained)
            self._now.looked_at.append((lambda: _names(pl_module, trained), gradients))
        for name, teacher in self._teachers:
            told = [f"teacher {name!r}"]
            self._now.looked_at.append((partial(list, told), magnitudes(teacher.parameters()).max()[None]))
        if not self._waits:
            return
        if self.action == "stop":
            self._judge(pl_module, self._step)
        else:
            self._skip_if_broken(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the values that have arrived."""
        if not trainer.fit_loop._should_accumulate():
            self._step.clear()
        if self._now is None or self._waits:
            return
        self._now.send()
        self._sent.append(self._now)
        self._now = None
        while self._sent and (len(self._sent) > AHEAD or _arrived(self._sent[0], self._sent)):
            self._judge(pl_module, [self._sent.popleft()])

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """No checkpoint is written of a method that a step on its way has broken."""
        self._judge_all(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Never let an epoch with a broken step pass for a good one."""
        self._judge_all(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nor a run."""
        self._judge_all(pl_module)

    # -- what happens in them ---------------------------------------------------------------------------

    def _judge_all(self, pl_module: L.LightningModule) -> None:
        if self._waits:
            return
        waiting = [*self._sent, *([self._now] if self._now is not None and self._now.looked_at else [])]
        self._sent.clear()
        self._judge(pl_module, waiting)

    def _judge(self, pl_module: L.LightningModule, micro_batches: Iterable[Seen]) -> None:
        """Stop at the first micro-batch that is broken."""
        for seen in micro_batches:
            if broken := seen.broken():
                self._sent.clear()
                self._now = None
                raise FloatingPointError(self._tell(pl_module, seen, broken))

    def _skip_if_broken(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        broken = [(seen, names) for seen in self._step if (names := seen.broken())]
        if not trainer.strategy.reduce_boolean_decision(not broken, all=True):
            self._in_row += 1
            self.skipped.append(trainer.global_step)
            teachers = [name for _, names in broken for name in names if name.startswith("teacher")]
            told = self._tell(pl_module, *broken[0]) if broken else "another process found a broken loss"
            if self._in_row >= self.max_skipped or teachers:
                raise FloatingPointError(
                    f"{told} Skipping does not help: "
                    f"{'a teacher holds it' if teachers else f'{self._in_row} steps in a row were broken'}."
                )
            rank_zero_warn(f"Step {trainer.global_step} is skipped: {told}")
            optimizer.zero_grad(set_to_none=True)  # nothing is stepped, not even momentum
            with torch.no_grad():
                for buffer, before in self._buffers:
                    buffer.copy_(before)
        else:
            self._in_row = 0

    def _tell(self, pl_module: L.LightningModule, seen: Seen, broken: list[str]) -> str:
        """The message; writes the file it names."""
        shown = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if len(broken) > 4 else "")
        found = BrokenBatch.of(
            pl_module, seen.step, seen.batch_idx, seen.batch, seen.rng, broken, self._waits
        )
        inputs = found.broken_inputs()
        advice = (
            f"Already in the batch: {'; '.join(inputs)}: look at these samples, or at what data does to them."
            if inputs
            else "Lower optim.lr, lengthen optim.warmup_steps, use 32-bit precision, or look at what goes in."
        )
        return (
            f"{shown} became nan or inf in step {seen.step} (micro-batch {seen.batch_idx}; "
            f"{samples_of(found.batch)}). {self._written(pl_module, found)}{advice}"
        )

    def _written(self, pl_module: L.LightningModule, found: BrokenBatch) -> str:
        root = Path(self.folder or pl_module.trainer.default_root_dir)
        if self._files >= self.max_files or (self.folder is None and root == Path.cwd()):
            return ""
        self._files += 1
        path = root / f"nonfinite-step{found.step}-rank{pl_module.global_rank}.pt"
        try:
            found.save(path)
        except OSError as error:
            return f"The batch could not be written ({error}). "
        return f"Run the batch again with: zoo rerun {path}. "


def _names(module: nn.Module, parameters: list[Any]) -> list[str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [f"gradient of {names.get(id(parameter), 'a parameter')!r}" for parameter in parameters]


def _arrived(seen: Seen, sent: deque[Seen]) -> bool:
    """Whether the values can be read without waiting; without events, once the next micro-batch is done."""
    return len(sent) > 1 if seen.arrived is None else seen.arrived.query()
