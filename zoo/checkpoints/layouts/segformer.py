"""SegFormer's MiT encoder, alone (ImageNet) or in networks of DAFormer, FST and SePiCo (MMSegmentation)."""

from __future__ import annotations

from zoo.backbones.mit import VARIANTS
from zoo.checkpoints.files import Tensors
from zoo.checkpoints.layouts.facts import block_counts
from zoo.checkpoints.rules import AsBackbone, Below, Drop, Flatten, Importer, Rename, Split

#: Domain adaptation keeps several networks: the student is the one that is evaluated (FST card, section 10).
UDA_NETWORKS = {
    "student": r"(?:state_dict\.)?model\.",
    "network": "",
    "teacher": r"(?:state_dict\.)?ema_model\.",
    "imagenet": r"(?:state_dict\.)?imnet_model\.",
}

#: MMSegmentation from 0.20 on: a stage is a list of embedding, blocks and norm; q, k and v are one tensor;
#: feed-forward layers are 1×1 convolutions. The original names are those of our MiT.
_FROM_MMSEG = (
    Rename(r"^layers\.(\d)\.0\.projection\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj."),
    Rename(r"^layers\.(\d)\.0\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm."),
    Rename(r"^layers\.(\d)\.1\.", lambda m: f"block{int(m[1]) + 1}."),
    Rename(r"^layers\.(\d)\.2\.", lambda m: f"norm{int(m[1]) + 1}."),
    Split(r"\.attn\.attn\.in_proj_", {".attn.q.": 1, ".attn.kv.": 2}),
    Rename(r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    Rename(r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    Rename(r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    Rename(r"\.ffn\.layers\.4\.", ".mlp.fc2."),
    Flatten(r"\.fc[12]\.weight$"),
)
_RELEASED = (
    AsBackbone(),
    Drop(r"^backbone\.head\."),  # the ImageNet classifier
    Below("backbone", _FROM_MMSEG),
)
TO_PVT = (
    Rename(r"^patch_embed1\.", "patch_embed."),
    Rename(r"^patch_embed([2-4])\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    Rename(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    Rename(r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    Rename(r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
)
_FROM_PVT = (
    Rename(r"^patch_embed\.", "patch_embed1."),
    Rename(r"^stages[._](\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
    Rename(r"^stages[._](\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
    Rename(r"^stages[._](\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
    Rename(r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
)


def describe(state: Tensors) -> str:
    """``MiT-B5 (depths 3-6-40-3, widths 64-128-320-512)``."""
    depths = tuple(block_counts(state, rf"^backbone\.block{stage}\.(\d+)\.") for stage in range(1, 5))
    widths = tuple(
        len(state[name]) if (name := f"backbone.norm{stage}.weight") in state else 0 for stage in range(1, 5)
    )
    known = [
        name for name, variant in VARIANTS.items() if (variant.depths, variant.widths) == (depths, widths)
    ]
    facts = f"depths {'-'.join(map(str, depths))}, widths {'-'.join(map(str, widths))}"
    return f"{known[0]} ({facts})" if known else f"MiT ({facts})"


_MARKERS = (r"^(?:backbone\.)?(?:patch_embed1\.proj|layers\.0\.0\.projection)\.weight$",)

SEGFORMER = Importer(
    "segformer",
    "MiT encoder of SegFormer, alone or in a network of MMSegmentation (DAFormer, FST, SePiCo)",
    _MARKERS,
    _RELEASED,
    UDA_NETWORKS,
    describe=describe,
)

SEGFORMER_AS_PVT = Importer(
    "segformer_as_pvt",
    "MiT encoder of SegFormer under the names of timm's pvt_v2, which is the same function",
    _MARKERS,
    (*_RELEASED, Below("backbone", TO_PVT)),
    UDA_NETWORKS,
    describe=lambda state: describe(Below("backbone", _FROM_PVT).apply(state)),
)

PVT_AS_MIT = Importer(
    "pvt_as_mit",
    "timm's pvt_v2 under the names of MiT, which is the same function",
    (r"^(?:backbone\.)?(?:model\.)*stages[._]0\.blocks\.0\.attn\.sr\.weight$",),
    (AsBackbone(), Rename(r"^backbone\.(?:model\.)+", "backbone."), Below("backbone", _FROM_PVT)),
    describe=describe,
)
