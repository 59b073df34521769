"""TorsoPhantom's generator: CT-like torsos with one anatomy and two scanners, as a function of a seed.

Ten ellipsoids and cylinders in fixed relative places (two lungs, liver on the right, spleen and stomach on the left,
two kidneys, spine, aorta) within a body. Every patient has a shift, a size, organs of somewhat other places and radii,
and a smooth deformation. Left and right differ and the order from top to bottom is always the same, so where a crop
comes from can be told from what it shows.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import numpy as np

from zoo.extras import require

Style = Literal["A", "B"]

#: Counts up whenever a seed gives another volume.
GENERATOR_VERSION: Final = 1
CLASSES: Final = ("background", "body", "lung", "liver", "spleen", "kidney", "spine", "aorta", "stomach")
#: Voxels from right to left, front to back and top to bottom; and their size in millimetres.
SIZE: Final = (64, 48, 32)
SPACING: Final = (2.0, 2.0, 2.5)
#: The axes run to the left, back and bottom of the patient.
AFFINE: Final = np.diag([*(-side for side in SPACING), 1.0])

_HOUNSFIELD: Final = np.array([-1000, 20, -820, 60, 50, 35, 450, 180, 40], np.float32)
_ENDLESS: Final = 9.0  # a radius far outside the volume
#: Class, middle and radii of each part along x (left), y (back), z (bottom), within [-1, 1]; later parts lie on top.
_PARTS: Final = (
    ("body", (0, 0, 0), (0.88, 0.82, _ENDLESS)),
    ("lung", (-0.42, -0.05, -0.75), (0.30, 0.50, 0.62)),
    ("lung", (0.42, -0.05, -0.75), (0.28, 0.50, 0.62)),
    ("liver", (-0.38, -0.12, 0.10), (0.40, 0.46, 0.42)),
    ("spleen", (0.54, 0.26, 0.12), (0.21, 0.28, 0.34)),
    ("stomach", (0.30, -0.25, 0.08), (0.24, 0.28, 0.26)),
    ("kidney", (-0.34, 0.34, 0.50), (0.19, 0.21, 0.34)),
    ("kidney", (0.34, 0.34, 0.42), (0.19, 0.21, 0.34)),
    ("spine", (0, 0.55, 0), (0.14, 0.16, _ENDLESS)),
    ("aorta", (0.07, 0.30, 0), (0.09, 0.10, _ENDLESS)),
)
_PART_CLASS: Final = np.array([CLASSES.index(name) for name, _, _ in _PARTS], np.uint8)
_CENTRES: Final = np.array([centre for _, centre, _ in _PARTS])
_RADII: Final = np.array([radii for _, _, radii in _PARTS])


class _Scanner(NamedTuple):
    blur: float  # voxels
    noise: float  # Hounsfield units
    gain: float
    offset: float
    drift: float  # Hounsfield units from the middle to the bottom


_SCANNERS: Final = {"A": _Scanner(0.6, 18, 1.0, 0, 0), "B": _Scanner(1.0, 45, 0.85, 40, 60)}


def render(
    seed: int, style: Style = "A", jitter: float = 0.03, size: tuple[int, int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Make one torso.

    Args:
        seed: of patient and noise; a seed is the same patient in both styles.
        style: ``A``, a sharp scanner with little noise; ``B``, blurred, noisy, of less contrast, drifting downwards.
        jitter: standard deviation of organs' places, in half sides of the volume; their radii vary twice as much.
        size: voxels along x, y and z.

    Returns:
        Hounsfield units int16 and classes uint8, both ``[X, Y, Z]`` with the axes of :data:`AFFINE`.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: an unknown style, or a jitter below 0.
    """
    if style not in _SCANNERS:
        raise ValueError(f"style must be A or B, got {style!r}.")
    if jitter < 0:
        raise ValueError(f"jitter must not be negative, got {jitter}.")
    blur: Any = require("scipy.ndimage", "medical", "TorsoPhantom").gaussian_filter
    rng = np.random.default_rng(seed)

    def smooth(sigma: float) -> np.ndarray:
        """A smooth random field of unit variance."""
        field = blur(rng.normal(size=size), sigma)
        return field / field.std()

    label = _anatomy(rng, jitter, size, smooth)
    tissue = _HOUNSFIELD + rng.normal(0, 18, len(CLASSES)) * (np.arange(len(CLASSES)) > 0)
    fat = -60 * np.clip(smooth(3), 0, 2) * (label == CLASSES.index("body"))
    scanner = _SCANNERS[style]
    volume = blur(tissue[label] + fat, scanner.blur) + rng.normal(0, scanner.noise, size)
    volume = volume * scanner.gain + scanner.offset + scanner.drift * np.linspace(-1, 1, size[2])
    return np.clip(volume.round(), -32768, 32767).astype(np.int16), label


def _anatomy(rng: np.random.Generator, jitter: float, size: tuple[int, int, int], smooth: Any) -> np.ndarray:
    """The classes of one patient."""
    shift, scale = rng.normal(0, 0.03, 3), 1 + rng.normal(0, 0.05, 3)
    organs = np.array([name != "body" for name, _, _ in _PARTS])
    moved = rng.normal(0, jitter, _CENTRES.shape) * organs[:, None]
    endless = _RADII == _ENDLESS
    centre = np.where(endless, 0, _CENTRES * scale + shift + moved)
    radius = np.where(endless, _ENDLESS, _RADII * scale * (1 + rng.normal(0, 2 * jitter, _RADII.shape)))
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij"))
    place = axes + 0.035 * np.stack([smooth(7) for _ in range(3)])
    columns = (slice(None), slice(None), None, None, None)
    inside = (((place - centre[columns]) / radius[columns]) ** 2).sum(1) < 1
    # The last part that holds a voxel counts: the first one from the end.
    top = len(_PARTS) - 1 - inside[::-1].argmax(0)
    return np.where(inside.any(0), _PART_CLASS[top], 0).astype(np.uint8)
