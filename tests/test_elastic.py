"""Elastic backbones: every size is a network of its own, made of views of the intact one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.elastic import FAMILIES, images, in_timm, masks, randomize, tiny_elastic
from zoo import create_backbone
from zoo.backbones import ElasticBackbone, ElasticResNet, ElasticSwin, ElasticViT
from zoo.nn.elastic import ElasticLinear, Size, kept_blocks, leading
from zoo.nn.tokens import TokenBackbone, Tokens

# -- a sub-network is an ordinary network ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_equals_its_extracted_network_bit_for_bit(family: str) -> None:
    backbone = tiny_elastic(family)
    assert len(backbone.sizes()) == len(set(backbone.sizes())) == len(backbone.widths) * len(backbone.depths)
    seen = []
    for size in backbone.sizes():
        alone = backbone.extract(size)
        assert alone.sizes() == [size]
        assert alone.num_blocks == (size.depth if isinstance(size.depth, int) else sum(size.depth))
        for image, mask in ((images(family), None), (images(family), masks()), (images(family, True), None)):
            with torch.no_grad():
                elastic, plain = backbone.forward_tokens(image, mask, size), alone.forward_tokens(image, mask)
                maps = zip(backbone.forward_features(image, size), alone(image), strict=True)
            assert torch.equal(elastic.cls, plain.cls)
            assert torch.equal(elastic.patches, plain.patches)
            assert all(torch.equal(a, b) for a, b in maps)
        seen.append(plain.cls)
    distances = [(a - b).abs().max() for i, a in enumerate(seen) for b in seen[:i] if a.shape == b.shape]
    assert min(distances) > 1e-3, "different sizes are different networks"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_equals_timms_network(family: str) -> None:
    """What timm computes from the extracted weights, with its own code (for Swin after the four rules).

    timm's Swin shifts before it pads: maps must divide into windows, as they do at 224 pixels with windows of 7.
    """
    backbone = tiny_elastic(family)
    image = torch.randn(1, 3, 128, 128) if family == "swin" else images(family)
    for size in backbone.sizes():
        timms = in_timm(backbone.extract(size))
        with torch.no_grad():
            tokens = backbone.forward_tokens(image, None, size)
            features = timms.forward_features(image)
        if family == "vit":
            close(tokens.cls, features[:, 0])
            close(tokens.patches, features[:, 1:])
        else:
            last = features.permute(0, 3, 1, 2) if family == "swin" else features
            close(tokens.cls, last.mean((2, 3)))
            close(tokens.patches, nn.functional.interpolate(last, scale_factor=2).flatten(2).transpose(1, 2))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "size"), [("vit", Size(384, 12)), ("swin", Size(96, (2, 2, 6, 2)))])
def test_published_widths_are_exact_too(family: str, size: Size) -> None:
    """At the real width of the released networks; fewer blocks and a small map keep it quick."""
    built: dict[str, ElasticBackbone] = {
        "vit": ElasticViT(64, depths=(2, 3)),
        "swin": ElasticSwin(depths=((1,), (1,), (2, 3), (1,))),
    }
    backbone = built[family].eval()
    randomize(backbone)
    size = Size(size.width, backbone.depths[0])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        elastic, plain = (
            backbone.forward_tokens(image, size=size),
            backbone.extract(size).forward_tokens(image),
        )
    assert torch.equal(elastic.cls, plain.cls)


# -- views, gradients, no state --------------------------------------------------------------------------


def test_no_weight_is_copied() -> None:
    layer = ElasticLinear(8, 6)
    part = leading(layer.weight, 3, 4)
    assert part.data_ptr() == layer.weight.data_ptr()
    assert part.stride() == layer.weight.stride()
    assert torch.equal(part, layer.weight[:3, :4])
    assert leading(layer.weight, 6, 8) is layer.weight
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer(x, 3), x @ layer.weight[:3, :4].T + layer.bias[:3])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_intact_network(family: str) -> None:
    """The gradient of a matrix is that of its extracted twin in the leading part, and 0 elsewhere."""
    backbone = tiny_elastic(family)
    size = Size(backbone.widths[1], backbone.depths[1])
    alone = backbone.extract(size)
    alone.requires_grad_(True)
    for network, chosen in ((backbone, size), (alone, None)):
        tokens = network.forward_tokens(images(family), masks(), chosen)
        (tokens.cls.square().sum() + tokens.patches.square().sum()).backward()
    kept = {
        f"{new}.": f"{old[i]}."
        for stage, old, indices in zip(
            alone.block_paths, backbone.block_paths, backbone.kept(size), strict=True
        )
        for new, i in zip(stage, indices, strict=True)
    }
    used = dict(backbone.named_parameters())
    for name, parameter in alone.named_parameters():
        path = next((new for new in kept if name.startswith(new)), "")
        intact = used.pop(kept[path] + name.removeprefix(path) if path else name)
        inside = leading(intact.grad, *parameter.shape)
        factor = next((f for pattern, f in alone_folds(backbone, size, name)), 1.0)
        scale = parameter.grad.abs().max() * factor
        assert scale > 0, name
        torch.testing.assert_close(inside, parameter.grad * factor, rtol=1e-4, atol=1e-5 * float(scale))
        outside = intact.grad.square().sum() - inside.square().sum()
        assert outside.abs() <= 1e-5 * intact.grad.square().sum(), name
    assert used, "a smaller depth leaves blocks out"
    assert all(parameter.grad is None for parameter in used.values())


def alone_folds(backbone: ElasticBackbone, size: Size, name: str) -> list[tuple[str, float]]:
    return [(pattern, factor) for pattern, factor in backbone.folds(size) if re.match(pattern, name)]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_may_interleave_under_activation_checkpointing(family: str) -> None:
    """The recomputation in the backward sees its own size, whatever ran in between."""
    backbone = tiny_elastic(family)
    image, small, large = images(family), backbone.sizes()[0], backbone.intact

    def run(remember: bool) -> list[Tensor]:
        backbone.zero_grad()
        outputs = []
        for size in (small, large, small):
            arguments = (image, masks(), size)
            tokens = (
                backbone.forward_tokens(*arguments)
                if remember
                else checkpoint(backbone.forward_tokens, *arguments, use_reentrant=False)
            )
            outputs.append(tokens.cls.square().mean())
        sum(outputs).backward()
        return [parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None]

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b)


def test_the_sequence_of_a_narrow_vit_begins_the_wide_ones() -> None:
    backbone = tiny_elastic("vit")
    assert isinstance(backbone, ElasticViT)
    wide, narrow = (backbone.embed(images("vit"), masks(), width) for width in (40, 24))
    torch.testing.assert_close(wide[..., :24], narrow)


def test_masked_tokens_are_replaced_before_the_blocks() -> None:
    for family in FAMILIES:
        backbone = tiny_elastic(family)
        image, mask = images(family), torch.ones(2, 16, dtype=torch.bool)
        with torch.no_grad():
            hidden = backbone.forward_tokens(image, mask)
            other = backbone.forward_tokens(images(family).flip(0), mask)
            seen = backbone.forward_tokens(image, torch.zeros_like(mask))
            plain = backbone.forward_tokens(image)
        assert torch.equal(hidden.patches, other.patches), "nothing of the image is left"
        assert torch.equal(seen.patches, plain.patches)
        assert not torch.allclose(hidden.patches, plain.patches, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_runs_and_stays_near(family: str) -> None:
    backbone = tiny_elastic(family).train()
    size = Size(backbone.widths[1], backbone.depths[0])
    full = backbone.forward_tokens(images(family), masks(), size)
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone.forward_tokens(images(family), masks(), size)
    assert (low.cls.float() - full.cls).norm() < 0.05 * full.cls.norm()
    low.cls.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)


# -- the family ------------------------------------------------------------------------------------------


def test_published_families() -> None:
    with torch.device("meta"):
        vit, swin, resnet = ElasticViT(), ElasticSwin(), ElasticResNet()
    assert [len(family.sizes()) for family in (vit, swin, resnet)] == [143, 39, 465]
    assert vit.named_sizes == {"vit_small": (384, 12), "vit_base": (768, 12), "vit_large": (1024, 24)}
    assert swin.named_sizes["swin_tiny"] == (96, (2, 2, 6, 2))
    assert resnet.named_sizes["resnet101"] == (64, (3, 4, 23, 3))
    assert resnet.intact == (128, (3, 8, 36, 3))
    counts = [sum(p.numel() for p in family.parameters()) / 1e6 for family in (vit, swin, resnet)]
    assert counts == pytest.approx([303.35, 86.81, 172.61], abs=0.005)
    assert vit.find_size("vit_base") == (768, 12)
    assert vit.find_size("vit_w448_d13") == (448, 13)
    assert swin.find_size("swin_w112_d2-2-9-2") == (112, (2, 2, 9, 2))
    assert "vit_small" not in tiny_elastic("vit").named_sizes


def test_kept_blocks_spread_evenly() -> None:
    assert kept_blocks(6, 18) == (0, 3, 6, 10, 13, 17)
    assert kept_blocks(1, 4) == (0,)
    assert kept_blocks(4, 4) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="depth must be between 1 and 4, got 5"):
        kept_blocks(5, 4)


@pytest.mark.parametrize("name", ["elastic_vit_tiny", "elastic_swin_tiny", "elastic_resnet_tiny"])
def test_registered_miniatures_and_their_facts(name: str) -> None:
    backbone = create_backbone(name, in_chans=1).eval()
    assert isinstance(backbone, TokenBackbone)
    assert backbone.in_chans == len(backbone.mean) == len(backbone.std) == 1
    image = torch.randn(2, 1, 64, 32)
    with torch.no_grad():
        tokens, maps = backbone.forward_tokens(image), backbone.forward_features(image)
        small = backbone.forward_tokens(image, size=backbone.sizes()[0])
    rows, columns = backbone.grid(64, 32)
    assert isinstance(tokens, Tokens)
    assert tokens.cls.shape == (2, backbone.embed_dim)
    assert tokens.patches.shape == (2, rows * columns, backbone.embed_dim)
    assert small.patches.shape[:2] == tokens.patches.shape[:2]
    assert [m.shape for m in maps] == [
        (2, channels, 64 // stride, 32 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    depths = {backbone.block_of(parameter) for parameter, _ in backbone.named_parameters()}
    first = 1 if name == "elastic_resnet_tiny" else 0
    assert depths == set(range(first, backbone.num_blocks + 2))
    with pytest.raises(ValueError, match=f"{name} has no pretrained weights"):
        create_backbone(name, pretrained=True)


def test_dimensions_are_arguments() -> None:
    backbone = create_backbone(
        "elastic_vit_tiny", img_size=8, patch_size=2, widths=[32, 64], depths=[1, 2], head_dim=16
    )
    assert backbone.sizes() == [(32, 1), (32, 2), (64, 1), (64, 2)]
    assert backbone.forward_tokens(torch.randn(1, 3, 8, 8), size=Size(32, 1)).patches.shape == (1, 16, 32)


def test_drop_path_follows_the_recipes() -> None:
    vit = ElasticViT(32, 8, widths=(32,), depths=(4,), head_dim=8, drop_path_rate=0.2)
    assert [(b.drop_path.rate, b.drop_path.form) for b in vit.blocks] == [(0.2, "batch")] * 4
    linear = ElasticViT(
        32, 8, widths=(32,), depths=(3,), head_dim=8, drop_path_rate=0.2, drop_path_uniform=False
    )
    assert [b.drop_path.rate for b in linear.blocks] == pytest.approx([0.0, 0.1, 0.2])
    swin = ElasticSwin(widths=(16,), depths=((2,), (3,)), head_dim=8, drop_path_rate=0.2)
    rates = [b.drop_path for stage in swin.layers for b in stage.blocks]
    assert [r.rate for r in rates] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert {r.form for r in rates} == {"sample"}
    assert all(b.drop_path.rate == 0 for b in vit.extract(vit.intact).blocks)


# -- what does not fit is refused ------------------------------------------------------------------------


def test_sizes_that_do_not_exist() -> None:
    backbone = tiny_elastic("vit")
    for size in (Size(20, 3), Size(24, 6)):
        with pytest.raises(ValueError, match=r"ElasticViT has no size .*widths are \[16, 24, 32, 40\]"):
            backbone.forward_tokens(images("vit"), None, size)
    with pytest.raises(ValueError, match=r"'vit_smal' is none of the 16 .* names are like vit_w16_d2"):
        backbone.find_size("vit_smal")


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_images_that_patches_do_not_divide(family: str) -> None:
    with pytest.raises(ValueError, match="images of 30 x 32 pixels cannot be cut into patches"):
        tiny_elastic(family).forward_tokens(torch.randn(1, 3, 30, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_that_do_not_fit(family: str) -> None:
    backbone = tiny_elastic(family)
    with pytest.raises(ValueError, match=r"mask must be \[2, 16\].*got \[2, 9\]"):
        backbone.forward_tokens(images(family), torch.zeros(2, 9, dtype=torch.bool))
    if family != "vit":
        image = torch.randn(1, 3, 40, 40)
        with pytest.raises(ValueError, match="cannot be masked: sides must be multiples of 32"):
            backbone.forward_tokens(image, torch.zeros(1, 16, dtype=torch.bool))


def test_widths_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"widths must be multiples of head_dim=64, got \[100\]"):
        ElasticViT(widths=(64, 100), depths=(2,))
    with pytest.raises(ValueError, match=r"widths must be multiples of head_dim=16, got \[20\]"):
        ElasticSwin(widths=(20, 32))
    with pytest.raises(ValueError, match=r"multiples of groups=32, got \[48\]"):
        ElasticResNet(widths=(48, 64))
    with pytest.raises(ValueError, match="shifts must have one entry per block"):
        ElasticSwin(widths=(16,), depths=((2,), (2,)), shifts=[[False, True], [False]])


def test_weights_in_the_usual_order_are_not_taken_for_ours() -> None:
    """Rows of queries, keys and values are ordered by head here: timm's state must not load by its name."""
    backbone = tiny_elastic("vit")
    with pytest.raises(RuntimeError, match="qkv_by_head"):
        backbone.load_state_dict(in_timm(backbone).state_dict())
