"""The game's files and the views drawn from them, against a ray caster."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

import datamodules.track_render as track_render
from datamodules.track_files import Scene, TrackError, read_scene, read_surfaces
from datamodules.track_labels import ROAD, SKY, STRUCTURE, TERRAIN, VEGETATION, class_of
from datamodules.track_render import Camera, render
from datamodules.track_tree import CHECKSUMS, SOURCE, TARGET, find_root
from datamodules.track_views import Stretch, draw_view
from tests.tiny_tracks import LENGTH, PIECES, ac3d, surface, tracks_tree

TRACK = "road/alpine-2"
#: Pixels of the five classes and without one, of some views of torcs-data 1.3.7.
REAL = {
    (SOURCE[3], (0, 3)): [3176, 410, 215, 1144, 2839, 408],
    (TARGET["val"], (2, 0)): [2657, 344, 1092, 3319, 581, 199],
    (TARGET["test"], (3, 0)): [2770, 321, 944, 2757, 1075, 325],
}
SQUARE = [(0.0, 0.0, 0.0), (0.0, 0.0, 4.0), (2.0, 0.0, 4.0), (2.0, 0.0, 0.0)]


@pytest.fixture
def game(tmp_path: Path) -> Path:
    return tracks_tree(tmp_path / "game")


# Files.


def test_polygons_and_strips_cover_the_same_square(tmp_path: Path) -> None:
    zigzag = [SQUARE[0], SQUARE[1], SQUARE[3], SQUARE[2]]
    twice = [SQUARE[0], *zigzag]  # strips are joined by repeated points: no triangle of its own
    file = tmp_path / "squares.acc"
    file.write_text(ac3d([surface("A", "a.png", SQUARE), surface("B", None, twice, strip=True)]))
    polygon, strip = read_surfaces(file)
    assert (polygon.name, polygon.texture, strip.name, strip.texture) == ("A", "a.png", "B", None)
    for found in (polygon, strip):
        assert found.points.shape == (2, 3, 3)
        edges = np.cross(found.points[:, 1] - found.points[:, 0], found.points[:, 2] - found.points[:, 0])
        assert np.linalg.norm(edges, axis=1).sum() / 2 == pytest.approx(8)
        # The first pair of coordinates belongs to the base picture: here x / 10 and z / 10.
        assert found.coordinates == pytest.approx(found.points[..., [0, 2]] / 10)


def test_a_scene(game: Path) -> None:
    scene = read_scene(game, TRACK)
    assert len(scene.points) == len(scene.coordinates) == len(scene.texture) == 2 * (len(PIECES) + 3)
    road = ~np.isnan(scene.piece)
    assert sorted(set(scene.piece[road])) == list(PIECES)
    assert set(scene.labels[road]) == {ROAD}
    assert sorted(scene.labels[~road]) == sorted(2 * [STRUCTURE, VEGETATION, TERRAIN])
    assert scene.textures.shape == (5, 64, 64, 4)  # four pictures, one from the shared folder, and plain grey
    assert (scene.textures[..., 3] == 0).any()
    assert scene.backdrop.shape == (64, 128, 3)


@pytest.mark.parametrize(
    ("name", "texture", "label"),
    [
        ("TKMN120", "grass-e3.png", ROAD),
        ("TKLS12", "grass-e3.png", TERRAIN),
        ("TKRS12", "gconcrete.rgb", ROAD),
        ("T0RB961", "curb-red-white-e2.png", ROAD),
        ("T0LB961", "megafuel-wall.png", STRUCTURE),
        ("T1LB961", "road-snow.png", 255),
        ("T1LB961", "asgrassr_n.rgb", 255),
        ("B0LT31", "armco_snow_arbor.png", STRUCTURE),
        ("TERR11", "snow_2.png", TERRAIN),
        ("TERR11", "rockwall2.png", TERRAIN),
        ("TERR11", "house26parking.png", ROAD),
        ("OBJ12", "ice.png", TERRAIN),
        ("OBJ12", "tree1_n.png", VEGETATION),
        ("FOREST", "arbor01.rgb", VEGETATION),
        ("OBJECT12", "BLDG05_tree.png", STRUCTURE),
        ("OBJECT12", "TOWER_tree_n.png", STRUCTURE),
        ("S0", "house22facade.png", STRUCTURE),
        ("CROWD", "treeUGLIES01_n.png", 255),
        ("OBJ_s_1", "truck_arbor_usr_n.rgb", 255),
        ("PLANE", "treewate.rgb", 255),
        ("OBJECT12", None, 255),
    ],
)
def test_classes_follow_from_names(name: str, texture: str | None, label: int) -> None:
    assert class_of(name, texture) == label


# Views.


def cast(scene: Scene, camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours and labels of every pixel by Möller and Trumbore's test of its ray with every triangle.

    Zero and 99 where nothing is hit.
    """
    right, up, forward = camera.axes()
    pixels, labels = np.zeros((height, width, 3)), np.full((height, width), 99)
    a = scene.points[:, 0]
    first, second = scene.points[:, 1] - a, scene.points[:, 2] - a
    for row, column in np.ndindex(height, width):
        x = (column + 0.5 - width / 2) / (0.75 * width)
        y = -(row + 0.5 - height / 2) / (0.75 * width)
        ray = x * right + y * up + forward
        p = np.cross(ray, second)
        determinant = (first * p).sum(1)
        to_camera = camera.position - a
        u = (to_camera * p).sum(1) / determinant
        q = np.cross(to_camera, first)
        v = (q @ ray) / determinant
        depth = (second * q).sum(1) / determinant
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0.1)
        for triangle in sorted(np.flatnonzero(hit), key=lambda index: depth[index]):
            share = np.array([1 - u[triangle] - v[triangle], u[triangle], v[triangle]])
            s, t = (share @ scene.coordinates[triangle]) % 1
            texel = scene.textures[scene.texture[triangle], int((1 - t) * 64) % 64, int(s * 64)]
            if texel[3] > 120:
                pixels[row, column], labels[row, column] = texel[:3], scene.labels[triangle]
                break
    return pixels, labels


def random_scene(seed: int) -> Scene:
    """Forty triangles around the origin, many of them reaching behind a camera there, some see-through."""
    rng = np.random.default_rng(seed)
    textures = rng.integers(0, 256, (3, 64, 64, 4)).astype(np.uint8)
    textures[..., 3] = np.where(rng.random((3, 8, 8)) < 0.3, 0, 255).repeat(8, 1).repeat(8, 2)
    centres = rng.normal(0, 6, (40, 1, 3))
    return Scene(
        points=centres + rng.normal(0, 4, (40, 3, 3)),
        coordinates=rng.normal(0, 0.5, (40, 3, 2)),
        texture=rng.integers(3, size=40),
        labels=rng.integers(5, size=40).astype(np.uint8),
        piece=np.full(40, np.nan),
        textures=textures,
        backdrop=np.zeros((8, 16, 3), np.uint8),
    )


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_those_of_a_ray_caster(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = random_scene(seed)
    camera = Camera(np.array([0.3, 0.2, -0.1]), np.array([4.0, 1.0, 3.0]))
    assert (((scene.points - camera.position) @ camera.axes()[2]) < 0).any(1).sum() > 10
    pixels, labels = cast(scene, camera, 24, 48)
    image, found = render(scene, camera, 12, 24)
    nothing = labels == 99
    assert 0 < nothing.mean() < 0.9
    hit = ~nothing[1::2, 1::2]
    assert np.array_equal(found[hit], labels[1::2, 1::2][hit])
    assert set(np.unique(found[~hit])) <= {SKY, 255}
    average = pixels.reshape(12, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(image - average).max() <= 1
    monkeypatch.setattr(track_render, "_FRAGMENTS", 500)  # in portions: the same picture
    in_portions = render(scene, camera, 12, 24)
    assert np.array_equal(in_portions[0], image)
    assert np.array_equal(in_portions[1], found)


def test_the_backdrop_is_a_cylinder_about_the_camera(game: Path) -> None:
    scene = read_scene(game, TRACK)
    columns, rows = np.meshgrid(np.arange(128), np.arange(64))
    backdrop = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    above = np.array([0.0, 1000.0, 0.0])  # nothing but the backdrop is in sight
    for direction, middle in (((1, 0, 0), 0), ((0, 0, 1), 32), ((-1, 0, 0), 64), ((0, 0, -1), 96)):
        looking = Camera(above, above + direction)
        pixels, labels = track_render._draw_backdrop(backdrop, looking, 32, 64)
        assert abs((int(pixels[16, 32, 0]) - middle + 64) % 128 - 64) <= 1
        assert (int(pixels[16, 34, 0]) - int(pixels[16, 30, 0])) % 128 in (0, 1, 2)  # rightwards
        elevation = (
            (15.5 - np.arange(32)) / 48 / np.hypot(1, 0.5 / 48)
        )  # this column's centre is half a pixel off
        assert np.array_equal(pixels[:, 32, 1], np.floor((1 - elevation) / 2 * 64))
        assert np.array_equal(labels[:, 32] == SKY, (1 - elevation) / 2 < 0.45)
        assert set(np.unique(labels)) == {SKY, 255}
    image, _ = render(scene, Camera(above, above + np.array([1, 0, 0])), 32, 64)
    assert set(np.unique(image[0])) == {230}


def test_views_stand_on_their_stretch_and_look_along_the_road(
    game: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = read_scene(game, TRACK)
    cameras = []

    def spy(scene: Scene, camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        cameras.append(camera)
        return render(scene, camera, height, width)

    monkeypatch.setattr("datamodules.track_views.render", spy)
    for number in range(20):
        image, labels = draw_view(scene, Stretch(TRACK, ((800, 1600),)), (0, number), 32, 64)
        assert image.shape == (32, 64, 3)
        assert 0.12 <= (labels == ROAD).mean() <= 0.75
        assert (labels == SKY).mean() >= 0.03
        assert (labels == 255).mean() <= 0.25
        accepted = cameras[-1]
        assert 2 * LENGTH - 3 < accepted.position[0] < 4 * LENGTH + 3
        assert 1.3 <= accepted.position[1] <= 1.9
    again = draw_view(scene, Stretch(TRACK, ((800, 1600),)), (0, 19), 32, 64)
    assert np.array_equal(again[0], image)
    assert np.array_equal(again[1], labels)


def test_a_stretch_without_road_is_an_error(game: Path) -> None:
    with pytest.raises(
        TrackError, match=r"alpine-2: no view from pieces \(\(801, 900\),\) shows road and sky"
    ):
        draw_view(read_scene(game, TRACK), Stretch(TRACK, ((801, 900),)), (0,), 32, 64)


# Bad input.


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("alpine-2.acc", "AC3D", "AC2D", r"alpine-2\.acc is no AC3D file"),
        ("alpine-2.acc", "numvert 4", "numvert four", r"alpine-2\.acc, line \d+: invalid literal.*four"),
        ("alpine-2.acc", "refs 4\n0", "refs 4\n7", r"line \d+: a surface refers to point 7 of 4"),
        ("alpine-2.acc", "refs 4\n0", "refs 4\n-1", r"line \d+: a surface refers to point -1"),
        ("alpine-2.acc", "TKMN", "TKLS", r"holds no drivable track"),
        (
            "alpine-2.acc",
            "grass.png",
            "lawn.png",
            r"There is no picture lawn\.png in .*alpine-2 or .*textures",
        ),
        ("alpine-2.xml", "</section>", "", r"alpine-2\.xml is malformed \(mismatched tag: line \d+"),
        ("alpine-2.xml", '"4"', '"2"', r"background type 2 is not drawn"),
        ("alpine-2.xml", "background.png", "sky.png", r"There is no file .*sky\.png"),
    ],
)
def test_malformed_files(game: Path, file: str, old: str, new: str, message: str) -> None:
    path = game / "tracks" / TRACK / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(TrackError, match=message):
        read_scene(game, TRACK)


@pytest.mark.parametrize(
    ("file", "keep", "message"),
    [
        ("tracks/road/alpine-2/alpine-2.acc", 0.5, r"alpine-2\.acc, line \d+: "),
        ("tracks/road/alpine-2/alpine-2.xml", 0.8, r"alpine-2\.xml is malformed"),
        ("tracks/road/alpine-2/grass.png", 0.5, r"grass\.png cannot be decoded"),
        ("tracks/road/alpine-2/background.png", 0.5, r"background\.png cannot be decoded"),
        ("data/textures/asphalt.rgb", 0.5, r"asphalt\.rgb cannot be decoded"),
    ],
)
def test_truncated_files(game: Path, file: str, keep: float, message: str) -> None:
    cut(game / file, keep)
    with pytest.raises(TrackError, match=message + r".*[Ee]xtract torcs-data again"):
        read_scene(game, TRACK)


# The package itself, where it is.


def test_the_real_tracks() -> None:
    try:
        root = find_root(os.environ.get("TORCS_DATA"))
    except TrackError as error:
        pytest.skip(str(error))
    for track, checksum in CHECKSUMS.items():
        assert zlib.crc32((root / "tracks" / track / f"{Path(track).name}.acc").read_bytes()) == checksum
    for (stretch, seed), pixels in REAL.items():
        _, label = draw_view(read_scene(root, stretch.track), stretch, seed, 64, 128)
        # Rounding may move an outline by a pixel.
        assert np.bincount(label.ravel(), minlength=256)[[0, 1, 2, 3, 4, 255]] == pytest.approx(
            pixels, abs=10
        )
