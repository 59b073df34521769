"""Reads tracks of the racing game TORCS: geometry, pictures and backdrop of one track folder.

A track folder ``tracks/<kind>/<track>`` holds ``<track>.xml`` (settings), a 3-D description in the AC3D text
format and pictures as PNG or SGI (``.rgb``); shared pictures lie in ``data/textures``. Of the description this
reads what a picture needs: an object's name and base picture, its points (y is up, metres), and surfaces with
their texture coordinates; low bits 4 of ``SURF`` mark triangle strips, all others are convex polygons. Lights,
further picture layers and materials are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from xml.parsers import expat

import numpy as np
from PIL import Image

from datamodules.layout import LayoutError
from datamodules.track_labels import class_of

PACKAGE: Final = "torcs-data"
VERSION: Final = "1.3.7"
#: Side of a stored texture: more than a pixel of a small view ever shows.
TEXTURE_SIZE: Final = 64

_NO_AREA: Final = 1e-8  # square metres
_CYLINDER: Final = 4  # "background type": one picture all around
_STRIP: Final = 4
_PICTURE: Final = re.compile(r'"([^"(]+)"')  # empty layers read empty_texture_no_mapping or "(null)"
_UNREADABLE: Final = (OSError, SyntaxError, ValueError)  # what Pillow raises on damaged files


class TrackError(LayoutError):
    """A file of a track is missing or damaged; the message names it."""


class Surfaces(NamedTuple):
    """Triangles of one surface: points ``[N,3,3]``, texture coordinates ``[N,3,2]``, its object and picture."""

    points: np.ndarray
    coordinates: np.ndarray
    name: str
    texture: str | None


@dataclass(frozen=True)
class Scene:
    """One track as triangles.

    Args:
        points: ``[N,3,3]`` corners in metres, y up.
        coordinates: ``[N,3,2]`` texture coordinates; they repeat outside [0, 1].
        texture: ``[N]`` index into ``textures``.
        labels: ``[N]`` uint8 classes of :mod:`datamodules.track_labels`.
        piece: ``[N]`` for triangles of the drivable track the number of their piece, counted along the lap; NaN
            for all others.
        textures: ``[T,64,64,4]`` uint8, RGB and opacity.
        backdrop: ``[H,W,3]`` uint8, the picture around the scene.
    """

    points: np.ndarray
    coordinates: np.ndarray
    texture: np.ndarray
    labels: np.ndarray
    piece: np.ndarray
    textures: np.ndarray
    backdrop: np.ndarray


def read_scene(root: Path, track: str) -> Scene:
    """Read one track.

    Args:
        root: folder that holds ``tracks`` and ``data``.
        track: its folder below ``tracks``, such as ``road/alpine-2``.

    Raises:
        TrackError: a file is missing, truncated or malformed.
    """
    folder = root / "tracks" / track
    settings = read_settings(folder / f"{folder.name}.xml")
    description = folder / settings.get("3d description", f"{folder.name}.acc")
    surfaces = list(read_surfaces(description))
    pieces = [re.match(r"TKMN(\d+)", surface.name) for surface in surfaces]
    if not any(pieces):
        raise TrackError(f"{description} holds no drivable track (no surface of an object TKMN<number>).")
    names = sorted({surface.texture for surface in surfaces if surface.texture is not None})
    number = {name: index for index, name in enumerate(names)} | {None: len(names)}
    # Surfaces without a picture are grey.
    plain = np.full((TEXTURE_SIZE, TEXTURE_SIZE, 4), (128, 128, 128, 255), np.uint8)
    sizes = [len(surface.points) for surface in surfaces]
    return Scene(
        points=np.concatenate([surface.points for surface in surfaces]),
        coordinates=np.concatenate([surface.coordinates for surface in surfaces]),
        texture=np.repeat([number[surface.texture] for surface in surfaces], sizes),
        labels=np.repeat([class_of(s.name, s.texture) for s in surfaces], sizes).astype(np.uint8),
        piece=np.repeat([float(match[1]) if match else np.nan for match in pieces], sizes),
        textures=np.stack([*(_read_texture(root, folder, name) for name in names), plain]),
        backdrop=_read_backdrop(folder, settings),
    )


def read_settings(path: Path) -> dict[str, str]:
    """Names and values of a settings file; of names that occur in several sections the last one counts.

    Raises:
        TrackError: there is no such file, or it is malformed.
    """
    settings = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag in ("attnum", "attstr") and "val" in attributes:
            settings[attributes.get("name", "")] = attributes["val"]

    # Settings refer to other files by external entities, which expat skips and other parsers refuse.
    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    try:
        parser.Parse(_read_bytes(path), True)
    except expat.ExpatError as error:
        raise TrackError(f"{path} is malformed ({error}). Extract {PACKAGE} again.") from error
    return settings


def read_surfaces(path: Path) -> Iterator[Surfaces]:
    """The surfaces of an AC3D description, in the order of the file, without degenerate ones.

    Raises:
        TrackError: there is no such file, or it is malformed or ends early.
    """
    lines = _read_bytes(path).decode("latin-1").splitlines()
    if not lines or not lines[0].startswith("AC3D"):
        raise TrackError(f"{path} is no AC3D file. Extract {PACKAGE} again.")
    at = 0

    def table(rows: int, columns: int) -> np.ndarray:
        """The next lines as numbers; moves on behind them."""
        nonlocal at
        block = [line.split()[:columns] for line in lines[at : at + rows]]
        if len(block) < rows:
            raise ValueError("the file ends early")
        at += rows
        return np.array(block, dtype=np.float64).reshape(rows, columns)

    name, texture, strip, points = "", None, False, np.empty((0, 3))
    complete = False  # every object ends with the number of its kids
    try:
        while at < len(lines):
            key, *values = lines[at].split(maxsplit=1) or [""]
            at += 1
            if key == "OBJECT":
                name, texture, complete = "", None, False
            elif key == "kids":
                complete = True
            elif key == "name":
                name = values[0].strip().strip('"')
            elif key == "texture" and texture is None:
                layer = _PICTURE.match(values[0])  # the first layer is the base
                texture = layer[1] if layer else None
            elif key == "numvert":
                points = table(int(values[0]), 3)
            elif key == "SURF":
                strip = int(values[0], 16) & 0xF == _STRIP
            elif key == "refs":
                corners = table(int(values[0]), 3)
                index = _triangles(len(corners), strip)
                used = points[_checked(corners[:, 0].astype(int), len(points))][index]
                # Strips are joined by triangles without an area.
                flat = np.cross(used[:, 1] - used[:, 0], used[:, 2] - used[:, 0])
                solid = np.linalg.norm(flat, axis=1) > _NO_AREA
                yield Surfaces(used[solid], corners[index[solid], 1:], name, texture)
        if not complete:
            raise ValueError("the file ends early")
    except (ValueError, IndexError) as error:
        raise TrackError(f"{path}, line {at}: {error}. Extract {PACKAGE} again.") from error


def _triangles(corners: int, strip: bool) -> np.ndarray:
    """Indices ``[N,3]`` of the triangles of a strip, or of a convex polygon (as a fan)."""
    first = np.arange(max(corners - 2, 0))
    return np.stack([first if strip else 0 * first, first + 1, first + 2], axis=1)


def _checked(index: np.ndarray, length: int) -> np.ndarray:
    outside = index[(index < 0) | (index >= length)]
    if outside.size:
        raise ValueError(f"a surface refers to point {outside[0]} of {length}")
    return index


def _read_texture(root: Path, folder: Path, name: str) -> np.ndarray:
    """A picture ``[64,64,4]`` uint8, from the track's own folder or the shared one."""
    shared = root / "data" / "textures"
    for path in (folder / name, shared / name, (shared / name).with_suffix(".png")):
        if path.is_file():
            image = _read_picture(path, "RGBA")
            return np.array(image.resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BOX))
    raise TrackError(
        f"There is no picture {name} in {folder} or {shared}. Is {PACKAGE} completely extracted?"
    )


def _read_backdrop(folder: Path, settings: dict[str, str]) -> np.ndarray:
    kind = settings.get("background type", "0")
    if float(kind) != _CYLINDER:
        raise TrackError(f"{folder}: background type {kind} is not drawn, only {_CYLINDER} is.")
    return np.array(_read_picture(folder / settings.get("background image", "background.png"), "RGB"))


def _read_picture(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except FileNotFoundError:
        raise _missing(path) from None
    except _UNREADABLE as error:
        raise TrackError(f"{path} cannot be decoded ({error}). Extract {PACKAGE} again.") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _missing(path) from None


def _missing(path: Path) -> TrackError:
    return TrackError(
        f"There is no file {path}. Is {PACKAGE} of version {VERSION}, and completely extracted?"
    )
