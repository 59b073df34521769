"""Image benchmarks: official layouts, splits, batches, and what is said about broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules import (
    CIFAR10,
    CIFAR100,
    STL10,
    FashionMNIST,
    ImageDataModule,
    ImageNet,
    ImageNet100,
    Imagenette,
    Optdigits,
    TinyImageNet,
)
from datamodules import fashion_mnist as fashion_mnist_module
from datamodules.image_sets import NO_LABEL, balanced_choice
from datamodules.layout import LayoutError
from tests import tiny_images as tiny

MINI: dict[str, Any] = {"allow_partial": True, "seed": 0}
FILES: dict[str, Any] = {**MINI, "image_size": 32, "resize": 36, "num_workers": 0, "batch_size": 4}


class Halves(nn.Module):
    """A stand-in for multi-crop that shows what it was given."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        assert image.dtype == torch.uint8
        return {
            "global": torch.cat([image, image]).float() / 255,
            "local": image[..., ::2, ::2].float() / 255,
        }


BENCHMARKS = {
    "imagenet": lambda root, **s: ImageNet(root=str(tiny.imagenet_tree(root)), **{**FILES, **s}),
    "imagenet100": lambda root, **s: ImageNet100(root=str(tiny.imagenet_tree(root)), **{**FILES, **s}),
    "imagenette": lambda root, **s: Imagenette(root=str(tiny.imagenette_tree(root)), **{**FILES, **s}),
    "tiny_imagenet": lambda root, **s: TinyImageNet(
        root=str(tiny.tiny_imagenet_tree(root)), **{**FILES, "resize": None, **s}
    ),
    "cifar10": lambda root, **s: CIFAR10(
        root=str(tiny.cifar10_tree(root)), **{**MINI, "batch_size": 4, "num_val": 20, **s}
    ),
    "cifar100": lambda root, **s: CIFAR100(
        root=str(tiny.cifar100_tree(root)), **{**MINI, "batch_size": 4, "num_val": 100, **s}
    ),
    "stl10": lambda root, **s: STL10(
        root=str(tiny.stl10_tree(root)), **{**MINI, "batch_size": 4, "num_val": 10, **s}
    ),
    "fashion_mnist": lambda root, **s: FashionMNIST(
        root=str(tiny.fashion_mnist_tree(root)), **{**MINI, "batch_size": 4, "num_val": 10, **s}
    ),
}
FROM_FILES = ("imagenet", "imagenet100", "imagenette", "tiny_imagenet")
SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96, "fashion_mnist": 28}


def ready(name: str, root: Path, stage: str | None = None, **settings: Any) -> ImageDataModule:
    data = BENCHMARKS[name](root, **settings)
    data.prepare_data()
    data.setup(stage)
    return data


def everything(loader: Any) -> dict[str, Any]:
    """All batches of a loader as one."""
    batches = list(loader)
    return {
        key: torch.cat([b[key] for b in batches])
        if isinstance(batches[0][key], Tensor)
        else [value for b in batches for value in b[key]]
        for key in batches[0]
    }


# What every benchmark shows.


@pytest.mark.parametrize("name", BENCHMARKS)
def test_images_and_labels_belong_together(name: str, tmp_path: Path) -> None:
    data = ready(name, tmp_path)
    size = SIZES.get(name, 32)
    for loader in (
        data.train_dataloader(),
        data.val_dataloader(),
        data.test_dataloader(),
        data.bank_dataloader(),
    ):
        batch = everything(loader)
        assert (batch["image"].dtype, tuple(batch["image"].shape[1:])) == (torch.uint8, (3, size, size))
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert len(batch["label"]) == len(batch["index"]) == len(batch["image"]) > 0
        # The miniature's red value tells the class; JPEG may be off by one or two.
        middle = batch["image"][:, 0, size // 2, size // 2].int()
        assert ((middle - (20 * batch["label"] + 10) % 256).abs() <= 3).all()
    assert ("name" in everything(data.test_dataloader())) == (name in FROM_FILES)
    assert "name" not in next(iter(data.train_dataloader()))
    assert len(set(batch["label"].tolist())) > 2


@pytest.mark.parametrize("name", BENCHMARKS)
def test_validation_images_are_never_trained_on(name: str, tmp_path: Path) -> None:
    data = ready(name, tmp_path)
    train, val = data.subset("train"), data.subset("val")
    if data.holds_out_val:
        assert not set(train.positions) & set(val.positions)
        assert len(val) == data.num_val
        assert len(train) + len(val) == len(train.source.labels)
        counts = np.bincount(val.labels, minlength=data.num_classes)
        assert counts.max() - counts.min() <= 1  # the miniatures' classes are equally large
    else:
        assert train.source is not val.source


def test_a_training_epoch_shows_every_image_once_in_a_new_order(tmp_path: Path) -> None:
    data = ready("cifar10", tmp_path)
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        orders.append(everything(loader)["index"].tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(80))
    assert orders[0] != orders[1]


def test_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    root = str(tiny.imagenet_tree(tmp_path))

    def stream(**settings: Any) -> dict[str, Any]:
        data = ImageNet(root=root, **{**FILES, **settings})
        data.setup("fit")
        return everything(data.train_dataloader())

    reference, workers = stream(), stream(num_workers=2)
    assert torch.equal(reference["image"], workers["image"])
    assert not torch.equal(reference["index"], stream(seed=1)["index"])


# Batches on the device.


def test_evaluation_batches_only_become_float(tmp_path: Path) -> None:
    data = ready("fashion_mnist", tmp_path)
    batch = next(iter(data.val_dataloader()))
    after = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(after["image"], batch["image"].float() / 255)
    assert torch.equal(after["image"][:, 0], after["image"][:, 2])  # grey, three times


def test_pretraining_batches_get_views(tmp_path: Path) -> None:
    data = ready("cifar10", tmp_path, views=Halves(), labelled_fraction=0.5)
    batch = next(iter(data.train_dataloader()))
    after = data.on_after_batch_transfer(batch, 0)
    assert after["views"]["global"].shape == (8, 3, 32, 32)
    assert torch.equal(after["views"]["local"], batch["image"][..., ::2, ::2].float() / 255)
    assert torch.equal(after["image"], batch["image"].float() / 255)
    assert len(data.datasets["train"]) == 80  # all images, also those whose label is not used
    assert len(data.subset("labelled")) == 40
    assert "views" not in data.hparams


def test_future_batches_are_augmented_one_by_one(tmp_path: Path) -> None:
    data = ready("cifar10", tmp_path, views=Halves())
    data.future_batches = 2
    batch = next(iter(data.train_dataloader()))
    assert len(batch["image"]) == 12
    after = data.on_after_batch_transfer(batch, 0)
    steps = [after, *after["future"]]
    assert [step["views"]["global"].shape[0] for step in steps] == [8, 8, 8]
    assert torch.equal(torch.cat([step["index"] for step in steps]), batch["index"])


def test_supervised_batches_are_cropped_and_mirrored(tmp_path: Path) -> None:
    ramp = torch.arange(0, 256, 4).expand(16, 3, 64, 64).byte()
    batch = {"image": ramp, "draw": torch.arange(16)}

    def after(**settings: Any) -> Tensor:
        torch.manual_seed(0)
        data = CIFAR10(batch_size=16, **settings)
        return data.on_after_batch_transfer(dict(batch), 0)["image"]

    assert torch.allclose(after(flip=0.0, crop_scale=None), ramp / 255)
    assert torch.allclose(after(flip=1.0, crop_scale=None), ramp.flip(-1) / 255)
    crops = after(flip=0.0, crop_scale=(0.25, 0.25))
    spans = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]  # a quarter of the area is about half of the width
    assert 0.38 < spans.min() < spans.max() < 0.62
    assert crops[:, 0, 0, 0].std() > 0.05
    assert crops.shape == ramp.shape


# Choices of images.


def test_balanced_choice_keeps_the_shares() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = balanced_choice(labels, 10, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [6, 3, 1]
    assert np.array_equal(chosen, balanced_choice(labels, 10, seed=3))
    assert not np.array_equal(chosen, balanced_choice(labels, 10, seed=4))
    assert np.array_equal(balanced_choice(labels, 100, seed=0), np.arange(100))


def test_few_labels_are_balanced_and_fixed(tmp_path: Path) -> None:
    root = str(tiny.cifar10_tree(tmp_path))
    data = CIFAR10(root=root, num_val=20, labelled_fraction=0.25, **MINI)
    data.setup("fit")
    assert np.bincount(data.subset("labelled").labels).tolist() == [2] * 10
    assert len(data.datasets["train"]) == 20  # supervised: nothing but the labelled
    other_training_seed = CIFAR10(root=root, num_val=20, labelled_fraction=0.25, **{**MINI, "seed": 9})
    assert np.array_equal(other_training_seed.subset("labelled").positions, data.subset("labelled").positions)
    small = CIFAR10(root=root, num_val=20, num_train=40, **MINI)
    assert np.bincount(small.subset("train").labels).tolist() == [4] * 10


def test_stl10_parts(tmp_path: Path) -> None:
    data = ready("stl10", tmp_path, views=Halves())
    train, bank = data.subset("train"), everything(data.bank_dataloader())
    assert len(train) == 40 - 10 + 7
    assert (train.labels == NO_LABEL).sum() == 7
    assert (bank["label"] >= 0).all()
    assert len(bank["label"]) == 30
    assert (bank["image"][:, :, 0] == torch.tensor([255, 0, 200])[:, None])[:, 0].all()  # rows are rows
    mixed = train.batch(np.array([36, 0, 30, 1]))
    assert mixed["label"].tolist()[::2] == [NO_LABEL, NO_LABEL]
    assert mixed["image"][0, 1, 9, 9] == tiny.pixel(6, 6)[1]  # the last unlabelled image
    assert mixed["image"][1, 0, 9, 9] == 20 * mixed["label"][1] + 10
    assert (
        len(BENCHMARKS["stl10"](tmp_path / "again", unlabelled=False, views=Halves()).subset("train")) == 30
    )


def test_stl10_folds(tmp_path: Path) -> None:
    data = ready("stl10", tmp_path, fold=2)
    assert data.subset("labelled").positions.tolist() == list(range(8, 18))
    assert not set(data.subset("val").positions) & set(range(8, 18))
    with pytest.raises(ValueError, match=r"fold must lie in 0\.\.9, got 10"):
        STL10(fold=10)


def test_imagenet_with_flat_validation_images(tmp_path: Path) -> None:
    data = ImageNet(root=str(tiny.imagenet_tree(tmp_path, flat_val=True)), **FILES)
    data.setup("test")
    batch = everything(data.test_dataloader())
    assert batch["label"].tolist() == [2, 2, 1, 1, 0, 0]
    assert batch["name"][0] == "ILSVRC2012_val_00000001"
    (tmp_path / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    with pytest.raises(LayoutError, match=r"flat in val, so .*meta\.mat is needed.*sort the images"):
        ImageNet(root=str(tmp_path), **FILES).setup("test")


def test_imagenet100_reads_its_classes_only(tmp_path: Path) -> None:
    root = str(tiny.imagenet_tree(tmp_path / "tree"))
    first = ImageNet100(root=root, num_classes=2, **FILES)
    assert set(first.subset("train").labels) == {0, 1}
    assert first.num_classes == 2
    listed = tmp_path / "classes.txt"
    listed.write_text(f"{tiny.WNIDS[2]} cassette player\n{tiny.WNIDS[0]}\n")
    data = ImageNet100(str(listed), root=root, **FILES)
    assert data.num_classes == 2
    batch = data.subset("val").batch(np.arange(4))
    assert (batch["image"][:, 0, 9, 9].int() - 10).div(20).round().tolist() == [0, 0, 2, 2]
    assert batch["label"].tolist() == [1, 1, 0, 0]  # in the order of the list
    listed.write_text("n99999999\n")
    with pytest.raises(LayoutError, match=r"1 of its 1 classes have no folder .*n99999999"):
        ImageNet100(str(listed), root=root, **FILES).setup("fit")
    with pytest.raises(ValueError, match="there is no such file"):
        ImageNet100(str(tmp_path / "none.txt"))


def test_fashion_mnist_is_found_in_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.fashion_mnist_tree(tmp_path / "debian")
    tiny.fashion_mnist_tree(tmp_path / "torchvision/FashionMNIST/raw", suffix="")
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "debian")
    for root in (None, str(tmp_path / "debian"), str(tmp_path / "torchvision")):
        data = FashionMNIST(root=root, num_val=10, **MINI)
        data.setup()
        assert len(data.datasets["test"]) == 20


def test_images_are_resized_once(tmp_path: Path) -> None:
    data = ready("fashion_mnist", tmp_path, image_size=32)
    assert next(iter(data.val_dataloader()))["image"].shape[1:] == (3, 32, 32)


def test_evaluation_cuts_the_centre_and_training_any_place(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (32, 64, 3))
    for split in ("train", "val"):
        (tmp_path / split / "n0").mkdir(parents=True)
        Image.fromarray(columns).save(tmp_path / split / "n0" / "a.JPEG", quality=95)
    data = ImageNet(root=str(tmp_path), **{**FILES, "resize": 32})
    data.setup()
    centre = next(iter(data.val_dataloader()))["image"][0, 0, 0].float()
    assert centre.mean() == pytest.approx(127.5, abs=2)
    means = {round(float(data.datasets["train"][draw]["image"].float().mean())) for draw in range(12)}
    assert len(means) > 6
    assert min(means) >= 60
    assert max(means) <= 195


def test_optdigits_needs_nothing() -> None:
    data = Optdigits()
    data.prepare_data()
    data.setup()
    assert [len(data.subset(name)) for name in ("train", "val", "test")] == [1197, 200, 400]
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape[1:] == (3, 8, 8)
    assert batch["image"].max() == 255
    assert data.flip == 0.0
    counts = np.bincount(data.subset("test").labels)
    assert counts.min() >= 38


def test_download_asks_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    import torchvision

    calls: list[dict[str, Any]] = []
    for cls in (CIFAR10, CIFAR100, STL10, FashionMNIST, Imagenette):
        name = str(cls.torchvision_class)
        signature = inspect.signature(getattr(torchvision.datasets, name))

        def record(*args: Any, _signature: inspect.Signature = signature, **kwargs: Any) -> None:
            calls.append(dict(_signature.bind(*args, **kwargs).arguments))

        monkeypatch.setattr(torchvision.datasets, name, record)
        data = cls(root=str(tmp_path / name), download=True)
        data.prepare_data()
        assert calls[-1]["download"] is True
        assert calls[-1]["root"] == tmp_path / name
    assert calls[2]["split"] == "train+unlabeled"
    assert calls[4]["size"] == "320px"
    assert str(CIFAR10(download=True).root).endswith("cifar10")  # a folder of the cache
    with pytest.raises(ValueError, match=r"cannot be downloaded automatically .*image-net\.org.*set root"):
        ImageNet(download=True)
