"""SnapshotTeacher: a teacher that is taken from the student once, and never moved again."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.ema_teacher import EMATeacher
from zoo.method import Method


class SnapshotTeacher(EMATeacher):
    """Copy the student into a teacher before one optimiser step, and leave it so (VoCo's labeller).

    The teacher counts as there (``teacher.steps > 0``) from the step after that one on, as in the released omni-
    supervised VoCo, whose pseudo-labels start one step after the copy. Both survive stopping and resuming.

    Args:
        teacher: attribute path of the :class:`zoo.teacher.Teacher` on the method.
        student: attribute path of the network it is taken from.
        at: optimiser step (0-based) before which it is taken; ``None``: the middle of the run.
        check_every: every so many steps the teacher is checked for nan/inf.

    Raises:
        MisconfigurationException: ``at`` is negative, or nothing ends the run and ``at`` is not given.
    """

    def __init__(
        self,
        teacher: str = "teacher",
        student: str = "student",
        at: int | None = None,
        check_every: int = 100,
    ) -> None:
        if at is not None and at < 0:
            raise MisconfigurationException(f"SnapshotTeacher(at={at}): steps count from 0")
        super().__init__(teacher, student, timing="manual", schedule="constant", check_every=check_every)
        self.at = at

    def step_of(self, pl_module: L.LightningModule) -> int:
        """The optimiser step before which the teacher is taken."""
        if self.at is not None:
            return self.at
        assert isinstance(pl_module, Method)
        if pl_module.total_steps == float("inf"):
            raise MisconfigurationException(
                f"the teacher {self.teacher!r} is taken in the middle of the run, and nothing ends it: set "
                "trainer.max_steps, or at which step"
            )
        return int(pl_module.total_steps) // 2

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that there is such a teacher; it is taken later."""
        self.networks(pl_module)
        self._seen_step = -1

    def before_step(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        """Take the teacher when its step has come, or was passed while it was not there."""
        teacher, student = self.networks(pl_module)
        if teacher.steps == 0 and trainer.global_step >= self.step_of(pl_module):
            teacher.copy_from(student)

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the steps since it was taken."""
        if trainer.global_step > self.step_of(pl_module):
            self.networks(pl_module)[0].advance()

    def _check_moved(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """It stands still on purpose."""
