"""The networks of FST's semi-supervised recipes, filled by formula, against the authors' outputs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.formulas import assert_fingerprint, load_cases, recipe
from tests.parity.networks import fill, layout_hash, rename, weights
from zoo.backbones import DeepLabResNet
from zoo.nn import create_decode_head
from zoo.nn.heads.released import SEMI_HEAD_IGNORED, SEMI_HEAD_RENAMES

CASES = load_cases("semi_networks.json")
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "dec_deeplabv3_plus": ("deeplabv3plus", {"bias": True, "align_corners": True}),
    "dec_deeplabv2": ("deeplabv2", {"dilations": (6, 12, 18, 24)}),
    "dec_pspnet": ("pspnet_shuffle", {}),
}


def released(
    keys: list[list[Any]], part: str, head: str, module: nn.Module
) -> list[tuple[str, Tensor | None]]:
    """(released name, our tensor) of a head in the released order; ``None`` where we have no such branch."""
    state, pairs = weights(module), []
    for key, shape in keys:
        if not key.startswith(f"{part}."):
            continue
        name = key.removeprefix(f"{part}.")
        tensor = None
        if not re.match(SEMI_HEAD_IGNORED, name):
            tensor = state.pop(rename(name, SEMI_HEAD_RENAMES[head]))
            assert list(tensor.shape) == shape
        pairs.append((key, tensor))
    assert not state, f"no released name for {list(state)}"
    return pairs


@pytest.mark.parametrize("name", CASES)
def test_layout_maps_and_logits(name: str) -> None:
    case = CASES[name]
    params, expected, tolerance = case["params"], case["expected"], case["tolerance"]
    backbone = DeepLabResNet(101, stem="wide", multi_grid=(2, 2, 4), ceil_mode=True).eval()
    head_name, options = HEADS[params["dec"]]
    head = create_decode_head(head_name, backbone.channels, params["C"], **options).eval()
    aux = create_decode_head("fcn", backbone.channels, params["C"], source=-2, bias=True).eval()

    keys = expected["non_encoder_keys"]
    own = [(key.replace("model.", "encoder.", 1), tensor) for key, tensor in weights(backbone).items()]
    shapes = [(key, list(tensor.shape)) for key, tensor in own] + [(key, shape) for key, shape in keys]
    assert layout_hash(shapes) == expected["sha256_of_key_shape_lines"]
    assert sum(p.numel() for p in backbone.parameters()) == expected["num_params_encoder"]
    pairs = [*own, *released(keys, "decoder", head_name, head)]
    if params["aux"]:
        pairs += released(keys, "auxor", "fcn", aux)
        assert sum(p.numel() for p in aux.parameters()) == expected["num_params_aux"]
    assert len(pairs) == expected["num_float_tensors"]

    fill(pairs, case["inputs"]["k0"])
    with torch.no_grad():
        maps = backbone(recipe(case["inputs"]["image"]))
        for got, wanted in zip(maps, expected["features"], strict=True):
            assert_fingerprint(got, wanted, **tolerance)
        # Tighter than the file suggests: the shuffled PSPNet's logits are so small that it would not see the
        # order of the pooled branches, nor how they are upsampled.
        assert_fingerprint(head(maps), expected["pred"], rtol=1e-4, atol=2e-5)
        if params["aux"]:
            assert_fingerprint(aux(maps), expected["aux"], **tolerance)
