"""Every layout, damaged: dropped, renamed, reshaped and recast tensors are told, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import test_fst_networks as uda
from tests.test_ast import released as ast_file
from tests.test_ast import tiny as tiny_ast
from tests.test_backbones_mit import mmsegmentation
from tests.test_checkpoints_layouts import FAMILY, Tensors, clones, randomised, under, vit
from zoo.backbones import DeepLabResNet
from zoo.backbones.ast import AST
from zoo.checkpoints import CheckpointError, WeightFile, load_pretrained
from zoo.checkpoints.match import parts_of
from zoo.methods.audio.classifier import AudioClassifierNetwork
from zoo.methods.audio.ssast import SSASTNetwork
from zoo.nn import Segmentor, create_decode_head
from zoo.nn.volume_networks import VolumeEncoder
from zoo.registry import create_backbone

MIT = "arch.mit_daformer_small.a"


def mit() -> nn.Module:
    return Segmentor(*uda.network(MIT))


def deeplab() -> nn.Module:
    backbone = DeepLabResNet(50, stem="plain", layers=[1, 1, 1, 3], channels=(8, 8, 8, 8))
    return Segmentor(
        backbone, create_decode_head("deeplabv2", backbone.channels, 5, dilations=(6, 12, 18, 24))
    )


def deeplab_file(network: nn.Module) -> Tensors:
    state = {n.removeprefix("backbone.model."): t for n, t in clones(network.state_dict()).items()}
    renamed = {
        n.replace("decode_head.aspp_modules.", "layer5.conv2d_list.").replace(".conv.", "."): t
        for n, t in state.items()
    }
    return under("Scale.", renamed)


def ssast() -> nn.Module:
    return SSASTNetwork(AST(embed_dim=24, depth=1, num_heads=3, frames=128, mask_token=True))


def ssast_file(network: nn.Module) -> Tensors:
    state = clones(network.state_dict())
    prefix, grid = state.pop("backbone.pos_prefix"), state.pop("backbone.pos_grid")
    state["backbone.pos_embed"] = torch.cat((prefix, grid.flatten(2).transpose(1, 2)), 1)
    names = (
        ("backbone.mask_token", "mask_embed"),
        ("matching.", "cpredlayer."),
        ("reconstruction.", "gpredlayer."),
    )
    for ours, theirs in (*names, ("backbone.", "v.")):
        state = {theirs + n.removeprefix(ours) if n.startswith(ours) else n: t for n, t in state.items()}
    state |= {"p_input_fdim": torch.tensor(128), "p_input_tdim": torch.tensor(128)}
    return under("module.", state)


def swin_unetr() -> nn.Module:
    pytest.importorskip("monai")
    return VolumeEncoder(
        create_backbone("swin_unetr_b", in_chans=1, feature_size=12, window_size=2, depths=(1, 1, 1, 1))
    )


def swin_unetr_file(network: nn.Module) -> Tensors:
    return {
        n.removeprefix("backbone."): t
        for n, t in clones(network.state_dict()).items()
        if not n.endswith(".order")
    }


#: Layout → (network, its file under the authors' names, importer that recognises it).
LAYOUTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensors], str]] = {
    "mmseg": (mit, lambda n: under("state_dict.model.", clones(n.state_dict())), "segformer"),
    "new mmseg": (lambda: uda.network(MIT)[0], lambda n: mmsegmentation(clones(n.state_dict())), "segformer"),
    "deeplab": (deeplab, deeplab_file, "deeplab"),
    "ast": (
        lambda: AudioClassifierNetwork(tiny_ast(stride=(10, 10)), 5),
        lambda n: ast_file(n, "module."),
        "ast",
    ),
    "ssast": (ssast, ssast_file, "ssast"),
    **{
        name: (vit, lambda n, name=name: FAMILY[name](clones(n.state_dict())), importer)
        for name, importer in (("dino", "dino"), ("dinov2, in chunks", "dino"), ("poa", "poa"))
    },
    "registers": (
        lambda: vit(reg_tokens=2, no_embed_class=True),
        lambda n: {
            ("register_tokens" if k == "reg_token" else k): torch.cat((t[:, :1], t), 1) if k == "pos_embed" else t
            for k, t in clones(n.state_dict()).items()
        },
        "dino",
    ),
    "torchvision ViT": (
        lambda: timm.create_model("vit_tiny_patch16_224", depth=2),
        lambda _: clones(torchvision.models.VisionTransformer(224, 16, 2, 3, 192, 768).state_dict()),
        "torchvision_vit",
    ),
    "torchvision Swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24),
        lambda _: clones(
            torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [3, 6, 12, 24], [7, 7]).state_dict()
        ),
        "torchvision_swin",
    ),
    "voco": (swin_unetr, swin_unetr_file, "voco"),
    "timm": (
        lambda: create_backbone("convnext_atto", depths=(1, 1, 1, 1)),
        lambda _: clones(timm.create_model("convnext_atto", depths=(1, 1, 1, 1)).state_dict()),
        "timm",
    ),
}  # fmt: skip


@cache
def case(layout: str) -> tuple[Any, Tensors, Tensors]:
    """The network, the file, and what the network holds after an undamaged load, by our names."""
    make, file, importer = LAYOUTS[layout]
    network = randomised(make())
    state = file(network)
    report = load_pretrained(network, WeightFile("whole.pth", state), show=False)
    assert report.importer == importer
    assert report.complete, report
    return network, state, {name: tensor.detach().clone() for name, tensor in parts_of(network).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_damage_is_told_or_nothing_is_loaded(layout: str, data: st.DataObject) -> None:
    network, state, whole = case(layout)
    state = dict(state)
    for name in data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=4, unique=True)):
        tensor = state.pop(name)
        match data.draw(
            st.sampled_from(["drop", "rename", "double", "unsqueeze", "flatten", "scalar", "integer"])
        ):
            case "rename":
                state[name + "x"] = tensor
            case "double":
                state[name] = (
                    torch.cat([tensor[None], tensor[None]]).flatten(0, 1) if tensor.ndim else tensor[None]
                )
            case "unsqueeze":
                state[name] = tensor[None]
            case "flatten":
                state[name] = tensor.flatten()
            case "scalar":
                state[name] = tensor.sum()
            case "integer":
                state[name] = tensor.to(torch.int32)
    parts = parts_of(network)
    with torch.no_grad():
        for tensor in parts.values():
            tensor.fill_(1)
    least = data.draw(st.sampled_from([0.0, 0.95]))
    try:
        report = load_pretrained(network, WeightFile("hurt.pth", state), min_share=least, show=False)
    except CheckpointError:
        assert all((tensor == 1).all() for tensor in parts.values())
        return
    assert report.share >= least
    told = {*report.missing, *(entry[0] for entry in report.mismatched), *(a.name for a in report.adapted)}
    for name, tensor in parts.items():
        same = tensor.shape == whole[name].shape and torch.equal(tensor, whole[name])
        assert same or name in told or "num_batches" in name, name
