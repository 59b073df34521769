"""The monitors that every method brings, by what it has to watch."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback

from callbacks.teacher_distance import TeacherDistance
from callbacks.throughput import Throughput
from callbacks.visualize import BatchPreview
from zoo.method import Method


def default_monitors(method: Method, *others: Callback) -> list[Callback]:
    """Throughput, a preview of the first batch, the distance of teachers where there are any, and ``others``."""
    teachers = [TeacherDistance()] if any(True for _ in method.named_teachers()) else []
    return [*others, *teachers, Throughput(), BatchPreview()]
