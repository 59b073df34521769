"""Where callbacks put files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def output_folder(trainer: L.Trainer, given: str | None, name: str) -> Path | None:
    """The ``given`` folder, or ``name`` in the trainer's ``default_root_dir``.

    The command ``zoo`` sets that to the run's folder. A trainer that was given none has the working directory,
    which is not littered: ``None``.
    """
    if given:
        return Path(given)
    root = Path(trainer.default_root_dir)
    return None if root == Path.cwd() else root / name


class PredictionWriter(Callback):
    """Base of callbacks that write a file for everything that is predicted, and never one over another.

    Args:
        folder: where to write; default ``predictions`` in the trainer's ``default_root_dir``, which the command ``zoo``
            sets to the run's folder. A trainer that was given no folder writes nothing.
    """

    #: What the files hold, and what each is of, both plural.
    written: ClassVar[tuple[str, str]]

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._taken: set[Path] = set()

    def target(self, trainer: L.Trainer) -> Path | None:
        """The folder, or None where nothing is to be written."""
        return output_folder(trainer, self.folder, "predictions")

    def claim(self, path: Path, called: str) -> None:
        """Take a path for one prediction.

        Raises:
            MisconfigurationException: another has it.
        """
        if path in self._taken:
            raise MisconfigurationException(
                f"{type(self).__name__}: two {self.written[1]} are called {called}, and the second would overwrite the "
                "first"
            )
        self._taken.add(path)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self._taken = set()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the files are."""
        if (folder := self.target(trainer)) is not None:
            rank_zero_info(f"{self.written[0]} written to {folder}")
