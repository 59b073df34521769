"""A backbone as ``timm.create_model`` loads it: timm's names, timm's arguments, and checked in timm itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from zoo.backbones import AST, DeepLabResNet, ElasticBackbone, MixTransformer, TimmBackbone
from zoo.backbones.elastic_layouts import timm_recipe, timm_state_dict
from zoo.backbones.tokens import PooledMaps, TimmViT
from zoo.checkpoints.files import CheckpointError
from zoo.checkpoints.layouts.segformer import TO_PVT
from zoo.checkpoints.rules import Below
from zoo.checkpoints.write import write_tensors
from zoo.export.card import card_of, chosen_network
from zoo.export.checks import check_close, without_gradients
from zoo.export.weights import CONFIG, WEIGHTS, check_finite, write_text

if TYPE_CHECKING:
    from zoo.deployable import Deployable

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Form:
    """A backbone in timm's terms.

    Args:
        name: of timm's model.
        arguments: with which ``timm.create_model`` builds it.
        state: its weights.
    """

    name: str
    arguments: dict[str, Any]
    state: State


def export_timm(method: Deployable, folder: Path, network: str | None, image: Tensor) -> Form:
    """Write ``config.json`` and ``model.safetensors``, load them with timm and compare what both compute.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)``, or ``"hf-hub:owner/name"`` once uploaded, builds and
    loads it. Where timm's network goes on behind the last map, it can only be built with ``features_only``, which
    timm does not do from a folder: there is no ``config.json`` then, and :func:`timm_call` tells how to build it.

    Args:
        method: holds the backbone.
        folder: is made if need be.
        network: see :func:`zoo.export.card.chosen_network`.
        image: that both are run on, normalised or not: the backbone takes it as it is.

    Raises:
        CheckpointError: timm has no such network, or computes something else.
    """
    name, module = chosen_network(method, network)
    backbone: Any = module.backbone
    form = form_of(backbone)
    card = card_of(method, name, "backbone")
    facts = {
        "mean": card["input"]["mean"],
        "std": card["input"]["std"],
        "input_size": list(image.shape[1:]),
        "num_classes": 0,
    }
    config = {
        "architecture": form.name,
        "num_classes": 0,
        "model_args": {key: value for key, value in form.arguments.items() if key != "num_classes"},
        "pretrained_cfg": {**facts, "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 1.0},
    }
    header = {"timm_model": form.name, "timm_arguments": json.dumps(form.arguments)}
    check_finite(form.state)
    path = write_tensors(form.state, folder / WEIGHTS, header)
    try:
        check(backbone.eval(), form, path, image)
    except CheckpointError:
        path.unlink()
        raise
    if not form.arguments.get("features_only"):
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return form


def timm_call(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which ``timm.create_model(name, **arguments)`` builds and loads a file.

    Raises:
        CheckpointError: it is no file of :func:`export_timm`.
    """
    from zoo.export.weights import header_of

    header = header_of(Path(path), str(path))
    if "timm_model" not in header:
        raise CheckpointError(f"{path} is no backbone for timm: `zoo export --format timm` writes such files")
    return header["timm_model"], {**json.loads(header["timm_arguments"]), "checkpoint_path": str(path)}


@without_gradients
def check(backbone: Any, form: Form, path: Path, image: Tensor) -> None:
    """Load the file with timm and compare its features with ours.

    Raises:
        CheckpointError: they differ.
    """
    model = timm.create_model(form.name, checkpoint_path=str(path), **form.arguments).eval().to(image.device)
    inner = backbone.backbone if isinstance(backbone, PooledMaps) else backbone
    try:
        features = model(image) if form.arguments.get("features_only") else model.forward_features(image)
    except AssertionError as error:
        size = " x ".join(map(str, image.shape[-2:]))
        raise CheckpointError(
            f"timm's {form.name} cannot take inputs of {size}: {error} Give another --input_size"
        ) from error
    for their, our in zip(*_comparable(model, features, inner, image), strict=True):
        check_close(their, our, f"timm's {form.name}")


def _comparable(
    model: Any, features: Any, backbone: Any, image: Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What timm's model and our backbone make of an image, in the same form."""
    if not isinstance(features, Tensor):
        if getattr(backbone, "channels_come_last", False):
            features = [maps.permute(0, 3, 1, 2) for maps in features]
        return features, backbone(image)
    if features.ndim == 4:
        maps = backbone.forward_features(image)[-1]
        return [features if features.shape == maps.shape else features.permute(0, 3, 1, 2)], [maps]
    tokens, prefix = backbone.forward_tokens(image), model.num_prefix_tokens
    if not prefix:
        return [features], [tokens.patches]
    cls = features[:, :prefix].mean(1) if isinstance(backbone, AST) else features[:, 0]
    return [features[:, prefix:], cls], [tokens.patches, tokens.cls]


def form_of(backbone: nn.Module) -> Form:
    """A backbone's form in timm.

    Raises:
        CheckpointError: timm has none.
    """
    if isinstance(backbone, PooledMaps):
        return form_of(backbone.backbone)
    if isinstance(backbone, TimmViT):
        return Form(backbone.name, backbone.arguments, dict(backbone.model.state_dict()))
    if isinstance(backbone, TimmBackbone):
        return _of_maps(backbone)
    if isinstance(backbone, MixTransformer):
        return _of_mit(backbone)
    if isinstance(backbone, AST):
        return _of_ast(backbone)
    if isinstance(backbone, ElasticBackbone):
        alone = backbone.extract(backbone.intact)
        if recipe := timm_recipe(alone):
            return Form(*recipe, timm_state_dict(alone))
    raise CheckpointError(
        f"timm has no network like {type(backbone).__name__}: export it as safetensors, ONNX or a program instead"
    )


def _of_maps(backbone: TimmBackbone) -> Form:
    """Of timm's own extractors of feature maps."""
    if len(backbone.norms) or (isinstance(backbone, DeepLabResNet) and not backbone.is_plain):
        raise CheckpointError(
            "the backbone differs from timm's of that name (layer_norm, multi_grid or ceil_mode): export it as "
            "safetensors, ONNX or a program instead"
        )
    state = dict(backbone.model.state_dict())
    with torch.device("meta"):
        options = {k: v for k, v in backbone.arguments.items() if k != "out_indices"}
        whole = timm.create_model(backbone.name, num_classes=0, **options).state_dict()
    spelled = {name.replace(".", "_").removeprefix("model_"): tensor for name, tensor in state.items()}
    if all(name.replace(".", "_") in spelled for name in whole):  # nothing follows the last map
        full = {name: spelled[name.replace(".", "_")] for name in whole}
        return Form(backbone.name, {"num_classes": 0, **options}, full)
    return Form(backbone.name, {"features_only": True, **backbone.arguments}, state)


def _of_mit(backbone: Any) -> Form:
    """SegFormer's encoder is timm's PVT v2 under other names."""
    stages = [getattr(backbone, f"block{i}") for i in range(1, 5)]
    attention = [stage[0].attn for stage in stages]
    arguments = {
        "num_classes": 0,
        "in_chans": backbone.in_chans,
        "depths": [len(stage) for stage in stages],
        "embed_dims": list(backbone.channels),
        "num_heads": [a.num_heads for a in attention],
        "sr_ratios": [a.sr.stride[0] if a.sr is not None else 1 for a in attention],
        "mlp_ratios": [stage[0].mlp.fc1.out_features / stage[0].mlp.fc1.in_features for stage in stages],
    }
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    state = Below("backbone", TO_PVT).apply(state)
    return Form("pvt_v2_b2", arguments, {key.removeprefix("backbone."): t for key, t in state.items()})


def _of_ast(backbone: AST) -> Form:
    """A DeiT over a long image; timm has no patches that overlap."""
    if backbone.stride != backbone.patch:
        raise CheckpointError(
            "timm has no transformer whose patches overlap: export ONNX or a program instead"
        )
    state = {n: t for n, t in backbone.state_dict().items() if n != "mask_token" and not n.startswith("pos_")}
    grid = backbone.pos_grid.detach().flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat((backbone.pos_prefix.detach(), grid), 1)
    block: Any = backbone.blocks[0]
    arguments = {
        "img_size": [backbone.mels, backbone.frames],
        "patch_size": list(backbone.patch),
        "in_chans": backbone.in_chans,
        "embed_dim": backbone.embed_dim,
        "depth": backbone.num_blocks,
        "num_heads": block.attn.num_heads,
        "num_classes": 0,
    }
    distilled = backbone.dist_token is not None
    name = "deit_base_distilled_patch16_224" if distilled else "deit_base_patch16_224"
    return Form(name, arguments, state)
