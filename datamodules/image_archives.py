"""Readers of the packed files small image sets come in: idx, Python pickles, raw bytes."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from datamodules.readers import BrokenImageError

_ADVICE: Final = "Download or extract it again."


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array of an idx file (the format of MNIST), plain or ``.gz``.

    The file holds two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, and the values.

    Raises:
        BrokenImageError: the file is damaged, truncated or of another type; it is named.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise BrokenImageError(f"{path} cannot be unpacked ({error}). {_ADVICE}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise BrokenImageError(
            f"{path} is no idx file of unsigned bytes: it starts with {data[:4]!r}. {_ADVICE}"
        )
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise BrokenImageError(f"{path} is truncated within its header. {_ADVICE}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=data[3], offset=4))
    if len(data) != header + math.prod(shape):
        raise BrokenImageError(
            f"{path} is truncated or damaged: its header tells {' x '.join(map(str, shape))} = "
            f"{math.prod(shape)} bytes, it holds {len(data) - header}. {_ADVICE}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict of a CIFAR batch, pickled by Python 2. Nothing but NumPy arrays is ever built from it.

    Raises:
        BrokenImageError: the file is damaged, truncated, or holds other objects; it is named.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, pickle.UnpicklingError) as error:
        raise BrokenImageError(f"{path} cannot be read ({error}). {_ADVICE}") from error
    if not isinstance(content, dict):
        raise BrokenImageError(f"{path} holds a {type(content).__name__}, expected a dict. {_ADVICE}")
    return content


def map_bytes(path: Path, sample: tuple[int, ...]) -> np.ndarray:
    """Raw bytes as ``[N, *sample]`` uint8, mapped instead of read.

    Raises:
        BrokenImageError: the size of the file is no multiple of a sample's; it is named.
    """
    size = path.stat().st_size
    if size == 0 or size % math.prod(sample):
        raise BrokenImageError(
            f"{path} is truncated: {size} bytes are no multiple of {math.prod(sample)}, those of a sample. {_ADVICE}"
        )
    # Copy on write: nothing is ever written, but torch wants memory that could be.
    return np.memmap(path, np.uint8, mode="c").reshape(-1, *sample)


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses everything but what NumPy arrays are pickled with: pickles can run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_array = module.split(".")[0] == "numpy" and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "scalar",
        )
        if not numpy_array and (module, name) != ("_codecs", "encode"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
