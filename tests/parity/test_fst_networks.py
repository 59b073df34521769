"""The networks of FST's domain-adaptation recipes, filled by formula, against the authors' outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.parity.formulas import assert_fingerprint, load_cases, recipe
from tests.parity.networks import fill, layout_hash, rename, weights
from zoo.backbones import DeepLabResNet, MixTransformer
from zoo.backbones.resnet_deeplab import RESNET_RENAMES
from zoo.nn import DAFormerHead, DeepLabV2Head, build_segmentor
from zoo.optim import Optim, ParameterRule, parameter_groups

CASES = load_cases("fst_networks.json")
#: Our names of a ResNet v1c → the released ones; the opposite of RESNET_RENAMES.
RELEASED_RESNET = ((r"^model\.", ""), (r"^conv1\.", "stem."), (r"^bn1\.", "stem.7."))


def network(name: str) -> tuple[nn.Module, nn.Module]:
    """Backbone and decode head of a case."""
    p = CASES[name]["params"]
    match name:
        case "arch.mit_daformer_small.a":
            backbone: nn.Module = MixTransformer(p["depths"], p["dims"], p["heads"], p["sr"])
            return backbone, DAFormerHead(p["dims"], p["ncls"], width=p["embed"])
        case "arch.resnetv1c_dlv2_small.a":
            base = p["base"]
            widths = (base, 2 * base, 4 * base, 8 * base)
            backbone = DeepLabResNet(50, stem_width=p["stem"] // 2, channels=widths)
            return backbone, DeepLabV2Head([32 * base], p["ncls"], p["dil"])
        case "arch.mit_b5_daformer_full":
            segmentor = build_segmentor("mit_b5", "daformer", 19)
        case _:
            segmentor = build_segmentor("resnet101_deeplab", "deeplabv2", 19)
    return segmentor.backbone, segmentor.decode_head


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("arch.")])
def test_layout_maps_and_logits(name: str) -> None:
    case = CASES[name]
    expected, tolerance = case["expected"], case["tolerance"]
    backbone, head = network(name)
    released = RELEASED_RESNET if "resnet" in name else ()
    own = [(f"backbone.{rename(key, released)}", tensor) for key, tensor in weights(backbone).items()]
    own += [(f"decode_head.{key}", tensor) for key, tensor in weights(head).items()]
    shapes = [(key, list(tensor.shape)) for key, tensor in own]
    assert layout_hash(shapes) == expected["sha256_of_key_shape_lines"]
    assert len(own) == expected["num_float_tensors"]
    assert sum(p.numel() for p in backbone.parameters()) == expected["num_params_backbone"]
    assert sum(p.numel() for p in head.parameters()) == expected["num_params_head"]

    fill(own, case["inputs"]["k0"])
    backbone.eval()
    head.eval()
    with torch.no_grad():
        maps = backbone(recipe(case["inputs"]["image"]))
        for got, wanted in zip(maps, expected["features"], strict=True):
            assert_fingerprint(got, wanted, **tolerance)
        assert_fingerprint(head(maps), expected["logits_low_res"], **tolerance)


def test_released_resnet_names_are_renamed_to_ours() -> None:
    case = CASES["arch.resnetv1c_dlv2_small.a"]
    backbone, _ = network("arch.resnetv1c_dlv2_small.a")
    released = [key for key, _ in case["expected"]["keys_and_shapes"] if key.startswith("backbone.")]
    ours = [rename(key.removeprefix("backbone."), RESNET_RENAMES) for key in released]
    assert ours == list(weights(backbone))


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
            "mit_b5_daformer": build_segmentor("mit_b5", "daformer", 19),
            "resnet101v1c_dlv2_dil_6_12": build_segmentor("resnet101_deeplab", "deeplabv2", 19),
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
