"""The ophthalmic benchmarks on miniatures of their official trees: labels, splits, slices, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    GAMMA,
    OCTA500,
    EyeImageLists,
    EyePACS,
    EyeVolumeLists,
    GAMMAScans,
    IChallengeAMD,
    IChallengePM,
    TakingTurns,
)
from datamodules.layout import LayoutError
from datamodules.slice_folders import read_slices
from tests import tiny_eyes
from tests.tiny_images import pixel
from zoo.nn import VolumeFlips

IMAGES: dict[str, tuple[Any, Callable[[Path], Path]]] = {
    "eyepacs": (EyePACS, tiny_eyes.eyepacs_tree),
    "amd": (IChallengeAMD, tiny_eyes.amd_tree),
    "pm": (IChallengePM, tiny_eyes.pm_tree),
    "gamma": (GAMMA, tiny_eyes.gamma_tree),
}
VOLUMES: dict[str, tuple[Any, Callable[[Path], Path]]] = {
    "gamma_scans": (GAMMAScans, tiny_eyes.gamma_tree),
    "octa500": (OCTA500, tiny_eyes.octa500_tree),
}


def opened(cls: Any, settings: dict[str, Any], **changes: Any) -> Any:
    data = cls(**{**settings, **changes})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("name", IMAGES)
def test_photographs_have_their_labels(name: str, tmp_path: Path) -> None:
    cls, tree = IMAGES[name]
    data = opened(cls, tiny_eyes.images_of(tree)(tmp_path))
    seen: dict[str, int] = {}
    for split in ("labelled", "val"):
        for batch in data.subset_dataloader(split):
            for image, label, stem in zip(
                batch["image"], batch["label"].tolist(), batch["name"], strict=True
            ):
                drawn = label if name != "pm" else {"N": 0, "H": 1, "P": 2}[stem[0]]
                assert abs(int(image[0].float().mean()) - pixel(drawn, 0)[0]) < 4  # JPEG
                assert name != "pm" or label == int(stem[0] == "P")
                seen[stem] = label
    counts = {"eyepacs": 12, "amd": 6, "pm": 9, "gamma": 6}
    assert len(seen) == counts[name]
    assert len(data.subset("val")) == 2
    assert data.validates_on_test


def test_both_eyes_of_a_patient_stay_together(tmp_path: Path) -> None:
    data = opened(EyePACS, tiny_eyes.images_of(tiny_eyes.eyepacs_tree)(tmp_path), num_val=4)
    names = [name for batch in data.val_dataloader() for name in batch["name"]]
    assert sorted(name.partition("_")[2] for name in names) == ["left", "left", "right", "right"]
    assert len({name.partition("_")[0] for name in names}) == 2
    with pytest.raises(ValueError, match="num_val=12 must leave some of the 6 patients"):
        opened(EyePACS, tiny_eyes.images_of(tiny_eyes.eyepacs_tree)(tmp_path), num_val=12)


@pytest.mark.parametrize("name", VOLUMES)
def test_scans_are_folders_of_slices(name: str, tmp_path: Path) -> None:
    cls, tree = VOLUMES[name]
    data = opened(cls, tiny_eyes.volumes_of(tree)(tmp_path))
    counts = {split: len(data.datasets[split]) for split in ("train", "val", "test")}
    assert counts == (
        {"train": 4, "val": 2, "test": 2} if name == "gamma_scans" else {"train": 3, "val": 2, "test": 2}
    )
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for raw in loader:
            batch = data.on_after_batch_transfer(raw, 0)
            assert batch["volume"].shape[1:] == (1, 16, 8, 16)
            for stem, label in zip(batch["name"], batch["label"].tolist(), strict=True):
                if name == "octa500":
                    assert data.classes[label] == ("NORMAL", "DR", "OTHERS")[int(stem) % 3]
                else:
                    assert label == int(stem) % 3
    volume = next(iter(data.val_dataloader()))["volume"][0, 0].float()
    levels = volume[8, :, 8]  # across slices, which lie in the middle
    assert (levels.diff() > 0).all()


def test_slices_are_put_in_order_of_their_numbers(tmp_path: Path) -> None:
    tiny_eyes.write_slices(tmp_path / "eye", 11, ".bmp")
    volume, affine = read_slices(tmp_path / "eye")
    assert volume.shape == (10, 11, 8)
    assert volume[5, :, 5].tolist() == [10 * n for n in range(1, 12)]
    assert np.array_equal(affine, np.eye(4))
    Image.new("L", (8, 9)).save(tmp_path / "eye" / "12.bmp")
    with pytest.raises(ValueError, match=r"12.bmp has \(9, 8\) pixels and 1.bmp \(10, 8\)"):
        read_slices(tmp_path / "eye")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds 0 pictures"):
        read_slices(tmp_path / "empty")


def test_lists(tmp_path: Path) -> None:
    settings = tiny_eyes.lists(tmp_path)
    of = {
        part: {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(part)}
        for part in ("images", "volumes")
    }
    images = opened(EyeImageLists, of["images"])
    (batch,) = images.test_dataloader()
    assert batch["label"].tolist() == [0, 1]
    assert batch["name"] == ["test 0", "test 1"]
    scans = opened(EyeVolumeLists, of["volumes"])
    named = {}
    for raw in (*scans.train_dataloader(), *scans.val_dataloader()):
        batch = scans.on_after_batch_transfer(raw, 0)
        named |= dict(zip(batch["name"], batch["label"].tolist(), strict=True))
    assert named == {**{f"scans_train{n}": -1 for n in range(4)}, "scans_val0": 0, "scans_val1": 1}

    root = tmp_path / "tree"
    train = root / "2d" / "train.txt"  # pre-training takes images without labels, too
    train.write_text(train.read_text().replace(" 0\n", " -1\n").replace(" 1\n", " -1\n"))
    parts = EyeImageLists(**of["images"]), EyeVolumeLists(**of["volumes"], views=VolumeFlips())
    both = TakingTurns(*parts)
    both.prepare_data()
    both.setup("fit")
    shown = [both.on_after_batch_transfer(raw, 0) for raw in both.train_dataloader()]
    assert ["image" in batch for batch in shown] == [False, False, True, True]
    assert {label for batch in shown for label in batch["label"].tolist()} == {-1}

    (root / "2d" / "val.txt").write_text("images/val 0.jpg 0\nimages/gone.jpg 1\n")
    with pytest.raises(LayoutError, match=r"1 of 2 images are missing: images/gone.jpg"):
        opened(EyeImageLists, of["images"])
    (root / "2d" / "val.txt").write_text("images/val 0.jpg benign\n")
    with pytest.raises(
        LayoutError, match=r"val.txt, line 1: 'images/val 0.jpg benign' is no path with a class"
    ):
        opened(EyeImageLists, of["images"])
    (root / "2d" / "val.txt").unlink()
    with pytest.raises(LayoutError, match=r"there is no list val.txt .*'path label'"):
        opened(EyeImageLists, of["images"])
    (root / "3d" / "train.txt").write_text("scans/train1.nii.gz 5\n")
    with pytest.raises(LayoutError, match=r"the label 5, but there are 2 classes: set data.class_names"):
        opened(EyeVolumeLists, of["volumes"])


@pytest.mark.parametrize(
    ("cls", "tree", "harm", "message"),
    [
        (
            EyePACS,
            tiny_eyes.eyepacs_tree,
            "trainLabels.csv",
            "trainLabels.csv is missing: it holds the diagnoses",
        ),
        (GAMMA, tiny_eyes.gamma_tree, "training_GT.xlsx", "training_GT.xlsx is missing"),
        (GAMMAScans, tiny_eyes.gamma_tree, "training_GT.xlsx", "training_GT.xlsx is missing"),
        (OCTA500, tiny_eyes.octa500_tree, "OCTA_6mm/Text labels.xlsx", "Text labels.xlsx is missing"),
    ],
    ids=["eyepacs", "gamma", "gamma_scans", "octa500"],
)
def test_tables_that_are_missing_or_damaged(
    cls: Any, tree: Any, harm: str, message: str, tmp_path: Path
) -> None:
    volumes = cls in (GAMMAScans, OCTA500)
    settings = (tiny_eyes.volumes_of if volumes else tiny_eyes.images_of)(tree)(tmp_path)
    table = settings["root"] / harm
    table.unlink()
    with pytest.raises(LayoutError, match=message):
        opened(cls, settings)
    table.write_text("image;level\n")
    with pytest.raises(LayoutError, match=r"expected image and level|cannot be read as an Excel file"):
        opened(cls, settings)


def test_tables_that_tell_no_diagnosis(tmp_path: Path) -> None:
    settings = tiny_eyes.volumes_of(tiny_eyes.gamma_tree)(tmp_path)
    tiny_eyes.write_sheet(
        settings["root"] / "training_GT.xlsx", [["data", "non", "early", "mid_advanced"], [1, 1, 1, 0]]
    )
    with pytest.raises(LayoutError, match="a row marks 2 of the columns non, early, mid_advanced"):
        opened(GAMMAScans, settings)
    tiny_eyes.write_sheet(
        settings["root"] / "training_GT.xlsx", [["data", "non", "early", "mid_advanced"], [1, 1, 0, 0]]
    )
    with pytest.raises(LayoutError, match="has no diagnosis: it is none of the 1 scans listed"):
        opened(GAMMAScans, settings)
    settings = tiny_eyes.volumes_of(tiny_eyes.octa500_tree)(tmp_path / "octa")
    tiny_eyes.write_sheet(
        settings["root"] / "OCTA_6mm" / "Text labels.xlsx", [["ID", "Disease"], [10001, "FLU"]]
    )
    with pytest.raises(LayoutError, match="the disease 'FLU' of eye 10001: expected one of NORMAL, AMD"):
        opened(OCTA500, settings)
    with pytest.raises(ValueError, match="field must be one of 6mm, 3mm, got '9mm'"):
        OCTA500(field="9mm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cls", [EyePACS, IChallengeAMD, IChallengePM, GAMMA, GAMMAScans, OCTA500, EyeVolumeLists]
)
def test_folders_that_are_not_there(cls: Any, tmp_path: Path) -> None:
    for root, message in ((None, "root is not set"), (tmp_path / "gone", "there is no folder")):
        with pytest.raises(LayoutError, match=message):
            cls(root=None if root is None else str(root)).setup()
