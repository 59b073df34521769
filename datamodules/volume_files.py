"""Volumes and label maps on disk: NIfTI through nibabel, MetaImage; every fault is told with the file's name."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from datamodules.metaimage import read_metaimage
from datamodules.readers import BrokenImageError
from datamodules.slice_folders import read_slices
from zoo.extras import require

MissingAffine = Literal["error", "spacing"]
#: Ends of file names that are read.
SUFFIXES: Final = (".nii.gz", ".nii", ".mhd", ".mha")
#: Millimetres by which the corners of a label map may lie beside those of its image, per voxel's longest side.
_TOLERANCE: Final = 0.1


class BrokenVolumeError(BrokenImageError):
    """A volume or label map that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Volume:
    """A volume as stored.

    Args:
        array: float32 ``[C, X, Y, Z]``.
        affine: float64 ``[4, 4]``, voxel numbers → millimetres to the right, front and top of the patient (RAS+).
        path: where it was read.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along X, Y and Z."""
        return self.array.shape[1:]


def read_volume(
    path: Path, channels: tuple[int, ...] | None = None, missing_affine: MissingAffine = "error"
) -> Volume:
    """Read a volume and check that it can be used.

    Rule for channels: files with three axes have one; a fourth axis holds them, and which are wanted must be said
    (``channels``), unless it is one long. Rule for affines: spacings may differ between axes and axes may be oblique.

    Args:
        path: NIfTI or MetaImage.
        channels: positions on the fourth axis, in the order wanted; None expects one channel.
        missing_affine: what to do with a NIfTI file that declares none (``sform_code`` and ``qform_code`` 0): stop
            with an ``error``, or take its ``spacing`` and RAS axes.

    Raises:
        BrokenVolumeError: unreadable or truncated; two-dimensional; channels that were not asked for or are not
            there; no usable affine; voxels that are NaN or infinite.
        ImportError: nibabel is not installed.
    """
    array, affine = _read(path, np.float32, missing_affine)
    while array.ndim > 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim < 3 or min(array.shape[:3]) == 1:
        raise BrokenVolumeError(
            f"{path} holds a two-dimensional image of shape {list(array.shape)}: volumes need more than one slice."
        )
    if array.ndim > 4:
        raise BrokenVolumeError(
            f"{path} has {array.ndim} axes {list(array.shape)}: expected X, Y, Z, channels."
        )
    stored = array.shape[3] if array.ndim == 4 else 1
    if channels is None and stored > 1:
        raise BrokenVolumeError(
            f"{path} is 4-D and holds {stored} channels: set data.processing.channels to those wanted, such as [0]."
        )
    wanted = (0,) if channels is None else tuple(channels)
    if max(wanted) >= stored or min(wanted) < 0:
        raise BrokenVolumeError(f"{path} holds {stored} channels; data.processing.channels={list(wanted)}.")
    array = array.reshape(*array.shape[:3], stored)[..., list(wanted)].transpose(3, 0, 1, 2)
    broken = array.size - int(np.isfinite(array).sum())
    if broken:
        raise BrokenVolumeError(
            f"{path} holds {broken} voxels that are NaN or infinite: replace them in the file, or set skip_broken: "
            "true to leave such files out."
        )
    return Volume(np.ascontiguousarray(array), affine, path)


def read_label(path: Path, image: Volume, missing_affine: MissingAffine = "error") -> np.ndarray:
    """Read the label map of a volume.

    Returns:
        uint8 ``[X, Y, Z]``.

    Raises:
        BrokenVolumeError: unreadable, on another grid than the volume (shape, or corners more than a tenth of a voxel
            away), or with values that are not whole numbers in 0..255.
        ImportError: nibabel is not installed.
    """
    array, affine = _read(path, np.float32, missing_affine)
    array = array.reshape(array.shape[:3]) if array.shape[3:] in ((1,), (1, 1)) else array
    if array.shape != image.size:
        raise BrokenVolumeError(
            f"{path} has shape {list(array.shape)}, but its volume {image.path} has {list(image.size)}: labels must "
            "lie on the grid of their volume."
        )
    corners = np.array(np.meshgrid(*((0, side - 1, 0) for side in image.size), indexing="ij")).reshape(3, -1)
    apart = np.abs((affine - image.affine)[:3] @ np.vstack((corners, np.ones(corners.shape[1])))).max()
    if apart > _TOLERANCE * spacing_of(image.affine).max():
        raise BrokenVolumeError(
            f"{path} lies up to {apart:.2f} mm beside its volume {image.path} (their affines differ): resample it to "
            "the grid of the volume."
        )
    if not (
        np.isfinite(array).all() and (array == array.round()).all() and 0 <= array.min() <= array.max() <= 255
    ):
        raise BrokenVolumeError(f"{path} holds values that are no classes: expected whole numbers in 0..255.")
    return array.astype(np.uint8)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write ``[X, Y, Z]`` or ``[X, Y, Z, C]`` as NIfTI (``.nii`` or ``.nii.gz``).

    Raises:
        ImportError: nibabel is not installed.
    """
    nibabel = _nibabel()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Millimetres between voxels along each axis ``[3]``."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def stem_of(path: Path) -> str:
    """The file's name without the suffix, which may have two parts."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def _nibabel() -> Any:
    return require("nibabel", "medical", "reading volumes")


def _read(path: Path, dtype: type, missing_affine: MissingAffine) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of a file, or of a folder of slices."""
    if path.suffix in (".mhd", ".mha") or path.is_dir():
        try:
            array, affine = read_slices(path) if path.is_dir() else read_metaimage(path)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, zlib.error) as error:
            raise _unreadable(path, error) from error
        return array.astype(dtype), _checked(path, affine)
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
        array = np.asarray(image.dataobj, dtype=dtype)
    except FileNotFoundError:
        raise
    # What nibabel, gzip and zlib raise for files that are damaged, cut off or something else.
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        gzip.BadGzipFile,
        nibabel.filebasedimages.ImageFileError,
    ) as e:
        raise _unreadable(path, e) from e
    declared = int(image.header["sform_code"]) or int(image.header["qform_code"])
    if declared:
        return array, _checked(path, image.affine)
    if missing_affine == "error":
        raise BrokenVolumeError(
            f"{path} has no affine (its sform_code and qform_code are 0), so left and right cannot be told: write one, "
            "or set data.processing.missing_affine: spacing to take its axes as right, front and top."
        )
    spacing = [float(side) for side in image.header.get_zooms()[:3]]
    return array, _checked(path, np.diag([*spacing, *[1.0] * (4 - len(spacing))]))


def _checked(path: Path, affine: np.ndarray) -> np.ndarray:
    affine = np.asarray(affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BrokenVolumeError(
            f"{path} has an affine that maps voxels to no place in space ({affine[:3].tolist()}): correct its header."
        )
    return affine


def _unreadable(path: Path, error: Exception) -> BrokenVolumeError:
    return BrokenVolumeError(
        f"{path} cannot be read ({type(error).__name__}: {error}). Copy or download it again, or set skip_broken: true "
        "to leave such files out."
    )
