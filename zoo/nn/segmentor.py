"""A backbone and a decode head, from plain images to logits of the same size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.heads import create_decode_head
from zoo.registry import create_backbone

_FACTS = ("forward_features", "channels", "strides", "in_chans", "mean", "std")


class Segmentor(nn.Module):
    """Semantic segmentation network that takes images in [0, 1].

    The backbone's mean and standard deviation are applied inside, so that another backbone brings its own
    normalisation, and an exported network takes plain images. Activations run in channels-last layout, which
    is faster for convolutions on most CPUs and GPUs.

    Args:
        backbone: has ``forward_features(image) -> list of maps`` (fine to coarse) and the facts ``channels``,
            ``strides``, ``in_chans``, ``mean`` and ``std`` (see docs/architecture.md).
        decode_head: takes the list of maps, returns logits ``[B, C, h, w]``.
        align_corners: of the bilinear upsampling to the image's size.
        auxiliary_head: like ``decode_head``; trained beside it and not used otherwise.

    Raises:
        TypeError: the backbone lacks one of these.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        decode_head: nn.Module,
        align_corners: bool = False,
        auxiliary_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_backbone(backbone)
        self.backbone = backbone
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.align_corners = align_corners
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] → logits ``[B, C, H, W]``."""
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits and, of the same forward, the backbone's maps, fine to coarse."""
        features = self.backbone(self.normalize(image))
        return self._upsampled(self.decode_head(features), image.shape[-2:]), features

    def auxiliary(self, features: list[Tensor], size: torch.Size) -> Tensor:
        """Logits ``[B, C, *size]`` of the auxiliary head for the backbone's maps."""
        head: Any = self.auxiliary_head
        return self._upsampled(head(features), size)

    def _upsampled(self, logits: Tensor, size: torch.Size) -> Tensor:
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)

    def normalize(self, image: Tensor) -> Tensor:
        """Apply the backbone's mean and standard deviation to images in [0, 1].

        Raises:
            TypeError: the images are integers, so not yet in [0, 1].
        """
        if not image.is_floating_point():
            raise TypeError(
                f"image must be float in [0, 1], got {image.dtype}: use image.float() / 255 for uint8"
            )
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def build_segmentor(
    backbone: str | nn.Module,
    decode_head: str | nn.Module,
    num_classes: int,
    pretrained: bool | str = False,
    backbone_kwargs: dict[str, Any] | None = None,
    head_kwargs: dict[str, Any] | None = None,
    align_corners: bool = False,
    auxiliary_head: str | None = None,
    auxiliary_kwargs: dict[str, Any] | None = None,
) -> Segmentor:
    """Build a :class:`Segmentor` from names or from modules that are ready.

    Args:
        backbone: name for :func:`zoo.registry.create_backbone`, or a module.
        decode_head: name for :func:`zoo.nn.heads.create_decode_head`, or a module.
        num_classes: number of classes C.
        pretrained: load the weights that belong to the backbone's name, or those of a source.
        backbone_kwargs: further arguments of a backbone given by name.
        head_kwargs: further arguments of a head given by name.
        align_corners: of the final upsampling.
        auxiliary_head: name of a head that is trained beside the decode head.
        auxiliary_kwargs: its further arguments.

    Raises:
        UnknownNameError: there is no backbone or head of that name.
        TypeError: the backbone gives no feature maps.
        ValueError: ``pretrained`` or keyword arguments came with a module that is ready.
    """
    if isinstance(backbone, str):
        network: Any = create_backbone(backbone, pretrained=pretrained, **(backbone_kwargs or {}))
    elif pretrained or backbone_kwargs:
        raise ValueError(
            "pretrained and backbone_kwargs need backbone to be a name, but it is a module already"
        )
    else:
        network = backbone
    check_backbone(network)
    if isinstance(decode_head, str):
        head = create_decode_head(decode_head, network.channels, num_classes, **(head_kwargs or {}))
    elif head_kwargs:
        raise ValueError("head_kwargs needs decode_head to be a name, but it is a module already")
    else:
        head = decode_head
    auxiliary = None
    if auxiliary_head is not None:
        auxiliary = create_decode_head(
            auxiliary_head, network.channels, num_classes, **(auxiliary_kwargs or {})
        )
    elif auxiliary_kwargs:
        raise ValueError("auxiliary_kwargs needs auxiliary_head, but there is none")
    return Segmentor(network, head, align_corners, auxiliary)


def check_backbone(backbone: nn.Module) -> None:
    """Raise a TypeError unless ``backbone`` gives feature maps and their facts (docs/architecture.md)."""
    missing = [fact for fact in _FACTS if not hasattr(backbone, fact)]
    if missing:
        raise TypeError(
            f"backbone {type(backbone).__name__} has no {', '.join(missing)}, so it is not known to give "
            "feature maps. Take one from zoo.create_backbone(name), or give yours "
            "forward_features(image) -> list of maps and these facts (docs/architecture.md)."
        )
