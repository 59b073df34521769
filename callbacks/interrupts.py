"""Interrupts: Ctrl-C ends a run as SIGTERM does, between two steps."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class Interrupts(Callback):
    """On the first Ctrl-C let the step end, so that what is saved then is whole; a second one stops at once.

    ``zoo fit`` adds it. SIGTERM is Lightning's: it, too, waits for the end of the step. After either, ``last.ckpt`` is
    written, the run card says why the run ended, and the exit code is 130 (SIGINT) or 143 (SIGTERM).

    Attributes:
        received: ``SIGINT`` once Ctrl-C was pressed.
    """

    family = "interrupts"

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGINT, if nobody else has and this is the process's main thread."""
        self.received = None
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, lambda *_: self._first(trainer))

    def _first(self, trainer: L.Trainer) -> None:
        self.received = "SIGINT"
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rank_zero_info("Interrupted: the run ends with this step; press Ctrl-C again to stop at once.")
        trainer._signal_connector.received_sigterm = True  # Lightning ends where it would for SIGTERM

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give SIGINT back."""
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give SIGINT back, and let the exception tell which signal it was."""
        self._restore()
        if self.received is not None:
            exception.received = self.received  # type: ignore[attr-defined]


def interrupted_by(trainer: L.Trainer, exception: BaseException) -> str:
    """``SIGINT`` or ``SIGTERM``, of an exception that ended a run for one of them."""
    received = (getattr(callback, "received", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return (
        "SIGINT"
        if isinstance(exception, KeyboardInterrupt)
        else next(filter(None, received), None) or "SIGTERM"
    )
