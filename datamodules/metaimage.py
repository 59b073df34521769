"""MetaImage (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``): the format of LUNA16, which nibabel does not read."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import numpy as np

_TYPES: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
#: MetaImage counts millimetres to the left and back of the patient, NIfTI to the right and front.
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a MetaImage with one channel.

    Returns:
        the voxels ``[X, Y, Z]`` as stored, and their affine ``[4, 4]`` (voxel numbers → millimetres, RAS+).

    Raises:
        FileNotFoundError: the header or its data file is missing.
        ValueError: the header lacks a field or says something that is not supported, or the data are incomplete.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        local = file.read() if header.get("ElementDataFile") == "LOCAL" else b""
    size = [int(side) for side in _field(header, "DimSize").split()]
    kind = _field(header, "ElementType")
    if kind not in _TYPES or header.get("ElementNumberOfChannels", "1") != "1":
        raise ValueError(f"voxels of type {kind}: expected one channel of {', '.join(_TYPES)}")
    name = _field(header, "ElementDataFile")
    if name == "LIST" or "%" in name:
        raise ValueError(f"ElementDataFile = {name}: volumes in several files are not supported")
    data = local or (path.parent / name).read_bytes()
    if header.get("CompressedData", "False").lower() == "true":
        data = zlib.decompress(data)
    big = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
    dtype = np.dtype((">" if big else "<") + _TYPES[kind])
    expected = int(np.prod(size)) * dtype.itemsize
    if len(data) < expected:
        raise ValueError(f"{name} holds {len(data)} bytes of voxels, and {expected} are needed for {size}")
    # The first axis varies fastest.
    array = np.frombuffer(data, dtype, int(np.prod(size))).reshape(size, order="F")
    return array, _LPS_TO_RAS @ _affine(header, len(size))


def _read_header(file: object) -> dict[str, str]:
    """The lines ``key = value`` up to the one that names the data."""
    header: dict[str, str] = {}
    for line in file:  # type: ignore[attr-defined]
        key, separator, value = line.decode("latin-1").partition("=")
        if not separator:
            raise ValueError("this is no MetaImage header (lines 'key = value')")
        header[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return header
    raise ValueError("the header ends before ElementDataFile")


def _field(header: dict[str, str], name: str) -> str:
    if name not in header:
        raise ValueError(f"the header has no {name}")
    return header[name]


def _affine(header: dict[str, str], axes: int) -> np.ndarray:
    """Voxel numbers → millimetres to the left, back and top."""
    if axes != 3:
        raise ValueError(f"DimSize has {axes} numbers: expected a volume with three axes")
    spacing = np.array(_field(header, "ElementSpacing").split(), np.float64)
    # The matrix is stored axis by axis: its rows are the directions in space.
    direction = (
        np.array(header.get("TransformMatrix", "1 0 0 0 1 0 0 0 1").split(), np.float64).reshape(3, 3).T
    )
    offset = header.get("Offset", header.get("Position", header.get("Origin", "0 0 0")))
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = np.array(offset.split(), np.float64)
    return affine
