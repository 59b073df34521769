"""Training on whole images (``window: whole``): views are those of unpadded images, and nobody else sees padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as VF
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode

from callbacks import ExactResume, KNNProbe, LinearProbe, NoMonitors, OnlineLinearProbe, RawPixelProbe
from callbacks.collapse import CollapseMonitor
from callbacks.preview import preview
from datamodules import ImageNet, ImageNet100
from datamodules.image_sizes import padded
from tests.test_monitors import dino
from tests.test_multicrop import PLAIN, photos
from tests.toy import toy_trainer
from zoo.doctor.data import decoded
from zoo.nn import MultiCrop
from zoo.nn.multicrop import random_boxes
from zoo.nn.resample import _resize_together, crop_resize

#: Height and width: landscape, portrait, smaller than the views, and larger than ``longest_side``.
SIZES = [(40, 56), (56, 30), (12, 20), (50, 100)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of photographs of all sizes; lossless, whatever their suffix says."""
    root = tmp_path_factory.mktemp("tree")
    for label, wnid in enumerate(("n1", "n2")):
        for split in ("train", "val"):
            (root / split / wnid).mkdir(parents=True)
            for number, (height, width) in enumerate(SIZES):
                pixels = photos(2, height, width)[label].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(root / split / wnid / f"{number}.JPEG", "PNG")
    return str(root)


def imagenet(tree: str, **settings: Any) -> ImageNet:
    common = {
        "allow_partial": True,
        "seed": 0,
        "num_workers": 0,
        "batch_size": 8,
        "image_size": 16,
        "resize": 20,
    }
    whole = {"window": "whole", "longest_side": 64}
    data = ImageNet100(num_classes=2, root=tree, **{**common, **whole, **settings})
    data.prepare_data()
    data.setup()
    return data


def training_batch(data: ImageNet) -> dict[str, Tensor]:
    return next(iter(data.train_dataloader()))


def small_views(**options: Any) -> MultiCrop:
    return MultiCrop(global_size=16, local_size=8, num_local=2, allow_upscaling=True, **options)


def unpadded(sizes: list[tuple[int, int]] = SIZES[:3]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Images, and their padded batch, whose padding is white noise: what is read of it shows."""
    images = [photos(1, *size)[0] for size in sizes]
    batch, size = padded(images)
    noise = torch.randint(0, 256, batch.shape, dtype=torch.uint8)
    for square, image in zip(noise, images, strict=True):
        square[:, : image.shape[1], : image.shape[2]] = image
    return images, noise, size


# Views.


def test_views_are_those_of_torchvision_of_unpadded_images() -> None:
    images, batch, size = unpadded()
    crop = small_views(global_scale=(0.2, 1.0), **{**PLAIN, "flip": 0.5})
    torch.manual_seed(3)
    views = crop(batch, size)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    boxes = random_boxes(size.repeat(2, 1), (0.2, 1.0), crop.ratio, generator)
    mirrored = torch.rand(2, len(images), generator=generator).flatten() < 0.5
    for row, (box, mirror) in enumerate(zip(boxes.tolist(), mirrored, strict=True)):
        image = images[row % len(images)]
        expected = VF.resized_crop(image, *box, [16, 16], InterpolationMode.BICUBIC, antialias=True)
        expected = VF.horizontal_flip(expected) if mirror else expected
        assert torch.equal((views["global"][row] * 255).round().to(torch.uint8), expected)


@pytest.mark.parametrize("side", [6, 16, 40])
def test_nothing_behind_the_border_is_read(side: int) -> None:
    """Boxes that touch all borders, shrunk (antialias widens the filter), a little, and magnified."""
    images, batch, size = unpadded()
    whole = torch.cat((torch.zeros_like(size), size), 1)
    corner = torch.cat((size - size // 2, size // 2), 1)
    boxes, flip = torch.stack((whole, corner)), torch.zeros(2, len(images), dtype=torch.bool)
    black = padded(images)[0]
    assert torch.equal(crop_resize(batch, boxes, flip, side), crop_resize(black, boxes, flip, side))
    together = _resize_together(batch, boxes, flip, side).view(2, len(images), 3, side, side)
    for index, image in enumerate(images):
        for view in range(2):
            top, left, height, width = boxes[view, index].tolist()
            box = image[None, :, top : top + height, left : left + width].float()
            expected = F.interpolate(box, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 255) / 255
            torch.testing.assert_close(together[view, index], expected, rtol=0, atol=2e-5)


def test_colour_blur_and_flips_do_not_notice_padding() -> None:
    _, batch, size = unpadded([(40, 56)] * 3)
    crop = small_views(blur=(0.5, 0.5, 0.5))
    torch.manual_seed(0)
    expected = crop(batch[:, :, :40, :56].contiguous())
    torch.manual_seed(0)
    found = crop(batch, size)
    assert all(torch.equal(found[name], expected[name]) for name in ("global", "local"))


def test_sizes_that_do_not_belong() -> None:
    _, batch, size = unpadded()
    for wrong in (size[:2], size.float(), size + 30, 0 * size, size[:, :1]):
        with pytest.raises(
            ValueError, match=r"size must be the height and width of each of 3 images, .* \[56, 56\]"
        ):
            small_views()(batch, wrong)
    with pytest.raises(ValueError, match=r"images of 12x20 are smaller than crops of 16x16.*allow_upscaling"):
        MultiCrop(global_size=16, num_local=0)(batch, size)


# Batches.


def test_loaders_hand_over_whole_images(tree: str) -> None:
    batch = training_batch(imagenet(tree))
    assert batch["image"].shape == (8, 3, 64, 64)
    for image, size, label, index in zip(
        *(batch[k] for k in ("image", "size", "label", "index")), strict=True
    ):
        height, width = SIZES[int(index) % 4]
        pixels = photos(2, height, width)[label]
        if width == 100:
            height, width = 32, 64
            pixels = F.interpolate(pixels[None], (32, 64), mode="bicubic", antialias=True)[0]
        assert size.tolist() == [height, width]
        assert torch.equal(image[:, :height, :width], pixels)
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()


def test_evaluation_and_probes_see_what_they_saw(tree: str) -> None:
    whole, square = imagenet(tree), imagenet(tree, window="square")
    for loader in ("val_dataloader", "bank_dataloader"):
        one, other = (next(iter(getattr(data, loader)())) for data in (whole, square))
        assert one.keys() == other.keys()
        assert torch.equal(one["image"], other["image"])


def test_cached_and_by_workers_bit_for_bit(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = training_batch(imagenet(tree))
    kept = imagenet(tree, cache=str(tmp_path / "kept"))
    monkeypatch.setattr("datamodules.image_sets.read_image", None)  # from here on nothing can be decoded
    found = [training_batch(kept), next(iter(kept.bank_dataloader()))]
    assert all(torch.equal(found[0][key], expected[key]) for key in expected)
    assert found[1]["image"].shape == (8, 3, 16, 16)
    workers = imagenet(tree, cache=str(tmp_path / "kept"), num_workers=2)
    assert all(torch.equal(value, expected[key]) for key, value in training_batch(workers).items())


def test_batches_on_the_device_have_no_padding(tree: str) -> None:
    data = imagenet(tree, views=small_views(), batch_size=4, resize=16)
    data.future_batches = 1
    batch = data.transfer_batch_to_device(training_batch(data), torch.device("cpu"), 0)
    after = data.on_after_batch_transfer(batch, 0)
    for step in (after, *after["future"]):
        assert "size" not in step
        assert step["views"]["global"].shape == (8, 3, 16, 16)
    # With resize = image_size the square is the whole short side of the image.
    row = after["index"].tolist().index(next(i for i in after["index"].tolist() if i % 4 != 3))
    height, width = SIZES[int(after["index"][row]) % 4]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = photos(2, height, width)[after["label"][row]][:, top : top + side, left : left + side]
    expected = F.interpolate(image[None], (16, 16), mode="bicubic", antialias=True)[0] / 255
    torch.testing.assert_close(after["image"][row], expected)


def test_the_size_stays_on_the_host(tree: str) -> None:
    data = imagenet(tree)
    moved = data.transfer_batch_to_device(training_batch(data), torch.device("meta"), 0)
    assert moved["size"].device.type == "cpu"
    assert moved["image"].device.type == moved["label"].device.type == "meta"


def test_supervised_crops_are_of_the_whole_image(tree: str) -> None:
    data = imagenet(tree, crop_scale=(1.0, 1.0), flip=0.0)
    after = data.on_after_batch_transfer(training_batch(data), 0)
    assert "size" not in after
    assert after["image"].shape == (8, 3, 16, 16)
    # No box of all of a portrait's area has an allowed ratio: the largest central one, 30 pixels wide and 40 high.
    row = after["index"].tolist().index(1)
    box = photos(2, 56, 30)[0][None, :, 8:48]
    expected = F.interpolate(box, (16, 16), mode="bicubic", antialias=True)[0] / 255
    torch.testing.assert_close(after["image"][row], expected)


def test_probes_monitors_and_pictures_work(tree: str) -> None:
    data = imagenet(tree, views=small_views(), batch_size=4)
    probes = [KNNProbe([2]), RawPixelProbe(2), OnlineLinearProbe(), LinearProbe([1.0], 1, 4, augment=True)]
    trainer = toy_trainer(max_steps=2, log_every_n_steps=1, callbacks=[*probes, CollapseMonitor(1, 0.0, 0.0)])
    trainer.fit(dino(), datamodule=data)
    for name in ("val/knn2", "val/pixels_knn2", "val/online_linear", "val/linear", "train/feature_rank"):
        assert name in trainer.callback_metrics, sorted(trainer.callback_metrics)
    batch = training_batch(data)
    assert decoded(batch, data)["image"].shape == (4, 3, 16, 16)  # as the doctor draws it
    with_views = data.on_after_batch_transfer(batch, 0)
    assert preview(with_views, data).height > 0


def test_resuming_within_an_epoch_is_bit_for_bit(tree: str, tmp_path: Path) -> None:
    def trained(checkpoint: Path | None = None) -> dict[str, Any]:
        L.seed_everything(0, verbose=False)
        save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = toy_trainer(
            max_steps=3,
            callbacks=[NoMonitors(), ExactResume(), save],
            enable_checkpointing=True,
            limit_val_batches=0,
        )
        method = dino()
        data = imagenet(tree, views=small_views(), batch_size=2)
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint)
        return method.state_dict()

    through, resumed = trained(), trained(tmp_path / "step=2.ckpt")
    assert all(torch.equal(value, resumed[key]) for key, value in through.items())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"window": "wide"}, r"window must be square or whole, got 'wide'"),
        ({"longest_side": 12}, r"longest_side=12 shrinks whole images below image_size=16"),
        ({"crop_scale": None}, r"crop_scale: null would squeeze .* window: square"),
        ({"views": nn.Identity()}, r"views=Identity takes no size .*use zoo\.nn\.MultiCrop"),
    ],
)
def test_what_does_not_go_with_whole_images(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ImageNet(**{"window": "whole", "image_size": 16, "resize": 20, **settings})  # type: ignore[arg-type]


def test_one_broken_file_is_named(tree: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "n1").mkdir(parents=True)
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / split / "n1" / "a.JPEG")
    (tmp_path / "train/n1/a.JPEG").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"train/n1/a\.JPEG cannot be decoded"):
        training_batch(imagenet(str(tmp_path), batch_size=1))
