"""MiT: the published sizes, timm's function, released files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2, checkpoint_filter_fn
from torch import Tensor, nn

from zoo import create_backbone, list_backbones
from zoo.backbones import MixTransformer
from zoo.backbones.mit import VARIANTS
from zoo.checkpoints import CheckpointError, load_pretrained

DEPTHS, WIDTHS = (1, 2, 2, 1), (8, 16, 20, 32)
# Encoder parameters in millions: SegFormer, table 1a.
PUBLISHED = {"mit_b0": 3.4, "mit_b1": 13.1, "mit_b2": 24.2, "mit_b3": 44.0, "mit_b4": 60.8, "mit_b5": 81.4}


def small(**options) -> MixTransformer:
    torch.manual_seed(0)
    network = MixTransformer(DEPTHS, WIDTHS, **options)
    for parameter in network.parameters():  # no two tensors alike, norms and biases included
        nn.init.normal_(parameter, mean=0.1, std=0.1)
    return network.eval()


def mmsegmentation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of MMSegmentation from 0.20 on, as its converter from the original one makes it."""
    out = {}
    for name, tensor in state.items():
        parts = name.split(".")
        stage = int(parts[0][-1]) - 1
        match parts[0][:-1], *parts[1:]:
            case "patch_embed", "proj", what:
                out[f"layers.{stage}.0.projection.{what}"] = tensor
            case "patch_embed", "norm", what:
                out[f"layers.{stage}.0.norm.{what}"] = tensor
            case "norm", what:
                out[f"layers.{stage}.2.{what}"] = tensor
            case "block", i, "attn", "q", what:
                both = torch.cat([tensor, state[name.replace(".q.", ".kv.")]])
                out[f"layers.{stage}.1.{i}.attn.attn.in_proj_{what}"] = both
            case "block", i, "attn", "kv", what:
                continue
            case "block", i, "attn", "proj", what:
                out[f"layers.{stage}.1.{i}.attn.attn.out_proj.{what}"] = tensor
            case "block", i, "mlp", "dwconv", "dwconv", what:
                out[f"layers.{stage}.1.{i}.ffn.layers.1.{what}"] = tensor
            case "block", i, "mlp", linear, what:
                place = {"fc1": 0, "fc2": 4}[linear]
                as_conv = tensor[..., None, None] if what == "weight" else tensor
                out[f"layers.{stage}.1.{i}.ffn.layers.{place}.{what}"] = as_conv
            case "block", i, *rest:
                out[f"layers.{stage}.1.{i}.{'.'.join(rest)}"] = tensor
    return out


def with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name) -> None:
    with torch.device("meta"):
        network = create_backbone(name)
    size = sum(p.numel() for p in network.parameters())
    assert size / 1e6 == pytest.approx(PUBLISHED[name], abs=0.1)
    assert network.channels == ((32, 64, 160, 256) if name == "mit_b0" else (64, 128, 320, 512))
    assert network.strides == (4, 8, 16, 32)


def test_variants_are_registered() -> None:
    assert list_backbones("mit_b*") == sorted(VARIANTS) == sorted(PUBLISHED)


def test_it_is_timms_pvt_v2_by_timms_own_translation_of_the_released_names() -> None:
    network = small()
    timms = PyramidVisionTransformerV2(
        num_classes=0, depths=DEPTHS, embed_dims=WIDTHS, num_heads=(1, 2, 5, 8), mlp_ratios=(4, 4, 4, 4)
    ).eval()
    timms.load_state_dict(checkpoint_filter_fn(network.state_dict(), timms))
    image = torch.randn(2, 3, 45, 70)
    with torch.no_grad():
        maps, wanted = network(image), timms.forward_intermediates(image, intermediates_only=True)
    for got, reference in zip(maps, wanted, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-5)


def test_details_of_the_release() -> None:
    """The FST card, section 5.1: stochastic depth, epsilons; the release's initialisation."""
    torch.manual_seed(0)
    network = create_backbone("mit_b2")
    blocks = [block for stage in range(1, 5) for block in network.get_submodule(f"block{stage}")]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.1 * i / (len(blocks) - 1) for i in range(len(blocks))])
    assert create_backbone("mit_b0", drop_path_rate=0.0).block4[1].drop_path2(3) == 3
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm):
            coarse = name.startswith("patch_embed") or name.endswith("attn.norm")
            assert module.eps == (1e-5 if coarse else 1e-6), name
    assert network.block4[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    depthwise = network.block4[0].mlp.dwconv.dwconv
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert network.patch_embed4.proj.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.05)
    assert not depthwise.bias.any()


def test_images_of_any_size_that_can_be_reduced() -> None:
    network = small()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 29, 61))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 8, 16), (16, 4, 8), (20, 2, 4), (32, 1, 2)]
    with pytest.raises(ValueError, match=r"image of \[61, 28\] pixels is too small for MiT: .* at least 29"):
        network(torch.randn(1, 3, 61, 28))


def test_gradients_reach_every_parameter() -> None:
    network = small(drop_path_rate=0.0)
    maps = network.train()(torch.randn(1, 3, 64, 64))
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


# -- released files --------------------------------------------------------------------------------------


def head(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.weight": torch.ones(5, 32), f"{prefix}.bias": torch.ones(5)}


LAYOUTS = {
    "original": lambda s: {**s, **head("head")},
    "original in a segmentation network": lambda s: {
        "meta": {"iter": 1},
        "state_dict": {**with_prefix(s, "backbone."), **head("decode_head.conv_seg")},
    },
    "daformer": lambda s: {**with_prefix(s, "model.backbone."), **head("model.decode_head.conv_seg")},
    "mmsegmentation": mmsegmentation,
    "mmsegmentation network": lambda s: {
        "state_dict": {**with_prefix(mmsegmentation(s), "backbone."), **head("auxiliary_head.conv_seg")}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_released_layouts(layout) -> None:
    wanted = small().state_dict()
    network = MixTransformer(DEPTHS, WIDTHS)
    torch.save(LAYOUTS[layout](wanted), "mit.pth")
    assert load_pretrained(network, "mit.pth").complete
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())


def test_layouts_of_the_test_are_not_ours_already() -> None:
    assert not small().state_dict().keys() & mmsegmentation(small().state_dict()).keys()


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_pretrained_downloads_and_checks_the_variants_file(in_chans, monkeypatch) -> None:
    state, asked = create_backbone("mit_b0").state_dict(), []
    torch.save(state, "mit.pth")
    monkeypatch.setattr(
        "zoo.checkpoints.sources.download", lambda *arguments: asked.append(arguments) or Path("mit.pth")
    )
    network = create_backbone("mit_b0", pretrained=True, in_chans=in_chans)
    ((url, checksum, _),) = asked
    assert url.endswith("/mit_b0_20220624-7e0fe6dd.pth")
    assert checksum == "7e0fe6dd"
    assert len(network.mean) == len(network.std) == in_chans
    first = network.patch_embed1.proj.weight
    rgb = state["patch_embed1.proj.weight"]
    if in_chans == 1:
        rgb = rgb.sum(1, keepdim=True)
    elif in_chans == 4:
        rgb = torch.cat([rgb, rgb[:, :1]], 1) * 3 / 4
    torch.testing.assert_close(first.detach(), rgb)
    assert torch.equal(network.norm4.weight, state["norm4.weight"])


def test_the_variants_file_must_fill_all_of_it(monkeypatch) -> None:
    state = create_backbone("mit_b0").state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name != "norm4.bias"}, "mit.pth")
    monkeypatch.setattr("zoo.checkpoints.sources.download", lambda *_: Path("mit.pth"))
    with pytest.raises(CheckpointError, match=r"Missing: backbone\.norm4\.bias"):
        create_backbone("mit_b0", pretrained=True)
