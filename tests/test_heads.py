"""Decode heads: shapes, published sizes, written-out computations, batches of one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.networks import rename
from zoo import create_backbone
from zoo.nn import (
    DECODE_HEADS,
    DeepLabV3PlusHead,
    PSPHead,
    PSPShuffleHead,
    UPerHead,
    build_segmentor,
    create_decode_head,
)
from zoo.nn.heads.released import SEMI_HEAD_RENAMES

CHANNELS = (6, 8, 10, 12)
#: Map whose resolution the logits have: fine to coarse; the shuffle head has eight times the coarsest.
RESOLUTION = {
    "daformer": 0,
    "deeplabv2": 3,
    "deeplabv3plus": 0,
    "fcn": 3,
    "fpn": 0,
    "pspnet": 3,
    "upernet": 0,
}
POOLING = ["deeplabv3plus", "pspnet", "pspnet_shuffle", "upernet"]


def maps(batch: int = 2) -> list[Tensor]:
    """Maps of an image of 61 × 90 pixels, at strides 4 to 32."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-61 // s), -(-90 // s)) for s in (4, 8, 16, 32)]
    return [
        torch.randn(batch, c, *size, generator=generator) for c, size in zip(CHANNELS, sizes, strict=True)
    ]


def small(name: str, **options) -> nn.Module:
    """A head with every tensor at random, batch norms' statistics included."""
    if name not in ("deeplabv2", "fpn"):
        options = {"width": 16, **options}
    torch.manual_seed(0)
    head = create_decode_head(name, CHANNELS, 5, **options)
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 0.5)
    return head


@pytest.mark.parametrize("name", DECODE_HEADS)
def test_shapes_and_gradients(name) -> None:
    features = [x.requires_grad_() for x in maps()]
    head = small(name)
    logits = head(features)
    size = (16, 24) if name == "pspnet_shuffle" else features[RESOLUTION[name]].shape[-2:]
    assert logits.shape == (2, 5, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [key for key, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    used = [i for i, x in enumerate(features) if x.grad is not None]
    all_maps, last = [0, 1, 2, 3], [3]
    wanted = {"daformer": all_maps, "upernet": all_maps, "fpn": all_maps, "deeplabv3plus": [0, 3]}
    assert used == wanted.get(name, last)


# Millions of parameters of whole networks with 150 classes and an auxiliary FCN head on stage 3, as printed:
# Swin paper, table 3, and its segmentation repository (UPerNet); SegFormer, table 2 (PSPNet, DeepLabV3+).
PAPER_V3PLUS = {"width": 512, "low_level_width": 48, "separable": True}
PUBLISHED = [
    ("swin_tiny_patch4_window7_224", "upernet", {}, 60),
    ("swin_small_patch4_window7_224", "upernet", {}, 81),
    ("swin_base_patch4_window7_224", "upernet", {}, 121),
    ("resnet101_deeplab", "upernet", {}, 86),
    ("resnet101_deeplab", "pspnet", {}, 68.1),
    ("resnet101_deeplab", "deeplabv3plus", PAPER_V3PLUS, 62.7),
]


@pytest.mark.parametrize(("backbone_name", "name", "options", "millions"), PUBLISHED)
def test_published_sizes(backbone_name, name, options, millions) -> None:
    with torch.device("meta"):
        swin = {"layer_norm": True} if "swin" in backbone_name else {}
        backbone = create_backbone(backbone_name, **swin)
        head = create_decode_head(name, backbone.channels, 150, **options)
        auxiliary = create_decode_head("fcn", backbone.channels, 150, source=-2)
    size = sum(p.numel() for module in (backbone, head, auxiliary) for p in module.parameters()) / 1e6
    assert round(size, 1 if isinstance(millions, float) else None) == millions


def test_size_of_fsts_pspnet() -> None:
    """The FST card, section 5.3: ResNet-101 v1c and PSPNet, 19 classes, no auxiliary head."""
    with torch.device("meta"):
        segmentor = build_segmentor("resnet101_deeplab", "pspnet", 19)
    assert sum(p.numel() for p in segmentor.parameters()) == 65_602_931


# -- written-out computations ----------------------------------------------------------------------------


def unit(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    """Convolution, batch norm with running statistics, ReLU."""
    weight = state[f"{key}.conv.weight"]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    mean, var = (state[f"{key}.bn.running_{what}"][:, None, None] for what in ("mean", "var"))
    scale, shift = (state[f"{key}.bn.{what}"][:, None, None] for what in ("weight", "bias"))
    return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)


def pyramid(state: dict[str, Tensor], x: Tensor, align_corners: bool) -> Tensor:
    """Pyramid pooling and bottleneck under MMSegmentation's names."""
    branches = [x]
    for i, bins in enumerate((1, 2, 3, 6)):
        pooled = unit(state, f"psp_modules.{i}.1", F.adaptive_avg_pool2d(x, bins))
        branches.append(F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=align_corners))
    return unit(state, "bottleneck", torch.cat(branches, 1))


def classify(state: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.conv2d(x, state["conv_seg.weight"], state["conv_seg.bias"])


@pytest.mark.parametrize("align_corners", [False, True])
def test_pspnet_written_out(align_corners) -> None:
    head = small("pspnet", align_corners=align_corners).eval()
    state = head.state_dict()
    wanted = classify(state, pyramid(state, maps()[-1], align_corners))
    torch.testing.assert_close(head(maps()), wanted)


@pytest.mark.parametrize("align_corners", [False, True])
def test_upernet_written_out(align_corners) -> None:
    head = small("upernet", align_corners=align_corners).eval()
    state, features = head.state_dict(), maps()

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)

    p3 = pyramid(state, features[3], align_corners)
    p2 = unit(state, "lateral_convs.2", features[2])
    p2 = p2 + up(p3, p2)
    p1 = unit(state, "lateral_convs.1", features[1])
    p1 = p1 + up(p2, p1)
    p0 = unit(state, "lateral_convs.0", features[0])
    p0 = p0 + up(p1, p0)
    outs = [unit(state, f"fpn_convs.{i}", p) for i, p in enumerate((p0, p1, p2))]
    fused = torch.cat([outs[0], *(up(x, p0) for x in (*outs[1:], p3))], 1)
    torch.testing.assert_close(head(features), classify(state, unit(state, "fpn_bottleneck", fused)))


def test_separable_deeplabv3plus_written_out() -> None:
    """The paper's own form; the plain one is compared with the authors' in tests/parity."""
    head = small("deeplabv3plus", separable=True, low_level_width=7, dilations=(1, 2)).eval()
    state, features = head.state_dict(), maps()

    def separable(key: str, x: Tensor, dilation: int = 1) -> Tensor:
        depthwise = dict(head.named_modules())[f"{key}.depthwise_conv"]
        assert depthwise.conv.groups == x.shape[1]
        assert depthwise.conv.dilation == (dilation, dilation)
        return unit(state, f"{key}.pointwise_conv", depthwise(x))

    x = features[3]
    pooled = unit(state, "aspp.image_pool.1", x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
    branches = [pooled, unit(state, "aspp.aspp_modules.0", x), separable("aspp.aspp_modules.1", x, 2)]
    context = unit(state, "aspp.bottleneck", torch.cat(branches, 1))
    fine = unit(state, "low_level_conv", features[0])
    fused = torch.cat([fine, F.interpolate(context, fine.shape[-2:], mode="bilinear")], 1)
    wanted = classify(state, separable("decoder.2", separable("decoder.0", fused)))
    torch.testing.assert_close(head(features), wanted)


def test_sub_pixel_upsampling_starts_without_checkerboard() -> None:
    head = PSPShuffleHead(CHANNELS, 5, width=16).eval()
    with torch.no_grad():
        logits = head(maps())
    coarse = logits[..., ::8, ::8]
    assert coarse.std() > 0
    torch.testing.assert_close(logits, coarse.repeat_interleave(8, 2).repeat_interleave(8, 3))


def test_options_that_choose_maps() -> None:
    low = DeepLabV3PlusHead(CHANNELS, 5, width=16, low_level=1)
    assert low(maps()).shape[-2:] == maps()[1].shape[-2:]
    auxiliary = create_decode_head("fcn", CHANNELS, 5, source=-2, bias=True)
    assert auxiliary(maps()).shape[-2:] == maps()[2].shape[-2:]
    assert auxiliary.convs[0].conv.bias is not None


def test_rules_for_released_names_do_not_touch_our_own() -> None:
    for name, rules in SEMI_HEAD_RENAMES.items():
        names = [key for key in small(name).state_dict() if not key.startswith("decoder.")]
        assert [rename(key, rules) for key in names] == names


# -- batches of one, bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLING)
def test_one_image_cannot_be_trained_where_the_whole_image_is_pooled(name) -> None:
    head = small(name)
    with pytest.raises(ValueError, match=r"a batch of one image cannot be trained .* data.batch_size to 2"):
        head(maps(1))
    assert head.eval()(maps(1)).isfinite().all()
    for module in head.modules():  # a teacher whose batch norms run on batch statistics
        module.train(isinstance(module, nn.BatchNorm2d))
    with pytest.raises(ValueError, match="a batch of one image cannot be trained"):
        head(maps(1))


@pytest.mark.parametrize("name", [name for name in DECODE_HEADS if name not in POOLING])
def test_one_image_trains_every_other_head(name) -> None:
    assert small(name)(maps(1)).isfinite().all()


def test_one_image_trains_without_the_single_cell() -> None:
    assert PSPHead(CHANNELS, 5, width=16, bins=(2, 3))(maps(1)).isfinite().all()


def test_one_image_per_rank_is_enough_with_synchronised_batch_norm(monkeypatch) -> None:
    head = nn.SyncBatchNorm.convert_sync_batchnorm(small("pspnet"))
    with pytest.raises(ValueError, match="a batch of one image cannot be trained"):
        head(maps(1))
    monkeypatch.setattr("zoo.nn.heads.blocks.rank_count", lambda: 2)
    with pytest.raises(
        ValueError, match="Expected more than 1 value"
    ):  # torch's own, which finds no ranks here
        head(maps(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UPerHead((8,), 5),
            r"upernet needs at least two maps, but the backbone gives channels \[8\]",
        ),
        (lambda: DeepLabV3PlusHead((8,), 5), r"low_level=0 must be a map finer than the last .* gives 1"),
        (lambda: DeepLabV3PlusHead(CHANNELS, 5, low_level=3), r"low_level=3 must be a map finer"),
        (lambda: DeepLabV3PlusHead(CHANNELS, 5, separable=True, bias=True), "bias is not for separable"),
    ],
)
def test_bad_options(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_swin_with_upernet() -> None:
    """Swin's maps lie channels-last; sizes need be no multiple of the window or of the coarsest stride."""
    segmentor = build_segmentor(
        "swin_tiny_patch4_window7_224",
        "upernet",
        5,
        backbone_kwargs={"depths": (1, 1, 1, 1), "embed_dim": 24, "layer_norm": True},
        head_kwargs={"width": 16},
    )
    logits, features = segmentor.forward_with_features(torch.rand(2, 3, 36, 60))
    assert logits.shape == (2, 5, 36, 60)
    assert [tuple(x.shape[1:]) for x in features] == [(24, 9, 15), (48, 5, 8), (96, 3, 4), (192, 2, 2)]
    logits.square().mean().backward()
    assert [name for name, p in segmentor.named_parameters() if p.grad is None] == []
