"""Where generated files are kept, and how they are written so that no half-written file is ever read."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from PIL import Image

_MANIFEST: Final = "manifest.json"


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


def ensure_folder(folder: Path, what: str, write: Callable[[Path], None], resume: bool = False) -> None:
    """Make ``folder`` unless it is there undamaged; safe from several processes at once.

    The files are written beside it, then the complete folder is renamed: an interrupted run is never taken for a
    finished one. Their checksums are kept in ``manifest.json``.

    Args:
        folder: what is to be there.
        what: for the messages, such as ``300 StreetShift source images``.
        write: writes all files into the folder it is given.
        resume: keep what an interrupted run has written, for a ``write`` that leaves out what is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}-partial")
    with FileLock(f"{folder}.lock"):
        if _is_intact(folder):
            return
        if folder.exists():
            rank_zero_warn(f"{folder} is damaged: rendering it again.")
            shutil.rmtree(folder)
        rank_zero_info(f"Rendering {what} to {folder} (once).")
        try:
            partial.mkdir(exist_ok=True)
            write(partial)
        except BaseException:
            if not resume:
                shutil.rmtree(partial)
            raise
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        checksums = {path.relative_to(partial).as_posix(): zlib.crc32(path.read_bytes()) for path in files}
        (partial / _MANIFEST).write_text(json.dumps(checksums))
        partial.replace(folder)


def png_bytes(image: Image.Image) -> bytes:
    """An image as a PNG file, lightly compressed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _is_intact(folder: Path) -> bool:
    """Whether every file of the manifest is there with its checksum (about 30 ms for 1,000 files)."""
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        return False
    try:
        checksums: dict[str, int] = dict(json.loads(manifest.read_text()))
        return all(
            zlib.crc32((folder / path).read_bytes()) == checksum for path, checksum in checksums.items()
        )
    except (OSError, ValueError, TypeError, RecursionError):
        return False
