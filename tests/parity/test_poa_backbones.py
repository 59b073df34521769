"""The elastic backbones, filled by formula through the authors' layout, against numbers of the authors' code.

Formulas: parameter k of the sorted names is made of ``d_i = sin(0.7 i + 0.013 i² + k)`` in float64; see ``fill``.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.formulas import det, load_cases
from zoo.backbones.elastic import ElasticBackbone
from zoo.backbones.elastic_layouts import POA_RENAMES, load_poa_weights, timm_state_dict
from zoo.backbones.elastic_resnet import ElasticResNet
from zoo.backbones.elastic_swin import ElasticSwin
from zoo.backbones.elastic_vit import ElasticViT
from zoo.nn.elastic import Size, kept_blocks
from zoo.nn.stochastic_depth import StochasticDepth

CASES = load_cases("poa_backbones.json")
FORWARDS = [(family, case) for family in ("vit", "swin", "resnet") for case in CASES[family]["forward"]]


def chirp(shape: list[int] | tuple[int, ...], k: int) -> Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * i + 0.013 * i * i + k).reshape(shape)


def fill(name: str, shape: list[int], k: int) -> Tensor:
    d = chirp(shape, k)
    if name.endswith(".weight") and len(shape) > 1:
        d = d * 1.2 / (d.numel() / shape[0]) ** 0.5
    elif name.endswith((".weight", ".gamma")):
        d = 1 + 0.3 * d
    else:
        d = d * (0.1 if name.endswith(".bias") else 0.5)
    return d.float()


@cache
def network(family: str) -> ElasticBackbone:
    built: dict[str, ElasticBackbone] = {
        "vit": ElasticViT(32, 8, widths=(32, 48, 64), depths=(3, 4, 5, 6), head_dim=16),
        "swin": ElasticSwin(widths=(32, 48, 64), depths=((2,), (2,), (3, 4, 5, 6), (2,)), window_size=4),
        "resnet": ElasticResNet(
            widths=(16, 24, 32), depths=((2,), (2, 3, 4), (3, 4, 5, 6), (2,)), stem_width=16, groups=8
        ),
    }
    released = {
        f"backbone.{name}": fill(name, shape, k) for k, (name, shape) in enumerate(CASES[family]["state"])
    }
    load_poa_weights(built[family], {"teacher": released}, "formula")
    return built[family].eval()


def named_size(family: str, net: Any) -> Size:
    width, depth = ast.literal_eval(net) if isinstance(net, str) else net
    if family == "swin":
        depth = (2, 2, depth, 2)
    return Size(width[0] if isinstance(width, tuple) else width, depth)


def assert_tokens(got: Tensor, wanted: dict[str, Any]) -> None:
    assert list(got.shape) == wanted["shape"]
    got = got.double()
    close = {"rtol": 1e-5, "atol": 2e-5}
    if "values" in wanted:
        values = torch.tensor(wanted["values"], dtype=torch.float64)
        torch.testing.assert_close(got[:, : values.shape[1]], values, **close)
    if "first8_of_token0_image0" in wanted:
        for part, key in (
            (got[0, 0, :8], "first8_of_token0_image0"),
            (got[-1, -1, -8:], "last8_of_last_token_last_image"),
        ):
            torch.testing.assert_close(part, torch.tensor(wanted[key], dtype=torch.float64), **close)
    assert got.sum().item() == pytest.approx(wanted["sum"], rel=1e-5, abs=2e-5 * got.numel() ** 0.5)
    assert got.square().sum().item() == pytest.approx(wanted["sumsq"], rel=1e-5)


@pytest.mark.parametrize(("family", "case"), FORWARDS)
def test_tokens_of_a_size(family: str, case: str) -> None:
    recipe = CASES[family]["recipe"]
    net, crop, masked = (part.partition("=")[2] for part in case.split(";"))
    image = chirp((recipe["B"], 3, int(crop), int(crop)), recipe["k_img"]).float()
    mask = None
    if masked == "yes":
        mask = det((recipe["B"], recipe["mask_side"] ** 2), recipe["k_mask"]) > recipe["mask_thr"]
        assert mask.sum(1).tolist() == CASES[family]["forward"][case]["masked_tokens_per_image"]
    with torch.no_grad():
        tokens = network(family).forward_tokens(image, mask, named_size(family, net))
    wanted = CASES[family]["forward"][case]
    assert_tokens(tokens.cls, wanted["cls"])
    assert_tokens(tokens.patches, wanted["patch"])


def test_tokens_between_the_blocks() -> None:
    wanted = CASES["vit"]["intermediate"]
    image = chirp((2, 3, 32, 32), 41).float()
    backbone = network("vit")
    assert isinstance(backbone, ElasticViT)
    with torch.no_grad():
        found = backbone.intermediate_tokens(image, Size(*wanted["net"]))
    for tokens, numbers in zip(found, wanted["out"], strict=True):
        assert_tokens(tokens.cls, numbers["cls"])
        assert_tokens(tokens.patches, numbers["patch"])


@pytest.mark.parametrize(
    ("family", "case"),
    [(family, case) for family in ("vit", "swin", "resnet") for case in CASES[family]["extraction"]],
)
def test_extracted_tensors(family: str, case: str) -> None:
    """The authors multiply matrices by alpha, we multiply vectors beside them: undone, the tensors are the same."""
    width, depth = (part.partition("=")[2] for part in re.split(r",(?=depth)", case))
    size = named_size(family, f"({width},{depth})")
    backbone = network(family)
    alpha = backbone.alpha(size)
    state = timm_state_dict(backbone.extract(size))
    checked = 0
    for released, (shape, total, squares) in CASES[family]["extraction"][case].items():
        name = released
        for pattern, replacement in POA_RENAMES:
            name = re.sub(pattern, replacement, name)
        # The mask token is not exported; the authors' Swin export slices the patch norm, which ours must not.
        if name == "mask_token" or (family == "swin" and re.match(r"patch_embed|norm\d", name)):
            continue
        tensor = state.pop(name).double()
        factor = unfold(family, name, alpha)
        assert list(tensor.shape) == shape, name
        assert (tensor * factor).sum().item() == pytest.approx(total, rel=1e-5, abs=1e-4), name
        assert (tensor * factor).square().sum().item() == pytest.approx(squares, rel=1e-5), name
        checked += 1
    assert checked > 50
    assert all(name.startswith("patch_embed") for name in state), "every tensor of ours has its counterpart"


def unfold(family: str, name: str, alpha: float) -> float:
    """What our tensor is multiplied by to become the authors', who scale every elastic matrix by alpha."""
    if family == "resnet":
        conv = re.match(r"layer\d\.\d+\.conv[23]\.", name)
        return alpha if conv else 1 / alpha if re.match(r"layer\d\.\d+\.bn[12]\.", name) else 1.0
    if re.search(r"(qkv|proj|fc1|fc2|reduction)\.weight$", name) and "patch_embed" not in name:
        return alpha
    if re.search(r"blocks\.\d+\.(norm[12]|ls[12])\.", name):
        return 1 / alpha
    return alpha if re.search(r"blocks.*(attn\.proj|fc2)\.bias$", name) else 1.0


def test_vit_small_of_the_released_vit_large_has_its_number_of_values() -> None:
    with torch.device("meta"):
        backbone = ElasticViT()
        small = ElasticViT(**backbone.alone_arguments(backbone.find_size("vit_small")))
    assert len(small.state_dict()) == 175
    assert sum(tensor.numel() for tensor in small.state_dict().values()) == 21675264


@pytest.mark.parametrize(("family", "intact"), [("vit", 24), ("swin", 18)])
def test_kept_blocks(family: str, intact: int) -> None:
    for depth, wanted in CASES[family]["block_index"].items():
        assert list(kept_blocks(int(depth), intact)) == wanted


def test_kept_blocks_of_resnet() -> None:
    for key, wanted in CASES["resnet"]["block_index"].items():
        intact, depth = map(int, key.split(":"))
        assert list(kept_blocks(depth, intact)) == wanted


def test_order_of_resnet_depths() -> None:
    first = CASES["resnet"]["depth_order_first5"]
    assert [list(depth) for depth in network("resnet").depths[:5]] == first


def test_relative_position_index() -> None:
    index = ElasticSwin(widths=(32,), depths=((1,), (1,)), window_size=4).relative_position_index
    assert [index[0].tolist(), index[-1].tolist()] == CASES["swin"]["relative_position_index"]


@pytest.mark.parametrize(
    ("case", "backbone", "decay"),
    [
        ("vit_large_decay0.9", ElasticViT, 0.9),
        ("swin_base_decay0.9", ElasticSwin, 0.9),
        ("resnet_decay0.95", ElasticResNet, 0.95),
    ],
)
def test_learning_rates_and_weight_decay_by_name(
    case: str, backbone: type[ElasticBackbone], decay: float
) -> None:
    with torch.device("meta"):
        network = backbone()
    names = dict(network.named_parameters())
    for released, (rate, weight_decay) in CASES["multipliers"][case].items():
        name = released
        for pattern, replacement in POA_RENAMES:
            name = re.sub(pattern, replacement, name)
        name = name.replace(".qkv.", ".qkv_by_head.").replace(".reduction.", ".merge.")
        if name == "norm0.weight" and backbone is ElasticSwin:
            continue  # untrained, so ours has no parameters there
        assert name in names
        patch_embed = 0.2 if name.startswith("patch_embed.") else 1.0
        found = patch_embed * decay ** (network.num_blocks + 1 - network.block_of(name))
        assert found == pytest.approx(rate, rel=1e-6), name
        assert weight_decay == (not (name.endswith("bias") or "norm" in name or "gamma" in name)), name


def test_stochastic_depth_of_a_part_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = CASES["stochastic_depth_batch_subset"]
    kept = wanted["kept_rows"]
    rest = [row for row in range(7) if row not in kept]
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.tensor([*kept, *rest], device=device))
    x = det((7, 2, 3), 2)
    out = StochasticDepth(0.2, "batch")(x, lambda z: 0.5 * z + 0.1)
    torch.testing.assert_close(out, torch.tensor(wanted["out"]["values"]), rtol=1e-6, atol=1e-6)
