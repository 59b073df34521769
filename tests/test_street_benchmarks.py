"""SYNTHIA, Dark Zurich and ACDC: label maps value by value, day partners, and what is said of bad trees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CityscapesACDC, CityscapesDarkZurich, GTA5Cityscapes, SYNTHIACityscapes
from datamodules.labels import ENCODINGS
from datamodules.layout import LayoutError
from datamodules.readers import BrokenImageError, read_label
from tests.test_datamodules import epoch
from tests.tiny import CLASSES, GTA5_CITYSCAPES, Kind, cityscapes_tree
from tests.tiny_streets import (
    STREETS,
    SYNTHIA_IDS,
    acdc_tree,
    colors_of_synthia,
    dark_zurich_tree,
    save,
    synthia_tree,
    write_png16,
)

#: What the literature averages over, by name.
NOT_IN_SYNTHIA = {"terrain", "truck", "train"}
NOT_IN_THE_13 = NOT_IN_SYNTHIA | {"wall", "fence", "pole"}


@pytest.fixture
def city(tmp_path: Path) -> Path:
    return cityscapes_tree(tmp_path / "city")


def opened(kind: type, roots: dict[str, Any], stage: str | None = None, **settings: Any) -> Any:
    data = kind(**{**STREETS, "seed": 0, "batch_size": 2, **roots, **settings})
    data.prepare_data()
    data.setup(stage)
    return data


# SYNTHIA.


def synthia(tmp_path: Path, city: Path, stage: str | None = "fit", **settings: Any) -> SYNTHIACityscapes:
    return opened(
        SYNTHIACityscapes, {"source_root": tmp_path / "synthia", "target_root": city}, stage, **settings
    )


def test_synthia_ids_one_by_one(tmp_path: Path) -> None:
    stored = np.zeros((1, 23, 3), np.uint16)
    stored[0, :, 0] = range(23)
    stored[0, :, 1] = 65535 - np.arange(23)  # instances are of no interest
    write_png16(tmp_path / "a.png", stored)
    labels = read_label(tmp_path / "a.png", "synthia")[0].tolist()
    expected = {number: train_id for train_id, number in SYNTHIA_IDS.items()} | {16: 9, 18: 14, 20: 16}
    assert labels == [expected.get(number, 255) for number in range(23)]


@pytest.mark.parametrize(
    ("value", "message"),
    [(23, r"values outside encoding 'synthia': \[23\]"), (259, r"first channel holds values up to 511")],
)
def test_synthia_values_outside_the_map(tmp_path: Path, value: int, message: str) -> None:
    write_png16(tmp_path / "a.png", np.full((2, 3, 3), value, np.uint16))
    with pytest.raises(ValueError, match=message):
        read_label(tmp_path / "a.png", "synthia")


def test_an_8_bit_file_is_no_synthia_label(tmp_path: Path) -> None:
    save(np.zeros((2, 3), np.uint8), tmp_path / "a.png")
    with pytest.raises(
        BrokenImageError, match=r"a\.png cannot be decoded .*no PNG with three 16-bit channels"
    ):
        read_label(tmp_path / "a.png", "synthia")


def test_synthia_tree(tmp_path: Path, city: Path) -> None:
    synthia_tree(tmp_path / "synthia")
    data = synthia(tmp_path, city, crop=None, source_resize=None, flip=0.0)
    source = data.datasets["train"].domains["source"]
    assert source.encoding == "synthia"
    assert len(source) == 4
    seen = set()
    for pair in source.pairs:
        label = read_label(pair.label, "synthia")
        seen |= set(label.unique().tolist())
    assert seen == set(SYNTHIA_IDS)
    batch = epoch(data)[0]
    assert batch["source"]["image"].shape == (2, 3, 36, 64)
    assert "label" not in batch["target"]


def test_converted_synthia_labels_are_preferred_once_complete(tmp_path: Path, city: Path) -> None:
    root = synthia_tree(tmp_path / "synthia")
    labels = sorted((root / "GT/LABELS").glob("*.png"))
    for label in labels[:-1]:
        save(np.full((36, 64), 7, np.uint8), label.with_name(f"{label.stem}_labelTrainIds.png"))
    assert synthia(tmp_path, city).datasets["train"].domains["source"].encoding == "synthia"
    save(np.full((36, 64), 7, np.uint8), labels[-1].with_name(f"{labels[-1].stem}_labelTrainIds.png"))
    source = synthia(tmp_path, city).datasets["train"].domains["source"]
    assert source.encoding == "trainIds"
    assert source.load(0)[1].unique().tolist() == [7]


def test_synthia_colors(tmp_path: Path, city: Path) -> None:
    root = synthia_tree(tmp_path / "synthia")
    for label in (root / "GT/LABELS").iterdir():
        label.unlink()
    colors = colors_of_synthia()
    strip = np.array([*colors.values(), (102, 102, 156)], np.uint8)[None].repeat(2, 0)
    for number in range(4):
        save(strip, root / f"GT/COLOR/{number:07d}.png")
    source = synthia(tmp_path, city).datasets["train"].domains["source"]
    assert source.encoding == "synthia colors"
    # Walls and lane markings share the last colour.
    assert read_label(source.pairs[0].label, source.encoding)[0].tolist() == [*colors, 255]
    with pytest.raises(ValueError, match=r"outside encoding 'synthia colors': \[\[1, 2, 3\]\]"):
        ENCODINGS["synthia colors"].decode(np.array([[[1, 2, 3]]], np.uint8), "x.png")


def test_synthia_counts_16_and_13_classes() -> None:
    data = SYNTHIACityscapes()
    names = [data.classes[c] for c in data.eval_classes]
    assert set(data.classes) - set(names) == NOT_IN_SYNTHIA
    assert (len(names), data.num_classes) == (16, 19)
    assert {data.classes[c] for c in data.eval_subsets["mIoU13"]} == set(data.classes) - NOT_IN_THE_13
    assert (data.source_resize, data.resize) == ((1280, 760), (1024, 512))


def test_half_extracted_synthia(tmp_path: Path, city: Path) -> None:
    root = synthia_tree(tmp_path / "synthia")
    (root / "GT/LABELS/0000002.png").unlink()
    expected = (
        r"(?s)SYNTHIA-RAND-CITYSCAPES \(source_root=.*expected 9400 images \(RGB/\*\.png\), found 4: not fully.*"
        r"1 of 4 images have no label: GT/LABELS/0000002\.png.*synthia-dataset\.net.*"
        r"set source_root to the folder that holds: RGB, GT/LABELS, GT/COLOR"
    )
    with pytest.raises(LayoutError, match=expected):
        synthia(tmp_path, city, allow_partial=False)


def test_a_synthia_label_of_another_size(tmp_path: Path, city: Path) -> None:
    root = synthia_tree(tmp_path / "synthia")
    write_png16(root / "GT/LABELS/0000001.png", np.zeros((35, 64, 3), np.uint16))
    with pytest.raises(BrokenImageError, match=r"0000001\.png is 36 x 64 but its label .* is 35 x 64"):
        synthia(tmp_path, city).datasets["train"].domains["source"].load(1)


# Dark Zurich.


def dark(tmp_path: Path, city: Path, stage: str | None = "fit", **settings: Any) -> CityscapesDarkZurich:
    roots = {"source_root": city, "target_root": tmp_path / "dark"}
    return opened(CityscapesDarkZurich, roots, stage, **settings)


@pytest.mark.parametrize("crop_target", [False, True])
def test_night_and_day_are_cut_and_mirrored_alike(tmp_path: Path, city: Path, crop_target: bool) -> None:
    dark_zurich_tree(tmp_path / "dark")
    data = dark(tmp_path, city, crop_target=crop_target, crop=(24, 24), target_resize=None, batch_size=5)
    torch.manual_seed(0)
    batch = epoch(data)[0]
    size = (24, 24) if crop_target else (36, 64)
    assert set(batch["target"]) == {"image", "day", "index"}
    assert batch["target"]["image"].shape == batch["target"]["day"].shape == (5, 3, *size)
    # The tree's day images are the night images plus 100: only true partners, cut alike, differ by that.
    assert torch.equal(batch["target"]["day"], batch["target"]["image"] + 100)
    assert batch["target"]["index"].unique().numel() == 5
    after = data.on_after_batch_transfer(batch, 0)["target"]
    assert after["day"].dtype == torch.float32
    pixels = {key: (after[key] * 255).round().byte() for key in ("image", "day")}
    assert torch.equal(pixels["day"], pixels["image"] + 100)
    mirrored = [
        torch.equal(a, b.flip(-1)) for a, b in zip(pixels["image"], batch["target"]["image"], strict=True)
    ]
    assert 0 < sum(mirrored) < 5


def test_night_without_day(tmp_path: Path, city: Path) -> None:
    root = dark_zurich_tree(tmp_path / "dark")
    for file in root.glob("corresp/train/night/*/*.csv"):
        file.unlink()
    assert set(epoch(dark(tmp_path, city, day=False))[0]["target"]) == {"image", "index"}
    with pytest.raises(
        LayoutError, match=r"train: 5 of 5 images have no known day partner: GOPR0350_frame_0"
    ):
        dark(tmp_path, city)


def test_missing_and_contradicting_partners(tmp_path: Path, city: Path) -> None:
    root = dark_zurich_tree(tmp_path / "dark")
    (root / "rgb_anon/train/day/GOPR9999/GOPR9999_frame_000003_rgb_anon.png").unlink()
    expected = (
        r"train: 1 of 5 images lack their day partner: rgb_anon/train/day/GOPR9999/GOPR9999_frame_000003"
    )
    with pytest.raises(LayoutError, match=expected):
        dark(tmp_path, city)
    lists = root / "corresp/train/night/GOPR0350/GOPR0350.csv"
    lists.write_text(lists.read_text() + "train/night/GOPR0350/GOPR0350_frame_000000,train/day/x/y\n")
    with pytest.raises(ValueError, match=r"GOPR0350\.csv, line 4: .*_000000 already has another partner"):
        dark(tmp_path, city)
    lists.write_text("one column\n")
    with pytest.raises(ValueError, match=r"line 1: expected 'image,partner', found 'one column'"):
        dark(tmp_path, city)


def test_a_day_image_of_another_size(tmp_path: Path, city: Path) -> None:
    root = dark_zurich_tree(tmp_path / "dark")
    for day in root.glob("rgb_anon/train/day/*/*"):
        Image.new("RGB", (64, 40)).save(day)
    with pytest.raises(BrokenImageError, match=r"differ in size: \(36, 64\) and \(40, 64\)"):
        epoch(dark(tmp_path, city, target_resize=None))


@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds", "color"])
def test_dark_zurich_validation(tmp_path: Path, city: Path, kind: Kind) -> None:
    dark_zurich_tree(tmp_path / "dark", kind=kind)
    data = dark(tmp_path, city, "validate")
    batches = list(data.val_dataloader())
    assert [batch["label"].shape for batch in batches] == [(1, 36, 64)] * 3
    assert set(torch.cat([batch["label"].flatten() for batch in batches]).tolist()) == set(CLASSES)


@pytest.mark.parametrize("kind", [CityscapesDarkZurich, CityscapesACDC])
def test_prediction_reads_test_images_that_have_no_labels(tmp_path: Path, city: Path, kind: type) -> None:
    tree = {CityscapesDarkZurich: dark_zurich_tree, CityscapesACDC: acdc_tree}[kind]
    data = opened(kind, {"target_root": tree(tmp_path / "target")}, "predict")
    batches = list(data.predict_dataloader())
    assert len(batches) == {CityscapesDarkZurich: 2, CityscapesACDC: 8}[kind]
    assert set(batches[0]) == {"image", "index", "name", "size"}
    assert data.submission == "trainIds"
    assert set(opened(kind, {"target_root": tmp_path / "target"}, "test").datasets) == {"test"}


def test_half_extracted_dark_zurich(tmp_path: Path, city: Path) -> None:
    dark_zurich_tree(tmp_path / "dark", {"train": 2, "val": 1})
    expected = r"(?s)train: expected 2416 images \(rgb_anon/train/night.*val: expected 50 images.*corresp/\)"
    with pytest.raises(LayoutError, match=expected):
        opened(
            CityscapesDarkZurich,
            {"source_root": city, "target_root": tmp_path / "dark"},
            "fit",
            allow_partial=False,
        )
    with pytest.raises(LayoutError, match=r"test: no image matches rgb_anon/test/night"):
        dark(tmp_path, city, "predict")


def test_recipes_sizes_are_the_defaults() -> None:
    data = CityscapesDarkZurich()
    assert (data.source_resize, data.resize, data.crop_target, data.day) == (
        (1280, 640),
        (1280, 720),
        False,
        True,
    )
    assert data.crop is not None
    assert data.crop.size == (640, 640)
    assert data.hparams["crop_target"] is False
    assert data.hparams["batch_size"] == 2  # taken by the base class


# ACDC.


def acdc(tmp_path: Path, city: Path, stage: str | None = "fit", **settings: Any) -> CityscapesACDC:
    return opened(CityscapesACDC, {"source_root": city, "target_root": tmp_path / "acdc"}, stage, **settings)


def test_acdc_conditions(tmp_path: Path, city: Path) -> None:
    acdc_tree(tmp_path / "acdc", kind="labelIds")
    data = acdc(tmp_path, city)
    assert len(data.datasets["train"].domains["target"]) == 8
    assert len(data.datasets["val"]) == 8
    assert "day" not in epoch(data)[0]["target"]
    night = acdc(tmp_path, city, conditions=["night"])
    assert {pair.image.parts[-4] for pair in night.datasets["val"].pairs} == {"night"}
    assert len(night.datasets["train"].domains["target"]) == 2
    for conditions in (["hail"], []):
        with pytest.raises(ValueError, match=r"conditions must name some of fog, night, rain, snow, got"):
            acdc(tmp_path, city, conditions=conditions)


def test_acdc_references(tmp_path: Path, city: Path) -> None:
    root = acdc_tree(tmp_path / "acdc")
    batch = epoch(acdc(tmp_path, city, day=True, target_resize=None, batch_size=8))[0]
    assert torch.equal(batch["target"]["day"], batch["target"]["image"] + 100)
    next(root.glob("rgb_anon/snow/train_ref/*/*")).unlink()
    with pytest.raises(LayoutError, match=r"1 of 8 images lack their day partner: rgb_anon/snow/train_ref/"):
        acdc(tmp_path, city, day=True)
    assert len(acdc(tmp_path, city).datasets["val"]) == 8


def test_acdc_without_one_condition(tmp_path: Path, city: Path) -> None:
    acdc_tree(tmp_path / "acdc", ("fog", "night", "rain"))
    with pytest.raises(LayoutError, match=r"train: no image matches rgb_anon/snow/train/\*/\*_rgb_anon\.png"):
        acdc(tmp_path, city)
    assert len(acdc(tmp_path, city, conditions=("fog", "rain")).datasets["val"]) == 4
    expected = r"expected 200 images \(rgb_anon/fog/val.*, rgb_anon/rain/val.*\), found 4"
    with pytest.raises(LayoutError, match=expected):
        acdc(tmp_path, city, "validate", conditions=("fog", "rain"), allow_partial=False)
    counts = [split.counts[0] for split in CityscapesACDC.layout["target_root"].splits.values()]
    assert counts == [1600, 406, 2000]


# All of them.


@pytest.mark.parametrize("kind", [SYNTHIACityscapes, CityscapesDarkZurich, CityscapesACDC])
def test_missing_roots_are_one_error(tmp_path: Path, kind: type) -> None:
    with pytest.raises(LayoutError, match=r"(?s)source_root is not set.*there is no folder .*nowhere"):
        kind(target_root=str(tmp_path / "nowhere")).setup("fit")


def test_ranks_share_the_draws_of_night_and_day(tmp_path: Path, city: Path) -> None:
    dark_zurich_tree(tmp_path / "dark", {"train": 6, "val": 1})
    shares = []
    for rank in (0, 1):
        data = dark(tmp_path, city, batch_size=1)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shares.append([int(batch["target"]["index"]) for batch in data.train_dataloader()])
    assert sorted(shares[0] + shares[1]) == list(range(6))


def test_test_images_for_the_server_of_cityscapes(roots: dict[str, Any]) -> None:
    data = GTA5Cityscapes(**{**GTA5_CITYSCAPES, **roots, "predict_split": "test"})
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert len(batches) == 2
    assert all("label" not in batch and batch["name"][0].startswith("testcity") for batch in batches)
    with pytest.raises(ValueError, match=r"predict_split must be one of train, val, test, got 'testing'"):
        GTA5Cityscapes(**{**GTA5_CITYSCAPES, **roots, "predict_split": "testing"})
