"""What segmentation does with bad input, from files to losses: one clear error, or a step that stays finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import GTA5Cityscapes, StreetShift, StreetShiftSemi
from datamodules.layout import LayoutError, Pair
from datamodules.readers import drop_broken
from tests import tiny
from tests.toy import toy_trainer
from zoo import FST, SelfTraining, SemiMeanTeacher, SePiCo, SourceOnly
from zoo.__main__ import main
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.optim import Optim

SMALL: dict[str, Any] = {"backbone": "street_cnn", "optim": Optim(lr=1e-3, schedule="constant")}
FLAT: dict[str, Any] = {"ignore_top": 0, "ignore_bottom": 0, **SMALL}
SEPICO: dict[str, Any] = {
    "projection_dim": 8, "contrast_layers": [1, 2], "contrast_start": 0, "label_ratio": 0.3, **FLAT
}  # fmt: skip


def train(method: SegmentationMethod, data: Any, steps: int = 2) -> list[dict[str, float]]:
    """The losses of a short run, all of which must be finite."""
    seen: list[dict[str, float]] = []
    original = method.losses

    def losses(batch: Any) -> dict[str, Tensor]:
        values = original(batch)
        seen.append({name: value.item() for name, value in values.items()})
        return values

    method.losses = losses  # type: ignore[method-assign]
    toy_trainer(max_steps=steps, limit_val_batches=0).fit(method, datamodule=data)
    assert all(np.isfinite(value) for values in seen for value in values.values())
    assert all(parameter.isfinite().all() for parameter in method.parameters())
    return seen


def gta5(roots: dict[str, Any], **options: Any) -> GTA5Cityscapes:
    return GTA5Cityscapes(**{**tiny.GTA5_CITYSCAPES, **roots, "batch_size": 4, **options})


# -- roots and files -------------------------------------------------------------------------------------


def test_wrong_roots_are_one_error_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["fit", "--model", "SourceOnly", "--model.backbone", "street_cnn", "--data", "GTA5Cityscapes"]
    roots = ["--data.source_root", str(empty), "--data.target_root", str(tmp_path / "nowhere")]
    options = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")]
    assert main([*command, *roots, *options]) == 1
    error = capsys.readouterr().err
    assert "no image matches images/*.png; the root holds nothing" in error
    assert f"there is no folder {tmp_path / 'nowhere'}" in error
    assert "Then set target_root to the folder that holds: leftImg8bit, gtFine" in error
    assert "Traceback" not in error


def remove(path: Path) -> None:
    path.unlink()


def unknown_value(path: Path) -> None:
    Image.fromarray(np.full((36, 64), 200, np.uint8)).save(path)


def other_size(path: Path) -> None:
    Image.fromarray(np.full((36, 60), 7, np.uint8)).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, r"1 of 4 images have no label: labels/00002\.png"),
        (unknown_value, r"labels/00002\.png: 2304 pixels hold values outside encoding 'ids': \[200\]"),
        (other_size, r"images/00002\.png is 36 x 64 but its label .*labels/00002\.png is 36 x 60"),
        (truncate, r"labels/00002\.png cannot be decoded .* set skip_broken: true"),
    ],
)
def test_a_bad_label_stops_training_and_is_named(
    roots: dict[str, Any], spoil: Callable[[Path], None], message: str
) -> None:
    spoil(Path(roots["source_root"]) / "labels/00002.png")
    with pytest.raises(ValueError, match=message) as error:
        train(SourceOnly(**SMALL), gta5(roots))
    assert isinstance(error.value, LayoutError) == (spoil is remove)  # before the first step


@pytest.mark.parametrize("spoil", [other_size, truncate])
def test_bad_pairs_are_skipped_and_counted_only_when_asked(
    roots: dict[str, Any], spoil: Callable[[Path], None]
) -> None:
    spoil(Path(roots["source_root"]) / "labels/00002.png")
    data = gta5(roots, skip_broken=True, batch_size=3)
    with pytest.warns(UserWarning, match=r"left out 1 of 4 train pairs .*labels/00002\.png"):
        train(SelfTraining(**FLAT), data)
    assert {key: len(reasons) for key, reasons in data.skipped.items()} == {
        "source_root/train": 1, "target_root/train": 0, "target_root/val": 0,
    }  # fmt: skip


def test_a_truncated_jpeg_is_found_without_checksums(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    pairs = [Pair(tmp_path / f"{number}.jpg", None, str(number)) for number in range(2)]
    for pair in pairs:
        Image.fromarray(pixels).save(pair.image)
    assert drop_broken(pairs) == (pairs, [])
    truncate(pairs[1].image)
    usable, reasons = drop_broken(pairs)
    assert usable == pairs[:1]
    assert len(reasons) == 1
    assert "1.jpg is damaged" in reasons[0]


# -- nothing to learn from -------------------------------------------------------------------------------

NEVER = {
    "share": {}, "threshold": {}, "flexmatch": {}, "class_balanced": {"weighting_args": {"momentum": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize("weighting", list(NEVER))
def test_no_pixel_above_the_threshold(weighting: str) -> None:
    method = SelfTraining(weighting=weighting, threshold=1.1, mix="none", **NEVER[weighting], **FLAT)
    weights: list[Tensor] = []
    original = method.mixed_losses

    def mixed_losses(batch: Any) -> dict[str, Tensor]:
        weights.append(batch["mixed"]["weight"])
        return original(batch)

    method.mixed_losses = mixed_losses  # type: ignore[method-assign]
    seen = train(method, StreetShift(**tiny.STREETSHIFT))
    # FlexMatch takes every pixel while nothing was ever confident: its thresholds start at 0.
    assert all(weight.any() == (weighting == "flexmatch") for weight in weights)
    assert all((values["mixed"] > 0) == (weighting == "flexmatch") for values in seen)
    assert all(values["source"] > 0 for values in seen)


def test_no_trusted_pixel_in_semi_supervised_learning() -> None:
    method = SemiMeanTeacher(weighting="threshold", threshold=1.1, copy_epochs=0, **SMALL)
    seen = train(method, StreetShiftSemi(**tiny.STREETSHIFT_SEMI))
    assert [values["unsupervised"] for values in seen] == [0.0, 0.0]
    assert all(values["supervised"] > 0 for values in seen)


def test_no_trusted_pixel_to_contrast() -> None:
    seen = train(SePiCo(threshold=1.1, mix="none", **SEPICO), StreetShift(**tiny.STREETSHIFT))
    assert [(values["contrast_target"], values["mixed"]) for values in seen] == [(0.0, 0.0)] * 2


# -- a class absent from the source ----------------------------------------------------------------------


def only_two_classes(root: Path) -> None:
    """Source labels that know road and car, and nothing else."""
    for path in (root / "labels").iterdir():
        label = np.full((36, 64), 7, np.uint8)
        label[10:30, 8:60] = 26
        Image.fromarray(label).save(path)


@pytest.mark.parametrize("contrast", ["protocl", "bankcl", "distcl"])
def test_a_class_absent_from_the_source_in_contrast(roots: dict[str, Any], contrast: Any) -> None:
    only_two_classes(Path(roots["source_root"]))
    method = SePiCo(contrast=contrast, **SEPICO)
    seen = train(method, gta5(roots))
    count = method.statistics[0].count
    assert set(count.nonzero().flatten().tolist()) == {0, 13}
    assert not method.statistics[0].mean[count == 0].any()
    assert all(values["contrast_source"] > 0 for values in seen)


def test_a_class_absent_from_the_source_in_sampling_and_feature_distance(roots: dict[str, Any]) -> None:
    only_two_classes(Path(roots["source_root"]))
    rare = {"rare_class_temperature": 0.5, "rare_class_min_pixels": 0, "rare_class_min_crop_pixels": 0}
    data = gta5(roots, **rare)
    train(FST(depth=1, feature_distance=0.005, feature_distance_classes=(6, 7, 13), **FLAT), data)
    source = data.datasets["train"]
    picks = {source._pickers["source"](draw, np.random.default_rng(draw)).rare_class for draw in range(40)}
    assert picks == {0, 13}
    nothing = FST(depth=0, feature_distance=0.005, feature_distance_classes=(16,), **FLAT)
    assert all(values["feature_distance"] == 0 for values in train(nothing, gta5(roots)))


def test_a_class_absent_from_the_evaluated_images_does_not_count() -> None:
    method = SourceOnly(**SMALL)
    label = torch.randint(0, 3, (1, 8, 8))
    method.iou.update(label, label)
    result = method.iou.compute()
    assert result["mIoU"] == 1.0
    assert result["iou"][3:].isnan().all()


# -- a batch of one --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [lambda: SourceOnly(**SMALL), lambda: FST(depth=1, **FLAT), lambda: SePiCo(**SEPICO)]
)
def test_a_batch_of_one_trains_with_batch_norm(build: Callable[[], SegmentationMethod]) -> None:
    method = build()
    norms = [m for m in method.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    train(method, StreetShift(**{**tiny.STREETSHIFT, "batch_size": 1}), steps=3)
    assert all(norm.num_batches_tracked > 0 and norm.running_var.isfinite().all() for norm in norms)


def test_a_batch_of_one_that_pools_the_whole_image_says_what_to_set() -> None:
    method = SelfTraining(decode_head="pspnet", head_args={"width": 8}, **FLAT)
    with pytest.raises(ValueError, match=r"a batch of one image .* Set data\.batch_size to 2 or more"):
        train(method, StreetShift(**{**tiny.STREETSHIFT, "batch_size": 1}))
