"""Written predictions are read again by the label readers, and lie where servers look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import WritePredictions
from datamodules import GTA5Cityscapes
from datamodules.labels import CITYSCAPES_PALETTE, ENCODINGS
from datamodules.readers import read_label
from tests import tiny
from tests.toy import toy_trainer
from zoo import SourceOnly
from zoo.__main__ import main
from zoo.optim import Optim

SMALL: dict[str, Any] = {"backbone": "street_cnn", "optim": Optim(lr=1e-3, schedule="constant")}
NAMES = ["valcity0_000000_000019", "valcity0_000002_000019", "valcity1_000001_000019"]


class Spread(SourceOnly):
    """A network whose predictions hold many classes: those of an untrained one hold few."""

    def logits(self, image: Tensor) -> Tensor:
        wanted = (image.mean(1) * 97).long() % 19
        return torch.nn.functional.one_hot(wanted, 19).movedim(-1, 1).float() + 0 * super().logits(image)


def cityscapes(roots: dict[str, Any], **options: Any) -> GTA5Cityscapes:
    return GTA5Cityscapes(**{**tiny.GTA5_CITYSCAPES, **roots, "target_resize": (32, 16), **options})


def predicted(data: GTA5Cityscapes) -> dict[str, np.ndarray]:
    """Stem → trainIds at the stored size, without Lightning."""
    data.setup("predict")
    method = Spread(**SMALL).eval()
    labels = {}
    for batch in data.predict_dataloader():
        logits = method(batch["image"].float() / 255)
        logits = torch.nn.functional.interpolate(logits, (32, 64), mode="bilinear")
        for name, label in zip(batch["name"], logits.argmax(1), strict=True):
            labels[name] = label.numpy()
    assert len(np.unique(np.stack(list(labels.values())))) > 10
    return labels


@pytest.mark.parametrize("encoding", [None, "ids", "trainIds", "colors"])
def test_what_is_written_is_read_again(roots: dict[str, Any], tmp_path: Path, encoding: str | None) -> None:
    writer = WritePredictions(encoding, folder=str(tmp_path / "out"))
    data = cityscapes(roots, eval_batch_size=2)
    toy_trainer(callbacks=[writer]).predict(Spread(**SMALL), datamodule=data)
    files = sorted((tmp_path / "out").iterdir())
    # The Cityscapes server looks for {city}_{sequence}_{frame}*.png.
    assert [file.name for file in files] == [f"{name}_leftImg8bit.png" for name in NAMES]
    expected = predicted(data)
    for file, name in zip(files, NAMES, strict=True):
        assert np.array_equal(read_label(file, encoding or "ids").numpy(), expected[name])
        stored = np.array(Image.open(file))
        assert stored.dtype == np.uint8
        assert stored.shape == ((32, 64, 3) if encoding == "colors" else (32, 64))
        if encoding == "colors":
            assert np.array_equal(stored, np.array(CITYSCAPES_PALETTE, np.uint8)[expected[name]])


def test_the_benchmarks_server_decides_on_the_encoding(roots: dict[str, Any], tmp_path: Path) -> None:
    class TrainIds(GTA5Cityscapes):
        submission = "trainIds"

    data = TrainIds(**tiny.GTA5_CITYSCAPES, **roots)
    toy_trainer(default_root_dir=tmp_path / "run").predict(Spread(**SMALL), datamodule=data)
    files = sorted((tmp_path / "run" / "predictions").iterdir())
    stored = np.concatenate([np.array(Image.open(file)).ravel() for file in files])
    assert set(np.unique(stored)) <= set(range(19))
    assert {0, 1, 2} & set(np.unique(stored))  # ids begin at 7


def test_a_suffix_makes_label_files_that_train_again(roots: dict[str, Any], tmp_path: Path) -> None:
    writer = WritePredictions("trainIds", str(tmp_path / "out"), suffix="_gtFine_labelTrainIds.png")
    toy_trainer(callbacks=[writer]).predict(Spread(**SMALL), datamodule=cityscapes(roots))
    assert len(list((tmp_path / "out").iterdir())) == len(NAMES)
    for name, label in predicted(cityscapes(roots)).items():
        stored = read_label(tmp_path / "out" / f"{name}_gtFine_labelTrainIds.png", "trainIds")
        assert np.array_equal(stored.numpy(), label)


def test_a_trainer_without_a_folder_writes_nothing(roots: dict[str, Any], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    results = toy_trainer().predict(Spread(**SMALL), datamodule=cityscapes(roots))
    assert [tuple(result["label"].shape) for result in results] == [(1, 32, 64)] * 3
    assert set(tmp_path.iterdir()) == before


def test_images_stored_at_different_sizes_need_batches_of_one(roots: dict[str, Any], tmp_path: Path) -> None:
    root = Path(roots["target_root"])
    image = root / "leftImg8bit/val/valcity1/valcity1_000001_000019_leftImg8bit.png"
    label = root / "gtFine/val/valcity1/valcity1_000001_000019_gtFine_labelIds.png"
    Image.new("RGB", (128, 64)).save(image)
    Image.new("L", (128, 64)).save(label)
    writer = WritePredictions(folder=str(tmp_path / "out"))
    toy_trainer(callbacks=[writer]).predict(Spread(**SMALL), datamodule=cityscapes(roots))
    sizes = {Image.open(file).size for file in (tmp_path / "out").iterdir()}
    assert sizes == {(64, 32), (128, 64)}
    batch = {"image": torch.rand(2, 3, 16, 32), "size": [(32, 64), (64, 128)], "name": ["a", "b"]}
    with pytest.raises(ValueError, match=r"\[\(32, 64\), \(64, 128\)\]\. Set data\.eval_batch_size: 1"):
        Spread(**SMALL).predict_step(batch, 0)


def test_the_command_line_writes_predictions(roots: dict[str, Any], tmp_path: Path) -> None:
    options = {**tiny.GTA5_CITYSCAPES, **roots, "target_resize": [32, 16]}
    command = [
        "predict", "--model", "SourceOnly", "--model.backbone", "street_cnn", "--data", "GTA5Cityscapes",
        *tiny.as_options(options), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    window = ["--model.inference.window", "[16, 16]", "--model.inference.flip", "true"]
    assert main([*command, *window, "--run_dir", str(tmp_path / "run")]) == 0
    files = sorted((tmp_path / "run" / "predictions").iterdir())
    assert [file.name for file in files] == [f"{name}_leftImg8bit.png" for name in NAMES]
    assert all(read_label(file, "ids").shape == (32, 64) for file in files)


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_encoding_is_the_inverse_of_decoding(name: str) -> None:
    encoding = ENCODINGS[name]
    known = [train_id for train_id in range(256) if encodes(name, train_id)]
    label = np.array(known, np.uint8).repeat(2).reshape(2, -1)
    assert len(known) >= 16
    assert np.array_equal(encoding.decode(encoding.encode(label), "memory"), label)
    with pytest.raises(ValueError, match=r"has no value for trainIds \[77\]"):
        encoding.encode(np.full((1, 1), 77, np.uint8))


def encodes(name: str, train_id: int) -> bool:
    try:
        ENCODINGS[name].encode(np.full((1, 1), train_id, np.uint8))
    except ValueError:
        return False
    return True


def test_bad_arguments() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"encoding='labelIds'\): expected one of ids, trainIds"
    ):
        WritePredictions("labelIds")
    with pytest.raises(MisconfigurationException, match=r"suffix='_x.jpg'\): label maps are PNGs"):
        WritePredictions(suffix="_x.jpg")


class Returns(L.LightningModule):
    """Predicts whatever it was given."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(1), r"Returns.predict_step must return a dict with 'label'"),
        ({"label": torch.zeros(1, 2, 2, dtype=torch.uint8), "name": None}, "batches must hold 'name'"),
        (
            {"label": torch.zeros(2, 2, 2, dtype=torch.uint8), "name": ["same", "same"]},
            "two images are called same.png, and the second would overwrite the first",
        ),
    ],
)
def test_predictions_that_cannot_be_written(outputs: Any, message: str, tmp_path: Path) -> None:
    trainer = toy_trainer(callbacks=[WritePredictions(folder=str(tmp_path / "out"))])
    with pytest.raises(MisconfigurationException, match=message):
        trainer.predict(Returns(outputs), DataLoader([torch.zeros(1)]))
