"""How far teachers are from their students."""

from __future__ import annotations

from typing import Any

import lightning as L

from callbacks.ema_teacher import EMATeacher
from callbacks.monitor import Monitor
from zoo.method import Method, trainer_callbacks


class TeacherDistance(Monitor):
    """Logs ``<teacher>/distance``: the norm of teacher minus student, as a share of the student's norm.

    Of every teacher that an :class:`EMATeacher` moves, after the step and the move. 0 says that the teacher is a mere
    copy, a growing value that the student runs away from it. Ranks hold equal values.
    """

    family = "teacher_distance"

    def look(self, trainer: L.Trainer, method: Method, batch: Any) -> None:
        """Measure each teacher."""
        for callback in trainer_callbacks(trainer):
            if isinstance(callback, EMATeacher):
                teacher, student = callback.networks(method)
                method.log(f"{callback.teacher}/distance", teacher.distance(student))
