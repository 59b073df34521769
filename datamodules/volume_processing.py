"""What is done to every volume once, before training, and how a label map is brought back to its volume's space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from datamodules.volume_files import (
    BrokenVolumeError,
    MissingAffine,
    Volume,
    read_label,
    read_volume,
    spacing_of,
)
from zoo.extras import require


@dataclass(frozen=True)
class Processing:
    """Orientation, spacing, intensities and foreground of volumes, in this order (VoCo; Swin UNETR's for BTCV).

    Axes are brought to RAS: voxel numbers grow to the right, front and top of the patient (oblique axes to the
    nearest of these). Then volumes are interpolated to ``spacing`` (linearly, labels to the nearest), intensities are
    mapped to [0, 1] and cut off there, and what lies outside the box around everything above 0 is cut away.

    Args:
        spacing: millimetres along X, Y and Z; None keeps that of each file.
        window: intensities that become 0 and 1, in Hounsfield units for CT; None takes ``percentiles``.
        percentiles: of each channel of each volume that become 0 and 1, for MRI.
        crop_foreground: whether the box around the foreground is cut out.
        resize: sides to which volumes are brought at last (trilinear, corners aligned); None keeps theirs.
        channels: which channels of 4-D files are used, in this order; None expects one.
        missing_affine: for files without affine: stop with an ``error``, or take their ``spacing`` and RAS axes.

    Raises:
        ValueError: an argument out of range.
    """

    spacing: tuple[float, float, float] | None = (1.5, 1.5, 1.5)
    window: tuple[float, float] | None = (-175.0, 250.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    crop_foreground: bool = True
    resize: tuple[int, int, int] | None = None
    channels: tuple[int, ...] | None = None
    missing_affine: MissingAffine = "error"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.spacing is not None and not min(self.spacing) > 0:
            raise ValueError(
                f"processing.spacing must be three positive sides in mm, got {list(self.spacing)}."
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(
                f"processing.window must be (low, high) with low < high, got {list(self.window)}."
            )
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(
                f"processing.percentiles must be (low, high) within [0, 100], got {list(self.percentiles)}."
            )
        if self.resize is not None and min(self.resize) < 2:
            raise ValueError(f"processing.resize must be three sides of at least 2, got {list(self.resize)}.")
        if self.missing_affine not in ("error", "spacing"):
            raise ValueError(
                f"processing.missing_affine must be error or spacing, got {self.missing_affine!r}."
            )

    @property
    def num_channels(self) -> int:
        """Channels of processed volumes."""
        return 1 if self.channels is None else len(self.channels)


@dataclass(frozen=True)
class Processed:
    """A processed volume.

    Args:
        volume: float32 ``[C, X, Y, Z]`` in [0, 1].
        label: uint8 ``[X, Y, Z]`` or None.
        affine: of both, voxel numbers → millimetres ``[4, 4]``.
        original_size: voxels of the file along its own axes.
        original_affine: of the file.
    """

    volume: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray
    original_size: tuple[int, ...]
    original_affine: np.ndarray


def process(image: Path, label: Path | None, settings: Processing) -> Processed:
    """Read and process one volume and, where given, its label map.

    Raises:
        BrokenVolumeError: a file cannot be used (:func:`~datamodules.volume_files.read_volume`), or no voxel of the
            volume lies above the window's low end: there is no foreground.
        ImportError: nibabel or SciPy is not installed.
    """
    source = read_volume(image, settings.channels, settings.missing_affine)
    mask = None if label is None else read_label(label, source, settings.missing_affine)
    return process_read(source, mask, settings)


def plain_settings(settings: Processing) -> dict[str, Any]:
    """The settings as plain values, lists for tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}


def settings_of(plain: Mapping[str, Any]) -> Processing:
    """Back from :func:`plain_settings`."""
    settings: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
    return Processing(**settings)


def process_read(source: Volume, label: np.ndarray | None, settings: Processing) -> Processed:
    """The same for a volume, and where given its label map, that were read already.

    Raises:
        BrokenVolumeError: there is no foreground.
        ImportError: nibabel or SciPy is not installed.
    """
    arrays = list(source.array)
    if label is not None:
        arrays.append(label)
    arrays, affine = _canonical(arrays, source.affine)
    if settings.spacing is not None:
        arrays, affine = _respaced(arrays, affine, settings.spacing, labelled=label is not None)
    mask = arrays.pop() if label is not None else None
    volume = np.stack([_scaled(channel, settings) for channel in arrays])
    if not (volume > 0).any():
        floor = settings.window[0] if settings.window else "its minimum"
        raise BrokenVolumeError(
            f"{source.path} has no foreground: no voxel is above {floor}. "
            "Set processing.window to the volume's intensities, or skip_broken: true to leave such files out."
        )
    if settings.crop_foreground:
        box, affine = _foreground(volume, affine)
        volume, mask = volume[(slice(None), *box)], None if mask is None else mask[box]
    if settings.resize is not None:
        volume, mask, affine = _resized(volume, mask, affine, settings.resize)
    volume = np.ascontiguousarray(volume)
    mask = None if mask is None else np.ascontiguousarray(mask)
    return Processed(volume, mask, affine, source.size, source.affine)


def to_original_space(
    label: np.ndarray, affine: np.ndarray, original_size: tuple[int, ...], original_affine: np.ndarray
) -> np.ndarray:
    """Bring a label map from the grid of a processed volume to that of its file: every voxel takes the nearest label.

    Args:
        label: ``[X, Y, Z]``, integers.
        affine: its grid, ``[4, 4]``.
        original_size: voxels of the file along its own axes.
        original_affine: of the file, ``[4, 4]``.

    Returns:
        ``[*original_size]``, of the type of ``label``; 0 outside what was kept of the volume.
    """
    return _resample(label, affine, original_size, original_affine, order=0, outside="grid-constant")


def _canonical(arrays: list[np.ndarray], affine: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Swap and mirror axes to RAS, without interpolating."""
    orientations = require("nibabel.orientations", "medical", "processing volumes")
    change = orientations.io_orientation(affine)
    back = orientations.inv_ornt_aff(change, arrays[0].shape)
    return [orientations.apply_orientation(array, change) for array in arrays], affine @ back


def _respaced(
    arrays: list[np.ndarray], affine: np.ndarray, spacing: tuple[float, float, float], labelled: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """Interpolate to another spacing; the first voxel stays where it is, and borders are continued."""
    ratio = np.array(spacing) / spacing_of(affine)
    if np.allclose(ratio, 1, rtol=1e-4):
        return arrays, affine
    size = tuple(int(side) for side in np.round((np.array(arrays[0].shape) - 1) / ratio + 1).astype(int))
    target = affine @ np.diag([*ratio, 1])
    orders = [1] * (len(arrays) - labelled) + [0] * labelled
    return [
        _resample(a, affine, size, target, o, "nearest") for a, o in zip(arrays, orders, strict=True)
    ], target


def _resample(
    array: np.ndarray, affine: np.ndarray, size: tuple[int, ...], target: np.ndarray, order: int, outside: str
) -> np.ndarray:
    """The values of ``array`` on another grid."""
    ndimage: Any = require("scipy.ndimage", "medical", "resampling volumes")
    matrix = np.linalg.inv(affine) @ target
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    # SciPy is much faster where axes do not mix.
    scale = np.diag(linear)
    straight = np.allclose(linear, np.diag(scale), atol=1e-6)
    return ndimage.affine_transform(
        array, scale if straight else linear, offset, size, order=order, mode=outside, cval=0, prefilter=False
    )


def _scaled(channel: np.ndarray, settings: Processing) -> np.ndarray:
    """Intensities within the window → [0, 1]."""
    low, high = np.percentile(channel, settings.percentiles) if settings.window is None else settings.window
    return np.clip((channel - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _foreground(volume: np.ndarray, affine: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around all voxels above 0, and the affine of what it cuts out."""
    there: Any = (volume > 0).any(0)
    sides = [np.flatnonzero(there.any(axis=others)) for others in itertools.combinations(range(3), 2)][::-1]
    box = tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)
    shift = np.eye(4)
    shift[:3, 3] = [side.start for side in box]
    return box, affine @ shift


def _resized(
    volume: np.ndarray, mask: np.ndarray | None, affine: np.ndarray, size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Trilinear with the corners' centres aligned; labels by the nearest voxel of the same alignment."""
    # An axis of one voxel has no corners to align.
    ratio = np.maximum(np.array(volume.shape[1:]) - 1, 1) / (np.array(size) - 1)
    target = affine @ np.diag([*ratio, 1])
    resized = F.interpolate(torch.from_numpy(volume[None]), size, mode="trilinear", align_corners=True)[
        0
    ].numpy()
    if mask is not None:
        mask = _resample(mask, affine, size, target, 0, "nearest")
    return resized, mask, target
