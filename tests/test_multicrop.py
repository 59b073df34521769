"""Multi-crop views against torchvision, and their bookkeeping."""

from __future__ import annotations

from random import Random

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as VF
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from zoo.nn import BlockMasking, Masks, MultiCrop
from zoo.nn.multicrop import random_boxes
from zoo.nn.photometric import grey, jitter, solarize
from zoo.nn.resample import _resize_together, crop_resize

PLAIN = {"jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": (0.0, 0.0, 0.0), "flip": 0.0}


def photos(count: int = 3, height: int = 40, width: int = 56) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(x / (3.0 + i) + y / 5.0 + i % 3) for i in range(3 * count)]
    return (127.5 + 120 * torch.stack(waves)).to(torch.uint8).view(count, 3, height, width)


def some_boxes(views: int, count: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    boxes = random_boxes(torch.tensor([[40, 56]]).expand(views * count, 2), (0.05, 1.0), (0.5, 2.0), rng)
    return boxes.view(views, count, 4), torch.rand(views, count, generator=rng) < 0.5


def test_crops_equal_torchvision_on_uint8() -> None:
    image, (boxes, flip) = photos(), some_boxes(4, 3)
    crops = crop_resize(image, boxes, flip, 24).view(4, 3, 3, 24, 24)
    for view in range(4):
        for index in range(3):
            expected = VF.resized_crop(
                image[index],
                *boxes[view, index].tolist(),
                [24, 24],
                InterpolationMode.BICUBIC,
                antialias=True,
            )
            expected = VF.horizontal_flip(expected) if flip[view, index] else expected
            assert torch.equal((crops[view, index] * 255).round().to(torch.uint8), expected)


def test_batched_crops_equal_float_interpolation() -> None:
    image, (boxes, flip) = photos(), some_boxes(4, 3)
    crops = _resize_together(image, boxes, flip, 24).view(4, 3, 3, 24, 24)
    for view in range(4):
        for index in range(3):
            top, left, height, width = boxes[view, index].tolist()
            box = image[None, index, :, top : top + height, left : left + width].float()
            expected = F.interpolate(box, (24, 24), mode="bicubic", antialias=True)[0].clamp(0, 255) / 255
            expected = expected.flip(2) if flip[view, index] else expected
            torch.testing.assert_close(crops[view, index], expected, rtol=0, atol=2e-5)
    # on smooth images the two ways differ by rounding alone
    assert (crops.flatten(0, 1) - crop_resize(image, boxes, flip, 24)).abs().max() < 3 / 255


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_colour_equals_torchvision(order: tuple[int, ...]) -> None:
    image = photos().float() / 255
    factors = torch.tensor([[1.3, 0.6, 1.15, 0.08], [0.7, 1.4, 0.8, -0.1], [1.0, 1.2, 0.0, 0.03]])
    orders = torch.tensor([order, order, order[::-1]])
    found = jitter(image.clone(), factors, orders)
    operations = (VF.adjust_brightness, VF.adjust_contrast, VF.adjust_saturation, VF.adjust_hue)
    for index in range(3):
        expected = image[index]
        for number in orders[index].tolist():
            expected = operations[number](expected, factors[index, number].item())
        torch.testing.assert_close(found[index], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(grey(image), VF.rgb_to_grayscale(image), rtol=0, atol=1e-5)
    torch.testing.assert_close(solarize(image, 128 / 255), VF.solarize(image, 128 / 255))


def test_boxes_follow_torchvision() -> None:
    rng = torch.Generator().manual_seed(0)
    boxes = random_boxes(torch.tensor([[60, 80]]).expand(4000, 2), (0.1, 0.5), (3 / 4, 4 / 3), rng)
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 60
    assert (left + width).max() <= 80
    assert (top + height).max() == 60  # the last row and the last column are reached
    assert (left + width).max() == 80
    share = height * width / 4800
    assert 0.09 < share.min() < 0.11
    assert share.max() < 0.52
    assert share.mean().item() == pytest.approx(0.3, abs=0.01)
    ratio = (width / height).log()
    assert ratio.mean().abs() < 0.02
    assert ratio.abs().max() < 0.35
    # no draw fits a strip: the central box of the nearest ratio
    strip = random_boxes(torch.tensor([[10, 100]]), (0.9, 1.0), (3 / 4, 4 / 3), rng)
    assert strip.tolist() == [[0, 43, 10, 13]]


def test_views_are_view_major_and_of_their_own_image() -> None:
    image = torch.stack([torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (40, 120, 200)])
    views = MultiCrop(global_size=16, local_size=8, num_local=2, **PLAIN)(image)
    assert views["global"].shape == (6, 3, 16, 16)
    assert views["local"].shape == (6, 3, 8, 8)
    for crops in views.values():
        torch.testing.assert_close(
            (255 * crops.mean((1, 2, 3))).view(2, 3), torch.tensor([[40.0, 120, 200]] * 2)
        )
    assert "local" not in MultiCrop(global_size=16, num_local=0, **PLAIN)(image)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"solarize": (0.0, 1.0, 0.0)}, [40, 215, 40]),
        ({"solarize": (1.0, 0.0, 1.0), "solarize_threshold": 41}, [40, 40, 40]),
        ({"solarize": (1.0, 0.0, 1.0), "solarize_threshold": 40}, [215, 40, 215]),
    ],
)
def test_probabilities_belong_to_their_views(option: dict, expected: list[int]) -> None:
    image = torch.full((4, 3, 16, 16), 40, dtype=torch.uint8)
    option = {"solarize_threshold": 30, **option}
    views = MultiCrop(global_size=16, local_size=16, num_local=1, **{**PLAIN, **option})(image)
    means = [*views["global"].mean((1, 2, 3)).view(2, 4)[:, 0], views["local"].mean()]
    assert [round(255 * mean.item()) for mean in means] == expected


def test_blur_as_executed_and_as_stated() -> None:
    noise = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    for name, shares in (("executed", (0.0, 0.9)), ("stated", (1.0, 0.1))):
        crop = MultiCrop(
            global_size=16, global_scale=(1.0, 1.0), ratio=(1.0, 1.0), num_local=0, blur_sigma=(2.0, 2.0),
            **{**PLAIN, "blur": name},
        )  # fmt: skip
        views = crop(noise)["global"].view(2, 64, 3, 16, 16)
        changed = (views - noise / 255).abs().amax((2, 3, 4)) > 0.01
        for share, wanted in zip(changed.float().mean(1).tolist(), shares, strict=True):
            assert share == pytest.approx(wanted, abs=0.15)


def test_draws_follow_the_seed_and_differ_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    crop, image = MultiCrop(global_size=16, local_size=8, num_local=2), photos()
    drawn = []
    for rank in (0, 0, 1):
        monkeypatch.setattr("zoo.nn.multicrop.this_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        drawn.append(crop(image)["global"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_bad_input() -> None:
    crop = MultiCrop(global_size=64, num_local=0)
    with pytest.raises(
        ValueError, match=r"images of 40x56 are smaller than crops of 64x64: lower views.global_size"
    ):
        crop(photos())
    assert MultiCrop(global_size=64, num_local=0, allow_upscaling=True)(photos())["global"].shape[-1] == 64
    with pytest.raises(TypeError, match=r"uint8 images"):
        crop(photos().float())
    for options, match in (
        ({"blur": "heavy"}, "stated, executed or three"),
        ({"flip": 1.5}, "flip holds probabilities"),
        ({"local_scale": (0.5, 0.2)}, "local_scale must be"),
        ({"num_local": -1}, "num_local at least 0"),
    ):
        with pytest.raises(ValueError, match=match):
            MultiCrop(**options)


# -- masks ------------------------------------------------------------------------------------------------


def test_masks_stay_at_or_below_their_targets() -> None:
    masks = BlockMasking((0.1, 0.5), 0.5)(40, (8, 8), Random(0))
    counts = masks.mask.sum(1)
    assert (counts > 0).sum() == 20
    assert counts.max() <= 32
    tokens = torch.arange(40 * 64.0).view(40, 64, 1)
    assert torch.equal(masks.gather(tokens)[:, 0], masks.mask.flatten().nonzero()[:, 0].float())
    assert masks.weight.sum().item() == pytest.approx(20)
    free = BlockMasking((0.2, 0.3), 0.5, stratified=False)(400, (8, 8), Random(0)).mask.sum(1)
    assert 150 < (free > 0).sum() < 250
    assert free.max() <= 19
    none = BlockMasking(share=0.0)(4, (8, 8), Random(0))
    assert len(none.positions) == 0
    assert isinstance(none, Masks)


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        BlockMasking((0.5, 0.1))
    with pytest.raises(ValueError, match="share=2"):
        BlockMasking(share=2.0)
    with pytest.raises(ValueError, match="aspect"):
        BlockMasking(aspect=(0.0, 1.0))
