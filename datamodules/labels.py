"""Cityscapes class names, colours and ids, and how label files are decoded to trainIds.

Label files store classes as the ids of their benchmark, as the trainIds that networks predict, or as colours
(:data:`ENCODINGS`). Decoding is always explicit about which one and refuses values it does not know.

The ids, names and colours are those of the Cityscapes label policy (Cordts et al., CVPR 2016); GTA5 (Richter
et al., ECCV 2016) uses the same ids and colours. Needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from datamodules.label_tables import RGB, SYNTHIA_CLASSES, VOC_BORDER, VOC_CLASSES, VOC_PALETTE

IGNORE_INDEX: Final = 255
_UNKNOWN: Final = 254  # free in a uint8 trainId map: neither a class nor the ignore index


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
        painted: decodes the RGB images among files that otherwise store indices.
    """

    def __init__(
        self,
        name: str,
        mapping: Mapping[int, int],
        colors: bool = False,
        painted: LabelEncoding | None = None,
    ) -> None:
        self.name = name
        self.colors = colors
        self.painted = painted
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
        if self.painted is not None and stored.ndim == 3:
            return self.painted.decode(stored, file)
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

    def encode(self, train_ids: np.ndarray) -> np.ndarray:
        """Return the stored form of ``[H,W]`` uint8 trainIds: ``[H,W]`` uint8 or, of colours, ``[H,W,3]``.

        Where several stored values mean one trainId, the smallest is written: id 0 for what is not evaluated.

        Raises:
            ValueError: the encoding has no value for some trainId.
        """
        # Reversed, so that the smallest value is assigned last.
        table = np.full(256, -1, dtype=np.int32)
        table[self._train_ids[::-1]] = self._values[::-1]
        stored = table[train_ids]
        if (stored < 0).any():
            missing = np.unique(train_ids[stored < 0])[:5].tolist()
            raise ValueError(f"Encoding {self.name!r} has no value for trainIds {missing}.")
        if not self.colors:
            return stored.astype(np.uint8)
        return np.stack([stored >> 16, stored >> 8 & 255, stored & 255], -1).astype(np.uint8)

    def _from_colors(self, stored: np.ndarray) -> np.ndarray:
        packed = pack_color(stored)
        position = np.searchsorted(self._values, packed).clip(max=len(self._values) - 1)
        return np.where(self._values[position] == packed, self._train_ids[position], np.uint8(_UNKNOWN))


def _color_mapping() -> dict[int, int]:
    """Colour → trainId; where two labels share a colour (pole and polegroup), the evaluated one wins."""
    labels = sorted(CITYSCAPES_LABELS, key=lambda label: label.train_id, reverse=True)
    return {int(pack_color(label.color)): label.train_id for label in labels}


def _synthia_colors() -> dict[int, int]:
    """Colour → trainId. Walls and lane markings are painted alike, so neither can be told from that colour."""
    mapping: dict[int, int] = {}
    for _, train_id, color in SYNTHIA_CLASSES.values():
        packed = int(pack_color(color))
        mapping[packed] = IGNORE_INDEX if packed in mapping else train_id
    return mapping


_VOC_COLORS: Final = LabelEncoding(
    "voc colors",
    {int(pack_color(VOC_BORDER)): IGNORE_INDEX, **{int(pack_color(c)): i for i, c in enumerate(VOC_PALETTE)}},
    colors=True,
)

ENCODINGS: Final[Mapping[str, LabelEncoding]] = {
    "ids": LabelEncoding("ids", {label.id: label.train_id for label in CITYSCAPES_LABELS}),
    "trainIds": LabelEncoding("trainIds", {i: i for i in (*range(len(_EVALUATED)), IGNORE_INDEX)}),
    "colors": LabelEncoding("colors", _color_mapping(), colors=True),
    # The ids of SYNTHIA's 16-bit files, see datamodules.label_files.
    "synthia": LabelEncoding("synthia", {i: entry[1] for i, entry in SYNTHIA_CLASSES.items()}),
    "synthia colors": LabelEncoding("synthia colors", _synthia_colors(), colors=True),
    "voc": LabelEncoding(
        "voc", {i: i for i in (*range(len(VOC_CLASSES)), IGNORE_INDEX)}, painted=_VOC_COLORS
    ),
}
