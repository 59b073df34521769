"""Image benchmarks: what is said about bad input, arguments and cards."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules import (
    CIFAR10,
    CIFAR100,
    STL10,
    BenchmarkDataModule,
    FashionMNIST,
    ImageDataModule,
    ImageNet,
    Imagenette,
    TinyImageNet,
)
from datamodules.layout import LayoutError
from datamodules.readers import BrokenImageError
from tests import tiny_images as tiny
from tests.test_image_datamodules import BENCHMARKS, FILES, MINI, everything, ready
from zoo.registry import benchmark_card, get_benchmark

# What is said about bad input.


@pytest.mark.parametrize(
    ("cls", "found"),
    [
        (ImageNet, r"no image matches train/\*/\*\.JPEG.*set root to the folder that holds: train, val"),
        (Imagenette, r"imagenette2-320/train/\*/\*\.JPEG.*holds: imagenette2-320"),
        (TinyImageNet, r"tiny-imagenet-200/train/.*cs231n.*holds: tiny-imagenet-200"),
        (
            CIFAR10,
            r"no file matches cifar-10-batches-py/data_batch_\*.*kriz/cifar.*holds: cifar-10-batches-py",
        ),
        (CIFAR100, r"no file matches cifar-100-python/train.*holds: cifar-100-python"),
        (STL10, r"no file matches stl10_binary/train_\[Xy\]\.bin.*acoates.*holds: stl10_binary"),
        (FashionMNIST, r"no file matches train-\*-ubyte\*.*Debian package dataset-fashion-mnist"),
    ],
)
def test_a_wrong_root_is_one_error(cls: type[ImageDataModule], found: str, tmp_path: Path) -> None:
    (tmp_path / "something_else").mkdir()
    with pytest.raises(LayoutError, match=f"(?s){found}") as error:
        cls(root=str(tmp_path)).setup("fit")
    assert "the root holds something_else" in str(error.value)
    with pytest.raises(LayoutError, match=r"there is no folder .*nowhere"):
        cls(root=str(tmp_path / "nowhere")).setup("fit")


def test_missing_files_are_counted(tmp_path: Path) -> None:
    (tiny.cifar10_tree(tmp_path) / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(LayoutError, match=r"expected 5 files .* found 4: not fully extracted"):
        CIFAR10(root=str(tmp_path)).setup("fit")


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    data = ImageNet(root=str(tiny.imagenet_tree(tmp_path)), **{**FILES, "resize": None, "image_size": 48})
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(ValueError, match=r"\.JPEG: crop \(48, 48\) does not fit an image of \(40, 60\)"):
            next(iter(loader))
    with pytest.raises(ValueError, match=r"image_size=64 must .* resize=32"):
        ImageNet(image_size=64, resize=32)


def test_an_unreadable_file_is_named_or_left_out(tmp_path: Path) -> None:
    broken = tiny.imagenet_tree(tmp_path) / "val" / tiny.WNIDS[1] / "ILSVRC2012_val_00000003.JPEG"
    broken.write_bytes(b"no picture")
    data = ImageNet(root=str(tmp_path), **FILES)
    data.setup("validate")
    with pytest.raises(BrokenImageError, match=r"ILSVRC2012_val_00000003\.JPEG cannot be decoded"):
        everything(data.val_dataloader())
    data = ImageNet(root=str(tmp_path), skip_broken=True, **FILES)
    with pytest.warns(UserWarning, match="skip_broken left out 1 of 6 val pairs"):
        data.setup("validate")
    assert len(everything(data.val_dataloader())["label"]) == 5


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_truncated_idx_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tiny.fashion_mnist_tree(tmp_path, suffix=suffix) / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BrokenImageError, match=r"train-images-idx3-ubyte.* (truncated|cannot be unpacked)"):
        FashionMNIST(root=str(tmp_path), **MINI).setup("fit")
    path.write_bytes(b"hello world")
    with pytest.raises(BrokenImageError, match=r"no idx file|cannot be unpacked"):
        FashionMNIST(root=str(tmp_path), **MINI).setup("fit")
    path.unlink()
    with pytest.raises(LayoutError, match=r"neither .*train-images-idx3-ubyte nor"):
        FashionMNIST(root=str(tmp_path), **MINI).setup("fit")


def test_truncated_archives_are_named(tmp_path: Path) -> None:
    batch = tiny.cifar10_tree(tmp_path / "c") / "cifar-10-batches-py/data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-100])
    with pytest.raises(BrokenImageError, match="data_batch_2 cannot be read"):
        CIFAR10(root=str(tmp_path / "c"), **MINI).setup("fit")
    images = tiny.stl10_tree(tmp_path / "s") / "stl10_binary/test_X.bin"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(BrokenImageError, match=r"test_X\.bin is truncated"):
        STL10(root=str(tmp_path / "s"), **MINI).setup("test")


def test_pickles_build_nothing_but_arrays(tmp_path: Path) -> None:
    batch = tiny.cifar10_tree(tmp_path) / "cifar-10-batches-py/test_batch"
    batch.write_bytes(pickle.dumps(Path("anything"), protocol=2))
    with pytest.raises(BrokenImageError, match=r"test_batch cannot be read \(it asks for pathlib"):
        CIFAR10(root=str(tmp_path), **MINI).setup("test")
    batch.write_bytes(pickle.dumps({"pixels": 1}, protocol=2))
    with pytest.raises(BrokenImageError, match=r"no batch of CIFAR10.*found \['pixels'\]"):
        CIFAR10(root=str(tmp_path), **MINI).setup("test")


def test_labels_outside_the_classes(tmp_path: Path) -> None:
    labels = np.full(20, 10, np.uint8)
    tiny.write_idx(tiny.fashion_mnist_tree(tmp_path / "f") / "t10k-labels-idx1-ubyte.gz", labels)
    with pytest.raises(LayoutError, match=r"20 labels of test are outside the 10 classes, e\.g\. 10"):
        FashionMNIST(root=str(tmp_path / "f"), **MINI).setup("test")
    tiny.save_jpeg(tiny.imagenet_tree(tmp_path / "i") / "val/n777/x.JPEG", 0, 0)
    with pytest.raises(LayoutError, match=r"x\.JPEG is of class 'n777', which is none of the 3 classes"):
        ImageNet(root=str(tmp_path / "i"), **FILES).setup("validate")
    (tiny.tiny_imagenet_tree(tmp_path / "t") / "tiny-imagenet-200/val/val_annotations.txt").write_text("")
    with pytest.raises(LayoutError, match=r"val_annotations\.txt does not name 4 of 4 images, e\.g\. val_0"):
        TinyImageNet(root=str(tmp_path / "t"), **MINI).setup("validate")
    tiny.write_idx(tmp_path / "f" / "t10k-labels-idx1-ubyte.gz", labels[:9] * 0)
    with pytest.raises(LayoutError, match="test has 20 images but 9 labels"):
        FashionMNIST(root=str(tmp_path / "f"), **MINI).setup("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labelled_fraction": 0.0}, r"labelled_fraction must lie in \(0, 1\]"),
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"num_val": 0}, "num_val must be at least 1"),
        ({"flip": 2.0}, r"flip must be a probability"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale must be two shares"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CIFAR10(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labelled_fraction": 0.06}, "labels 5 of 80 training images and none of 5 classes, e.g. class 0"),
        ({"num_val": 100}, "num_val=100 must leave some of the 100 labelled training images"),
        ({"num_train": 81}, "num_train=81, but there are 80 training images"),
    ],
)
def test_numbers_that_do_not_fit_the_set(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ready("cifar10", tmp_path, "fit", **settings)


def test_hyper_parameters_follow_the_keyword_arguments(tmp_path: Path) -> None:
    data = STL10(root=str(tmp_path), fold=1, image_size=64, batch_size=7)
    assert data.hparams["fold"] == 1
    assert data.hparams["image_size"] == 64
    assert data.hparams["batch_size"] == 7
    assert "common" not in data.hparams


def test_arguments_are_exposed_to_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BenchmarkDataModule, "data")
    options = [
        "--data=datamodules.STL10",
        "--data.fold=3",
        "--data.image_size=64",
        "--data.crop_scale=[0.3, 0.9]",
        "--data.labelled_fraction=0.1",
        "--data.views=zoo.nn.multicrop.MultiCrop",
        "--data.views.global_size=32",
        "--data.views.local_size=16",
    ]
    data = parser.instantiate(parser.parse_args(options)).data
    assert isinstance(data, STL10)
    assert (data.fold, data.image_size, data.crop_scale) == (3, 64, (0.3, 0.9))
    views = data.on_after_batch_transfer(
        {"image": torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "draw": torch.arange(2)}, 0
    )["views"]
    assert views["global"].shape == (4, 3, 32, 32)
    assert views["local"].shape == (16, 3, 16, 16)


@pytest.mark.parametrize("name", [*BENCHMARKS, "optdigits"])
def test_cards_tell_the_splits(name: str) -> None:
    card, cls = benchmark_card(name), get_benchmark(name)
    assert cls.name == name  # type: ignore[attr-defined]
    assert issubclass(cls, ImageDataModule)
    for split, declared in (cls.layout["root"].splits if cls.layout else {}).items():
        if cls.layout["root"].unit == "images" and name != "imagenet100":
            assert card.splits[split] == declared.counts[0]
    if cls.holds_out_val:
        assert card.splits["val"] == cls.default_num_val
