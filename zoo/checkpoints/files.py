"""Weight files, read so that nothing in them is ever executed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import mmap
import pathlib
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Tensors = dict[str, Tensor]

# Types that hold values and run nothing, and that authors' files carry beside the weights.
_DTYPES = [type(np.dtype(kind)) for kind in ("b1", "i4", "i8", "f4", "f8", "U1")]
_NUMBER = np.float64(0).__reduce__()[0]  # what pickles call to make a NumPy number
INERT_TYPES: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    *_DTYPES,
    _NUMBER,
    (_NUMBER, "numpy.core.multiarray.scalar"),  # the name before numpy 2
]
# What torch reads by itself, and the types above.
_HARMLESS = re.compile(
    r"torch\.(?:\w+Storage|Size|device|dtype|Tensor|b?float\w*|u?int\w*|bool|_utils\._rebuild_\w+|nn\.parameter\.\w+"
    r"|storage\.\w+|serialization\._get_layout|_tensor\.\w+)"
    r"|collections\.(?:OrderedDict|defaultdict|Counter)|_codecs\.encode|argparse\.Namespace"
    r"|pathlib(?:\._local)?\.PosixPath|numpy(?:\._?core\.multiarray\.scalar|\.dtypes?(?:\.\w+)?)"
)


DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
"""What ``zipfile`` raises on archives that are damaged, encrypted or packed in a way it does not know."""
LARGEST_PICKLE = 2**28
"""Bytes of a pickle that is looked into, once unpacked; it holds names, tensors lie beside it."""


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Args:
        title: what to call it in messages.
        tensors: by dotted name; nested dicts are flattened.
        facts: numbers and strings beside them, by dotted name (``epoch``, ``hyper_parameters.backbone``, ...).
        size: bytes on disk; 0 where it is none of a single file.
    """

    title: str
    tensors: Tensors
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 0


def read_weights(path: str | Path, title: str | None = None) -> WeightFile:
    """Read the tensors and plain values of a safetensors file or of anything ``torch.save`` wrote.

    Tensors of the newer formats are memory-mapped: only those that are used are read.

    Args:
        path: the file; the format is told by its content, not by its name.
        title: what to call it in messages; the file's name if not given.

    Raises:
        CheckpointError: there is no such file, it is damaged, holds no tensors, or holds objects that would
            have to be executed to be read.
    """
    path = Path(path)
    title = title or path.name
    if _head(path, title)[8:9] == b"{":
        tensors, facts = _read_safetensors(path, title)
    else:
        tensors, facts = {}, {}
        _flatten(read_plain(path, title), "", tensors, facts)
    if not tensors:
        raise CheckpointError(
            f"{title} holds no tensors, only {', '.join(list(facts)[:5]) or 'nothing'}: name a file of weights"
        )
    return WeightFile(title, tensors, facts, path.stat().st_size)


def read_plain(path: str | Path, title: str | None = None) -> Any:
    """Load what ``torch.save`` wrote, if it is made of tensors and plain values.

    Raises:
        CheckpointError: see :func:`read_weights`.
    """
    path = Path(path)
    title = title or path.name
    head = _head(path, title)
    if head[8:9] == b"{":
        raise CheckpointError(
            f"{title} is a safetensors file, weights without a run: start from it with pretrained or init_from, or "
            "load the method with from_pretrained"
        )
    zipped = head[:2] == b"PK"
    try:
        with torch.serialization.safe_globals(INERT_TYPES), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch answers what it cannot or will not read with errors of a dozen kinds
        if objects := refused_objects(path):
            raise CheckpointError(
                f"{title} was refused: to read it, Python would have to run {', '.join(objects)}, which may do "
                "anything. The safe way out: ask its authors for safetensors, or, only if you trust the file, open "
                "it where their code is installed and save the tensors alone: "
                "torch.save({k: v for k, v in network.state_dict().items()}, 'weights.pth')"
            ) from error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{title} is a TorchScript program, not a file of weights: ask its authors for the state dict"
            ) from error
        raise _damaged(path, title) from error


def _head(path: Path, title: str) -> bytes:
    """The first bytes, after saying what is not a weight file at all."""
    if path.is_dir():
        raise CheckpointError(f"{title} is a folder: name the file of weights in it")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(f"{title}: there is no such file ({path})") from error
    kinds = {b"<": "a web page", b"version https://git-lfs": "a Git LFS pointer, not the file it stands for"}
    for start, kind in kinds.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{title} is {kind}: download the weights themselves")
    return head


def _damaged(path: Path, title: str) -> CheckpointError:
    return CheckpointError(
        f"{title} ({path.stat().st_size:,} bytes) is no file of weights, or is damaged or cut short: compare its "
        "size and checksum with the publisher's and download it again"
    )


def _read_safetensors(path: Path, title: str) -> tuple[Tensors, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            facts: dict[str, Any] = dict(file.metadata() or {})
            if "selfzoo" in facts:  # written by `zoo import`: what its source said of itself
                facts |= json.loads(facts.pop("facts", "{}"))
            return {name: file.get_tensor(name) for name in names}, facts
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _damaged(path, title) from error


def _flatten(value: Any, name: str, tensors: Tensors, facts: dict[str, Any]) -> None:
    """Collect what nested dicts with string keys hold; lists (optimisers, loops) are no network."""
    if isinstance(value, Tensor):
        tensors[name] = value
    elif isinstance(value, (str, int, float, bool, np.generic)):
        facts[name] = value
    elif isinstance(value, argparse.Namespace):
        _flatten(vars(value), name, tensors, facts)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                _flatten(inner, f"{name}.{key}" if name else key, tensors, facts)


def refused_objects(path: Path) -> list[str]:
    """What would have to be run to read a pickle beyond tensors and plain values; nothing is imported."""
    names: set[str] = set()
    for stream in _pickles(path):
        strings: list[str] = []
        with contextlib.suppress(ValueError, IndexError, EOFError):  # raw tensors follow, or the file is cut
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return sorted(name for name in names if not _HARMLESS.fullmatch(name))


def is_zip(path: str | Path) -> bool:
    """Whether the directory of a zip archive can be read; what it lists may still be damaged."""
    try:
        with zipfile.ZipFile(path):
            return True
    except DAMAGED_ZIP:
        return False


def _pickles(path: Path) -> Iterator[Any]:
    """The pickles of a file, as streams: of an archive one or more, of the older format four in a row."""
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size <= LARGEST_PICKLE:
                    with contextlib.suppress(*DAMAGED_ZIP):
                        yield io.BytesIO(archive.read(entry))
    elif path.stat().st_size:  # mapped: what a damaged file claims to be longer than it is takes no memory
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            for _ in range(4):
                yield stream
