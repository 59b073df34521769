"""The datamodules: what a batch holds, which images it shows, and what happens on the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor, nn

import datamodules
from datamodules import BenchmarkDataModule, GTA5Cityscapes, StreetShift
from datamodules.batches import collate, random_flip, split_future, to_float
from datamodules.layout import LayoutError
from tests.tiny import GTA5_CITYSCAPES, expected_pairs

ROOT = Path(__file__).parents[1]


class Darken(nn.Module):
    """A stand-in for photometric augmentation that leaves a trace."""

    def forward(self, image: Tensor) -> Tensor:
        return image * 0.5


def uda(roots: dict[str, Any], stage: str | None = None, **settings: Any) -> GTA5Cityscapes:
    data = GTA5Cityscapes(**{**GTA5_CITYSCAPES, **roots, "seed": 0, **settings})
    data.prepare_data()
    data.setup(stage)
    return data


def epoch(data: BenchmarkDataModule, number: int = 0) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return list(loader)


# Domain adaptation.


def test_uda_batch(roots: dict[str, Any]) -> None:
    data = uda(roots)
    batch = epoch(data)[0]
    assert {domain: set(tensors) for domain, tensors in batch.items()} == {
        "source": {"image", "label", "index"},
        "target": {"image", "index"},
    }
    for domain in batch.values():
        assert (domain["image"].shape, domain["image"].dtype) == ((2, 3, 32, 32), torch.uint8)
        assert (domain["index"].shape, domain["index"].dtype) == ((2,), torch.int64)
    assert (batch["source"]["label"].shape, batch["source"]["label"].dtype) == ((2, 32, 32), torch.uint8)
    after = data.on_after_batch_transfer(batch, 0)
    assert after["source"]["image"].dtype == torch.float32
    assert 0 <= after["source"]["image"].min() < 0.1 < 0.9 < after["source"]["image"].max() <= 1
    assert after["source"]["label"].dtype == torch.int64
    assert "label" not in after["target"]


def test_target_labels_are_not_even_opened(roots: dict[str, Any]) -> None:
    for label in Path(roots["target_root"]).glob("gtFine/train/*/*"):
        label.unlink()
    assert len(epoch(uda(roots))) == 2
    with pytest.raises(LayoutError, match="train: 5 of 5 images have no label"):
        uda(roots, oracle=True)


def test_oracle_labels_the_target(roots: dict[str, Any]) -> None:
    data = uda({**roots, "source_root": None}, oracle=True, crop=None, flip=0.0)
    batch = epoch(data)[0]
    train = {tuple(image.ravel()[:9]): label for image, label in expected_pairs(5, (32, 64), seed=1)}
    for image, label in zip(batch["source"]["image"], batch["source"]["label"], strict=True):
        assert np.array_equal(train[tuple(image.permute(1, 2, 0).numpy().ravel()[:9])], label.numpy())
    assert "label" not in batch["target"]


def test_the_stream_depends_on_the_seed_alone(roots: dict[str, Any]) -> None:
    def stream(**settings: Any) -> list[dict[str, Any]]:
        return epoch(uda(roots, **settings), 1)

    reference, workers, cached = stream(), stream(num_workers=2), stream(cache="ram")
    for other in (workers, cached):
        for a, b in zip(reference, other, strict=True):
            assert torch.equal(a["source"]["image"], b["source"]["image"])
            assert torch.equal(a["source"]["label"], b["source"]["label"])
            assert torch.equal(a["target"]["index"], b["target"]["index"])
    assert not torch.equal(reference[0]["source"]["image"], stream(seed=1)[0]["source"]["image"])


def test_without_a_seed_that_of_seed_everything_is_used(
    roots: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert uda(roots, seed=None).draw_seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert uda(roots, seed=None).draw_seed == 11
    assert uda(roots, seed=5).draw_seed == 5


def test_an_epoch_passes_over_the_largest_domain(roots: dict[str, Any]) -> None:
    data = uda(roots, batch_size=1)
    batches = [epoch(data, number) for number in (0, 1)]
    assert [len(batch) for batch in batches] == [5, 5]
    orders = [[int(batch["target"]["index"]) for batch in one] for one in batches]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(5))
    assert orders[0] != orders[1]
    assert len(epoch(uda(roots, batch_size=9))) == 1  # more than there are images: still a full batch
    assert epoch(uda(roots, batch_size=9))[0]["source"]["index"].shape == (9,)


def test_one_error_for_both_roots(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"(?s)source_root is not set.*there is no folder .*nowhere"):
        GTA5Cityscapes(target_root=str(tmp_path / "nowhere")).setup("fit")


def test_each_stage_needs_its_own_roots_only(roots: dict[str, Any]) -> None:
    data = uda({**roots, "source_root": None}, stage="test")
    assert set(data.datasets) == {"test"}
    with pytest.raises(RuntimeError, match=r"has no 'train' dataset yet: call setup\('fit'\) first"):
        data.train_dataloader()
    assert not data.inspect("fit")["source_root"].ok  # a report, not an error


def test_published_sizes_are_the_defaults() -> None:
    data = GTA5Cityscapes()
    assert (data.source_resize, data.resize, data.batch_size) == ((1280, 720), (1024, 512), 2)
    assert data.labelled_crop is not None
    assert (data.labelled_crop.size, data.labelled_crop.max_class_share) == ((512, 512), 0.75)
    assert (data.rare_class_min_pixels, data.labelled_crop.min_rare_pixels) == (3000, 1500)
    assert (data.num_classes, data.eval_classes) == (19, tuple(range(19)))


# Evaluation.


def test_evaluation_batches(roots: dict[str, Any]) -> None:
    data = uda(roots, eval_batch_size=2, target_resize=(32, 16))
    batches = list(data.val_dataloader())
    assert [len(batch["name"]) for batch in batches] == [2, 1]
    assert set(batches[0]) == {"image", "label", "index", "name", "size"}
    assert batches[0]["size"] == [(32, 64)] * 2
    assert batches[0]["image"].shape == (2, 3, 16, 32)
    assert batches[0]["label"].shape == (2, 32, 64)  # at its stored size, where it is evaluated
    assert [name for batch in batches for name in batch["name"]] == [
        "valcity0_000000_000019",
        "valcity0_000002_000019",
        "valcity1_000001_000019",
    ]
    after = data.on_after_batch_transfer(batches[0], 0)
    assert (after["image"].dtype, after["label"].dtype) == (torch.float32, torch.int64)
    assert torch.equal((after["image"] * 255).round().byte(), batches[0]["image"])  # no augmentation
    assert len(list(data.test_dataloader())) == len(list(data.predict_dataloader())) == 2  # val, by custom


def test_images_of_different_size(roots: dict[str, Any]) -> None:
    image = next(Path(roots["target_root"]).glob("leftImg8bit/val/*/*000001*"))
    label = next(Path(roots["target_root"]).glob("gtFine/val/*/*000001*"))
    Image.new("RGB", (48, 32)).save(image)
    Image.new("L", (48, 32)).save(label)
    data = uda(roots, eval_batch_size=3, target_resize=None)
    expected = r"images of different sizes \(height, width\): \[\(32, 48\), \(32, 64\)\].* eval_batch_size: 1"
    with pytest.raises(ValueError, match=expected):
        list(data.val_dataloader())
    assert len(list(uda(roots, eval_batch_size=1, target_resize=None).val_dataloader())) == 3


def test_skip_broken_counts_and_reports(roots: dict[str, Any]) -> None:
    broken = Path(roots["source_root"]) / "images/00002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"images/00002\.png cannot be decoded"):
        epoch(uda(roots, batch_size=5))
    with pytest.warns(UserWarning, match=r"left out 1 of 4 train pairs .*images/00002.png"):
        data = uda(roots, batch_size=5, skip_broken=True)
    assert {key: len(reasons) for key, reasons in data.skipped.items()} == {
        "source_root/train": 1,
        "target_root/train": 0,
        "target_root/val": 0,
    }
    assert set(epoch(data)[0]["source"]["index"].tolist()) == {0, 1, 2}


def test_nothing_left_after_skipping(roots: dict[str, Any]) -> None:
    for image in Path(roots["source_root"]).glob("images/*"):
        image.write_bytes(b"")
    with pytest.raises(LayoutError, match=r"no train pair of .* is usable, e\.g\. .*images/00001\.png"):
        uda(roots, skip_broken=True)


# On the device.


def test_flip_mirrors_image_and_label_together() -> None:
    torch.manual_seed(0)
    image = torch.arange(64 * 3 * 2 * 5, dtype=torch.float32).view(64, 3, 2, 5)
    label = torch.arange(64 * 2 * 5).view(64, 2, 5)
    index = torch.arange(64)
    flipped = random_flip({"image": image, "label": label, "index": index}, 0.5)
    mirrored = 0
    for i in range(64):
        is_mirrored = torch.equal(flipped["image"][i], image[i].flip(-1))
        mirrored += is_mirrored
        assert is_mirrored or torch.equal(flipped["image"][i], image[i])
        assert torch.equal(flipped["label"][i], label[i].flip(-1) if is_mirrored else label[i])
    assert 16 < mirrored < 48
    assert torch.equal(flipped["index"], index)
    assert torch.equal(random_flip({"image": image}, 0.0)["image"], image)
    assert torch.equal(random_flip({"image": image}, 1.0)["image"], image.flip(-1))


def test_source_augment_touches_source_images_only(roots: dict[str, Any]) -> None:
    plain, dark = uda(roots, flip=0.0), uda(roots, flip=0.0, source_augment=Darken())
    batch = epoch(plain)[0]
    without, with_it = plain.on_after_batch_transfer(batch, 0), dark.on_after_batch_transfer(batch, 0)
    assert torch.equal(with_it["source"]["image"], without["source"]["image"] * 0.5)
    assert torch.equal(with_it["target"]["image"], without["target"]["image"])
    assert torch.equal(with_it["source"]["label"], without["source"]["label"])
    flat = next(iter(dark.val_dataloader()))
    assert torch.equal(dark.on_after_batch_transfer(flat, 0)["image"], to_float(flat)["image"])


def test_future_batches_come_on_top(roots: dict[str, Any]) -> None:
    data = uda(roots, flip=0.0)
    plain = epoch(data)
    data.future_batches = 2
    loaded = epoch(data)
    assert len(loaded) == len(plain)  # look-ahead does not change the number of steps
    assert loaded[0]["source"]["image"].shape[0] == 6
    batch = data.on_after_batch_transfer(loaded[0], 0)
    assert set(batch) == {"source", "target", "future"}
    assert len(batch["future"]) == 2
    everything = to_float(loaded[0]["source"])
    for number, part in enumerate([batch, *batch["future"]]):
        assert set(part["source"]) == {"image", "label", "index"}
        assert set(part["target"]) == {"image", "index"}
        for key, value in part["source"].items():
            assert torch.equal(value, everything[key][2 * number : 2 * number + 2])


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 3 images, not a multiple of batch_size=2"):
        split_future({"source": {"image": torch.zeros(3, 3, 4, 4)}}, 2)


def test_collate_nests_and_keeps_names() -> None:
    samples = [{"a": {"image": torch.full((3, 2, 2), i), "index": i}, "name": f"n{i}"} for i in range(2)]
    batch = collate(samples)
    assert torch.equal(batch["a"]["image"][1], samples[1]["a"]["image"])  # type: ignore[index]
    assert batch["a"]["index"].tolist() == [0, 1]
    assert batch["name"] == ["n0", "n1"]


# Semi-supervised.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"crop": (0, 8)}, "crop must be a height and a width of at least one pixel"),
        ({"flip": 1.5}, r"flip must be a probability in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GTA5Cityscapes(**settings)


def test_hyper_parameters_are_the_arguments_and_not_for_the_logger() -> None:
    data = StreetShift(shift=0.5, source_augment=Darken())
    assert data.hparams["shift"] == 0.5
    assert "source_augment" not in data.hparams
    assert "source_root" not in data.hparams  # derived, and a path of this machine
    assert not data._log_hyperparams


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("true", "PhotometricJitter"),
        ("false", None),
        ('{"class_path": "tests.test_datamodules.Darken"}', "Darken"),
        ("tests.test_datamodules.Darken", "Darken"),
    ],
)
def test_arguments_are_exposed_to_the_command_line(option: str, expected: str | None) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BenchmarkDataModule, "data")
    options = ["--data=datamodules.GTA5Cityscapes", "--data.crop=[64, 32]", f"--data.source_augment={option}"]
    data = parser.instantiate(parser.parse_args(options)).data
    assert isinstance(data, GTA5Cityscapes)
    assert data.crop is not None
    assert data.crop.size == (64, 32)
    assert (None if data.source_augment is None else type(data.source_augment).__name__) == expected


def test_importing_the_package_and_its_facts_does_not_import_torch() -> None:
    code = (
        "import sys, datamodules, datamodules.layout, datamodules.labels, datamodules.streetshift;"
        "assert 'StreetShift' in dir(datamodules); assert 'torch' not in sys.modules;"
        "datamodules.StreetShift; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert {type(getattr(datamodules, name)).__name__ for name in datamodules.__all__} == {"ABCMeta"}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = datamodules.Nothing


# With the Trainer.
