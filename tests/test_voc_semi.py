"""PASCAL VOC with SBD: labels from three sources, partitions, and training windows of resized, padded images."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import savemat

from datamodules import VOCSemi
from datamodules.label_tables import VOC_BORDER
from datamodules.labels import ENCODINGS
from datamodules.layout import LayoutError
from datamodules.readers import BrokenImageError, read_label
from datamodules.scaled_crop import ScaledCrop
from tests.test_datamodules import epoch
from tests.tiny_voc import BORDER, COLORS, OTHERS, OWN, SEMI, VAL, indices, sbd_tree, voc_tree

#: VOC's classes in the order of their indices, as its development kit lists them.
CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)


def voc(root: Path, sbd: Path | None = None, stage: str | None = "fit", **settings: Any) -> VOCSemi:
    options = {"root": str(root), "sbd_root": str(sbd) if sbd else None, "num_labelled": 2, "seed": 0}
    if {"partition", "labelled_list"} & set(settings):
        options["num_labelled"] = None
    data = VOCSemi(**{**SEMI, **options, **settings})
    data.setup(stage)
    return data


def names(data: VOCSemi, part: str) -> list[str]:
    return [pair.name for pair in data.datasets["train"].domains[part].pairs]


# Labels.


def test_classes_palette_and_map_one_by_one() -> None:
    data = VOCSemi(num_labelled=1)
    assert (data.classes, data.palette) == (tuple(CLASSES.split()), tuple(COLORS))
    assert (data.num_classes, data.eval_classes, VOC_BORDER) == (21, tuple(range(21)), BORDER)
    stored = np.array([[*range(21), 255]], np.uint8)
    assert ENCODINGS["voc"].decode(stored, "x.png")[0].tolist() == [*range(21), 255]
    painted = np.array([[*COLORS, BORDER]], np.uint8)
    assert ENCODINGS["voc"].decode(painted, "x.png")[0].tolist() == [*range(21), 255]
    assert np.array_equal(ENCODINGS["voc"].encode(stored), stored)
    for wrong, found in (
        (np.array([[21]], np.uint8), r"\[21\]"),
        (np.full((1, 1, 3), 9, np.uint8), r"\[\[9, 9, 9\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"Label x\.png: 1 pixels hold values outside encoding 'voc.*{found}"
        ):
            ENCODINGS["voc"].decode(wrong, "x.png")


@pytest.mark.parametrize("painted", [False, True])
def test_validation_keeps_sizes_and_borders(tmp_path: Path, painted: bool) -> None:
    data = voc(voc_tree(tmp_path / "voc", painted=painted), stage="validate")
    batches = list(data.val_dataloader())
    assert [batch["name"][0] for batch in batches] == VAL
    for name, batch in zip(VAL, batches, strict=True):
        assert np.array_equal(batch["label"][0].numpy(), indices(name))
        assert batch["image"].shape[2:] == batch["label"].shape[1:]


@pytest.mark.parametrize("source", ["SegmentationClassAug", "sbd"])
def test_training_images_are_those_of_both_sets_without_validation(tmp_path: Path, source: str) -> None:
    sbd = sbd_tree(tmp_path / "sbd") if source == "sbd" else None
    data = voc(voc_tree(tmp_path / "voc", augmented=sbd is None), sbd, partition="full")
    assert names(data, "labelled") == names(data, "unlabelled") == sorted([*OWN, *OTHERS])
    labelled = data.datasets["train"].domains["labelled"]
    for number, pair in enumerate(labelled.pairs):
        expected = indices(pair.name)
        if sbd is not None and pair.name in OTHERS:
            expected = np.where(expected == 255, 0, expected)  # SBD draws no borders; VOC's own labels do
        assert np.array_equal(labelled.load(number)[1].numpy(), expected)
    batch = epoch(data)[0]
    assert set(batch["labelled"]) == {"image", "label", "index"}
    assert set(batch["unlabelled"]) == {"image", "index"}
    assert batch["labelled"]["image"].shape == (2, 3, 32, 32)


def test_broken_mat_files(tmp_path: Path) -> None:
    root, sbd = voc_tree(tmp_path / "voc"), sbd_tree(tmp_path / "sbd")
    broken, other, small = (sbd / f"dataset/cls/{name}.mat" for name in OTHERS[:3])
    whole = broken.read_bytes()
    for kept in (len(whole) - 40, 90, 0):
        broken.write_bytes(whole[:kept])
        with pytest.raises(BrokenImageError, match=rf"{OTHERS[0]}\.mat cannot be decoded .*damaged"):
            read_label(broken, "voc")
    savemat(other, {"GTinst": {"Segmentation": np.zeros((2, 2), np.uint8)}})
    savemat(small, {"GTcls": {"Segmentation": np.zeros((2, 2), np.uint8)}})
    with pytest.raises(BrokenImageError, match=r"holds no GTcls\.Segmentation, only \['GTinst'\]"):
        read_label(other, "voc")
    with pytest.warns(UserWarning, match="left out 3 of 7 train pairs"):
        data = voc(root, sbd, partition="full", skip_broken=True)
    assert names(data, "labelled") == sorted([*OWN, *OTHERS[3:]])
    assert len(data.skipped["sbd_root/train"]) == 3


# Bad trees.


def test_missing_roots(tmp_path: Path) -> None:
    with pytest.raises(
        LayoutError, match=r"(?s)PASCAL VOC 2012 \(root=None\) .*root is not set.*VOCtrainval"
    ):
        VOCSemi(num_labelled=1).setup("fit")
    with pytest.raises(LayoutError, match=r"(?s)SBD .*there is no folder .*nowhere.*benchmark\.tgz"):
        voc(voc_tree(tmp_path / "voc"), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        LayoutError, match=r"train: no image matches JPEGImages/\*\.jpg; the root holds nothing"
    ):
        voc(tmp_path / "empty")


def test_half_extracted(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "voc")
    expected = (
        r"(?s)train: expected 1464 images .*found 5.*train_aug: expected 10582 images with labels .*found 11: .*"
        r"val: expected 1449 images .*found 3|val: expected 1449"
    )
    with pytest.raises(LayoutError, match=expected):
        voc(root, allow_partial=False)
    (root / f"JPEGImages/{VAL[1]}.jpg").unlink()
    (root / f"SegmentationClass/{OWN[3]}.png").unlink()
    (root / f"SegmentationClassAug/{OWN[3]}.png").unlink()
    expected = (
        rf"(?s)train: 1 of 5 images have no label: SegmentationClass/{OWN[3]}\.png.*"
        rf"val: 1 of 3 images in ImageSets/Segmentation/val\.txt are missing: \['{VAL[1]}'\]"
    )
    with pytest.raises(LayoutError, match=expected):
        voc(root)
    (root / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(
        LayoutError, match=r"train: there is no list ImageSets/Segmentation/train\.txt; the root"
    ):
        voc(root)


def test_an_image_and_label_of_different_size(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "voc")
    Image.new("L", (5, 5)).save(root / f"SegmentationClass/{VAL[0]}.png")
    with pytest.raises(BrokenImageError, match=rf"{VAL[0]}\.jpg is .* but its label .* is 5 x 5"):
        list(voc(root, stage="validate").val_dataloader())


# Partitions.


@pytest.mark.parametrize(
    ("protocol", "total", "published"),
    [
        ("blended", 10582, {"1/16": 662, "1/8": 1323, "1/4": 2646, "1/2": 5291, "full": 10582}),
        ("classic", 1464, {"1/16": 92, "1/8": 183, "1/4": 366, "1/2": 732, "full": 1464}),
        ("cityscapes", 2975, {"1/16": 186, "1/8": 372, "1/4": 744, "1/2": 1488, "full": 2975}),
    ],
)
def test_partitions_have_the_published_sizes(protocol: str, total: int, published: dict[str, int]) -> None:
    for partition, count in published.items():
        assert VOCSemi(partition=partition)._wanted(total) == count, protocol  # type: ignore[arg-type]


def test_partitions_of_a_tree(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "voc")
    everything = {*OWN, *OTHERS}
    nested: set[str] = set()
    for partition, share in (("1/16", 16), ("1/4", 4), ("1/2", 2)):
        data = voc(root, partition=partition)
        labelled = set(names(data, "labelled"))
        assert len(labelled) == ceil(len(everything) / share)
        assert nested <= labelled  # a smaller partition is part of a larger one
        assert labelled | set(names(data, "unlabelled")) == everything
        assert not labelled & set(names(data, "unlabelled"))
        nested = labelled
    others = {tuple(names(voc(root, partition="1/2", split_seed=seed), "labelled")) for seed in range(5)}
    assert len(others) > 1
    classic = voc(root, partition="full", protocol="classic")
    assert names(classic, "labelled") == OWN
    assert names(classic, "unlabelled") == OTHERS
    half = voc(root, partition="1/2", protocol="classic")
    assert len(names(half, "labelled")) == 3
    assert set(names(half, "labelled")) < set(OWN)
    with pytest.raises(ValueError, match=r"num_labelled asks for 6 labelled images of 5"):
        voc(root, num_labelled=6, protocol="classic")
    with pytest.raises(ValueError, match="protocol must be 'blended' or 'classic', got 'new'"):
        voc(root, protocol="new")


@pytest.mark.parametrize("form", ["JPEGImages/{0}.jpg SegmentationClass/{0}.png", "{0}"])
@pytest.mark.parametrize("source", ["SegmentationClassAug", "sbd"])
def test_a_published_list(tmp_path: Path, form: str, source: str) -> None:
    root, listed = voc_tree(tmp_path / "voc"), tmp_path / "labeled.txt"
    sbd = sbd_tree(tmp_path / "sbd") if source == "sbd" else None
    listed.write_text("\n".join(form.format(name) for name in (OTHERS[1], OWN[2])))
    data = voc(root, sbd, labelled_list=str(listed))
    assert names(data, "labelled") == [OWN[2], OTHERS[1]]
    assert len(names(data, "unlabelled")) == 9
    listed.write_text(VAL[0])  # labels of validation are no training labels
    with pytest.raises(ValueError, match=rf"1 of its 1 entries are no training image: \['{VAL[0]}'\]"):
        voc(root, sbd, labelled_list=str(listed))


# Windows of resized images.


def test_a_window_is_resized_padded_and_cut_as_written_out() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 20, 30), dtype=np.uint8))
    label = torch.from_numpy(rng.integers(0, 21, (20, 30), dtype=np.uint8))
    crop = ScaledCrop((32, 24), scale=(0.5, 2.0), pad_label=7)
    sizes = set()
    for seed in range(40):
        cut, marks = crop.cut(image, label, np.random.default_rng(seed))
        twin = np.random.default_rng(seed)
        factor = twin.uniform(0.5, 1) if twin.random() < 0.5 else twin.uniform(1, 2)
        height, width = int(20 * factor), int(30 * factor)
        small = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        near = F.interpolate(label[None, None], size=(height, width), mode="nearest")[0, 0]
        canvas = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None].repeat(
            1, max(32, height), max(24, width)
        )
        values = torch.full((max(32, height), max(24, width)), 7, dtype=torch.uint8)
        top, left = max(0, 32 - height) // 2, max(0, 24 - width) // 2
        canvas[:, top : top + height, left : left + width] = small
        values[top : top + height, left : left + width] = near
        row = int(twin.integers(max(32, height) - 32 + 1))
        column = int(twin.integers(max(24, width) - 24 + 1))
        assert torch.equal(cut, canvas[:, row : row + 32, column : column + 24])
        assert torch.equal(marks, values[row : row + 32, column : column + 24])
        sizes.add(height >= 32)
        unlabelled, nothing = crop.cut(image, None, np.random.default_rng(seed))
        assert torch.equal(unlabelled, cut)
        assert nothing is None
    assert sizes == {True, False}


def test_padding_is_ignored_unless_asked_otherwise(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "voc")
    for pad_label, expected in ((255, 255), (0, 0)):
        data = voc(root, crop=(96, 96), pad_label=pad_label)  # larger than any image doubled
        batch = epoch(data)[0]["labelled"]
        assert (batch["label"][:, 0] == expected).all()
        assert (batch["image"][:, :, 0] == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None]).all()
