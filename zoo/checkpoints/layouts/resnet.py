"""ResNets under DeepLab heads: MMSegmentation's v1c, and the older one of the domain-adaptation literature."""

from __future__ import annotations

import re

from zoo.backbones.resnet_deeplab import RESNET_RENAMES
from zoo.checkpoints.files import Tensors
from zoo.checkpoints.layouts.facts import describe_resnet
from zoo.checkpoints.layouts.segformer import UDA_NETWORKS
from zoo.checkpoints.rules import AsBackbone, Below, Drop, Importer, Rename, renames


class Classifiers:
    """``layer5`` and ``layer6`` are classifiers on stages 3 and 4; a file with one of them has it on stage 4."""

    def apply(self, state: Tensors) -> Tensors:
        """Give the last one to the decode head, an earlier one to the auxiliary head, the rest to the backbone."""
        two = any(name.startswith("layer6.") for name in state)
        parts = {"layer6": "decode_head", "layer5": "auxiliary_head" if two else "decode_head"}
        return {self._renamed(name, parts): tensor for name, tensor in state.items()}

    @staticmethod
    def _renamed(name: str, parts: dict[str, str]) -> str:
        if match := re.match(r"(layer[56])\.conv2d_list\.", name):
            return f"{parts[match[1]]}.aspp_modules.{name[match.end() :].replace('.', '.conv.', 1)}"
        return f"backbone.{name}"


MMSEG_RESNET = Importer(
    "mmseg_resnet",
    "ResNet v1c of MMSegmentation, alone (ImageNet) or in a network (DAFormer, FST, SePiCo)",
    (r"^(?:backbone\.)?stem\.0\.weight$", r"^(?:backbone\.)?layer1\.0\.conv1\.weight$"),
    (AsBackbone(), Drop(r"^backbone\.fc\."), Below("backbone", renames(RESNET_RENAMES))),
    UDA_NETWORKS,
    describe=describe_resnet,
)

DEEPLAB = Importer(
    "deeplab",
    "DeepLab-V2 ResNet of the domain-adaptation literature (AdaptSegNet, ADVENT, DACS)",
    (r"^(?:Scale\.)?layer[56]\.conv2d_list\.0\.weight$", r"^(?:Scale\.)?layer1\.0\.conv1\.weight$"),
    (Rename(r"^Scale\.", ""), Drop(r"^fc\."), Classifiers()),
    describe=describe_resnet,
    note="its authors stride in the first 1x1 convolution of stage 2, dilate the first block of stages 3 and 4 as "
    "the others and round up in the max pooling; a network built otherwise computes something else",
)
