"""Scans that are stored as a folder of pictures, one per slice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

#: Ends of file names that are read.
PICTURES: Final = (".bmp", ".jpg", ".jpeg", ".png")


def slices_of(folder: Path) -> list[Path]:
    """The pictures in a folder, by the last number in their names."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    return sorted(found, key=lambda path: (int((re.findall(r"\d+", path.stem) or ["0"])[-1]), path.name))


def read_slices(folder: Path, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder of slices as one volume.

    Returns:
        grey levels 0..255, ``[rows, slices, columns]``, and the identity as affine: sizes of voxels are not stored.

    Raises:
        ValueError: there are fewer than two pictures, or their sizes differ.
        OSError: a picture cannot be decoded.
    """
    paths = slices_of(folder)
    if len(paths) < 2:
        raise ValueError(
            f"the folder holds {len(paths)} pictures ({', '.join(PICTURES)}): expected a slice each"
        )
    planes: list[np.ndarray] = []
    for path in paths:
        with Image.open(path) as picture:
            planes.append(np.asarray(picture.convert("L"), dtype))
        if planes[-1].shape != planes[0].shape:
            raise ValueError(
                f"{path.name} has {planes[-1].shape} pixels and {paths[0].name} {planes[0].shape}: slices of one scan "
                "are of one size"
            )
    return np.stack(planes, 1), np.eye(4)
