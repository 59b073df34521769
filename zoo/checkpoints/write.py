"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from zoo.checkpoints.files import CheckpointError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when nothing was raised.

    Raises:
        CheckpointError: the place cannot be written to.
    """
    # hidden, and with the same ending: tools tell formats by it
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it was never there
            temporary.unlink()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> Path:
    """Write a safetensors file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with written_whole(path) as temporary:
        # parts of a larger tensor would drag the whole of it along, tied ones are refused
        whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, {"format": "pt", **header})
    return path
