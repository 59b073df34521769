"""Training that starts from other weights than the constructor's."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from zoo.checkpoints.files import CheckpointError
from zoo.checkpoints.load import load_pretrained


class InitFrom(Callback):
    """Load weights into the student when training starts, unless a checkpoint was restored or it has started.

    It comes before every other callback: teachers that are copies then start as the student does. A method adds
    it for its ``init_from``.

    Args:
        source: see :func:`zoo.checkpoints.load_pretrained`.
    """

    step_order = -1

    def __init__(self, source: str) -> None:
        self.source = source

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resuming restores a checkpoint before this, but after everything is set up."""
        method: Any = pl_module
        if not method.has_started:
            try:
                load_pretrained(method, self.source)
            except CheckpointError as error:
                raise CheckpointError(f"init_from={self.source!r}: {error}") from error
            method.has_started = True
