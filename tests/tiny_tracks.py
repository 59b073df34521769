"""A miniature of the racing game's data folder: the tracks RaceTracks names, each a straight road in one field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRACKS = (
    "alpine-1", "alpine-2", "corkscrew", "e-track-2", "e-track-3", "e-track-6", "g-track-2", "wheel-1",
)  # fmt: skip
#: Arguments of RaceTracks that render in seconds; ``root`` and ``cache_folder`` are missing.
RACETRACKS: dict[str, Any] = {
    "num_source": 7,
    "num_target": 3,
    "num_val": 2,
    "num_test": 2,
    "height": 32,
    "width": 64,
    "batch_size": 2,
    "eval_batch_size": 2,
    "other_version": True,
}
#: Numbers of the pieces of road and their length in metres; the road runs along x and is 10 m wide.
PIECES = range(0, 9600, 400)
LENGTH = 15
SETTINGS = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE params SYSTEM "params.dtd" [
<!ENTITY default-surfaces SYSTEM "../../../data/tracks/surfaces.xml">
]>
<params name="miniature" type="param" mode="mw">
  <section name="Surfaces">&default-surfaces;</section>
  <section name="Graphic">
    <attstr name="3d description" val="{track}.acc"/>
    <attstr name="background image" val="background.png"/>
    <attnum name="background type" val="4"/>
  </section>
</params>
"""

Corner = tuple[float, float, float]


def surface(name: str, texture: str | None, corners: list[Corner], strip: bool = False) -> str:
    """An object of one surface, its texture repeating every 10 m; a second picture layer is to be ignored."""
    layer = f'texture "{texture}" base\ntexture "shadow2.rgb" tiled\n' if texture else 'texture "(null)"\n'
    points = "".join(f"{x} {y} {z} 0 1 0\n" for x, y, z in corners)
    refs = "".join(f"{i} {x / 10} {(y + z) / 10} 0 0\n" for i, (x, y, z) in enumerate(corners))
    flags = "0x14" if strip else "0x30"
    return (
        f'OBJECT poly\nname "{name}"\n{layer}numvert {len(corners)}\n{points}numsurf 1\nSURF {flags}\nmat 0\n'
        f"refs {len(corners)}\n{refs}kids 0\n"
    )


def ac3d(surfaces: list[str]) -> str:
    """A complete description of these objects."""
    material = 'MATERIAL "" rgb 1 1 1 amb 1 1 1 emis 0 0 0 spec 0 0 0 shi 50 trans 0'
    return f"AC3Db\n{material}\nOBJECT world\nkids {len(surfaces)}\n" + "".join(surfaces)


def description() -> str:
    """A field, a road in it (strips and polygons in turn), a barrier on its left and a row of trees."""
    end = LENGTH * len(PIECES)
    objects = [
        surface(
            "TERR1",
            "grass.png",
            [(-500, -0.1, -500), (-500, -0.1, 500), (end + 500, -0.1, 500), (end + 500, -0.1, -500)],
        )
    ]
    for number, piece in enumerate(PIECES):
        x0, x1 = number * LENGTH, (number + 1) * LENGTH
        around = [(x0, 0, -5), (x0, 0, 5), (x1, 0, 5), (x1, 0, -5)]
        across = [(x0, 0, -5), (x0, 0, 5), (x1, 0, -5), (x1, 0, 5)]
        objects.append(
            surface(f"TKMN{piece}", "asphalt.rgb", across if number % 2 else around, number % 2 == 1)
        )
    objects.append(surface("B1LT0", "barrier.png", [(0, 0, -7), (end, 0, -7), (end, 1, -7), (0, 1, -7)]))
    objects.append(surface("TREE3N", "tree_n.png", [(0, 0, 12), (end, 0, 12), (end, 6, 12), (0, 6, 12)]))
    return ac3d(objects)


def tracks_tree(root: Path) -> Path:
    """Write the folder and return it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (32, 32, 4)).astype(np.uint8)
    noise[..., 3] = 255
    leaves = noise + np.array([0, 90, 0, 0], np.uint8)
    leaves[:, ::2, 3] = 0
    backdrop = np.full((64, 128, 3), 230, np.uint8)
    backdrop[31:] = 120
    (root / "data/textures").mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise[..., :3] + 60).save(root / "data/textures/asphalt.rgb", format="SGI")
    for track in TRACKS:
        folder = root / "tracks/road" / track
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{track}.xml").write_text(SETTINGS.format(track=track))
        (folder / f"{track}.acc").write_text(description())
        Image.fromarray(noise + np.array([0, 120, 0, 0], np.uint8)).save(folder / "grass.png")
        Image.fromarray(noise + np.array([180, 0, 0, 0], np.uint8)).save(folder / "barrier.png")
        Image.fromarray(leaves).save(folder / "tree_n.png")
        Image.fromarray(backdrop).save(folder / "background.png")
    return root
