"""Step hooks that callbacks inherit empty are left out; written ones are called."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback, LambdaCallback

from zoo.idle_hooks import STEP_HOOKS, leave_out_idle_hooks


class Ends(Callback):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.calls.append(args)


class EndsToo(Ends):
    """Inherits one that somebody wrote."""


def test_empty_hooks_are_left_out_and_written_ones_stay() -> None:
    callbacks = [Ends(), EndsToo()]
    for _ in range(2):  # of two runs
        leave_out_idle_hooks(callbacks)
    for callback in callbacks:
        assert [hook for hook in STEP_HOOKS if callable(getattr(callback, hook))] == ["on_train_batch_end"]
        callback.on_train_batch_end(None, None, None, None, 0)
        assert len(callback.calls) == 1
        assert callable(callback.on_train_start)


def test_hooks_of_an_instance_stay() -> None:
    callback = LambdaCallback(on_train_batch_end=lambda *_: None)
    leave_out_idle_hooks([callback])
    assert [hook for hook in STEP_HOOKS if callable(getattr(callback, hook))] == ["on_train_batch_end"]
