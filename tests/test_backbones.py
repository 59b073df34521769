"""Backbones: what they declare is what they give."""

from __future__ import annotations

import pytest
import timm
import torch

from zoo import create_backbone, list_backbones
from zoo.backbones import DeepLabResNet, StreetCNN, TimmBackbone

FAMILIES = {
    "street_cnn": {},
    "resnet18": {},
    "mobilenetv3_small_050": {"out_indices": (0, 2)},
    "convnext_atto": {},
    "pvt_v2_b0": {},
    "mit_b0": {},
    "resnet50_deeplab": {},
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


def test_swin_gets_a_layer_norm_over_channels_where_asked() -> None:
    options = {"depths": (1, 1, 1, 1), "embed_dim": 24}
    plain = create_backbone("swin_tiny_patch4_window7_224", **options).eval()
    normed = create_backbone("swin_tiny_patch4_window7_224", layer_norm=True, **options).eval()
    normed.model.load_state_dict(plain.model.state_dict())
    image = torch.randn(2, 3, 36, 60)  # no multiple of the window, nor of the coarsest stride
    with torch.no_grad():
        for bare, got in zip(plain(image), normed(image), strict=True):
            mean, var = bare.mean(1, keepdim=True), bare.var(1, unbiased=False, keepdim=True)
            torch.testing.assert_close(got, (bare - mean) / (var + 1e-5).sqrt())
    assert [name for name, _ in normed.named_parameters() if not name.startswith("model.")] == [
        f"norms.{i}.{part}" for i in range(4) for part in ("weight", "bias")
    ]


def test_a_model_of_a_fixed_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"'mixer_s32_224' cannot take images of \[64, 128\]"):
        create_backbone("mixer_s32_224")(torch.randn(1, 3, 64, 128))


@pytest.mark.parametrize(
    ("options", "stage3", "stage4", "strides"),
    [
        ({}, [1, 2, 2, 2, 2, 2], [2, 4, 4], (4, 8, 8, 8)),
        ({"multi_grid": (2, 2, 4)}, [1, 2, 2, 2, 2, 2], [4, 8, 16], (4, 8, 8, 8)),
        ({"output_stride": 16}, [1] * 6, [1, 2, 2], (4, 8, 16, 16)),
        ({"output_stride": 16, "multi_grid": (1, 2, 4)}, [1] * 6, [1, 4, 8], (4, 8, 16, 16)),
    ],
)
def test_dilations_of_deeplab_resnets(options, stage3, stage4, strides) -> None:
    backbone = create_backbone("resnet50_deeplab", stem_width=4, channels=(4, 8, 8, 8), **options).eval()
    for layer, wanted in ((backbone.model.layer3, stage3), (backbone.model.layer4, stage4)):
        assert [block.conv2.dilation for block in layer] == [(d, d) for d in wanted]
        assert [block.conv2.padding for block in layer] == [(d, d) for d in wanted]
    assert backbone.strides == strides
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [m.shape[-2:] for m in maps] == [(64 // s, 96 // s) for s in strides]


def test_stems_and_pooling_of_deeplab_resnets() -> None:
    with torch.device("meta"):
        sizes = {
            stem: sum(p.numel() for p in DeepLabResNet(101, stem=stem).parameters())
            for stem in ("plain", "v1c", "wide")
        }
    # torchvision's resnet101 has 44,549,160 with its classifier of 2,049,000; the others are the FST card's.
    assert sizes == {"plain": 44_549_160 - 2_049_000, "v1c": 42_519_392, "wide": 42_623_936}
    image = torch.randn(1, 3, 64, 66)
    small = {"stem_width": 4, "channels": (4, 8, 8, 8)}
    with torch.no_grad():
        floor, ceil = (DeepLabResNet(50, ceil_mode=mode, **small).eval()(image)[0] for mode in (False, True))
    assert floor.shape[-2:] == (16, 17)
    assert ceil.shape[-2:] == (17, 17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 34}, "depth must be one of 50, 101, got 34"),
        ({"output_stride": 4}, "output_stride must be one of 8, 16, got 4"),
        ({"stem": "deep"}, "stem must be one of 'plain', 'v1c', 'wide', got 'deep'"),
        ({"multi_grid": (1, 2)}, r"multi_grid must be three factors .* got \[1, 2\]"),
        ({"multi_grid": (0, 1, 2)}, r"multi_grid must be three factors .* got \[0, 1, 2\]"),
    ],
)
def test_deeplab_resnets_refuse_what_they_are_not(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLabResNet(**options)


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
    for name, odd in (("resnet10t", "widths"), ("street_cnn", "img_size")):
        with pytest.raises(
            ValueError, match=f"backbone '{name}' takes no '{odd}': model.backbone_args gives {odd}"
        ):
            create_backbone(name, **{odd: 8})
    with pytest.raises(ValueError, match="unknown backbone 'resnet81': did you mean resnet"):
        create_backbone("resnet81")
