"""StreetShift: the pixels, and the trees they are kept in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import StreetShift, StreetShiftSemi
from datamodules.streetshift import FIRST_SEED, TRAIN_IDS, render
from datamodules.streetshift_tree import RenderedTree
from tests.tiny import CLASSES, STREETSHIFT, STREETSHIFT_SEMI

ROOT = Path(__file__).parents[1]

# Recorded with the prototype the generator was rewritten from: mean of red, green and blue, deviation of all values,
# pixels of each class, and a sum of trainIds weighted by position modulo 97.
RECORDED = {
    (0, "source", 0.9): (
        [135.192, 136.370, 157.254], 50.615, [2825, 962, 1423, 115, 104, 127, 2559, 0, 77], 1575627,
    ),
    (123, "source", 0.9): (
        [168.313, 138.920, 139.991], 48.857, [2172, 1549, 3215, 48, 50, 336, 771, 8, 43], 936526,
    ),
    (100000, "target", 0.9): (
        [131.129, 108.065, 109.077], 30.091, [2519, 1644, 1692, 54, 56, 147, 1882, 45, 153], 1342085,
    ),
    (200003, "target", 0.9): (
        [122.506, 121.614, 113.457], 37.753, [2963, 1320, 1448, 60, 0, 669, 1472, 40, 220], 1343769,
    ),
    (300042, "target", 0.3): (
        [133.537, 119.983, 126.650], 42.459, [3310, 1273, 1803, 159, 107, 277, 1064, 149, 50], 1039358,
    ),
}  # fmt: skip
#: Percent of source pixels, over 300 images.
SOURCE_SHARES = [30.7, 15.0, 23.4, 1.1, 0.8, 4.7, 22.1, 0.8, 1.5]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Pixels.


@pytest.mark.parametrize("key", RECORDED, ids=str)
def test_recorded_scenes(key: tuple[int, Any, float]) -> None:
    means, deviation, pixels, checksum = RECORDED[key]
    seed, domain, shift = key
    image, label = render(seed, domain, shift)
    assert image.shape == (64, 128, 3)
    assert label.shape == (64, 128)
    assert image.dtype == label.dtype == np.uint8
    # Colours may differ in rounding, and outlines by a pixel from one Pillow to another.
    assert image.reshape(-1, 3).mean(0) == pytest.approx(means, abs=0.5)
    assert image.std() == pytest.approx(deviation, abs=0.5)
    assert np.bincount(label.ravel(), minlength=19)[list(TRAIN_IDS)] == pytest.approx(pixels, abs=20)
    assert (label.ravel() * (np.arange(label.size) % 97)).sum() == pytest.approx(checksum, rel=0.01)


def test_class_shares_of_the_source() -> None:
    labels = np.stack([render(seed, "source")[1] for seed in range(150)])
    assert set(np.unique(labels)) == set(TRAIN_IDS)
    shares = 100 * np.bincount(labels.ravel(), minlength=19)[list(TRAIN_IDS)] / labels.size
    assert shares == pytest.approx(SOURCE_SHARES, rel=0.12, abs=0.2)  # half the images: sampling error


def test_equal_arguments_give_equal_pixels_and_others_do_not() -> None:
    image, label = render(5, "target")
    again = render(5, "target")
    assert np.array_equal(image, again[0])
    assert np.array_equal(label, again[1])
    assert not np.array_equal(render(6, "target")[1], label)
    assert not np.array_equal(render(5, "source")[1], label)
    softer = render(5, "target", shift=0.5)
    assert np.array_equal(softer[1], label)  # the shift changes the look, never the scene
    assert not np.array_equal(softer[0], image)
    assert np.array_equal(render(5, "source", 0.1)[0], render(5, "source", 0.9)[0])


def test_more_shift_is_greyer() -> None:
    def saturation(shift: float) -> float:
        images = np.stack([render(seed, "target", shift)[0] for seed in range(6)]).astype(float)
        return float((images.max(-1) - images.min(-1)).mean())

    assert saturation(0.0) > saturation(0.5) > saturation(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "night"}, "domain must be 'source' or 'target', got 'night'"),
        ({"shift": 1.5}, r"shift must lie in \[0, 1\], got 1.5"),
        ({"height": 63}, "height must be an even number of at least 16 pixels, got 63"),
        ({"width": 8}, "width must be"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(**{"seed": 0, "domain": "source", **arguments})


def test_splits_have_seeds_of_their_own() -> None:
    assert sorted(FIRST_SEED.values()) == [0, 100_000, 200_000, 400_000]
    with pytest.raises(ValueError, match=r"number of val images must lie in 1\.\.100000, got 100001"):
        RenderedTree("target", {"val": 100_001}, 32, 64, 0.9)


# Trees.


def prepared(**settings: Any) -> StreetShift:
    data = StreetShift(**{**STREETSHIFT, **settings})
    data.prepare_data()
    return data


def files(folder: str | Path | None) -> dict[str, bytes]:
    root = Path(str(folder))
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_official_trees(cache: Path) -> None:
    data = prepared()
    assert Path(str(data.source_root)).parent == cache
    source, target = files(data.source_root), files(data.target_root)
    assert {f"{kind}/{n:05d}.png" for kind in ("images", "labels") for n in range(1, 7)} <= set(source)
    assert "leftImg8bit/val/streetshift/streetshift_200002_000000_leftImg8bit.png" in target
    assert "gtFine/test/streetshift/streetshift_400001_000000_gtFine_labelIds.png" in target
    assert len([name for name in target if name.endswith(".png")]) == 2 * (5 + 3 + 2)

    with Image.open(f"{data.source_root}/labels/00004.png") as label:
        assert label.mode == "P"
        palette = np.array(label.getpalette()).reshape(-1, 3)
        ids = np.array(label)
    image, train_ids = render(3, "source", height=32, width=64)
    assert np.array_equal(ids, np.vectorize(lambda train_id: CLASSES[train_id][0])(train_ids))
    for number, color in CLASSES.values():
        assert tuple(palette[number]) == color
    with Image.open(f"{data.source_root}/images/00004.png") as stored:
        assert np.array_equal(np.array(stored), image)


def test_what_is_read_is_what_was_rendered() -> None:
    data = prepared()
    data.setup()
    for name, first in (("val", 200_000), ("test", 400_000)):
        dataset = data.datasets[name]
        for index in range(len(dataset)):
            sample = dataset[index]
            image, label = render(first + index, "target", 0.9, 32, 64)
            assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
            assert np.array_equal(sample["label"].numpy(), label)
    draw = data.datasets["train"][0]
    image, label = render(int(draw["source"]["index"]), "source", 0.9, 32, 64)
    assert np.array_equal(draw["source"]["label"].numpy(), label)
    image, _ = render(100_000 + int(draw["target"]["index"]), "target", 0.9, 32, 64)
    assert np.array_equal(draw["target"]["image"].permute(1, 2, 0).numpy(), image)


def test_a_complete_cache_is_reused(cache: Path) -> None:
    data = prepared()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    prepared()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")} == before
    other = prepared(shift=0.5)
    assert other.source_root == data.source_root  # the shift does not touch the source
    assert other.target_root != data.target_root
    semi = StreetShiftSemi(**STREETSHIFT_SEMI)
    assert semi.root == data.target_root


@pytest.mark.parametrize("damage", ["truncated", "missing", "altered", "no manifest", "broken manifest"])
def test_a_damaged_cache_is_rendered_again(damage: str, cache: Path) -> None:
    data = prepared()
    before = files(data.target_root)
    victim = next(path for path in Path(str(data.target_root)).rglob("*_leftImg8bit.png"))
    manifest = Path(str(data.target_root)) / "manifest.json"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:100])
    elif damage == "missing":
        victim.unlink()
    elif damage == "altered":
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    with pytest.warns(UserWarning, match="is damaged: rendering it again"):
        prepared()
    assert files(data.target_root) == before


def test_an_interrupted_rendering_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(seed: int, *rest: Any) -> Any:
        calls.append(seed)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return render(seed, *rest)

    monkeypatch.setattr("datamodules.streetshift_tree.render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared()
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_two_processes_at_once(cache: Path) -> None:
    code = (
        "import json, sys; from datamodules import StreetShift;"
        "StreetShift(**json.loads(sys.argv[1])).prepare_data()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(STREETSHIFT)]
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum(error.count("Rendering 6 StreetShift source images") for error in errors) == 1, errors
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2
    with_manifest = [path for path in cache.iterdir() if (path / "manifest.json").is_file()]
    assert len(with_manifest) == 2


def test_the_ram_cache_reads_every_file_once() -> None:
    data = prepared()
    data.setup("fit")
    first = list(data.train_dataloader()) + list(data.train_dataloader())
    for path in Path(str(data.source_root)).rglob("*.png"):
        path.unlink()
    again = list(data.train_dataloader())
    assert torch.equal(again[0]["source"]["image"], first[0]["source"]["image"])


def test_facts_and_arguments(tmp_path: Path) -> None:
    data = StreetShift(root=str(tmp_path / "elsewhere"))
    assert Path(str(data.target_root)).parent == tmp_path / "elsewhere"
    assert data.eval_classes == (0, 1, 2, 5, 7, 8, 10, 11, 13)
    assert (data.num_classes, data.ignore_index, len(data.classes), len(data.palette)) == (19, 255, 19, 19)
    assert (data.val_split, data.test_split) == ("val", "test")
    with pytest.raises(ValueError, match="num_labelled must be less than num_target=300, got 300"):
        StreetShiftSemi(num_labelled=300)
    with pytest.raises(ValueError, match="shift must lie"):
        StreetShift(shift=-0.1)


def test_semi_supervised_batches() -> None:
    data = StreetShiftSemi(**STREETSHIFT_SEMI)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch["labelled"]) == {"image", "label", "index"}
    assert set(batch["unlabelled"]) == {"image", "index", "truth"}
    given = data.on_after_batch_transfer(batch, 0)  # what anybody gets
    assert set(given["unlabelled"]) == {"image", "index"}
    assert set(batch["labelled"]["label"].unique().tolist()) <= {*TRAIN_IDS}
    assert len(data.datasets["test"]) == 2


def test_rare_class_sampling_asks_for_images_with_rare_classes() -> None:
    data = prepared(rare_class_temperature=1e-4, rare_class_min_pixels=0)
    labels = np.stack([render(seed, "source", height=32, width=64)[1] for seed in range(6)])
    pixels = np.array([(labels == c).sum() for c in TRAIN_IDS])
    rarest = TRAIN_IDS[int(np.where(pixels > 0, pixels, pixels.max()).argmin())]
    candidates = {index for index in range(6) if (labels[index] == rarest).any()}
    assert 0 < len(candidates) < 6, "the test needs a class that some images lack"
    data.setup("fit")
    assert {data.datasets["train"][draw]["source"]["index"] for draw in range(60)} == candidates
    data.prepare_data()  # the counts kept beside the images do not make the tree look damaged
    assert (Path(str(data.source_root)) / "selfzoo_class_counts.npz").is_file()
