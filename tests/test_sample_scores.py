"""Scores of single test samples: what is written, and that they are those of the logged metric."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from zoo.__main__ import main
from zoo.comparison.runs import read_folder
from zoo.metrics import SegmentationIoU, image_iou
from zoo.volume_metrics import VolumeScores, volume_dice

CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
CPU += ["--trainer.enable_model_summary", "false"]


def scores(folder: str) -> list[dict[str, str]]:
    with Path(folder, "sample_scores.csv").open() as file:
        return [*csv.DictReader(file)]


def metric(folder: str, name: str) -> float:
    return json.loads(Path(folder, "run_card.json").read_text())["last"]["metrics"][name]


def test_image_iou_is_the_mean_of_the_image_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(4, (3, 6, 7), generator=generator)
    label = torch.randint(3, (3, 6, 7), generator=generator)
    label[0, 0] = 255
    for classes in (None, [0, 2]):
        found = image_iou(prediction, label, 4, classes=classes)
        for number in range(3):
            alone = SegmentationIoU(4, classes=classes)
            alone.update(prediction[number : number + 1], label[number : number + 1])
            torch.testing.assert_close(found[number], alone.compute()["mIoU"])


def test_volume_dice_is_that_of_the_volume_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(4, (2, 5, 4, 3), generator=generator)
    label = torch.randint(3, (2, 5, 4, 3), generator=generator)  # nobody has class 3
    found = volume_dice(prediction, label, 4)
    for number in range(2):
        alone = VolumeScores(4)
        alone.update(prediction[number : number + 1], label[number : number + 1])
        torch.testing.assert_close(found[number].double(), alone.compute()["dice"])


def test_segmentation_writes_the_score_of_every_image() -> None:
    argv = ["--config", "source_only/embedded", *CPU, "--data.num_source", "2", "--data.num_target", "2"]
    argv += ["--data.num_val", "2", "--data.num_test", "3", "--data.height", "32", "--data.width", "64"]
    assert main(["test", *argv, "--run_dir", "run"]) == 0
    rows = scores("run")
    assert len({row["name"] for row in rows}) == 3
    assert [*rows[0]] == ["name", "mIoU"]
    assert all(0 <= float(row["mIoU"]) <= 100 for row in rows)
    run = read_folder(Path("run"))
    assert len(run.sample_scores("test/mIoU")) == 3
    assert run.sample_scores("test/iou_car") == {}  # scores of another metric prove nothing


@pytest.mark.parametrize(
    ("options", "column"),
    [
        (["--config", "dino/embedded", "--data.num_train", "60"], "knn20"),
        (
            [
                "--config",
                "audio_classifier/embedded",
                "--data.synthesiser",
                "formant",
                "--data.per_voice",
                "2",
            ],
            "accuracy",
        ),
    ],
)
@pytest.mark.slow
def test_accuracy_is_the_mean_of_the_scores(options: list[str], column: str) -> None:
    assert main(["test", *options, *CPU, "--run_dir", "run"]) == 0
    rows = scores("run")
    mean = sum(float(row[column]) for row in rows) / len(rows)
    assert metric("run", f"test/{column}") == pytest.approx(mean, abs=1e-3)
