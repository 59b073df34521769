"""Decode heads by name: modules that turn a backbone's maps, fine to coarse, into class logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from zoo.nn.heads.daformer import DAFormerHead
from zoo.nn.heads.deeplabv2 import DeepLabV2Head
from zoo.nn.heads.deeplabv3plus import DeepLabV3PlusHead
from zoo.nn.heads.dino import DINOHead, MultiHead
from zoo.nn.heads.fcn import FCNHead
from zoo.nn.heads.fpn import FPNHead
from zoo.nn.heads.projection import ProjectionHead
from zoo.nn.heads.pspnet import PSPHead, PSPShuffleHead
from zoo.nn.heads.upernet import UPerHead
from zoo.registry import UnknownNameError, named_options

DECODE_HEADS: dict[str, Callable[..., nn.Module]] = {
    "daformer": DAFormerHead,
    "deeplabv2": DeepLabV2Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "fcn": FCNHead,
    "fpn": FPNHead,
    "pspnet": PSPHead,
    "pspnet_shuffle": PSPShuffleHead,
    "upernet": UPerHead,
}


def create_decode_head(name: str, channels: Sequence[int], num_classes: int, **kwargs: Any) -> nn.Module:
    """Build a decode head.

    Args:
        name: key of ``DECODE_HEADS``.
        channels: channels of the backbone's maps, fine to coarse.
        num_classes: channels of the logits.
        **kwargs: handed to the head.

    Raises:
        UnknownNameError: there is no head of that name; the message holds the nearest ones.
    """
    if name not in DECODE_HEADS:
        raise UnknownNameError("decode head", name, DECODE_HEADS, "zoo.nn.DECODE_HEADS")
    with named_options(f"decode head {name!r}", "head_args", kwargs):
        return DECODE_HEADS[name](channels, num_classes, **kwargs)


__all__ = [
    "DECODE_HEADS",
    "DAFormerHead",
    "DINOHead",
    "DeepLabV2Head",
    "DeepLabV3PlusHead",
    "FCNHead",
    "FPNHead",
    "MultiHead",
    "PSPHead",
    "PSPShuffleHead",
    "ProjectionHead",
    "UPerHead",
    "create_decode_head",
]
