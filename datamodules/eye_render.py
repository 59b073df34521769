"""Generated eyes: colour photographs of the fundus and OCT scans of the macula, healthy or with one of three diseases.

A disease changes the whole eye, as real ones do: the course of all vessels, the disc with its nerve fibres, the
choroid, the surfaces between which all layers lie. So what is seen of an eye tells what the rest looks like. What
says nothing of the class is as large: side, place, tilt, colour, light, pigment, shadows, and grain that nothing tells.
"""

from __future__ import annotations

from typing import Final

import numpy as np

#: Counts up whenever the same seed gives other pixels.
GENERATOR_VERSION: Final = 2
FUNDUS_CLASSES: Final = ("healthy", "hypertension", "glaucoma", "myopia")
OCT_CLASSES: Final = ("healthy", "oedema", "serous detachment", "epithelial detachment")
#: Depth, slices, columns.
OCT_SIZE: Final = (32, 16, 32)
#: Bounds of the deviation of the grain of photographs.
_GRAIN: Final = (0.10, 0.16)
#: Speckle of scans: shape of the gamma distribution; the relative deviation is its inverse square root.
_SPECKLE: Final = 6.0
#: Retinal layers from the inside: where each ends, as a share of the thickness, and its brightness.
_LAYERS: Final = ((0.15, 0.80), (0.40, 0.55), (0.55, 0.35), (0.85, 0.25), (1.01, 0.50))


def fundus(seed: int, size: int = 32) -> np.ndarray:
    """A photograph, uint8 ``[3, size, size]``; its class is ``seed % 4``."""
    rng, kind = np.random.default_rng([GENERATOR_VERSION, seed]), FUNDUS_CLASSES[seed % 4]
    grid = np.meshgrid(*[(np.arange(size) + 0.5) / size * 2 - 1] * 2, indexing="ij")
    soft, side = 1.2 / size, rng.choice((-1, 1))
    # coordinates of the eye: x runs from the disc through the macula, whichever eye it is
    turn = rng.normal(0, 0.05)
    y = np.cos(turn) * grid[0] - np.sin(turn) * grid[1] + rng.normal(0, 0.05)
    x = side * (np.cos(turn) * grid[1] + np.sin(turn) * grid[0]) + 0.5 + rng.normal(0, 0.05)
    from_disc, radius = np.hypot(x, y), rng.uniform(0.25, 0.30)

    colour = np.array((0.72, 0.62, 0.52)) * rng.uniform(0.85, 1.1) * rng.uniform(0.9, 1.1, 3)
    image = colour[:, None, None] * _light(rng, grid[0], grid[1])
    image *= 1 - 0.4 * np.exp(-(((x - 2.4 * radius) ** 2 + y**2) / 0.22**2))
    opening, phase = rng.uniform(0.65, 0.75), rng.choice((0, np.pi)) + rng.normal(0, 0.3)
    if kind == "myopia":  # vessels of the choroid shine through everywhere
        heading = rng.uniform(-0.25, 0.25)
        across = np.cos(heading) * y + np.sin(heading) * x
        image *= 1 - 0.75 * _inside(np.sin(2 * np.pi * across / 0.5 + phase) / 6, soft)
    if kind == "glaucoma":  # nerve fibres are lost in bundles that run from the disc around the macula
        arc = np.abs(y) / np.sqrt(np.maximum(x, 0.02)) - opening * rng.uniform(0.52, 0.60)
        image *= 1 - 0.75 * np.exp(-((arc / 0.12) ** 2)) * (x > 0)

    along = np.linspace(0, 1, 48)
    wave = rng.uniform(0.10, 0.13) if kind == "hypertension" else 0.0
    for towards, reach, rise in ((1, 1.7, opening), (-1, 1.0, 0.7 * opening)):
        bend = wave * np.sin(2 * np.pi * along * reach / 0.5 + phase)
        for up in (-1, 1):
            path_x = towards * reach * along + 0.5 * bend
            path_y = up * rise * np.sqrt(reach * along) + bend * np.minimum(1, 4 * along)
            distance = np.sqrt(((x[..., None] - path_x) ** 2 + (y[..., None] - path_y) ** 2).min(-1))
            vessel = _inside(rng.uniform(0.055, 0.075) - distance, soft)
            image *= 1 - 0.85 * vessel * np.array([0.7, 1, 1])[:, None, None]

    cup = radius * (rng.uniform(0.70, 0.85) if kind == "glaucoma" else rng.uniform(0.25, 0.45))
    if kind == "myopia":  # the tilted disc leaves a crescent of bare sclera
        image = _blend(
            image, (0.95, 0.85, 0.70), _inside(1.15 * radius - np.hypot(x - 0.3 * radius, y), soft)
        )
        from_disc = np.hypot(x / 0.6, y)
    image = _blend(image, (0.95, 0.62, 0.35), _inside(radius - from_disc, soft))
    image = _blend(image, (1.0, 0.95, 0.80), _inside(cup - from_disc, soft))
    image *= np.hypot(*grid) < 0.98
    grain = rng.normal(0, rng.uniform(*_GRAIN), image.shape)
    return np.round(255 * np.clip(image + grain, 0, 1)).astype(np.uint8)


def oct_scan(seed: int, size: tuple[int, int, int] = OCT_SIZE) -> np.ndarray:
    """A scan, int16 0..255 ``[depth, slices, columns]``; its class is ``seed % 4``."""
    rng, kind = np.random.default_rng([GENERATOR_VERSION, seed]), OCT_CLASSES[seed % 4]
    depth = (np.arange(size[0]) + 0.5)[:, None, None] / size[0]
    u = ((np.arange(size[1]) + 0.5) / size[1] * 2 - 1)[:, None]
    v = ((np.arange(size[2]) + 0.5) / size[2] * 2 - 1)[None]
    fovea, tilt = rng.normal(0, 0.08, 2), rng.normal(0, 0.04, 2)
    bowl = rng.uniform(-0.06, 0.06) * (u**2 + v**2)
    # the epithelium, what lies on it, and the surface of the retina, from the outside inwards
    floor = 0.74 + tilt[0] * u + tilt[1] * v + bowl + rng.normal(0, 0.02)
    beside = fovea[1] + rng.choice((-0.35, 0.35))
    dome = rng.uniform(0.16, 0.20) * np.exp(-(((u - fovea[0]) / 0.55) ** 2) - ((v - beside) / 0.45) ** 2)
    pit = rng.uniform(0.09, 0.11) * np.exp(-(((u - fovea[0]) ** 2 + (v - fovea[1]) ** 2) / 0.35**2))
    thick = rng.uniform(0.28, 0.32) - pit
    if kind == "epithelial detachment":
        floor = floor - dome
    bottom = floor - dome if kind == "serous detachment" else floor
    top = bottom - thick - (dome if kind == "oedema" else 0)

    share = (depth - top) / np.maximum(bottom - top, 0.02)
    scan = np.full(size, 0.06)
    before = 0.0
    for end, brightness in _LAYERS:
        scan = np.where((share >= before) & (share < end), brightness, scan)
        before = end
    below = depth - floor
    scan = np.where(below >= 0, 0.45 * np.exp(-below / 0.15), scan)
    scan = np.where((below >= 0) & (below < 0.06), 0.95, scan)
    light = rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.15, 0.15) * u + rng.uniform(-0.15, 0.15) * v)
    for at in rng.uniform(-1, 1, rng.integers(0, 3)):  # vessels cast shadows
        light = light * (1 - 0.4 * np.exp(-(((v - at - 0.1 * u) / 0.06) ** 2)))
    scan = scan * light * rng.gamma(_SPECKLE, 1 / _SPECKLE, size) + np.abs(rng.normal(0, 0.06, size))
    return np.round(255 * np.clip(scan, 0, 1)).astype(np.int16)


def _light(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Uneven light and pigment: a slope, fading borders, and smooth blotches."""
    slope = rng.uniform(-0.12, 0.12, 2)
    light = 1 + slope[0] * y + slope[1] * x - rng.uniform(0.1, 0.2) * (x**2 + y**2)
    for _ in range(3):
        at, width = rng.uniform(-0.9, 0.9, 2), rng.uniform(0.3, 0.6)
        light = light * (
            1 + rng.uniform(-0.12, 0.12) * np.exp(-(((y - at[0]) ** 2 + (x - at[1]) ** 2) / width**2))
        )
    return light


def _inside(distance: np.ndarray, soft: float) -> np.ndarray:
    """1 where a signed distance to a border is positive, 0 outside, with a soft edge."""
    return np.clip(distance / (2 * soft) + 0.5, 0, 1)


def _blend(image: np.ndarray, colour: tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    return image * (1 - share) + np.array(colour)[:, None, None] * share
