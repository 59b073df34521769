"""Swin UNETR and its encoder: VoCo's released files, bare or of its training script, and MONAI's own."""

from __future__ import annotations

import dataclasses

import torch

from zoo.backbones.swin_unetr import FEATURE_SIZES, OCTANTS, Merging
from zoo.checkpoints.files import Tensors
from zoo.checkpoints.rules import Drop, Importer, Rename


@dataclasses.dataclass(frozen=True)
class WithMerging:
    """Say which voxels the down-sampling merges, where the file does not: MONAI changed it under the same names."""

    merging: Merging

    def apply(self, state: Tensors) -> Tensors:
        """Add ``order`` beside the weights of every merging."""
        orders = {
            name.replace("reduction.weight", "order"): torch.tensor(OCTANTS[self.merging])
            for name in state
            if name.endswith(".downsample.reduction.weight")
        }
        return orders | state


def describe(state: Tensors) -> str:
    """``Swin UNETR encoder B (feature size 48, 1 channel)``."""
    size, channels = state["backbone.swinViT.patch_embed.proj.weight"].shape[:2]
    known = [f" {name[-1].upper()}" for name, published in FEATURE_SIZES.items() if published == size]
    plural = "" if channels == 1 else "s"
    return f"Swin UNETR encoder{''.join(known)} (feature size {size}, {channels} channel{plural})"


_NETWORKS = {"network": "", "student": r"student\.", "teacher": r"teacher\."}
_MARKERS = (
    r"^(?:backbone\.)?swin(?:ViT|_vit)\.patch_embed\.proj\.weight$",
    r"^(?:backbone\.)?encoder10\.layer\.conv1\.conv\.weight$",
)
_NAMES = (
    Drop(r"^teacher\."),  # the other projector of a training script
    Rename(r"^student\.", "projector."),
    Rename(r"^proj_head\.", "projector."),
    Rename(r"^backbone\.", ""),
    Rename(r"^swin_vit\.", "swinViT."),
    Rename(r"^(swinViT|encoder\d+)\.", r"backbone.\1."),
    Rename(r"^(decoder\d|out)\.", r"decode_head.\1."),
)

VOCO = Importer(
    "voco",
    "Swin UNETR or its encoder as trained with MONAI up to 1.4 (VoCo, VoComni, SuPreM, ...)",
    _MARKERS,
    (*_NAMES, WithMerging("legacy")),
    _NETWORKS,
    describe=describe,
    note="read as trained with MONAI up to 1.4, whose patch merging the network now has; for weights trained with "
    "1.5 or later, which look the same, choose #importer=swin_unetr",
)

SWIN_UNETR = Importer(
    "swin_unetr",
    "Swin UNETR or its encoder as trained with MONAI from 1.5 on",
    _MARKERS,
    (*_NAMES, WithMerging("corrected")),
    _NETWORKS,
    describe=describe,
    note="read as trained with MONAI from 1.5 on, whose patch merging the network now has",
)
