"""Weights of elastic networks in other layouts: timm's, for extracted files, and that of the POA authors' files.

Our tensors are timm's up to the order of grouped rows and columns (see :mod:`zoo.nn.elastic`), the names of the
layers that have them, and those of ResNet's norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.backbones.elastic import ElasticBackbone
from zoo.backbones.elastic_resnet import ElasticResNet
from zoo.backbones.elastic_swin import ElasticSwin
from zoo.backbones.elastic_vit import ElasticViT

State = dict[str, Tensor]

FAMILIES: dict[str, type[ElasticBackbone]] = {
    cls.family: cls for cls in (ElasticViT, ElasticSwin, ElasticResNet)
}

#: Names in the authors' files → timm's names (ours for the norms of ResNet), (pattern, replacement), applied in
#: order, the same for all three families. Grouped rows and columns are then reordered by :func:`poa_state_dict`.
POA_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.", ""),
    (r"\.(?:linear|conv)\.(weight|bias)$", r".\1"),
    (r"(^|\.)norm(\d?)\.norm\.", r"\1norm\2."),
    (r"^norm3\.", "norm."),
    (r"^stages\.0\.downsample\.", "layers.1.downsample."),
    (r"^stages\.1\.downsample\.", "layers.2.downsample."),
    (r"^stages\.2\.downsample\.", "layers.3.downsample."),
    (r"^stages\.", "layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.", ".mlp."),
    (r"^(layer\d)\.layers\.", r"\1."),
)
#: Tensors of the authors' files that belong to no backbone of ours: heads, index buffers, untrained Swin norms.
POA_IGNORED = (
    r"^dino_head\.|relative_position_index$|^(?:backbone\.)?norm[012]\.norm\.|^(?:backbone\.)?attn_mask$"
)

_WIDTH_OF = {
    "vit": "blocks.0.norm1.weight",
    "swin": "layers.0.blocks.0.norm1.weight",
    "resnet": "layer1.0.norm1.weight",
}
_BLOCK = re.compile(r"^(?:layers?\.?(\d+)\.)?(?:blocks\.)?(\d+)\.")


# -- timm ------------------------------------------------------------------------------------------------


def timm_state_dict(network: ElasticBackbone) -> State:
    """State of an extracted network under timm's names and in timm's order, without the mask token."""
    state = {}
    for name, tensor in network.state_dict().items():
        if name == "mask_token":
            continue
        if ".qkv_by_head." in name:
            name = name.replace(".qkv_by_head.", ".qkv.")
            tensor = tensor.unflatten(0, (-1, 3, _head_dim(network))).transpose(0, 1).flatten(0, 2)
        elif ".downsample.merge." in name or ".downsample.norm." in name:
            name = name.replace(".merge.", ".reduction.")
            tensor = tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
        if isinstance(network, ElasticResNet):
            name = re.sub(r"(^|\.)norm(\d)\.", r"\1bn\2.", name)
        state[name] = tensor.contiguous()
    return state


def load_timm_state_dict(network: ElasticBackbone, state: Mapping[str, Tensor], source: str) -> None:
    """Load what :func:`timm_state_dict` gave; the mask token keeps its value.

    Raises:
        ValueError: the state is that of another network.
    """
    ours = {"mask_token": network.state_dict()["mask_token"]}
    for name, tensor in state.items():
        if isinstance(network, ElasticResNet):
            name = re.sub(r"(^|\.)bn(\d)\.", r"\1norm\2.", name)
        # timm's neighbours are column by column, ours row by row
        own_name, own = _in_our_order(network, name, tensor, columns_first=True)
        ours[own_name] = own
    load_exactly(network, ours, source)


def timm_recipe(network: ElasticBackbone) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of ``timm.create_model`` for an extracted network; ``None`` where timm has no such shape.

    timm has every elastic ViT; every ResNet with the usual stem and 32 groups; of Swin, those that are not narrowed
    (its patch embedding cannot normalise over more channels than it gives) and shift every second block.
    """
    width, depth = network.intact
    if isinstance(network, ElasticViT):
        return "vit_small_patch16_224", {
            "img_size": network.img_size,
            "patch_size": network.patch_size,
            "in_chans": network.in_chans,
            "embed_dim": width,
            "depth": depth,
            "num_heads": width // network.head_dim,
            "mlp_ratio": network.mlp_ratio,
            "init_values": 1e-5,
            "num_classes": 0,
        }
    if isinstance(network, ElasticResNet) and (network.stem_width, network.groups) == (64, 32):
        return "resnet50_gn", {
            "layers": [len(stage) for stage in network.block_paths],
            "base_width": width,
            "in_chans": network.in_chans,
            "num_classes": 0,
        }
    if isinstance(network, ElasticSwin) and network.embed_width == width and network.shifts_alternate:
        return "swin_base_patch4_window7_224", {
            "img_size": network.strides[-1] * network.window_size,
            "patch_size": network.patch_size,
            "in_chans": network.in_chans,
            "embed_dim": width,
            "depths": [len(stage) for stage in network.block_paths],
            "num_heads": [channels // network.head_dim for channels in network.channels],
            "mlp_ratio": network.mlp_ratio,
            "window_size": network.window_size,
            "always_partition": True,
            "num_classes": 0,
        }
    return None


# -- the authors' files ----------------------------------------------------------------------------------


def poa_state_dict(network: ElasticBackbone, released: Mapping[str, Any]) -> State:
    """Translate the authors' weights into the state dict of an elastic network.

    Args:
        network: tells the family and the head dimension.
        released: an evaluation file ``{"teacher": state}``, or the state itself, with or without ``backbone.``.
    """
    state = {}
    for name, tensor in released.get("teacher", released).items():
        if re.search(POA_IGNORED, name):
            continue
        for pattern, replacement in POA_RENAMES:
            name = re.sub(pattern, replacement, name)
        own_name, own = _in_our_order(network, name, tensor, columns_first=False)
        state[own_name] = own
    return state


def load_poa_weights(network: ElasticBackbone, released: Mapping[str, Any], source: str) -> None:
    """Load the authors' weights (see :func:`poa_state_dict`) strictly.

    Args:
        network: takes the weights; the intact network that they were trained in.
        released: content of the file.
        source: what the error calls it.

    Raises:
        ValueError: the file is of another family, width or depth, or incomplete.
    """
    load_exactly(network, poa_state_dict(network, released), source)


def load_exactly(network: ElasticBackbone, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state under our names strictly.

    Raises:
        ValueError: one message that tells both networks apart.
    """
    own = network.state_dict()
    wrong = [
        f"{name} {_shape(state.get(name))} (expected {_shape(own.get(name))})"
        for name in dict.fromkeys((*own, *state))
        if _shape(state.get(name)) != _shape(own.get(name))
    ]
    if wrong:
        raise ValueError(
            f"{source} does not fit {type(network).__name__}({describe(own)}): it holds {describe(state)} and "
            f"differs in {len(wrong)} tensors: {', '.join(wrong[:3])}. Build the backbone with the family, widths "
            "and depths that the weights were trained with"
        )
    network.load_state_dict(state)


def describe(state: Mapping[str, Tensor]) -> str:
    """Family, width and depth of a state under our names."""
    family = next((family for family, name in _WIDTH_OF.items() if name in state), None)
    if family is None:
        return f"no elastic network ({', '.join(list(state)[:3]) or 'nothing'}, ...)"
    blocks = {match.groups() for name in state if (match := _BLOCK.match(name))}
    stages = sorted({stage or "" for stage, _ in blocks})
    depths = [sum((stage or "") == wanted for stage, _ in blocks) for wanted in stages]
    return f"{family} of width {len(state[_WIDTH_OF[family]])} and depth {'-'.join(map(str, depths))}"


def _in_our_order(
    network: ElasticBackbone, name: str, tensor: Tensor, columns_first: bool
) -> tuple[str, Tensor]:
    """Our name and order of a tensor under timm's name.

    ``columns_first`` says how the four neighbours of a patch merging are counted: with the column outside (timm) or
    with the row outside (the authors).
    """
    if ".attn.qkv." in name and len(tensor) % (3 * _head_dim(network)) == 0:
        by_head = tensor.unflatten(0, (3, -1, _head_dim(network))).transpose(0, 1).flatten(0, 2)
        return name.replace(".qkv.", ".qkv_by_head."), by_head
    if (".downsample.reduction." in name or ".downsample.norm." in name) and tensor.shape[-1] % 4 == 0:
        neighbours = tensor.unflatten(-1, (2, 2, -1))
        by_channel = neighbours.transpose(-1, -3) if columns_first else neighbours.movedim(-1, -3)
        return name.replace(".reduction.", ".merge."), by_channel.flatten(-3)
    return name, tensor


def _head_dim(network: ElasticBackbone) -> int:
    return network.head_dim if isinstance(network, ElasticViT | ElasticSwin) else 1


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)
