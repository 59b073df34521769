"""Ids, names and colours of SYNTHIA and PASCAL VOC, as their authors publish them. No imports but NumPy's."""

from __future__ import annotations

from typing import Final

import numpy as np

RGB = tuple[int, int, int]

#: SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): id → (name, Cityscapes trainId, colour). Ids 9, 14 and 16 of
#: the trainIds are named, but do not occur in the data.
SYNTHIA_CLASSES: Final[dict[int, tuple[str, int, RGB]]] = {
    0: ("void", 255, (0, 0, 0)),
    1: ("sky", 10, (70, 130, 180)),
    2: ("building", 2, (70, 70, 70)),
    3: ("road", 0, (128, 64, 128)),
    4: ("sidewalk", 1, (244, 35, 232)),
    5: ("fence", 4, (64, 64, 128)),
    6: ("vegetation", 8, (107, 142, 35)),
    7: ("pole", 5, (153, 153, 153)),
    8: ("car", 13, (0, 0, 142)),
    9: ("traffic sign", 7, (220, 220, 0)),
    10: ("pedestrian", 11, (220, 20, 60)),
    11: ("bicycle", 18, (119, 11, 32)),
    12: ("motorcycle", 17, (0, 0, 230)),
    13: ("parking slot", 255, (250, 170, 160)),
    14: ("road work", 255, (128, 64, 64)),
    15: ("traffic light", 6, (250, 170, 30)),
    16: ("terrain", 9, (152, 251, 152)),
    17: ("rider", 12, (255, 0, 0)),
    18: ("truck", 14, (0, 0, 70)),
    19: ("bus", 15, (0, 60, 100)),
    20: ("train", 16, (0, 80, 100)),
    21: ("wall", 3, (102, 102, 156)),
    22: ("lane marking", 255, (102, 102, 156)),
}
#: trainIds that the literature averages over: all that occur, and those without wall, fence and pole.
SYNTHIA_16: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
SYNTHIA_13: Final = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)

#: PASCAL VOC 2012 (Everingham et al., IJCV 2015); the index is what label files store.
VOC_CLASSES: Final = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc_color(index: int) -> RGB:
    """Colour of an index in VOC's map: its bits, three at a time, fill the channels from the highest bit down."""
    bits = np.arange(8)
    red, green, blue = (
        int((((index >> (3 * bits + channel)) & 1) << (7 - bits)).sum()) for channel in range(3)
    )
    return red, green, blue


VOC_PALETTE: Final = tuple(voc_color(index) for index in range(len(VOC_CLASSES)))
#: Borders and difficult objects, stored as 255.
VOC_BORDER: Final = voc_color(255)
