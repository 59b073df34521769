"""FutureTeacher: let the teacher absorb students that do not exist yet (FST, NeurIPS 2022)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks.ema_teacher import EMATeacher, Timing
from callbacks.pseudo_label import PseudoLabeler
from zoo.method import Batch, Method, trainer_callbacks
from zoo.teacher import Teacher

Rewind = Literal["parameters", "everything"]
Order = Literal["uda", "semi"]

BUCKET = 2**23  # elements all-reduced at a time: bounds the extra memory without many small messages


class FutureTeacher(EMATeacher):
    """EMA teacher that looks ahead: virtual steps on ``method.losses``, EMA, the student put back, the real step.

    Works with any method whose ``losses(batch)`` are pure: it knows the ``Method`` contract only. Labels come
    from the trainer's :class:`PseudoLabeler` and are drawn afresh for every virtual step, by the teacher as it
    is then. Virtual steps use the method's own optimiser, gradient clipping and precision, gradients averaged
    over ranks; they never count in ``global_step``, schedules or logs. All trained parameters are put back bit
    for bit.

    ``depth=K`` (FST-D) takes K virtual steps one after another on the batch of the step; the teacher absorbs
    the current student, then each virtual one. ``width=N`` (FST-W) takes N virtual steps from the same student
    on N other batches (``batch["future"]``, which the datamodule draws) and absorbs their average, then the
    real student after the real step. ``depth=0`` is the plain mean teacher.

    Args:
        depth: K; exclusive with ``width``.
        width: N; exclusive with ``depth``.
        order: ``uda`` as in the released domain-adaptation code: the ramp counter advances with virtual steps
            too, and the first iteration is a plain step absorbed right after. ``semi`` as in the released
            semi-supervised code: the counter is the real iteration, the real student is absorbed after every
            step (and again at the start of the next).
        rewind: what is put back besides the student's parameters. ``parameters``: nothing (released code:
            optimiser moments, normalisation statistics and the ramp counter keep what the virtual steps did
            to them). ``everything``: also the optimiser's state, the student's and the teacher's buffers and
            the counter, so that nothing but the teacher's parameters ever learns of the virtual steps.
        lr_scale: factor on the learning rate of virtual steps.
        start_step: plain mean teacher before this optimiser step.
        teacher: as for :class:`EMATeacher`, like the following; timing and the warm-up ramp are its own.
        student: see there.
        decay: see there.
        copy_epochs: see there.
        check_every: see there.

    Memory beyond the mean teacher: one copy of the parameters (two for ``width`` above 1), plus the optimiser's
    state and the buffers with ``rewind="everything"``. With gradient accumulation the look-ahead happens once per
    optimiser step, on its first micro-batch.

    Raises:
        MisconfigurationException: depth and width together or negative; a strategy that shards parameters;
            no ``future`` batches for ``width``.

    Source: Du et al., "Learning from Future", arXiv 2209.06993; orders as released (see the card of FST).
    """

    def __init__(
        self,
        depth: int = 1,
        width: int = 0,
        order: Order = "uda",
        rewind: Rewind = "parameters",
        lr_scale: float = 1.0,
        start_step: int = 0,
        teacher: str = "teacher",
        student: str = "student",
        decay: float = 0.999,
        copy_epochs: int = 0,
        check_every: int = 100,
    ) -> None:
        timing: Timing = "after_step" if order == "semi" else "before_step"
        super().__init__(teacher, student, timing, decay, copy_epochs=copy_epochs, check_every=check_every)
        if depth < 0 or width < 0 or (depth and width):
            raise MisconfigurationException(
                f"FutureTeacher(depth={depth}, width={width}): give depth=K or width=N with depth=0, not both"
            )
        if order not in ("uda", "semi") or rewind not in ("parameters", "everything"):
            raise MisconfigurationException(
                f"FutureTeacher(order={order!r}, rewind={rewind!r}): order is uda or semi, "
                "rewind parameters or everything"
            )
        if width and order == "semi":
            raise MisconfigurationException(
                "FutureTeacher(width=..., order='semi') was never released: use depth"
            )
        self.depth, self.width, self.order, self.rewind = depth, width, order, rewind
        self.lr_scale, self.start_step = lr_scale, start_step
        self._looked_ahead = False
        self._virtual: list[Tensor] = []
        self._real: list[Tensor] = []
        self._soup: list[Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies the look-ahead cannot serve and ask the datamodule for future batches."""
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise MisconfigurationException(
                f"FutureTeacher steps the optimiser by itself and supports single-device and DDP training, not "
                f"{type(trainer.strategy).__name__}: set trainer.strategy to auto or ddp"
            )
        datamodule: Any = getattr(trainer, "datamodule", None)
        if self.width and hasattr(datamodule, "future_batches"):
            datamodule.future_batches = self.width

    # -- the two moments --------------------------------------------------------------------------------

    def before_step(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch) -> None:
        """Look ahead with the batch of the step that is about to start."""
        assert isinstance(pl_module, Method)
        teacher, student = self.networks(pl_module)
        self._looked_ahead = self._looks_ahead(trainer, teacher)
        if not self._looked_ahead:
            super().before_step(trainer, pl_module, batch)
            return
        state = _State(trainer.optimizers[0], pl_module, teacher) if self.rewind == "everything" else None
        trained = trained_parameters(trainer)
        self._virtual = copy_into(self._virtual, trained)
        with standing_in(trained, self._virtual) as self._real:
            (self._wide if self.width else self._deep)(trainer, pl_module, batch)
        self._real = []
        if state is not None:
            state.restore()
        if self.in_copy_epochs(trainer):
            teacher.update(student, 0.0)

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the real step; absorb the real student where the released order does."""
        if self.order == "semi":
            super().after_step(trainer, pl_module)
            return
        teacher, _ = self.networks(pl_module)
        first = teacher.steps == 0 and self.start_step == 0 and bool(self.depth or self.width)
        teacher.advance()
        if first or (self._looked_ahead and self.width):
            self.move(trainer, pl_module, teacher.steps)

    # -- looking ahead ----------------------------------------------------------------------------------

    def _looks_ahead(self, trainer: L.Trainer, teacher: Teacher) -> bool:
        """Whether this iteration looks ahead; the released domain-adaptation code starts in the second."""
        if not (self.depth or self.width) or trainer.global_step < self.start_step:
            return False
        return self.order == "semi" or teacher.steps > 0

    def _deep(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """FST-D: absorb, step, absorb, step, ..., absorb the last virtual student."""
        teacher, _ = self.networks(method)
        for _ in range(self.depth):
            self.move(trainer, method, teacher.steps)
            self._virtual_step(trainer, method, batch)
        self.move(trainer, method, teacher.steps)

    def _wide(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """FST-W: N steps from the same student on N batches; absorb their average."""
        futures = batch.get("future", [])
        if len(futures) != self.width:
            raise MisconfigurationException(
                f"FutureTeacher(width={self.width}) needs {self.width} further batches in batch['future'] and found "
                f"{len(futures)}: use a datamodule of this zoo (it has future_batches), or draw them in yours"
            )
        teacher, _ = self.networks(method)
        trained = trained_parameters(trainer)
        for index, future in enumerate(futures):
            if index:
                copy_into(trained, self._real)
            self._virtual_step(trainer, method, future)
            if self.width > 1 and index == 0:
                self._soup = copy_into(self._soup, trained)
            elif self.width > 1:
                with torch.no_grad():
                    torch._foreach_add_(self._soup, trained)
        if self.width > 1:
            torch._foreach_div_(self._soup, float(self.width))
            copy_into(trained, self._soup)
        self.move(trainer, method, teacher.steps)

    def _virtual_step(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """RUN of the card: forward, backward and one step of the method's optimiser, counted in the ramp only."""
        teacher, student = self.networks(method)
        if self.in_copy_epochs(trainer):
            teacher.update(student, 0.0)
        for labeler in trainer_callbacks(trainer):
            if isinstance(labeler, PseudoLabeler):
                batch = labeler.label(method, batch)
        optimizer, scaler = trainer.optimizers[0], getattr(trainer.precision_plugin, "scaler", None)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad(), method.forward_context():
            loss = torch.stack(list(method.losses(batch).values())).sum()
        (scaler.scale(loss) if scaler else loss).backward()
        if isinstance(trainer.strategy, DDPStrategy):
            _average_gradients(trainer)
        if scaler:
            scaler.unscale_(optimizer)
        method.configure_gradient_clipping(
            optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * self.lr_scale
        if scaler:
            scaler.step(optimizer)
            scaler.update(scaler.get_scale())  # ready for the next step, growth counted by real steps only
        else:
            optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        if self.order == "uda":
            teacher.advance()


def trained_parameters(trainer: L.Trainer) -> list[Tensor]:
    """What the optimiser moves: the student's trainable parameters and those of any further trained module."""
    return [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]


@torch.no_grad()
def copy_into(target: list[Tensor], source: list[Tensor]) -> list[Tensor]:
    """Copy in place and bit for bit; storage that is missing or lies elsewhere is made first."""
    if len(target) != len(source) or any(t.device != s.device for t, s in zip(target, source, strict=True)):
        target = [torch.empty_like(tensor) for tensor in source]
    torch._foreach_copy_(target, source)
    return target


@contextmanager
def standing_in(parameters: list[Tensor], values: list[Tensor]) -> Iterator[list[Tensor]]:
    """Have parameters live in other storage, and give them back their own, which nobody wrote to meanwhile.

    So a look-ahead copies the student once and puts nothing back: memory is what its step is made of.

    Args:
        parameters: of any devices.
        values: tensors like them; steps of an optimiser change these.

    Yields:
        The parameters' own values.
    """
    own = [parameter.data for parameter in parameters]
    try:
        _live_in(parameters, values)
        yield own
    finally:  # an interrupted look-ahead must not leave a virtual student to a last checkpoint
        try:
            _live_in(parameters, own)
        finally:  # nor a second interrupt half of one
            _live_in(parameters, own)


def _live_in(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


class _State:
    """What ``rewind="everything"`` puts back: optimiser state, all buffers of the method, the ramp counter."""

    def __init__(self, optimizer: torch.optim.Optimizer, method: nn.Module, teacher: Teacher) -> None:
        self.optimizer, self.teacher, self.steps = optimizer, teacher, teacher.steps
        self.moments = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
        self.buffers = [(buffer, buffer.clone()) for buffer in method.buffers() if buffer is not teacher.step]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; tensors that others hold (buffers) in place."""
        self.optimizer.state.clear()
        self.optimizer.state.update(self.moments)
        for buffer, value in self.buffers:
            buffer.copy_(value)
        self.teacher.advance(self.steps - self.teacher.steps)


def _average_gradients(trainer: L.Trainer) -> None:
    """Average gradients over ranks: outside its own forward DDP does not.

    A parameter without gradient on this rank takes part with zeros, so that ranks whose batches exercise
    different branches still send the same messages.
    """
    by_type: dict[Any, list[Tensor]] = {}
    for parameter in trained_parameters(trainer):
        if (gradient := parameter.grad) is None:
            gradient = parameter.grad = torch.zeros_like(parameter)
        by_type.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for gradients in by_type.values():
        bucket: list[Tensor] = []
        for index, gradient in enumerate(gradients):
            bucket.append(gradient)
            if index == len(gradients) - 1 or sum(g.numel() for g in bucket) >= BUCKET:
                flat = trainer.strategy.reduce(torch.cat([g.flatten() for g in bucket]), reduce_op="mean")
                pieces = flat.split([g.numel() for g in bucket])
                torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])
                bucket = []
