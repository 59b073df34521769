"""Views of a track and their exact labels: a z-buffer over all triangles in NumPy.

A pixel looks along ``d = (x, y, 1)``. For a triangle with corners ``V`` (rows, in camera coordinates) the weights
``b = V⁻ᵀ d`` say everything: the pixel is inside and in front of the camera where all three are positive, its
depth is ``1 / Σb``, and ``b / Σb`` interpolates texture coordinates with the right perspective (Olano and Greer,
Triangle scan conversion using 2D homogeneous coordinates, 1997). So nothing is clipped or projected, and all
pixels of many triangles are one array operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from datamodules.labels import IGNORE_INDEX
from datamodules.track_files import TEXTURE_SIZE, Scene
from datamodules.track_labels import SKY

#: Focal length in image widths: 67 degrees across.
FOCAL: Final = 0.75
#: Pictures are drawn this much larger than they are kept.
SCALE: Final = 2
#: The upper part of a backdrop that shows nothing but sky; what lies below, land or haze, is not labelled.
SKY_PART: Final = 0.45

_OPAQUE: Final = 120
_NEAR: Final = 0.1  # metres
_FRAGMENTS: Final = 1 << 20  # candidates tested at once


class Camera(NamedTuple):
    """Where a view is taken: ``position`` and ``target`` in metres, both ``[3]``; y is up."""

    position: np.ndarray
    target: np.ndarray

    def axes(self) -> np.ndarray:
        """Rows right, up and forward ``[3,3]``."""
        forward = self.target - self.position
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 1.0, 0.0))
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])


def render(scene: Scene, camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one view; the same arguments always give the same pixels.

    Returns:
        RGB image ``[height,width,3]`` uint8, box-filtered from a larger one, and the labels ``[height,width]``
        uint8 of its sub-sampled pixels.
    """
    rows, columns = height * SCALE, width * SCALE
    pixels, labels = _draw_backdrop(scene.backdrop, camera, rows, columns)
    _draw_triangles(scene, camera, pixels, labels)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    return np.array(image), labels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE].copy()


def _directions(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of pixels at distance 1."""
    height, width = shape
    focal = FOCAL * width
    return (columns + 0.5 - width / 2) / focal, (height / 2 - rows - 0.5) / focal


def _draw_backdrop(
    backdrop: np.ndarray, camera: Camera, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The picture on an upright cylinder about the camera, of radius 1, from 1 below to 1 above the horizon."""
    rows, columns = np.mgrid[:height, :width]
    x, y = _directions(rows, columns, (height, width))
    world = np.stack([x, y, np.ones_like(x)], axis=-1) @ camera.axes()
    around = np.arctan2(-world[..., 2], world[..., 0]) / (2 * np.pi)
    below_top = (1 - world[..., 1] / np.hypot(world[..., 0], world[..., 2])) / 2
    picture_height, picture_width = backdrop.shape[:2]
    row = (below_top * picture_height).astype(int).clip(0, picture_height - 1)
    # Seen from inside, the picture runs against the angle.
    column = (-around % 1 * picture_width).astype(int) % picture_width
    labels = np.where(below_top < SKY_PART, SKY, IGNORE_INDEX).astype(np.uint8)
    return backdrop[row, column], labels


def _draw_triangles(scene: Scene, camera: Camera, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Draw what is nearest at every pixel, in place. Of equally near triangles the first is kept."""
    shape = height, width = labels.shape
    corners = (scene.points - camera.position) @ camera.axes().T
    visible = np.flatnonzero(_in_sight(corners, shape))
    weights = _weights(corners[visible])
    nearest = np.full(height * width, np.inf)
    flat_pixels, flat_labels = pixels.reshape(-1, 3), labels.reshape(-1)
    for triangle, row, column in _candidates(corners[visible], shape):
        x, y = _directions(row, column, shape)
        b = weights[0][triangle] * x[:, None]
        b += weights[1][triangle] * y[:, None]
        b += weights[2][triangle]
        inside = (b >= 0).all(axis=1)
        triangle, row, column, b = triangle[inside], row[inside], column[inside], b[inside]
        with np.errstate(divide="ignore"):
            depth = 1 / b.sum(axis=1)
        pixel = row * width + column
        seen = (depth > _NEAR) & (depth < nearest[pixel])
        triangle, pixel, depth, b = visible[triangle[seen]], pixel[seen], depth[seen], b[seen]
        color = _lookup(scene, triangle, b * depth[:, None])
        solid = np.flatnonzero(color[:, 3] > _OPAQUE)
        # Farthest first: of several writes to a pixel the last one stays.
        order = solid[np.argsort(depth[solid], kind="stable")[::-1]]
        nearest[pixel[order]] = depth[order]
        flat_pixels[pixel[order]] = color[order, :3]
        flat_labels[pixel[order]] = scene.labels[triangle[order]]


def _in_sight(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """False for triangles that lie entirely beyond one side of the view, ``[N]``."""
    x, y, z = np.moveaxis(corners, -1, 0)
    wide, high = 0.5 / FOCAL, 0.5 / FOCAL * shape[0] / shape[1]
    sides = (z > _NEAR, x < wide * z, -x < wide * z, y < high * z, -y < high * z)
    return np.logical_and.reduce([side.any(axis=1) for side in sides])


def _weights(corners: np.ndarray) -> np.ndarray:
    """``[3,N,3]``: weights of the corners for x, y and 1 of a direction; NaN where a triangle is seen edge-on."""
    a, b, c = np.moveaxis(corners, 1, 0)
    inverse = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=2)
    volume = np.einsum("ni,ni->n", a, inverse[:, :, 0])
    volume[np.abs(volume) < 1e-9] = np.nan
    return np.moveaxis(inverse / volume[:, None, None], 1, 0)


def _candidates(
    corners: np.ndarray, shape: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Triangle, row and column of every pixel within a triangle's bounding box, in portions."""
    height, width = shape
    z = corners[..., 2]
    depth = np.maximum(z, _NEAR)[..., None]
    at = corners[..., :2] / depth * (FOCAL * width, -FOCAL * width) + (width / 2, height / 2)
    low, high = np.floor(at.min(1)).astype(int), np.ceil(at.max(1)).astype(int)
    # Triangles that reach behind the camera have no bounds on the screen.
    behind = np.any(z <= _NEAR, axis=1, keepdims=True)
    low = np.where(behind, 0, low).clip(0, (width, height))
    high = np.where(behind, (width, height), high).clip(0, (width, height))
    columns, rows = np.moveaxis(high - low, 1, 0)
    sizes = columns * rows
    ends = np.cumsum(sizes)
    for portion in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(ends // _FRAGMENTS)) + 1):
        triangle = np.repeat(portion, sizes[portion])
        starts = np.cumsum(sizes[portion]) - sizes[portion]
        offset = np.arange(len(triangle)) - np.repeat(starts, sizes[portion])
        row, column = np.divmod(offset, columns[triangle])
        yield triangle, low[triangle, 1] + row, low[triangle, 0] + column


def _lookup(scene: Scene, triangle: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The picture's colour and opacity ``[F,4]`` at points given by their shares of the corners ``[F,3]``."""
    u, v = np.einsum("fc,fcd->df", share, scene.coordinates[triangle])
    row = ((-v % 1) * TEXTURE_SIZE).astype(int) % TEXTURE_SIZE  # v counts from the lower edge
    column = ((u % 1) * TEXTURE_SIZE).astype(int) % TEXTURE_SIZE
    return scene.textures[scene.texture[triangle], row, column]
