"""MATLAB files of the denoising benchmarks: SIDD's blocks (version 5) and DND's images and boxes (HDF5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datamodules.readers import BrokenImageError
from zoo.extras import require

Found = TypeVar("Found")


def _naming_the_file(read: Callable[..., Found]) -> Callable[..., Found]:
    """Whatever goes wrong inside a file becomes one error that names it."""

    @wraps(read)
    def named(path: Path, *arguments: Any) -> Found:
        try:
            return read(path, *arguments)
        except (FileNotFoundError, ImportError, MemoryError):
            raise
        except Exception as error:  # of damaged files scipy and h5py raise whatever they stumble over
            raise BrokenImageError(
                f"{path} cannot be read ({error}). Download or extract it again."
            ) from error

    return named


@_naming_the_file
def read_blocks(path: Path, variable: str) -> np.ndarray:
    """Blocks of SIDD, ``[N, H, W, 3]`` uint8, image by image.

    Args:
        path: a .mat file of version 5.
        variable: that holds ``[images, blocks, H, W, 3]``.

    Raises:
        BrokenImageError: the file is damaged, or holds something else; it is named.
        ImportError: SciPy is missing.
    """
    content = require("scipy.io", "denoising", "SIDD").loadmat(path)
    if variable not in content:
        raise ValueError(f"it holds no {variable}, only {sorted(k for k in content if k[0] != '_')}")
    blocks = content[variable]
    if blocks.ndim != 5 or blocks.shape[-1] != 3 or blocks.dtype != np.uint8:
        raise ValueError(
            f"{variable} is {blocks.dtype} {list(blocks.shape)}, expected uint8 [images, blocks, H, W, 3]"
        )
    return blocks.reshape(-1, *blocks.shape[2:])


@_naming_the_file
def read_dnd_image(path: Path) -> np.ndarray:
    """A noisy sRGB image of DND, ``[H, W, 3]`` float32 in [0, 1].

    Raises:
        BrokenImageError: the file is damaged, or holds something else; it is named.
        ImportError: h5py is missing.
    """
    with require("h5py", "denoising", "DND").File(path, "r") as file:
        if "InoisySRGB" not in file:
            raise ValueError(f"it holds no InoisySRGB, only {sorted(file)}")
        image = np.asarray(file["InoisySRGB"], np.float32).T  # MATLAB stores columns first
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"InoisySRGB is {list(image.shape)}, expected [H, W, 3]")
    # A nan compares false.
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise ValueError(
            f"InoisySRGB holds values from {image.min():.4g} to {image.max():.4g}, expected [0, 1]"
        )
    return np.clip(image, 0, 1)


@_naming_the_file
def read_dnd_boxes(path: Path) -> list[np.ndarray]:
    """The boxes of every image that DND evaluates, from ``info.mat``.

    Returns:
        For each image int64 ``[boxes, 4]``: first row and column, and those behind the last, counted from 0.

    Raises:
        BrokenImageError: the file is damaged, or holds something else; it is named.
        ImportError: h5py is missing.
    """
    with require("h5py", "denoising", "DND").File(path, "r") as file:
        if "info" not in file or "boundingboxes" not in file["info"]:
            raise ValueError(f"it holds no info.boundingboxes, only {sorted(file)}")
        references = np.ravel(file["info"]["boundingboxes"])
        stored = [np.asarray(file[reference]).T.astype(np.int64) for reference in references]
    for boxes in stored:
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes are {list(boxes.shape)}, expected [boxes, 4]")
    # MATLAB counts from 1 and includes the last.
    return [boxes - np.array([1, 1, 0, 0]) for boxes in stored]
