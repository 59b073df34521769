"""Uni4Eye and Uni4Eye++ as released, for :class:`zoo.backbones.UnifiedViT` and for plain vision transformers."""

from __future__ import annotations

from zoo.checkpoints.files import Tensors
from zoo.checkpoints.layouts.facts import block_counts
from zoo.checkpoints.rules import AsBackbone, Drop, Importer, Rename

_MARKERS = (r"^cls_token$", r"^blocks\.0\.attn\.qkv\.weight$", r"^patch_embed\.proj[23]\.weight$")


def describe_unified(state: Tensors) -> str:
    """``unified ViT (width 1024, depth 24; patches of 16x16 and 16x16x16)``."""
    kinds = [
        state[name].shape[2:]
        for axes in (2, 3)
        if (name := f"backbone.patch_embed.proj{axes}.weight") in state
    ]
    sides = " and ".join("x".join(map(str, kind)) for kind in kinds)
    depth = block_counts(state, r"^backbone\.blocks\.(\d+)\.")
    return f"unified ViT (width {len(state['backbone.norm.weight'])}, depth {depth}; patches of {sides})"


UNI4EYE = Importer(
    "uni4eye",
    "Uni4Eye (two decoders) or Uni4Eye++ with patch embeddings of both dimensions",
    _MARKERS,
    (
        Drop(r"^decoder_pos_embed[23]1$"),  # tables that the release never reads
        Rename(r"^decoder_pos_embed(?=[23]$)", "decoder_pos"),
        Rename(r"^decoder_pred([23])1\.", r"gradient.heads.\1."),
        Rename(r"^decoder_pred([23])\.", r"intensity.heads.\1."),
        Rename(r"^(?:decoder_)?(embed|blocks|mask_token)1(?=\.|$)", r"gradient.\1"),
        Rename(r"^decoder_(embed|blocks)\.", r"intensity.\1."),
        Rename(r"^mask_token$", "intensity.mask_token"),
        Rename(r"^(?!intensity\.|gradient\.|decoder_)", "backbone."),
        Rename(r"^backbone\.pos_embed$", "backbone.pos_embed2"),
    ),
    describe=describe_unified,
)

UNI4EYE_AS_VIT = Importer(
    "uni4eye_as_vit",
    "encoder of Uni4Eye or Uni4Eye++ for images, as a plain ViT",
    _MARKERS,
    (
        Drop(r"^(?:decoder_|mask_token)"),
        Drop(r"^(?:patch_embed\.proj3\.|pos_embed3$)"),
        Rename(r"^patch_embed\.proj2\.", "patch_embed.proj."),
        Rename(r"^pos_embed2$", "pos_embed"),
        AsBackbone(),
    ),
)

VIT_AS_UNIFIED = Importer(
    "vit_as_unified",
    "ViT of MAE, timm or Uni4Eye++, whose embedding of images a unified ViT starts from",
    (
        *(r"^(?:backbone\.)?pos_embed$", r"^(?:backbone\.)?patch_embed\.proj\.weight$"),
        r"^(?:backbone\.)?blocks\.0\.attn\.qkv\.weight$",
    ),
    (
        Drop(r"^(?:decoder_|mask_token$|head\.|fc_norm\.)"),
        AsBackbone(),
        Rename(r"^backbone\.(?:model\.)+", "backbone."),
        Rename(r"^backbone\.patch_embed\.proj\.", "backbone.patch_embed.proj2."),
        Rename(r"^backbone\.pos_embed$", "backbone.pos_embed2"),
    ),
)
