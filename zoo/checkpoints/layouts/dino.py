"""Vision transformers of the self-distillation family: DINO, iBOT, DINOv2 and POA."""

from __future__ import annotations

from zoo.backbones.elastic_layouts import POA_IGNORED, POA_RENAMES
from zoo.checkpoints.files import Tensors
from zoo.checkpoints.layouts.facts import describe_any
from zoo.checkpoints.rules import AsBackbone, Below, Drop, Importer, Rename, renames

#: The teacher is the one that is evaluated (DINO, section 3.1); single files hold the teacher's backbone alone.
NETWORKS = {"teacher": r"teacher\.", "student": r"student\.", "network": ""}


class RegisterPositions:
    """DINOv2 with registers adds a position to the class token, timm has it in the token already."""

    def apply(self, state: Tensors) -> Tensors:
        """Add it, where there are registers."""
        if not {"backbone.register_tokens", "backbone.cls_token", "backbone.pos_embed"} <= state.keys():
            return state
        state = dict(state)
        positions = state["backbone.pos_embed"]
        state["backbone.reg_token"] = state.pop("backbone.register_tokens")
        state["backbone.cls_token"] = state["backbone.cls_token"] + positions[:, :1]
        state["backbone.pos_embed"] = positions[:, 1:]
        return state


POA = Importer(
    "poa",
    "elastic network of POA (ViT, Swin or ResNet)",
    (r"(?:attn\.qkv\.linear|attn\.w_msa\.qkv\.linear|layers\.0\.conv1\.conv)\.weight$",),
    (Drop(POA_IGNORED), AsBackbone(), Below("backbone", renames(POA_RENAMES))),
    NETWORKS,
    describe=describe_any,
)

DINO = Importer(
    "dino",
    "ViT of DINO, iBOT or DINOv2",
    (r"^(?:backbone\.)?blocks\.(?:\d+\.)?\d+\.attn\.qkv\.weight$", r"^(?:backbone\.)?cls_token$"),
    (
        AsBackbone(),
        Drop(r"^backbone\.(?:masked_embed|mask_token)$"),
        Rename(
            r"^backbone\.blocks\.\d+\.(\d+)\.", r"backbone.blocks.\1."
        ),  # DINOv2 trains in chunks of blocks
        Rename(r"\.mlp\.w12\.", ".mlp.fc1."),
        Rename(r"\.mlp\.w3\.", ".mlp.fc2."),
        RegisterPositions(),
    ),
    NETWORKS,
    describe=describe_any,
)
