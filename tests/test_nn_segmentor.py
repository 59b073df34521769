"""Segmentor and decode heads."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones import StreetCNN
from zoo.nn import DECODE_HEADS, FPNHead, Segmentor, build_segmentor, create_decode_head


@pytest.fixture
def street() -> Segmentor:
    torch.manual_seed(0)
    return build_segmentor("street_cnn", "fpn", num_classes=19)


def test_logits_have_the_images_size(street) -> None:
    for size in ((64, 128), (33, 47)):
        assert street(torch.rand(2, 3, *size)).shape == (2, 19, *size)


def test_images_are_normalised_inside(street) -> None:
    street.eval()
    image = torch.rand(2, 3, 32, 64)
    normalised = (image - 0.45) / 0.25
    torch.testing.assert_close(street.normalize(image), normalised)
    maps = street.backbone.forward_features(normalised)
    expected = F.interpolate(street.decode_head(maps), (32, 64), mode="bilinear")
    logits, features = street.forward_with_features(image)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(features, maps)
    assert torch.equal(logits, street(image))


def test_each_backbone_brings_its_own_normalisation() -> None:
    network = build_segmentor("resnet18", "fpn", 4, backbone_kwargs={"out_indices": [1, 2]})
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(network.normalize(grey), torch.zeros(1, 3, 8, 8))


def test_normalisation_is_not_in_the_checkpoint_but_follows_the_module(street) -> None:
    assert not {"mean", "std"} & set(street.state_dict())
    assert street.double().normalize(torch.rand(1, 3, 4, 4).double()).dtype == torch.double


def test_integer_images_are_an_error(street) -> None:
    with pytest.raises(TypeError, match=r"image must be float in \[0, 1\], got torch.uint8"):
        street(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))


def test_features_and_logits_share_one_graph(street) -> None:
    logits, features = street.forward_with_features(torch.rand(2, 3, 32, 64))
    (logits.mean() + features[-1].mean()).backward()
    without = [name for name, p in street.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_align_corners_is_that_of_the_upsampling() -> None:
    torch.manual_seed(0)
    backbone, image = StreetCNN(widths=(4, 6)), torch.rand(1, 3, 16, 16)
    head = create_decode_head("fpn", backbone.channels, 3, width=8)
    for align_corners in (False, True):
        network = build_segmentor(backbone, head, 3, align_corners=align_corners).eval()
        maps = head(backbone(network.normalize(image)))
        expected = F.interpolate(maps, (16, 16), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(network(image), expected)


def test_logits_of_the_images_size_are_not_resampled() -> None:
    class Backbone(nn.Module):
        channels, strides, in_chans, mean, std = (3,), (1,), 3, (0.0,) * 3, (1.0,) * 3

        def forward_features(self, image: Tensor) -> list[Tensor]:
            return [image]

        forward = forward_features

    class Last(nn.Module):
        def forward(self, features: list[Tensor]) -> Tensor:
            return features[-1]

    image = torch.rand(1, 3, 5, 7)
    assert torch.equal(build_segmentor(Backbone(), Last(), 3)(image), image)


@pytest.mark.parametrize("backbone", [nn.Linear(3, 3), timm.create_model("mixer_s32_224")])
def test_a_backbone_without_feature_maps_is_an_error(backbone) -> None:
    expected = rf"backbone {type(backbone).__name__} has no .*channels.*not known to give feature maps"
    with pytest.raises(TypeError, match=expected):
        build_segmentor(backbone, "fpn", 19)
    with pytest.raises(TypeError, match=expected):
        Segmentor(backbone, nn.Identity())


def test_arguments_for_modules_that_are_ready_are_an_error() -> None:
    backbone, head = StreetCNN(), FPNHead((32, 48, 96, 96), 19)
    with pytest.raises(ValueError, match="pretrained and backbone_kwargs need backbone to be a name"):
        build_segmentor(backbone, head, 19, pretrained=True)
    with pytest.raises(ValueError, match="head_kwargs needs decode_head to be a name"):
        build_segmentor(backbone, head, 19, head_kwargs={"width": 3})


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown decode head 'fpm': did you mean fpn"):
        build_segmentor("street_cnn", "fpm", 19)
    with pytest.raises(ValueError, match="unknown backbone 'street_cn': did you mean street_cnn"):
        build_segmentor("street_cn", "fpn", 19)


def test_heads_by_name() -> None:
    for name, factory in DECODE_HEADS.items():
        assert isinstance(create_decode_head(name, (4, 8), 5), factory)


def test_fpn_is_its_formula() -> None:
    torch.manual_seed(0)
    head = FPNHead((4, 5, 6), 3, width=8).eval()
    fine, middle, coarse = torch.rand(2, 4, 8, 12), torch.rand(2, 5, 4, 6), torch.rand(2, 6, 2, 3)

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    a, b, c = (lateral(x) for lateral, x in zip(head.lateral, (fine, middle, coarse), strict=True))
    expected = head.classifier((up(head.smooth(up(c) + b)) + a).relu())
    torch.testing.assert_close(head([fine, middle, coarse]), expected)


@pytest.mark.parametrize("sizes", [[(8, 8)], [(4, 4), (4, 4), (4, 4)], [(7, 9), (4, 5)]])
def test_fpn_takes_one_map_equal_maps_and_odd_sizes(sizes) -> None:
    head = FPNHead([4] * len(sizes), 3)
    assert head([torch.rand(2, 4, *size) for size in sizes]).shape == (2, 3, *sizes[0])


def test_fpn_errors() -> None:
    with pytest.raises(ValueError, match="channels is empty"):
        FPNHead((), 3)
    with pytest.raises(ValueError, match="zip"):
        FPNHead((4, 4), 3)([torch.rand(1, 4, 8, 8)])


def test_fpn_dropout_drops_channels_in_training_only() -> None:
    torch.manual_seed(0)
    head, maps = FPNHead((4,), 3, dropout=0.5), [torch.rand(2, 4, 8, 8)]
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    assert torch.equal(head(maps), head(maps))


def test_no_convolution_before_batch_norm_has_a_bias(street) -> None:
    # Such a bias has a zero gradient, which Adam turns into random steps.
    followed = [a for a, b in pairwise(street.modules()) if isinstance(b, nn.BatchNorm2d)]
    assert len(followed) == 9
    assert all(isinstance(module, nn.Conv2d) and module.bias is None for module in followed)


def test_the_embedded_network_is_small(street) -> None:
    assert 360_000 < sum(p.numel() for p in street.parameters()) < 400_000
