"""Decode heads by name: modules that turn a backbone's maps, fine to coarse, into class logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from zoo.nn.heads.daformer import DAFormerHead
from zoo.nn.heads.deeplabv2 import DeepLabV2Head
from zoo.nn.heads.fpn import FPNHead
from zoo.nn.heads.projection import ProjectionHead
from zoo.registry import UnknownNameError

DECODE_HEADS: dict[str, Callable[..., nn.Module]] = {
    "daformer": DAFormerHead,
    "deeplabv2": DeepLabV2Head,
    "fpn": FPNHead,
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
    return DECODE_HEADS[name](channels, num_classes, **kwargs)


__all__ = ["DECODE_HEADS", "DAFormerHead", "DeepLabV2Head", "FPNHead", "ProjectionHead", "create_decode_head"]
