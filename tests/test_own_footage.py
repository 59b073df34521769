"""Adaptation to footage without labels: which frames are found, what is validated on, and what is said of bad roots."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from callbacks import WritePredictions
from datamodules import OwnFootage
from datamodules.layout import LayoutError
from tests.test_datamodules import epoch
from tests.tiny import cityscapes_tree, gta5_tree, random_pair
from tests.tiny_streets import STREETS, footage_tree, save
from tests.toy import toy_trainer
from zoo import SourceOnly
from zoo.optim import Optim

FRAMES = [*(f"{drive}/{number:06d}" for drive in ("day", "night") for number in range(3)), "top"]


def footage(folder: Path, stage: str | None = "fit", **settings: Any) -> OwnFootage:
    trees = {"cityscapes": cityscapes_tree, "gta5": gta5_tree, "own": own_tree}
    source = settings.get("source", "cityscapes")
    roots = {
        "source_root": str(trees[source](folder / source)),
        "target_root": str(footage_tree(folder / "frames")),
    }
    data = OwnFootage(**{**STREETS, "seed": 0, "batch_size": 2, **roots, **settings})
    if stage != "predict":
        data.prepare_data()
        data.setup(stage)
    return data


def own_tree(root: Path) -> Path:
    rng = np.random.default_rng(6)
    for number in range(4):
        image, train_ids = random_pair(rng, 36, 64)
        save(image, root / f"images/street {number % 2}/{number}.png")
        save(train_ids, root / f"labels/street {number % 2}/{number}.png")
    return root


def test_frames_of_any_folder_and_size_are_drawn_without_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        data = footage(tmp_path)
    assert "val/mIoU is that of 3 source images" in caplog.text
    assert "predict by last.ckpt" in caplog.text
    frames = data.datasets["train"].domains["target"]
    assert [pair.name for pair in frames.pairs] == FRAMES
    assert frames.encoding is None
    for batch in epoch(data):
        assert set(batch["target"]) == {"image", "index"}
        assert batch["target"]["image"].shape == batch["source"]["image"].shape == (2, 3, 32, 32)
        assert batch["source"]["label"].shape == (2, 32, 32)


@pytest.mark.parametrize("source", ["gta5", "own"])
def test_the_last_source_images_validate_where_there_are_no_others(tmp_path: Path, source: str) -> None:
    data = footage(
        tmp_path, None, source=source, num_val=1, rare_class_temperature=0.01, rare_class_min_pixels=0
    )
    train, val = data.datasets["train"].domains["source"].pairs, data.datasets["val"].pairs
    assert (len(train), len(val)) == (3, 1)
    assert max(pair.image for pair in train) < val[0].image
    assert val[0].label is not None
    assert len(data.datasets["predict"]) == len(FRAMES)


def test_predictions_keep_the_folders_and_sizes_of_frames(tmp_path: Path) -> None:
    # What only training needs is not asked for any more.
    data = footage(tmp_path, "predict", source_root=None, rare_class_temperature=0.01)
    method = SourceOnly(backbone="street_cnn", optim=Optim(lr=1e-3, schedule="constant"))
    writer = WritePredictions(folder=str(tmp_path / "out"))
    toy_trainer(callbacks=[writer]).predict(method, datamodule=data)
    written = {
        path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.png")
    }
    assert sorted(written) == [f"{name}.png" for name in FRAMES]
    for name, path in written.items():
        frame = next((tmp_path / "frames").glob(name.replace(".png", ".*")))
        with Image.open(frame) as image, Image.open(path) as label:
            assert image.size == label.size
            assert np.array(label).max() < data.num_classes


def test_bad_roots_are_one_error_each(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        LayoutError, match=r"(?s)no file at any depth ends in \.png, \.jpg, \.jpeg.*ffmpeg -i"
    ):
        footage(tmp_path, target_root=str(tmp_path / "empty"))
    with pytest.raises(
        LayoutError, match=r"(?s)source_root=.*there is no folder .*a.*target_root.*no folder .*b"
    ):
        footage(tmp_path, source_root=str(tmp_path / "a"), target_root=str(tmp_path / "b"))
    with pytest.raises(LayoutError, match=r"num_val=100 leaves none of 4 labelled images to train on"):
        footage(tmp_path, source="gta5")
    (tmp_path / "frames/day/000001.png").write_bytes(b"no frame")
    data = OwnFootage(
        **STREETS,
        source_root=str(tmp_path / "cityscapes"),
        target_root=str(tmp_path / "frames"),
        skip_broken=True,
    )
    with pytest.warns(UserWarning, match=r"left out 1 of 7 train pairs .*000001\.png"):
        data.setup("fit")


@pytest.mark.parametrize("change", [{"oracle": True}, {"predict_split": "val"}])
def test_frames_have_neither_labels_nor_splits(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="neither labels nor splits: leave out oracle and predict_split"):
        OwnFootage(**change)


@pytest.mark.parametrize(
    ("change", "complaint"), [({"source": "kitti"}, "source must be one of"), ({"num_val": 0}, "num_val")]
)
def test_arguments_out_of_range(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OwnFootage(**change)
