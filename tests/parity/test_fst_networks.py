"""The networks of FST's domain-adaptation recipes, filled by formula, against the authors' outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from tests.parity.formulas import assert_fingerprint, det, load_cases, recipe
from zoo.nn import DAFormerHead, DeepLabV2Head, build_segmentor
from zoo.optim import Optim, ParameterRule, parameter_groups

CASES = load_cases("fst_networks.json")


def mit_to_timm(key: str) -> str:
    """Released MiT names (card, section 10) → timm's `pvt_v2`."""
    key = re.sub(r"^patch_embed1\.", "patch_embed.", key)
    key = re.sub(r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.", key)
    key = re.sub(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", key)
    key = re.sub(r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm.", key)
    return key.replace("mlp.dwconv.dwconv.", "mlp.dwconv.")


def resnet_to_timm(key: str) -> str:
    """Released ResNet v1c names → timm's `resnet101c`."""
    return re.sub(r"^stem\.", "conv1.", re.sub(r"^stem\.7\.", "bn1.", key))


def mit_keys(depths: tuple[int, ...], reductions: tuple[int, ...]) -> Iterator[str]:
    """Released names in registration order."""
    for stage in range(1, 5):
        yield from (f"patch_embed{stage}.{part}" for part in ("proj", "norm"))
    for stage, (depth, reduction) in enumerate(zip(depths, reductions, strict=True), 1):
        attention = ["attn.q", "attn.kv", "attn.proj", *(["attn.sr", "attn.norm"] if reduction > 1 else [])]
        for block in range(depth):
            for part in ["norm1", *attention, "norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]:
                yield f"block{stage}.{block}.{part}"
        yield f"norm{stage}"


def resnet_keys(depths: tuple[int, ...]) -> Iterator[str]:
    yield from ("stem.0", "stem.1 bn", "stem.3", "stem.4 bn", "stem.6", "stem.7 bn")
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            place = f"layer{layer}.{block}."
            for part in (1, 2, 3):
                yield from (f"{place}conv{part}", f"{place}bn{part} bn")
            if block == 0:
                yield from (f"{place}downsample.0", f"{place}downsample.1 bn")


def tensor_names(modules: Iterator[str], state: dict[str, Tensor], rename: Any) -> list[tuple[str, str]]:
    """(released name, our name) of every floating-point tensor, in the order of registration."""
    pairs = []
    for module in modules:
        name, _, batch_norm = module.partition(" ")
        for part in ("weight", "bias", *(("running_mean", "running_var") if batch_norm else ())):
            if rename(f"{name}.{part}") in state:
                pairs.append((f"{name}.{part}", rename(f"{name}.{part}")))
    return pairs


@torch.no_grad()
def fill(tensors: list[tuple[str, Tensor]], k0: int) -> None:
    """Values by formula over the released order: see the conventions of the case."""
    for j, (name, tensor) in enumerate(tensors):
        base = det(tensor.shape, k0 + j)
        if name.endswith("running_var"):
            base = 1 + 0.5 * base.abs()
        elif name.endswith("running_mean"):
            base = 0.1 * base
        elif tensor.dim() <= 1:
            base = 1 + 0.1 * base if name.endswith("weight") else 0.1 * base
        else:
            base = base / (tensor.numel() / tensor.shape[0]) ** 0.5
        tensor.copy_(base)


def network(name: str) -> tuple[nn.Module, nn.Module, Any, list[tuple[str, str]], list[str]]:
    """Backbone (returning its maps), head, renaming, and names of the tensors of both."""
    p = CASES[name]["params"]
    if name == "arch.mit_daformer_small.a":
        timm_model = PyramidVisionTransformerV2(
            num_classes=0, depths=p["depths"], embed_dims=p["dims"], num_heads=p["heads"], sr_ratios=p["sr"],
            mlp_ratios=(4, 4, 4, 4), qkv_bias=True,
        )  # fmt: skip
        backbone: nn.Module = Stages(timm_model)
        head: nn.Module = DAFormerHead(p["dims"], p["ncls"], width=p["embed"])
        names = tensor_names(mit_keys(p["depths"], p["sr"]), timm_model.state_dict(), mit_to_timm)
        return backbone, head, timm_model, names, list(head.state_dict())
    if name == "arch.resnetv1c_dlv2_small.a":
        base = p["base"]
        timm_model = ResNet(
            Bottleneck, (3, 4, 6, 3), num_classes=0, output_stride=8, stem_type="deep", stem_width=p["stem"] // 2,
            channels=(base, 2 * base, 4 * base, 8 * base),
        )  # fmt: skip
        head = DeepLabV2Head([32 * base], p["ncls"], p["dil"])
        names = tensor_names(resnet_keys((3, 4, 6, 3)), timm_model.state_dict(), resnet_to_timm)
        return Layers(timm_model), head, timm_model, names, list(head.state_dict())
    if name == "arch.mit_b5_daformer_full":
        segmentor = build_segmentor("pvt_v2_b5", "daformer", 19)
        keys, rename = mit_keys((3, 6, 40, 3), (8, 4, 2, 1)), mit_to_timm
    else:
        segmentor = build_segmentor("resnet101c", "deeplabv2", 19, backbone_kwargs={"output_stride": 8})
        keys, rename = resnet_keys((3, 4, 23, 3)), resnet_to_timm
    wrapped = segmentor.backbone.model  # timm's feature wrapper spells `stages.0` as `stages_0`

    def spell(key: str) -> str:
        return re.sub(r"^stages\.", "stages_", rename(key))

    names = tensor_names(keys, wrapped.state_dict(), spell)
    return segmentor.backbone, segmentor.decode_head, wrapped, names, list(segmentor.decode_head.state_dict())


class Stages(nn.Module):
    """The maps of a timm transformer, in order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.model.patch_embed(image), []
        for stage in self.model.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Layers(nn.Module):
    """The maps of a timm ResNet, in order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        m = self.model
        x, maps = m.maxpool(m.act1(m.bn1(m.conv1(image)))), []
        for layer in (m.layer1, m.layer2, m.layer3, m.layer4):
            x = layer(x)
            maps.append(x)
        return maps


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("arch.")])
def test_maps_and_logits(name: str) -> None:
    case = CASES[name]
    expected, tolerance = case["expected"], case["tolerance"]
    backbone, head, model, names, head_names = network(name)
    state = {**model.state_dict()}
    own = [(f"backbone.{released}", state[ours]) for released, ours in names]
    head_state = head.state_dict()
    own += [
        (f"decode_head.{key}", head_state[key]) for key in head_names if head_state[key].is_floating_point()
    ]
    if "keys_and_shapes" in expected:
        assert [[key, list(tensor.shape)] for key, tensor in own] == expected["keys_and_shapes"]
    else:
        shapes = [[key, list(tensor.shape)] for key, tensor in own]
        assert shapes[: len(expected["first_keys"])] == expected["first_keys"]
        assert [shape for shape in shapes if shape[0].startswith("decode_head")] == expected["head_keys"]
    assert len(own) == expected["num_float_tensors"]
    released = {ours for _, ours in names}
    backbone_size = sum(p.numel() for n, p in model.named_parameters() if n in released)
    assert backbone_size == expected["num_params_backbone"]
    assert sum(p.numel() for p in head.parameters()) == expected["num_params_head"]

    fill(own, case["inputs"]["k0"])
    backbone.eval()
    head.eval()
    with torch.no_grad():
        maps = backbone(recipe(case["inputs"]["image"]))[-4:]  # a ResNet's stem map comes first
        for got, wanted in zip(maps, expected["features"], strict=True):
            assert_fingerprint(got, wanted, **tolerance)
        logits = head(maps)
        assert_fingerprint(logits, expected["logits_low_res"], **tolerance)


def test_parameter_groups_of_the_published_recipe() -> None:
    """Case optim.param_groups: the names of our networks fall under the same rules."""
    rules = {
        "head": ParameterRule(lr=10.0),
        "pos_block": ParameterRule(weight_decay=0.0),
        "norm": ParameterRule(weight_decay=0.0),
    }
    optim = Optim("adamw", lr=6e-5, weight_decay=0.01, rules=rules)
    with torch.device("meta"):
        networks = {
            "mit_b5_daformer": build_segmentor("pvt_v2_b5", "daformer", 19),
            "resnet101v1c_dlv2_dil_6_12": build_segmentor(
                "resnet101c", "deeplabv2", 19, backbone_kwargs={"output_stride": 8}
            ),
        }
    for name, segmentor in networks.items():
        groups = parameter_groups([segmentor], optim)
        found = {
            f"lr={group['lr']:g},wd={group['weight_decay']:g}": {
                "tensors": len(group["params"]),
                "params": sum(p.numel() for p in group["params"]),
            }
            for group in groups
        }
        assert found == CASES["optim.param_groups"]["expected"][name]
