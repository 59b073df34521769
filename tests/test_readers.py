"""Official trees, label encodings, decoding, resizing and cropping; and what is said about bad files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, ENCODINGS, TRAIN_ID_TO_ID
from datamodules.layout import (
    CITYSCAPES,
    GTA5,
    Layout,
    LayoutError,
    LayoutReport,
    Split,
    inspect_root,
    require,
)
from datamodules.readers import (
    BrokenImageError,
    RandomCrop,
    SegmentationDataset,
    drop_broken,
    read_image,
    scaled_size,
)
from tests.tiny import CLASSES, Kind, cityscapes_tree, expected_pairs, gta5_tree


def inspected(
    layout: Layout, root: Path | None, split: str = "train", allow_partial: bool = True
) -> LayoutReport:
    return inspect_root(layout, root, {split: True}, "target_root", allow_partial)


def opened(layout: Layout, root: Path, split: str = "train", **options: object) -> SegmentationDataset:
    report = inspected(layout, root, split)
    require([report])
    return SegmentationDataset(report.splits[split].pairs, report.splits[split].encoding, **options)  # type: ignore[arg-type]


# Labels.


def test_class_tables() -> None:
    assert [(TRAIN_ID_TO_ID[c], CITYSCAPES_PALETTE[c]) for c in range(19)] == [CLASSES[c] for c in range(19)]
    assert CITYSCAPES_CLASSES[0] == "road"
    assert CITYSCAPES_CLASSES[13] == "car"
    assert CITYSCAPES_CLASSES[18] == "bicycle"


def test_every_id_is_decoded() -> None:
    stored = np.arange(35, dtype=np.uint8).reshape(5, 7)
    by_id = {number: train_id for train_id, (number, _) in CLASSES.items()}
    expected = [[by_id.get(int(value), 255) for value in row] for row in stored]
    assert ENCODINGS["ids"].decode(stored, "x.png").tolist() == expected


@pytest.mark.parametrize(
    ("encoding", "stored", "message"),
    [
        ("ids", np.full((4, 4), 77, np.uint8), r"16 pixels hold values outside encoding 'ids': \[77\]"),
        ("trainIds", np.full((4, 4), 19, np.uint8), r"outside encoding 'trainIds': \[19\]"),
        ("colors", np.full((4, 4, 3), 9, np.uint8), r"outside encoding 'colors': \[\[9, 9, 9\]\]"),
        ("ids", np.zeros((4, 4, 3), np.uint8), r"'ids' expects one 8-bit value a pixel .*\(4, 4, 3\)"),
        ("colors", np.zeros((4, 4), np.uint8), "'colors' expects an 8-bit RGB image"),
        ("ids", np.zeros((4, 4), np.int32), "found shape .* of int32"),
    ],
)
def test_unknown_values_name_file_and_value(encoding: str, stored: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"Label some/file.png: .*{message}"):
        ENCODINGS[encoding].decode(stored, "some/file.png")


# Trees.


def test_gta5_tree(tmp_path: Path) -> None:
    dataset = opened(GTA5, gta5_tree(tmp_path, count=3, size=(36, 64), seed=7))
    assert len(dataset) == 3
    for index, (image, label) in enumerate(expected_pairs(3, (36, 64), seed=7)):
        sample = dataset[index]
        assert sample["name"] == f"{index + 1:05d}"
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(sample["label"].numpy(), label)
        assert sample["image"].dtype == sample["label"].dtype == torch.uint8


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_cityscapes_tree(tmp_path: Path, kind: Kind) -> None:
    dataset = opened(CITYSCAPES, cityscapes_tree(tmp_path, {"val": 3}, kind=kind, seed=8), "val")
    written = expected_pairs(3, (32, 64), seed=8)
    # Written to valcity0, valcity1, valcity0; read in the order of paths.
    for sample, (image, label) in zip(dataset, [written[0], written[2], written[1]], strict=False):  # type: ignore[call-overload]
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(sample["label"].numpy(), label)
    assert [pair.name for pair in dataset.pairs] == [
        "valcity0_000000_000019",
        "valcity0_000002_000019",
        "valcity1_000001_000019",
    ]


def test_complete_train_ids_are_preferred(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path, kind="labelIds")
    assert inspected(CITYSCAPES, tmp_path).splits["train"].encoding == "ids"
    cityscapes_tree(tmp_path, kind="labelTrainIds")
    assert inspected(CITYSCAPES, tmp_path).splits["train"].encoding == "trainIds"
    next(tmp_path.rglob("gtFine/train/*/*labelTrainIds.png")).unlink()
    report = inspected(CITYSCAPES, tmp_path)
    assert report.ok
    assert report.splits["train"].encoding == "ids"


def test_hidden_companions_are_no_images(tmp_path: Path) -> None:
    gta5_tree(tmp_path)
    (tmp_path / "images/._00001.png").write_bytes(b"resource fork")
    assert len(inspected(GTA5, tmp_path).splits["train"].pairs) == 4


# Bad roots.


def test_a_root_that_is_not_set_or_not_there(tmp_path: Path) -> None:
    missing = [inspected(CITYSCAPES, None), inspected(GTA5, tmp_path / "nowhere")]
    with pytest.raises(LayoutError) as error:
        require(missing)
    message = str(error.value)
    assert "target_root is not set" in message
    assert f"there is no folder {tmp_path / 'nowhere'}" in message
    assert "Where to get it: cityscapes-dataset.com" in message
    assert "Then set target_root to the folder that holds: leftImg8bit, gtFine" in message
    assert "from_games" in message  # both roots in one error


def test_half_extracted(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    report = inspected(CITYSCAPES, tmp_path, allow_partial=False)
    assert not report.ok
    assert "train: expected 2975 images (leftImg8bit/train/*/*_leftImg8bit.png), found 5" in str(report)
    assert inspected(CITYSCAPES, tmp_path, allow_partial=True).ok
    exact = dataclasses.replace(CITYSCAPES, splits={"train": Split("train/*/*", (7, 5))})
    assert inspected(exact, tmp_path, allow_partial=False).ok


def test_a_wrong_folder_is_described(tmp_path: Path) -> None:
    gta5_tree(tmp_path)
    report = inspected(CITYSCAPES, tmp_path)
    assert "no image matches leftImg8bit/train/*/*_leftImg8bit.png; the root holds images, labels" in str(
        report
    )


def test_images_without_labels(tmp_path: Path) -> None:
    gta5_tree(tmp_path)
    (tmp_path / "labels/00002.png").unlink()
    report = inspected(GTA5, tmp_path)
    assert "train: 1 of 4 images have no label: labels/00002.png" in str(report)
    assert inspect_root(GTA5, tmp_path, {"train": False}, allow_partial=True).ok  # labels are not asked for


def test_a_good_root_is_summarised(tmp_path: Path) -> None:
    report = inspected(GTA5, gta5_tree(tmp_path))
    assert report.ok
    assert str(report).endswith("train 4 images")


# Bad files.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    dataset = opened(GTA5, gta5_tree(tmp_path))
    truncate(tmp_path / "images/00002.png")
    with pytest.raises(BrokenImageError, match=r"images/00002.png cannot be decoded .*skip_broken: true"):
        dataset[1]
    with pytest.raises(BrokenImageError, match=r"images/00002\.png"):
        dataset.draw(1, np.random.default_rng(0))
    assert dataset[0]["name"] == "00001"


def test_an_image_and_label_of_different_size(tmp_path: Path) -> None:
    dataset = opened(GTA5, gta5_tree(tmp_path))
    with Image.open(tmp_path / "labels/00003.png") as label:
        label.resize((60, 36), Image.Resampling.NEAREST).save(tmp_path / "labels/00003.png")
    expected = r"images/00003.png is 36 x 64 but its label .*labels/00003.png is 36 x 60"
    with pytest.raises(BrokenImageError, match=expected):
        dataset[2]


def test_a_label_value_outside_the_map(tmp_path: Path) -> None:
    dataset = opened(GTA5, gta5_tree(tmp_path))
    Image.fromarray(np.full((36, 64), 200, np.uint8)).save(tmp_path / "labels/00001.png")
    with pytest.raises(ValueError, match=r"labels/00001.png: 2304 pixels hold values outside .*\[200\]"):
        dataset[0]


def test_broken_pairs_are_dropped_with_their_reasons(tmp_path: Path) -> None:
    gta5_tree(tmp_path, count=6)
    truncate(tmp_path / "images/00002.png")
    truncate(tmp_path / "labels/00003.png")
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "labels/00004.png")
    altered = bytearray((tmp_path / "images/00005.png").read_bytes())
    altered[len(altered) // 2] ^= 255
    (tmp_path / "images/00005.png").write_bytes(altered)
    usable, reasons = drop_broken(inspected(GTA5, tmp_path).splits["train"].pairs)
    assert [pair.name for pair in usable] == ["00001", "00006"]
    named = ["images/00002.png", "labels/00003.png", "labels/00004.png", "images/00005.png"]
    assert len(reasons) == 4
    assert all(name in reason for name, reason in zip(named, reasons, strict=True))


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert torch.equal(read_image(tmp_path / "rgba.png"), torch.from_numpy(rgba[..., :3]).permute(2, 0, 1))
    Image.fromarray(rgba[..., 0]).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png"), torch.from_numpy(rgba[..., 0]).expand(3, 5, 6))


# Resize.


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((1052, 1914), (1280, 720), (704, 1280)),
        ((1024, 2048), (1024, 512), (512, 1024)),
        ((760, 1280), (1280, 760), (760, 1280)),
        ((1052, 1914), (720, 1280), (704, 1280)),
        ((1914, 1052), (1280, 720), (1280, 704)),
    ],
)
def test_scaled_size(size: tuple[int, int], resize: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled_size(*size, resize) == expected


def test_resize_is_bilinear_for_images_and_nearest_for_labels(tmp_path: Path) -> None:
    root = gta5_tree(tmp_path, count=1, size=(36, 64), seed=2)
    (image, label) = expected_pairs(1, (36, 64), seed=2)[0]
    small = opened(GTA5, root, resize=(32, 18))[0]
    # At half size the four neighbours weigh the same, and nearest takes the upper left one.
    means = image.reshape(18, 2, 32, 2, 3).astype(float).mean((1, 3))
    assert np.abs(small["image"].permute(1, 2, 0).numpy() - means).max() <= 1
    assert np.array_equal(small["label"].numpy(), label[::2, ::2])
    native = opened(GTA5, root, resize=(32, 18), resize_label=False)[0]
    assert native["image"].shape == (3, 18, 32)
    assert np.array_equal(native["label"].numpy(), label)


# Crop.


def reference_window(
    label: Tensor, size: tuple[int, int], rng: np.random.Generator, rare: int | None, min_rare: int
) -> tuple[int, int]:
    """The published rule, written as loops over class counts."""

    def draw() -> tuple[int, int]:
        return int(rng.integers(label.shape[0] - size[0] + 1)), int(
            rng.integers(label.shape[1] - size[1] + 1)
        )

    def cut(corner: tuple[int, int]) -> list[int]:
        return label[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]].flatten().tolist()

    def balanced() -> tuple[int, int]:
        corner = draw()
        for _ in range(10):
            valid = [value for value in cut(corner) if value != 255]
            if len(set(valid)) > 1 and max(valid.count(c) for c in set(valid)) / len(valid) < 0.75:
                break
            corner = draw()
        return corner

    corner = balanced()
    for _ in range(10 if rare is not None else 0):
        if cut(corner).count(rare) > min_rare:
            break
        corner = balanced()
    return corner


@pytest.mark.parametrize("rare", [None, 3])
def test_windows_follow_the_published_rule(rare: int | None) -> None:
    redrawn = 0
    for seed in range(60):
        maker = np.random.default_rng(seed)
        label = torch.zeros(20, 30, dtype=torch.uint8)
        label[:, int(maker.integers(5, 25)) :] = 1
        label[int(maker.integers(20)) :, :6] = 255
        label[4:8, 10:14] = 3
        crop = RandomCrop((8, 10), min_rare_pixels=6)
        rows, columns = crop.window((20, 30), label, np.random.default_rng([seed, 1]), rare)
        expected = reference_window(label, (8, 10), np.random.default_rng([seed, 1]), rare, 6)
        first = np.random.default_rng([seed, 1])
        redrawn += expected != (int(first.integers(13)), int(first.integers(21)))
        assert (rows.start, columns.start) == expected
        assert (rows.stop - rows.start, columns.stop - columns.start) == (8, 10)
    assert redrawn > 5  # the rule had something to do


def test_image_and_label_are_cut_alike(tmp_path: Path) -> None:
    dataset = opened(GTA5, gta5_tree(tmp_path, seed=3), crop=RandomCrop((10, 12)))
    for seed in range(5):
        sample = dataset.draw(0, np.random.default_rng(seed))
        image, label = dataset.load(0)
        windows = image.unfold(1, 10, 1).unfold(2, 12, 1)  # every possible window
        match = (windows == sample["image"][:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
        assert len(match) == 1
        top, left = match[0]
        assert torch.equal(sample["label"], label[top : top + 10, left : left + 12])  # type: ignore[index]


def test_a_window_larger_than_the_image_is_refused(tmp_path: Path) -> None:
    dataset = opened(GTA5, gta5_tree(tmp_path), crop=RandomCrop((40, 40)))
    with pytest.raises(ValueError, match=r"images/00001.png: crop \(40, 40\) does not fit .*\(36, 64\)"):
        dataset.draw(0, np.random.default_rng(0))
