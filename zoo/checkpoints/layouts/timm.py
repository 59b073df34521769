"""Networks under names that are ours already: timm, torchvision's ResNets, and files of ``zoo import``."""

from __future__ import annotations

from zoo.checkpoints.layouts.facts import describe_any
from zoo.checkpoints.rules import AsBackbone, Drop, Importer

TIMM = Importer(
    "timm",
    "network under the names of timm (or a ResNet of torchvision, which has the same)",
    (r"\.weight$",),
    # indices that the network computes by itself
    (AsBackbone(), Drop(r"\.(?:relative_position_index|attn_mask)$")),
    describe=describe_any,
)
