"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, have the disk confirm it, and rename it: what was there stays until then.

    However the process ends, a file of the name is a complete checkpoint, the old or the new one. What a killed
    run leaves is ``.<name>.partial``, which the next save overwrites. Lightning's own way goes through the system's
    temporary folder, from where a file may have to be copied, and confirms nothing. Remote paths (``s3://``) are
    left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: the folder cannot be written, or the disk is full; an older file of that name is unharmed.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(target)  # a full disk does not say which it is
            raise
        _confirm(target.parent)


def _confirm(folder: Path) -> None:
    """Have the disk confirm the renaming, where folders can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
