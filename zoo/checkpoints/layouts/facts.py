"""What can be told of an architecture from the names and shapes of its tensors."""

from __future__ import annotations

import re

from zoo.checkpoints.files import Tensors


def block_counts(state: Tensors, pattern: str) -> int:
    """How many different values the group of ``pattern`` takes among the names."""
    return len({match[1] for name in state if (match := re.search(pattern, name))})


def describe_resnet(state: Tensors) -> str:
    """``ResNet-101 (blocks 3-4-23-3)``."""
    blocks = tuple(block_counts(state, rf"^backbone\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
    kind = "bottleneck" if "backbone.layer1.0.conv3.weight" in state else "basic"
    depth = 2 + sum(blocks) * (3 if kind == "bottleneck" else 2)
    stem = ", deep stem" if "backbone.conv1.0.weight" in state else ""
    return f"ResNet-{depth} ({kind} blocks {'-'.join(map(str, blocks))}{stem})"


def describe_vit(state: Tensors) -> str:
    """``ViT (width 384, depth 12, patches of 16x16)``."""
    depth = block_counts(state, r"^backbone\.blocks\.(\d+)\.")
    width, _, *patch = state["backbone.patch_embed.proj.weight"].shape
    return f"ViT (width {width}, depth {depth}, patches of {'x'.join(map(str, patch))})"


def describe_any(state: Tensors) -> str:
    """Whichever of the above fits; empty where none does."""
    if "backbone.layer1.0.conv1.weight" in state:
        return describe_resnet(state)
    if {"backbone.patch_embed.proj.weight", "backbone.blocks.0.norm1.weight"} <= state.keys():
        return describe_vit(state)
    return ""
