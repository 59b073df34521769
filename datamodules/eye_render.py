"""Generated eyes: colour photographs of the fundus and OCT scans of the macula, healthy or with one of three findings.

What a class differs by is small and lies anywhere; what differs from eye to eye (side, tilt, colour, vessels, noise)
is large and says nothing of the class.
"""

from __future__ import annotations

from typing import Final

import numpy as np

#: Counts up whenever the same seed gives other pixels.
GENERATOR_VERSION: Final = 1
FUNDUS_CLASSES: Final = ("healthy", "drusen", "haemorrhages", "large cup")
OCT_CLASSES: Final = ("healthy", "drusen", "oedema", "macular hole")
#: Depth, slices, columns.
OCT_SIZE: Final = (32, 16, 32)
#: Retinal layers from the inside: where each ends, as a share of the thickness, and its brightness.
_LAYERS: Final = ((0.15, 0.80), (0.40, 0.55), (0.55, 0.35), (0.85, 0.25), (1.01, 0.50))


def fundus(seed: int, size: int = 32) -> np.ndarray:
    """A photograph, uint8 ``[3, size, size]``; its class is ``seed % 4``."""
    rng, kind = np.random.default_rng(seed), FUNDUS_CLASSES[seed % 4]
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size * 2 - 1] * 2, indexing="ij")
    side, soft = rng.choice((-1, 1)), 1.2 / size
    colour = np.array((0.80, 0.38, 0.16)) * rng.uniform(0.75, 1.15) * rng.uniform(0.9, 1.1, 3)
    image = colour[:, None, None] * (1.05 - 0.35 * (x**2 + y**2))
    disc, macula = _near(rng, (0.55 * side, 0.0), 0.08), _near(rng, (-0.2 * side, 0.05), 0.06)

    from_macula = np.hypot(x - macula[0], y - macula[1])
    image *= 1 - 0.35 * np.exp(-((from_macula / 0.22) ** 2))
    for _ in range(rng.integers(6, 9)):
        angle, bend, along = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.9), np.linspace(0, 1.6, 40)
        heading = angle + bend * along
        path_x = disc[0] + np.cumsum(np.cos(heading)) * 0.04
        path_y = disc[1] + np.cumsum(np.sin(heading)) * 0.04
        distance = np.sqrt(((x[..., None] - path_x) ** 2 + (y[..., None] - path_y) ** 2).min(-1))
        image *= (
            1
            - 0.45 * _inside(rng.uniform(0.01, 0.04) - distance, soft) * np.array([0.6, 1, 1])[:, None, None]
        )
    from_disc, radius = np.hypot(x - disc[0], y - disc[1]), rng.uniform(0.18, 0.23)
    cup = radius * (rng.uniform(0.70, 0.85) if kind == "large cup" else rng.uniform(0.30, 0.45))
    image = _blend(image, (0.95, 0.72, 0.40), _inside(radius - from_disc, soft))
    image = _blend(image, (1.0, 0.92, 0.75), _inside(cup - from_disc, soft))

    spots = {
        "drusen": (rng.integers(8, 16), macula, 0.25),
        "haemorrhages": (rng.integers(6, 12), (0.0, 0.0), 0.5),
    }
    count, middle, spread = spots.get(kind, (0, macula, 0.0))
    for _ in range(count):
        at = _near(rng, middle, spread)
        spot = _inside(rng.uniform(0.04, 0.08) - np.hypot(x - at[0], y - at[1]), soft)
        image = _blend(image, (0.95, 0.85, 0.45) if kind == "drusen" else (0.35, 0.04, 0.04), 0.9 * spot)
    image *= np.hypot(x, y) < 0.98
    return np.round(255 * np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)).astype(np.uint8)


def oct_scan(seed: int, size: tuple[int, int, int] = OCT_SIZE) -> np.ndarray:
    """A scan, int16 0..255 ``[depth, slices, columns]``; its class is ``seed % 4``."""
    rng, kind = np.random.default_rng(seed), OCT_CLASSES[seed % 4]
    depth = (np.arange(size[0]) + 0.5)[:, None, None] / size[0]
    u = ((np.arange(size[1]) + 0.5) / size[1] * 2 - 1)[:, None]
    v = ((np.arange(size[2]) + 0.5) / size[2] * 2 - 1)[None]
    fovea = rng.normal(0, 0.12, 2)
    from_fovea = np.hypot(u - fovea[0], v - fovea[1])
    tilt = rng.normal(0, 0.07, 2)
    shape = tilt[0] * u + tilt[1] * v + rng.uniform(-0.05, 0.08) * (u**2 + v**2) + rng.normal(0, 0.04)
    bottom = 0.70 + shape
    top = bottom - rng.uniform(0.34, 0.44) + rng.uniform(0.10, 0.16) * np.exp(-((from_fovea / 0.3) ** 2))
    if kind == "drusen":
        for _ in range(rng.integers(5, 10)):
            at, width = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.14, 0.24)
            bump = np.exp(-(((u - at[0]) ** 2 + (v - at[1]) ** 2) / width**2))
            bottom = bottom - rng.uniform(0.08, 0.14) * bump

    share = (depth - top) / np.maximum(bottom - top, 0.02)
    scan = np.full(size, 0.04)
    before = 0.0
    for end, brightness in _LAYERS:
        scan = np.where((share >= before) & (share < end), brightness, scan)
        before = end
    if kind == "oedema":
        for _ in range(rng.integers(5, 10)):
            at, sides = rng.uniform(-0.7, 0.7, 2), rng.uniform(0.12, 0.28, 2)
            level = rng.uniform(0.35, 0.75)
            cyst = (
                ((share - level) / 0.22) ** 2 + ((u - at[0]) / sides[0]) ** 2 + ((v - at[1]) / sides[1]) ** 2
            )
            scan = np.where((cyst < 1) & (share > 0) & (share < 1), 0.06, scan)
    if kind == "macular hole":
        gap = from_fovea < rng.uniform(0.14, 0.22) * (1 + 0.4 * np.abs(share - 0.5))
        scan = np.where(gap & (share < 1), 0.04, scan)
    below = depth - bottom
    scan = np.where(below >= 0, 0.45 * np.exp(-below / 0.15), scan)
    scan = np.where((below >= 0) & (below < 0.06), 0.95, scan)
    scan = scan * rng.uniform(0.8, 1.2) * rng.gamma(40, 1 / 40, size) + np.abs(rng.normal(0, 0.02, size))
    return np.round(255 * np.clip(scan, 0, 1)).astype(np.int16)


def _near(rng: np.random.Generator, place: tuple[float, float], spread: float) -> tuple[float, float]:
    moved = rng.normal(0, spread, 2)
    return float(place[0] + moved[0]), float(place[1] + moved[1])


def _inside(distance: np.ndarray, soft: float) -> np.ndarray:
    """1 where a signed distance to a border is positive, 0 outside, with a soft edge."""
    return np.clip(distance / (2 * soft) + 0.5, 0, 1)


def _blend(image: np.ndarray, colour: tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    return image * (1 - share) + np.array(colour)[:, None, None] * share
