"""Cityscapes class names, colours and ids, and how label files are decoded to trainIds.

Label files store classes in one of three ways (:data:`ENCODINGS`): the 34 Cityscapes ids, the 19 trainIds
that networks predict, or colours. Decoding is always explicit about which one and refuses values it does not
know.

The ids, names and colours are those of the Cityscapes label policy (Cordts et al., CVPR 2016); GTA5 (Richter
et al., ECCV 2016) uses the same ids and colours. Needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

IGNORE_INDEX: Final = 255
_UNKNOWN: Final = 254  # free in a uint8 trainId map: neither a class nor the ignore index

RGB = tuple[int, int, int]


class Label(NamedTuple):
    """One entry of the Cityscapes label policy; ``train_id`` 255 is not evaluated."""

    id: int
    name: str
    train_id: int
    color: RGB


CITYSCAPES_LABELS: Final = (
    Label(0, "unlabeled", 255, (0, 0, 0)),
    Label(1, "ego vehicle", 255, (0, 0, 0)),
    Label(2, "rectification border", 255, (0, 0, 0)),
    Label(3, "out of roi", 255, (0, 0, 0)),
    Label(4, "static", 255, (0, 0, 0)),
    Label(5, "dynamic", 255, (111, 74, 0)),
    Label(6, "ground", 255, (81, 0, 81)),
    Label(7, "road", 0, (128, 64, 128)),
    Label(8, "sidewalk", 1, (244, 35, 232)),
    Label(9, "parking", 255, (250, 170, 160)),
    Label(10, "rail track", 255, (230, 150, 140)),
    Label(11, "building", 2, (70, 70, 70)),
    Label(12, "wall", 3, (102, 102, 156)),
    Label(13, "fence", 4, (190, 153, 153)),
    Label(14, "guard rail", 255, (180, 165, 180)),
    Label(15, "bridge", 255, (150, 100, 100)),
    Label(16, "tunnel", 255, (150, 120, 90)),
    Label(17, "pole", 5, (153, 153, 153)),
    Label(18, "polegroup", 255, (153, 153, 153)),
    Label(19, "traffic light", 6, (250, 170, 30)),
    Label(20, "traffic sign", 7, (220, 220, 0)),
    Label(21, "vegetation", 8, (107, 142, 35)),
    Label(22, "terrain", 9, (152, 251, 152)),
    Label(23, "sky", 10, (70, 130, 180)),
    Label(24, "person", 11, (220, 20, 60)),
    Label(25, "rider", 12, (255, 0, 0)),
    Label(26, "car", 13, (0, 0, 142)),
    Label(27, "truck", 14, (0, 0, 70)),
    Label(28, "bus", 15, (0, 60, 100)),
    Label(29, "caravan", 255, (0, 0, 90)),
    Label(30, "trailer", 255, (0, 0, 110)),
    Label(31, "train", 16, (0, 80, 100)),
    Label(32, "motorcycle", 17, (0, 0, 230)),
    Label(33, "bicycle", 18, (119, 11, 32)),
    # Index 34 of GTA5's palette; Cityscapes calls it -1 and never writes it to an image.
    Label(34, "license plate", 255, (0, 0, 142)),
)

_EVALUATED: Final = sorted(
    (label for label in CITYSCAPES_LABELS if label.train_id != 255), key=lambda x: x.train_id
)
CITYSCAPES_CLASSES: Final = tuple(label.name for label in _EVALUATED)
CITYSCAPES_PALETTE: Final = tuple(label.color for label in _EVALUATED)
TRAIN_ID_TO_ID: Final = tuple(label.id for label in _EVALUATED)


def pack_color(color: RGB | np.ndarray) -> int | np.ndarray:
    """One integer ``0xRRGGBB`` for a colour, or ``[H,W]`` of them for an ``[H,W,3]`` uint8 image."""
    if isinstance(color, np.ndarray):
        red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
    else:
        red, green, blue = color
    return (red << 16) | (green << 8) | blue


class LabelEncoding:
    """Decodes stored label values to trainIds.

    Args:
        name: what the encoding is called in messages and layouts.
        mapping: stored value → trainId. Stored values are 0..255, or :func:`pack_color` integers.
        colors: label files are RGB images instead of single-channel ones.
    """

    def __init__(self, name: str, mapping: Mapping[int, int], colors: bool = False) -> None:
        self.name = name
        self.colors = colors
        self._values = np.array(sorted(mapping), dtype=np.int32)
        self._train_ids = np.array([mapping[value] for value in sorted(mapping)], dtype=np.uint8)
        self._table = np.full(256, _UNKNOWN, dtype=np.uint8)
        if not colors:
            self._table[self._values] = self._train_ids

    def decode(self, stored: np.ndarray, file: object) -> np.ndarray:
        """Return the ``[H,W]`` uint8 trainIds of a stored label image.

        Args:
            stored: ``[H,W]`` uint8, or ``[H,W,3]`` uint8 when the encoding is one of colours.
            file: named in errors.

        Raises:
            ValueError: the image has the wrong kind of pixels, or values outside the encoding.
        """
        channels = 3 if self.colors else 2
        if stored.dtype != np.uint8 or stored.ndim != channels:
            wanted = "an 8-bit RGB image" if self.colors else "one 8-bit value a pixel (grey or palette PNG)"
            raise ValueError(
                f"Label {file}: encoding {self.name!r} expects {wanted}, found shape {stored.shape} of "
                f"{stored.dtype}. Convert the file, or declare another encoding in the layout."
            )
        labels = self._from_colors(stored) if self.colors else self._table[stored]
        unknown = labels == _UNKNOWN
        if unknown.any():
            found = np.unique(stored[unknown], axis=0)[:5].tolist()
            raise ValueError(
                f"Label {file}: {int(unknown.sum())} pixels hold values outside encoding {self.name!r}: "
                f"{found}. The file is damaged or stores its classes in another encoding."
            )
        return labels

    def _from_colors(self, stored: np.ndarray) -> np.ndarray:
        packed = pack_color(stored)
        position = np.searchsorted(self._values, packed).clip(max=len(self._values) - 1)
        return np.where(self._values[position] == packed, self._train_ids[position], np.uint8(_UNKNOWN))


def _color_mapping() -> dict[int, int]:
    """Colour → trainId; where two labels share a colour (pole and polegroup), the evaluated one wins."""
    labels = sorted(CITYSCAPES_LABELS, key=lambda label: label.train_id, reverse=True)
    return {int(pack_color(label.color)): label.train_id for label in labels}


ENCODINGS: Final[Mapping[str, LabelEncoding]] = {
    "ids": LabelEncoding("ids", {label.id: label.train_id for label in CITYSCAPES_LABELS}),
    "trainIds": LabelEncoding("trainIds", {i: i for i in (*range(len(_EVALUATED)), IGNORE_INDEX)}),
    "colors": LabelEncoding("colors", _color_mapping(), colors=True),
}
