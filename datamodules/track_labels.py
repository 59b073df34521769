"""Classes of racing-game tracks: what a surface is follows from its object's and its texture's name.

Track files carry no labels, but every surface names the object it belongs to and its picture: ``TKMN…`` is the
drivable track, ``TKLS…``/``TKRS…`` and ``T0LB…``/``T1RB…`` are the ground and the borders beside it,
``B0LT…``/``B0RT…`` are barriers, and the rest is told apart by pictures called ``grass-e3`` or ``house22facade``.
The rules were checked against every picture of the tracks used by :mod:`datamodules.racetracks`. Needs no NumPy.
"""

from __future__ import annotations

import re
from typing import Final

from datamodules.labels import IGNORE_INDEX, RGB

ROAD, STRUCTURE, VEGETATION, TERRAIN, SKY = range(5)
CLASSES: Final = ("road", "structure", "vegetation", "terrain", "sky")
#: The colours Cityscapes gives to road, building, vegetation, terrain and sky.
PALETTE: Final[tuple[RGB, ...]] = (
    (128, 64, 128), (70, 70, 70), (107, 142, 35), (152, 251, 152), (70, 130, 180),
)  # fmt: skip

_GROUND: Final = r"^(tk[lr]s|t\d+[lr]b)"
_SOFT: Final = r"gras|grs|sand|snow|gravel|dirt"
#: Class, pattern of the object's name, pattern of the picture's; the first rule that fits decides.
_RULES: Final = tuple(
    (label, re.compile(on_object), re.compile(on_texture))
    for label, on_object, on_texture in (
        # People, flags, vehicles and water are none of the classes.
        (IGNORE_INDEX, "", r"uglies|crowd|ppl[abc]_|treec\d|treefc|tree_eva|^(gb|ge|gspa|ch|iy)tree"),
        (
            IGNORE_INDEX,
            "",
            r"truck|treerns|^cars?\d|camp|^rv\d|^bus|alaubm|lamaop|^mase|furgone|^0\d\.|alfablk",
        ),
        (IGNORE_INDEX, "", r"water|sandwtr|treewate|^spec"),
        (ROAD, r"^tkmn", ""),
        (STRUCTURE, r"^b\d+[lr]t", r"^(?!sand)"),
        # One picture of paved and soft ground side by side.
        (IGNORE_INDEX, "", rf"^(r?road|asph?|as(?=gr|sand)|rdgr).*({_SOFT}|tran)"),
        (STRUCTURE, "", r"(tower|bldg\d*|grdra|rail|bars)_?tree|trees3_|rock-wall|stone-wall"),
        (VEGETATION, "", r"tree|bush|forest|arbor01"),
        (TERRAIN, "", rf"{_SOFT}|^ice|rock|cliff"),
        (ROAD, "", r"^(road|asph)|curb|raceline"),
        (STRUCTURE, _GROUND, r"wall|barrier"),
        (ROAD, _GROUND, ""),
        (ROAD, r"^terr", r"parking"),
    )
)


def class_of(name: str, texture: str | None) -> int:
    """The class of a surface, or ``IGNORE_INDEX``.

    Whatever is neither ground, plant, vehicle nor person was built: barriers, houses, stands, signs.

    Args:
        name: of the object, such as ``TKMN120``.
        texture: file name of its picture; a surface without one is ignored.
    """
    if texture is None:
        return IGNORE_INDEX
    name, texture = name.lower(), texture.lower()
    for label, on_object, on_texture in _RULES:
        if on_object.search(name) and on_texture.search(texture):
            return label
    return STRUCTURE
