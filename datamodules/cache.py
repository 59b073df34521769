"""Where generated files are kept, and how they are written so that no half-written file is ever read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def cache_root() -> Path:
    """The folder for everything selfzoo generates: ``$SELFZOO_CACHE``, or ``~/.cache/selfzoo``."""
    return Path(os.environ.get("SELFZOO_CACHE") or "~/.cache/selfzoo").expanduser()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace ``path`` in one step; ``write`` receives the open file.

    Raises:
        OSError: the folder cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
