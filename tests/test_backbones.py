"""Backbones: what they declare is what they give."""

from __future__ import annotations

import pytest
import timm
import torch

from zoo import create_backbone, list_backbones
from zoo.backbones import StreetCNN, TimmBackbone

FAMILIES = {
    "street_cnn": {},
    "resnet18": {},
    "mobilenetv3_small_050": {"out_indices": (0, 2)},
    "convnext_atto": {},
    "pvt_v2_b0": {},
    "vit_tiny_patch16_224": {"depth": 3},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_facts_are_what_comes_out(name) -> None:
    backbone = create_backbone(name, **FAMILIES[name]).eval()
    image = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        maps = backbone.forward_features(image)
        again = backbone(image)
    assert [m.shape for m in maps] == [
        (2, channels, 64 // stride, 128 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert list(backbone.strides) == sorted(backbone.strides)
    assert backbone.in_chans == len(backbone.mean) == len(backbone.std) == 3
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))


def test_timm_models_bring_their_own_normalisation() -> None:
    assert create_backbone("resnet18").mean == pytest.approx((0.485, 0.456, 0.406))
    assert create_backbone("vit_tiny_patch16_224", depth=3).mean == (0.5, 0.5, 0.5)


def test_timm_features_are_timms_own() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("resnet18").eval()
    plain = timm.create_model("resnet18", features_only=True).eval()
    plain.load_state_dict(backbone.model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(backbone(image), plain(image), strict=True))


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("name", ["street_cnn", "resnet18"])
def test_other_numbers_of_input_channels(name, in_chans) -> None:
    backbone = create_backbone(name, in_chans=in_chans)
    assert backbone.in_chans == len(backbone.mean) == len(backbone.std) == in_chans
    if name == "resnet18":
        assert backbone.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,) * in_chans)
    assert backbone(torch.randn(2, in_chans, 32, 32))[0].shape[1] == backbone.channels[0]


def test_output_stride_and_indices_reach_timm() -> None:
    backbone = create_backbone("resnet18", output_stride=8, out_indices=(2, 4))
    assert backbone.strides == (8, 8)
    assert [tuple(m.shape[-2:]) for m in backbone(torch.randn(2, 3, 32, 64))] == [(4, 8), (4, 8)]


def test_transformers_take_any_size_unless_one_is_asked_for() -> None:
    image = torch.randn(1, 3, 32, 48)
    assert create_backbone("vit_tiny_patch16_224", depth=1, out_indices=(0,))(image)[0].shape == (
        1,
        192,
        2,
        3,
    )
    fixed = create_backbone("vit_tiny_patch16_224", depth=1, out_indices=(0,), img_size=(64, 64))
    with pytest.raises(
        ValueError, match=r"cannot take images of \[32, 48\].*build the model with img_size=\[32, 48\]"
    ):
        fixed(image)


def test_a_model_of_a_fixed_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"'mixer_s32_224' cannot take images of \[64, 128\]"):
        create_backbone("mixer_s32_224")(torch.randn(1, 3, 64, 128))


def test_street_cnn() -> None:
    backbone = create_backbone("street_cnn")
    assert isinstance(backbone, StreetCNN)
    assert backbone.strides == (2, 4, 8, 16)
    assert backbone.mean == (0.45, 0.45, 0.45)
    assert backbone.std == (0.25, 0.25, 0.25)
    assert create_backbone("street_cnn", widths=(8, 16)).channels == (8, 16)
    with pytest.raises(ValueError, match="street_cnn has no pretrained weights"):
        create_backbone("street_cnn", pretrained=True)


def test_names() -> None:
    assert "street_cnn" in list_backbones("*cnn*")
    assert "resnet18" in list_backbones("resnet*")
    assert isinstance(create_backbone("resnet10t"), TimmBackbone)
    with pytest.raises(ValueError, match="unknown backbone 'resnet81': did you mean resnet"):
        create_backbone("resnet81")
