"""The geometry of StreetShift: buildings, ground, trees, cars, persons, poles and signs in perspective.

Everything stands on a street with a random horizon and vanishing point; objects are drawn far to near with
sizes proportional to their depth. Every shape goes into a label image and an image of part numbers at once,
so labels are exact. What the parts look like is :mod:`datamodules.streetshift`'s business. Needs NumPy and
Pillow only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

#: What parts are made of → the Cityscapes trainId it belongs to.
MATERIALS: Final = {
    "sky": 10,
    "building": 2,
    "sidewalk": 1,
    "road": 0,
    "trunk": 8,
    "tree": 8,
    "car": 13,
    "glass": 13,
    "tyre": 13,
    "legs": 11,
    "torso": 11,
    "head": 11,
    "pole": 5,
    "sign": 7,
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """A drawn scene; images are ``[H, W]``.

    Attributes:
        labels: uint8 trainIds.
        parts: int32 part numbers; part 0 is the sky.
        materials: what each part is made of, by part number.
        horizon: row of the horizon in pixels.
    """

    labels: np.ndarray
    parts: np.ndarray
    materials: Sequence[str]
    horizon: float


def draw_scene(rng: np.random.Generator, height: int, width: int, horizon: tuple[float, float]) -> Scene:
    """Draw a random street; ``horizon`` is the range of its horizon's row as shares of the height."""
    canvas = _Canvas(height, width)
    row = height * rng.uniform(*horizon)
    vanish = width * rng.uniform(0.35, 0.65)
    _draw_buildings(rng, canvas, row, vanish)
    street = _draw_ground(rng, canvas, row, vanish)
    objects = [
        (draw, rng.uniform(nearest, farthest))
        for draw, most, nearest, farthest in (
            (_draw_tree, 5, 0.1, 0.7),
            (_draw_car, 4, 0.15, 0.85),
            (_draw_person, 4, 0.2, 0.8),
            (_draw_pole, 4, 0.2, 0.75),
        )
        for _ in range(rng.integers(1, most))
    ]
    for draw, depth in sorted(objects, key=lambda item: item[1]):
        draw(rng, canvas, street, depth, side=rng.choice([-1, 1]))
    return canvas.scene(row)


class _Canvas:
    """Draws every shape twice: its class into a label image, its number into an image of parts."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._materials = ["sky"]
        self._labels = Image.new("L", (width, height), MATERIALS["sky"])
        self._parts = Image.new("I", (width, height), 0)
        self._label_pen, self._part_pen = ImageDraw.Draw(self._labels), ImageDraw.Draw(self._parts)

    def new_part(self, material: str) -> int:
        """Begin a part, which has a colour of its own; returns its number."""
        self._materials.append(material)
        return len(self._materials) - 1

    def polygon(self, points: Sequence[Point], part: int) -> None:
        for pen, value in self._pens(part):
            pen.polygon([(float(x), float(y)) for x, y in points], fill=value)

    def trapezium(self, x: float, bottom: Point, top: Point, part: int) -> None:
        """Fill a trapezium centred on ``x``; ``bottom`` and ``top`` are ``(half width, y)``."""
        (wide, low), (narrow, high) = bottom, top
        self.polygon([(x - wide, low), (x + wide, low), (x + narrow, high), (x - narrow, high)], part)

    def ellipse(self, box: tuple[float, float, float, float], part: int) -> None:
        for pen, value in self._pens(part):
            pen.ellipse(box, fill=value)

    def rectangle(self, box: tuple[float, float, float, float], part: int) -> None:
        for pen, value in self._pens(part):
            pen.rectangle(box, fill=value)

    def scene(self, horizon: float) -> Scene:
        return Scene(np.asarray(self._labels), np.asarray(self._parts), self._materials, horizon)

    def _pens(self, part: int) -> Iterator[tuple[ImageDraw.ImageDraw, int]]:
        yield self._label_pen, MATERIALS[self._materials[part]]
        yield self._part_pen, part


@dataclass(frozen=True)
class _Street:
    """The road's wedge: depth 0 is the horizon, depth 1 the bottom of the image."""

    horizon: float
    bottom: float
    far: Point  # x of the left and right edge at depth 0
    near: Point  # the same at depth 1

    def row(self, depth: float) -> float:
        return self.horizon + self.size(depth)

    def size(self, depth: float) -> float:
        """Rows between the horizon and the ground at ``depth``: the unit of every object's size."""
        return (self.bottom - self.horizon) * depth

    def edge(self, depth: float, side: int) -> float:
        far, near = (self.far[0], self.near[0]) if side < 0 else (self.far[1], self.near[1])
        return far + (near - far) * depth


def _draw_buildings(rng: np.random.Generator, canvas: _Canvas, horizon: float, vanish: float) -> None:
    """Two rows of blocks from the vanishing point to the image's sides, with gaps."""
    below = canvas.height - horizon
    for end in (0, canvas.width):
        cuts = np.append(np.sort(rng.uniform(0.06, 0.95, rng.integers(2, 5))), 1.15)
        start = rng.uniform(0.0, 0.06)
        for cut in cuts:
            if rng.random() < 0.82:
                near_height = horizon * rng.uniform(0.45, 1.15) * (0.35 + 0.75 * cut)
                far_height = near_height * rng.uniform(0.75, 1.0)
                far_x, near_x = vanish + (end - vanish) * start, vanish + (end - vanish) * cut
                corners = [
                    (far_x, horizon - far_height),
                    (near_x, horizon - near_height),
                    (near_x, horizon + below * 0.25 * cut + 4),
                    (far_x, horizon + below * 0.10 * start + 4),
                ]
                canvas.polygon(corners, canvas.new_part("building"))
            start = cut


def _draw_ground(rng: np.random.Generator, canvas: _Canvas, horizon: float, vanish: float) -> _Street:
    """Sidewalk from side to side, the road's wedge on top of it."""
    height, width = canvas.height, canvas.width
    below = height - horizon
    left, right = vanish - width * rng.uniform(0.02, 0.05), vanish + width * rng.uniform(0.02, 0.05)
    left_row, right_row = (horizon + below * rng.uniform(0.03, 0.2) for _ in range(2))
    sidewalk = [
        (0, left_row),
        (left, horizon),
        (right, horizon),
        (width, right_row),
        (width, height),
        (0, height),
    ]
    canvas.polygon(sidewalk, canvas.new_part("sidewalk"))
    near = vanish - width * rng.uniform(0.45, 0.8), vanish + width * rng.uniform(0.45, 0.8)
    road = [(left + 2, horizon), (right - 2, horizon), (near[1], height), (near[0], height)]
    canvas.polygon(road, canvas.new_part("road"))
    return _Street(horizon, height, (left, right), near)


def _draw_tree(rng: np.random.Generator, canvas: _Canvas, street: _Street, depth: float, side: int) -> None:
    y, size = street.row(depth), street.size(depth)
    x = street.edge(depth, side) + side * size * rng.uniform(0.15, 0.9)
    height = size * rng.uniform(1.1, 2.0)
    canvas.trapezium(x, (0.04 * size, y), (0.03 * size, y - height * 0.6), canvas.new_part("trunk"))
    radius = height * rng.uniform(0.25, 0.4)
    crown = canvas.new_part("tree")
    for _ in range(rng.integers(4, 8)):
        leaf_x = x + rng.normal(0, 0.5) * radius
        leaf_y = y - height * 0.75 + rng.normal(0, 0.4) * radius
        leaf = radius * rng.uniform(0.45, 0.8)
        canvas.ellipse((leaf_x - leaf, leaf_y - leaf * 0.85, leaf_x + leaf, leaf_y + leaf * 0.85), crown)
    if rng.random() < 0.4:
        hedge = canvas.new_part("tree")
        canvas.trapezium(x, (size * 0.5, y), (size * 0.45, y - 0.22 * size), hedge)


def _draw_car(rng: np.random.Generator, canvas: _Canvas, street: _Street, depth: float, side: int) -> None:
    """Body, cabin, windows and two wheels; ``side`` is not used, cars stand anywhere on the road."""
    across = rng.uniform(0.15, 0.85)
    x, y = street.edge(depth, -1) * (1 - across) + street.edge(depth, 1) * across, street.row(depth)
    width = street.size(depth) * rng.uniform(0.5, 0.75)
    height = width * rng.uniform(0.42, 0.6)
    body = canvas.new_part("car")
    canvas.trapezium(x, (width / 2, y), (width / 2, y - height * 0.55), body)
    canvas.trapezium(x, (width * 0.42, y - height * 0.55), (width * 0.3, y - height), body)
    windows = canvas.new_part("glass")
    canvas.trapezium(x, (width * 0.34, y - height * 0.58), (width * 0.25, y - height * 0.93), windows)
    wheels = canvas.new_part("tyre")
    for left in (-0.38, 0.26):
        box = (x + width * left, y - height * 0.12, x + width * (left + 0.12), y + height * 0.06)
        canvas.rectangle(box, wheels)


def _draw_person(rng: np.random.Generator, canvas: _Canvas, street: _Street, depth: float, side: int) -> None:
    y, size = street.row(depth), street.size(depth)
    x = street.edge(depth, side) + side * size * rng.uniform(-0.05, 0.5)
    height = size * rng.uniform(0.62, 0.8)
    width = height * 0.36
    canvas.trapezium(x, (width / 2, y), (width * 0.35, y - height * 0.45), canvas.new_part("legs"))
    torso = canvas.new_part("torso")
    canvas.trapezium(x, (width / 2, y - height * 0.42), (width * 0.4, y - height * 0.82), torso)
    box = (x - width * 0.28, y - height, x + width * 0.28, y - height * 0.78)
    canvas.ellipse(box, canvas.new_part("head"))


def _draw_pole(rng: np.random.Generator, canvas: _Canvas, street: _Street, depth: float, side: int) -> None:
    """A pole, three times out of four with a round or square sign."""
    y, size = street.row(depth), street.size(depth)
    x = street.edge(depth, side) + side * size * rng.uniform(0.02, 0.15)
    top = y - size * rng.uniform(1.0, 1.7)
    # Never thinner than 5 drawn pixels: objects of one image pixel cannot be learnt by any method.
    half = max(5.0, size * 0.09) / 2
    canvas.trapezium(x, (half, y), (half, top), canvas.new_part("pole"))
    if rng.random() < 0.75:
        radius = max(5.0, size * rng.uniform(0.17, 0.26))
        shape = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        shape((x - radius, top - radius, x + radius, top + radius), canvas.new_part("sign"))
