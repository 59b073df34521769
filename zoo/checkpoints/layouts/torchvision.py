"""torchvision's vision transformers under timm's names; its ResNets have these already."""

from __future__ import annotations

from zoo.checkpoints.layouts.facts import describe_any
from zoo.checkpoints.rules import AsBackbone, Below, Drop, Importer, Rename

TORCHVISION_VIT = Importer(
    "torchvision_vit",
    "ViT of torchvision",
    (r"^(?:backbone\.)?encoder\.pos_embedding$", r"^(?:backbone\.)?conv_proj\.weight$"),
    (
        AsBackbone(),
        Below(
            "backbone",
            (
                Rename(r"^class_token$", "cls_token"),
                Rename(r"^conv_proj\.", "patch_embed.proj."),
                Rename(r"^encoder\.pos_embedding$", "pos_embed"),
                Rename(r"^encoder\.ln\.", "norm."),
                Rename(r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
                Rename(r"\.ln_([12])\.", r".norm\1."),
                Rename(r"\.self_attention\.in_proj_", ".attn.qkv."),
                Rename(r"\.self_attention\.out_proj\.", ".attn.proj."),
                Rename(r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
                Rename(r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
                Rename(r"^heads\.head\.", "head."),
            ),
        ),
    ),
    describe=describe_any,
    note="layer norms of torchvision's ViT have eps 1e-6, as timm's",
)

TORCHVISION_SWIN = Importer(
    "torchvision_swin",
    "Swin transformer of torchvision (first version)",
    (
        r"^(?:backbone\.)?features\.0\.0\.weight$",
        r"^(?:backbone\.)?features\.1\.0\.attn\.relative_position_bias_table$",
    ),
    (
        AsBackbone(),
        Drop(r"\.relative_position_index$"),
        Below(
            "backbone",
            (
                Rename(r"^features\.0\.0\.", "patch_embed.proj."),
                Rename(r"^features\.0\.2\.", "patch_embed.norm."),
                # stages and the mergings between them take turns
                Rename(r"^features\.([1357])\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
                Rename(r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample."),
                Rename(r"\.mlp\.0\.", ".mlp.fc1."),
                Rename(r"\.mlp\.3\.", ".mlp.fc2."),
                Rename(r"^head\.", "head.fc."),
            ),
        ),
    ),
    describe=describe_any,
)
