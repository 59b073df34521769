"""Where callbacks put files."""

from __future__ import annotations

from pathlib import Path

import lightning as L


def output_folder(trainer: L.Trainer, given: str | None, name: str) -> Path | None:
    """The ``given`` folder, or ``name`` in the trainer's ``default_root_dir``.

    The command ``zoo`` sets that to the run's folder. A trainer that was given none has the working directory,
    which is not littered: ``None``.
    """
    if given:
        return Path(given)
    root = Path(trainer.default_root_dir)
    return None if root == Path.cwd() else root / name
