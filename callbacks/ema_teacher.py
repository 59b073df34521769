"""EMATeacher: decides when a teacher moves, and how far."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from zoo.method import Method
from zoo.schedules import cosine
from zoo.teacher import Teacher

Timing = Literal["before_step", "after_step", "manual"]
Schedule = Literal["constant", "warmup", "cosine", "epochs"]


class EMATeacher(Callback):
    """Move a method's teacher towards its student by exponential moving average.

    Everything is counted in optimiser steps: with gradient accumulation the teacher moves once per step, not
    once per micro-batch. ``t`` below is the 0-based index of the step in which the update happens.

    Args:
        teacher: attribute path of the :class:`zoo.teacher.Teacher` on the method.
        student: attribute path of the network it follows.
        timing: ``before_step`` moves it before the forward of step t, with the student that step t-1 left
            (DACS, DAFormer, SePiCo); ``after_step`` right after step t (DINO, POA, U2PL); ``manual`` leaves
            the moment to the method, which calls :meth:`zoo.teacher.Teacher.update` itself.
        decay: share of the teacher that stays at each update.
        schedule: ``constant``; ``warmup`` is ``min(1 - 1/(t+1), decay)``; ``cosine`` goes from ``decay`` at
            t = 0 to ``final_decay`` at the end of training; ``epochs`` takes ``epoch_decays``.
        final_decay: where ``cosine`` ends.
        cosine_share: of the cosine that the run covers, see :func:`zoo.schedules.cosine`.
        epoch_decays: for ``epochs``: first epoch → decay from there on, e.g. ``{0: 0.9, 10: 0.99}``.
        copy_epochs: for so many epochs the teacher simply equals the student at every forward (the released
            semi-supervised FST and U2PL alias the two in epoch 0).
        first_step: ``before_step`` teachers move before the very first step, too. One that was copied would not
            change by it; an ``independent`` one (VoCo's) does.
        check_every: every so many steps the teacher is checked for nan/inf (one host synchronisation each).

    Raises:
        MisconfigurationException: no such teacher or student; an option out of range; a teacher that never
            moved although optimiser steps were taken.
        FloatingPointError: a teacher whose parameters became nan or inf.
    """

    family = "ema_teacher"
    step_order = 10  # before pseudo-labellers: they must see the teacher of this step

    def __init__(
        self,
        teacher: str = "teacher",
        student: str = "student",
        timing: Timing = "before_step",
        decay: float = 0.999,
        schedule: Schedule = "warmup",
        final_decay: float = 1.0,
        cosine_share: float = 1.0,
        epoch_decays: dict[int, float] | None = None,
        copy_epochs: int = 0,
        first_step: bool = False,
        check_every: int = 100,
    ) -> None:
        if timing not in ("before_step", "after_step", "manual"):
            raise MisconfigurationException(f"timing={timing!r}: expected before_step, after_step or manual")
        if schedule not in ("constant", "warmup", "cosine", "epochs"):
            raise MisconfigurationException(
                f"schedule={schedule!r}: expected constant, warmup, cosine or epochs"
            )
        if (schedule == "epochs") != bool(epoch_decays) or (epoch_decays and 0 not in epoch_decays):
            raise MisconfigurationException(
                f"epoch_decays={epoch_decays!r} with schedule={schedule!r}: the two belong together, and "
                "epoch_decays must say what holds from epoch 0 on"
            )
        for value in (decay, final_decay, *(epoch_decays or {}).values()):
            if not 0.0 <= value <= 1.0:
                raise MisconfigurationException(f"decay {value} is not within [0, 1]")
        if not 0.0 < cosine_share <= 1.0:
            raise MisconfigurationException(f"cosine_share={cosine_share} is not within (0, 1]")
        self.teacher, self.student, self.timing = teacher, student, timing
        self.decay, self.schedule, self.final_decay = decay, schedule, final_decay
        self.cosine_share = cosine_share
        self.epoch_decays = dict(epoch_decays or {})
        self.copy_epochs, self.first_step = copy_epochs, first_step
        self.check_every = max(1, check_every)
        self._seen_step = -1
        self._steps_at_start = 0
        self._checksum_at_start: Tensor | None = None

    # -- hooks ------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a fresh ``copy`` teacher where the student stands now; a restored one is left alone."""
        teacher, student = self.networks(pl_module)
        if teacher.init == "copy" and teacher.steps == 0:
            teacher.copy_from(student)
        self._seen_step = -1
        self._steps_at_start = trainer.global_step
        self._checksum_at_start = teacher.checksum()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Move a ``before_step`` teacher, on the first micro-batch of each optimiser step."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self.before_step(trainer, pl_module, batch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step and move an ``after_step`` teacher, if the optimiser stepped on this micro-batch."""
        if trainer.global_step == self._seen_step:
            return
        self.after_step(trainer, pl_module)
        if trainer.global_step % self.check_every == 0:
            self._check_finite(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A declared teacher that stood still, or broke, must not pass for a trained one."""
        self._check_finite(trainer, pl_module)
        self._check_moved(trainer, pl_module)

    # -- what happens in them ---------------------------------------------------------------------------

    def before_step(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        """Step t is about to start; the teacher has counted t runs."""
        teacher, student = self.networks(pl_module)
        if self.in_copy_epochs(trainer):
            teacher.update(student, 0.0)
        elif self.timing == "before_step" and (teacher.steps > 0 or self.first_step):
            self.move(trainer, pl_module, teacher.steps)

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Step t is done; count it, then move (t is the count before)."""
        teacher, _ = self.networks(pl_module)
        teacher.advance()
        if self.timing == "after_step":
            self.move(trainer, pl_module, teacher.steps - 1)

    def move(self, trainer: L.Trainer, pl_module: L.LightningModule, t: int) -> None:
        """One EMA update with the decay of step ``t``."""
        teacher, student = self.networks(pl_module)
        decay = 0.0 if self.in_copy_epochs(trainer) else self.decay_at(t, trainer)
        teacher.update(student, decay)
        assert isinstance(pl_module, Method)
        if trainer.training and pl_module.writes_logs():
            pl_module.log(f"{self.teacher}/decay", decay)

    def decay_at(self, t: int, trainer: L.Trainer) -> float:
        """The decay of the schedule at step ``t`` (0-based)."""
        if self.schedule == "warmup":
            return min(1.0 - 1.0 / (t + 1), self.decay)
        if self.schedule == "cosine":
            assert isinstance(trainer.lightning_module, Method)
            total = trainer.lightning_module.total_steps
            if total == float("inf"):
                raise MisconfigurationException(
                    f"{type(self).__name__}(schedule='cosine') needs an end: set trainer.max_steps, "
                    "trainer.max_epochs or optim.total_steps"
                )
            return cosine(t, total, self.decay, self.final_decay, share=self.cosine_share)
        if self.schedule == "epochs":
            return self.epoch_decays[
                max(epoch for epoch in self.epoch_decays if epoch <= trainer.current_epoch)
            ]
        return self.decay

    def in_copy_epochs(self, trainer: L.Trainer) -> bool:
        """Whether the teacher still simply equals the student."""
        return trainer.current_epoch < self.copy_epochs

    def networks(self, pl_module: L.LightningModule) -> tuple[Teacher, nn.Module]:
        """The teacher and the network it follows."""
        try:
            teacher, student = attrgetter(self.teacher)(pl_module), attrgetter(self.student)(pl_module)
        except AttributeError as error:
            raise MisconfigurationException(
                f"{type(self).__name__}(teacher={self.teacher!r}, student={self.student!r}): "
                f"{type(pl_module).__name__} has no such part ({error})"
            ) from error
        if not isinstance(teacher, Teacher):
            raise MisconfigurationException(
                f"{type(self).__name__}(teacher={self.teacher!r}): that is a {type(teacher).__name__}, not a Teacher"
            )
        return teacher, student

    def _check_finite(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not bool(self.networks(pl_module)[0].parameters_finite()):
            raise FloatingPointError(
                f"the teacher {self.teacher!r} holds nan or inf at step {trainer.global_step}: the student diverged "
                f"within the last {self.check_every} steps. Resume from an earlier checkpoint with a lower optim.lr; "
                "check_every makes this check more frequent."
            )

    def _check_moved(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.global_step - self._steps_at_start
        if steps < 2 or self._checksum_at_start is None:
            return  # a before_step teacher first moves in the second step
        teacher, student = self.networks(pl_module)
        trainable = any(parameter.requires_grad for parameter in student.parameters())
        if trainable and bool(teacher.checksum() == self._checksum_at_start):
            remedy = {
                "manual": "timing='manual' leaves it to the method to call teacher.update(student, decay)",
                "before_step": "lower its decay",
                "after_step": "lower its decay",
            }[self.timing]
            raise MisconfigurationException(
                f"the teacher {self.teacher!r} did not move in {steps} optimiser steps (timing={self.timing!r}, "
                f"schedule={self.schedule!r}, decay={self.decay}): {remedy}."
            )
