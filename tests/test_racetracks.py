"""RaceTracks: the trees on disk, what is read from them, and where the game is looked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import RaceTracks
from datamodules.layout import LayoutError
from datamodules.track_files import Scene, TrackError, read_scene
from datamodules.track_labels import CLASSES, PALETTE, ROAD
from datamodules.track_tree import CHECKSUMS, SOURCE, TARGET, find_root
from datamodules.track_views import Stretch, draw_view
from tests.tiny_tracks import RACETRACKS, tracks_tree

TRACK = "road/alpine-2"


@pytest.fixture
def game(tmp_path: Path) -> Path:
    return tracks_tree(tmp_path / "game")


def prepared(game: Path, **settings: Any) -> RaceTracks:
    data = RaceTracks(**{**RACETRACKS, "root": str(game), "cache_folder": str(game / "cache"), **settings})
    data.prepare_data()
    return data


# Trees.


def test_splits_share_no_piece_of_road() -> None:
    assert TRACK not in {stretch.track for stretch in SOURCE}
    assert {stretch.track for stretch in TARGET.values()} == {TRACK}
    assert set(CHECKSUMS) == {stretch.track for stretch in (*SOURCE, *TARGET.values())}
    ends = sorted(interval for stretch in TARGET.values() for interval in stretch.pieces)
    assert all(later[0] - earlier[1] >= 400 for earlier, later in pairwise(ends))


def test_what_is_read_is_what_was_rendered(game: Path) -> None:
    data = prepared(game)
    data.setup()
    assert (data.num_classes, data.classes, data.palette, data.eval_classes) == (
        5, CLASSES, PALETTE, (0, 1, 2, 3, 4),
    )  # fmt: skip
    assert (len(data.datasets["val"]), len(data.datasets["test"])) == (2, 2)
    domains = data.datasets["train"].domains
    assert (len(domains["source"]), len(domains["target"])) == (7, 3)
    assert [pair.name for pair in domains["source"].pairs] == [
        f"{stretch.name}_train_{number:05d}" for number, stretch in enumerate(SOURCE)
    ]
    scene = read_scene(game, TRACK)
    for index in range(2):
        image, label = draw_view(scene, TARGET["test"], (3, index), 32, 64)
        sample = data.datasets["test"][index]
        assert sample["name"] == f"alpine-2_test_{index:05d}"
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(sample["label"].numpy(), label)
        assert (label == 255).any()
        with Image.open(data.datasets["test"].pairs[index].label) as stored:
            assert np.array(stored.convert("RGB"))[label == ROAD].tolist()[0] == list(PALETTE[ROAD])
    batch = next(iter(data.train_dataloader()))
    assert set(batch["source"]) == {"image", "label", "index"}
    assert set(batch["target"]) == {"image", "index", "truth"}
    assert set(data.on_after_batch_transfer(batch, 0)["target"]) == {"image", "index"}  # what anybody gets


def test_rendered_trees_do_not_need_the_game(game: Path) -> None:
    data = prepared(game)
    before = files(data)
    for path in (game / "tracks").rglob("*.acc"):
        path.unlink()
    data.prepare_data()
    assert files(data) == before


def test_an_interrupted_rendering_goes_on(game: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files(prepared(game, cache_folder=str(game / "whole")))
    drawn: list[Any] = []

    def interrupted_after(number: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        def draw(scene: Scene, stretch: Stretch, seed: Any, *size: int) -> tuple[np.ndarray, np.ndarray]:
            if len(drawn) == number:
                raise KeyboardInterrupt
            drawn.append((stretch.track, seed))
            return draw_view(scene, stretch, seed, *size)

        return draw

    monkeypatch.setattr("datamodules.track_tree.draw_view", interrupted_after(4))
    with pytest.raises(KeyboardInterrupt):
        prepared(game)
    monkeypatch.setattr("datamodules.track_tree.draw_view", interrupted_after(100))
    data = prepared(game)
    assert len(drawn) == len(set(drawn)) == 14  # none twice
    assert files(data) == whole


def test_a_damaged_tree_is_rendered_again(game: Path) -> None:
    data = prepared(game)
    before = files(data)
    victim = next(Path(str(data.target_root)).rglob("labels/val/*/*.png"))
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.warns(UserWarning, match="is damaged: rendering it again"):
        data.prepare_data()
    assert files(data) == before


def test_rare_class_sampling_counts_five_classes(game: Path) -> None:
    data = prepared(game, rare_class_temperature=0.1, rare_class_min_pixels=0)
    data.setup("fit")
    assert data.datasets["train"][0]["source"]["label"].shape == (32, 64)


def files(data: RaceTracks) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for root in (Path(str(data.source_root)), Path(str(data.target_root)))
        for path in root.rglob("*")
        if path.is_file()
    }


# Bad input.


def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = r"root='{}': there are no race tracks in .*Install the Debian package torcs-data .*dpkg -x"
    with pytest.raises(LayoutError, match=wanted.format("/nowhere")):
        RaceTracks(root="/nowhere", cache_folder=str(tmp_path)).prepare_data()
    monkeypatch.setattr("datamodules.track_tree.DEFAULT_ROOTS", (str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(TrackError, match=r"root=None: there are no race tracks in .*a or .*b\. Install"):
        RaceTracks(cache_folder=str(tmp_path)).prepare_data()
    with pytest.raises(LayoutError, match=r"rendered on first use \(prepare_data\)"):
        RaceTracks(cache_folder=str(tmp_path)).setup()


def test_roots(game: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_root(str(game)) == game
    extracted = tmp_path / "extracted/usr/share/games"
    extracted.mkdir(parents=True)
    (extracted / "torcs").symlink_to(game)
    assert find_root(str(tmp_path / "extracted")) == extracted / "torcs"
    monkeypatch.setattr("datamodules.track_tree.DEFAULT_ROOTS", ("/nowhere", str(game)))
    assert find_root(None) == game


def test_another_version_is_refused_unless_asked_for(game: Path) -> None:
    with pytest.raises(
        TrackError, match=r"alpine-1\.acc is not that of torcs-data 1\.3\.7.*other_version: true"
    ):
        prepared(game, other_version=False)
    (game / "tracks/road/alpine-1/alpine-1.acc").unlink()
    with pytest.raises(TrackError, match=r"no file .*alpine-1\.acc: is this torcs-data of version 1\.3\.7\?"):
        prepared(game, other_version=False)
    with pytest.raises(TrackError, match=r"There is no file .*alpine-1\.acc"):
        prepared(game)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 8}, "height must be at least 16 pixels, got 8"),
        ({"num_val": 0}, "number of val images must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaceTracks(**arguments)
