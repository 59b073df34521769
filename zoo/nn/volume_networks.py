"""Networks for volumes: a 3-D backbone with maps, and what stands on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.heads.unetr import UNETRHead
from zoo.nn.heads.voco import Projector, RowDropout
from zoo.nn.segmentor import check_backbone


class VolumeEncoder(nn.Module):
    """A backbone for volumes in [0, 1], and its embedding: averages of its maps, one after the other.

    Args:
        backbone: 3-D, with maps and facts as ``docs/architecture.md`` says. Its attribute ``pooled``, if it has one,
            names the maps that are averaged; all are otherwise.

    Raises:
        TypeError: the backbone lacks a fact.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        check_backbone(backbone)
        self.backbone = backbone
        self.pooled: tuple[int, ...] = tuple(getattr(backbone, "pooled", range(len(backbone.channels))))
        self.embed_dim = sum(backbone.channels[i] for i in self.pooled)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1, 1), persistent=False)

    def forward(self, volume: Tensor) -> Tensor:
        """Embeddings ``[B, embed_dim]`` of volumes ``[B, C, X, Y, Z]`` in [0, 1]."""
        return self.embed(self.features(volume))

    def features(self, volume: Tensor) -> list[Tensor]:
        """The backbone's maps of volumes in [0, 1], fine to coarse.

        Raises:
            TypeError: the volumes are integers, so not yet in [0, 1].
        """
        if not volume.is_floating_point():
            raise TypeError(
                f"volume must be float in [0, 1], got {volume.dtype}: window its intensities first"
            )
        return list(self.backbone((volume - self.mean) / self.std))

    def embed(self, maps: Sequence[Tensor]) -> Tensor:
        """Averages of the pooled maps ``[B, embed_dim]``."""
        return torch.cat([maps[i].mean((2, 3, 4)) for i in self.pooled], 1)


class VolumeSegmentor(VolumeEncoder):
    """Encoder and UNETR decoder: logits of every voxel.

    Args:
        backbone: see :class:`VolumeEncoder`.
        num_classes: classes C, background included.
        deep_supervision: coarser decoder maps with logits of their own, see :class:`zoo.nn.heads.unetr.UNETRHead`.
    """

    def __init__(self, backbone: Any, num_classes: int, deep_supervision: int = 0) -> None:
        super().__init__(backbone)
        self.decode_head = UNETRHead(backbone.channels, num_classes, deep_supervision)

    def forward(self, volume: Tensor) -> Tensor:
        """Volumes ``[B, C_in, X, Y, Z]`` in [0, 1] → logits ``[B, C, X, Y, Z]``."""
        return resized(self.decode_head(self.features(volume)), volume)

    def forward_deep(self, volume: Tensor) -> list[Tensor]:
        """The same, and behind them the logits of coarser decoder maps at their own sizes."""
        finest, *coarser = self.decode_head.forward_deep(self.features(volume))
        return [resized(finest, volume), *coarser]


class PooledClassifier(VolumeEncoder):
    """Encoder, decoder if wanted, average pooling and a linear layer: logits of whole volumes.

    Args:
        backbone: see :class:`VolumeEncoder`.
        num_classes: classes C.
        decoder: pool the decoder's finest map, as VoCo's release does; otherwise the encoder's embedding.
    """

    def __init__(self, backbone: Any, num_classes: int, decoder: bool = True) -> None:
        super().__init__(backbone)
        # A decoder without classes of its own would have an unused layer: distributed training waits for it.
        self.decode_head = _without_logits(UNETRHead(backbone.channels, 1)) if decoder else None
        self.classifier = nn.Linear(backbone.channels[0] if decoder else self.embed_dim, num_classes)

    def forward(self, volume: Tensor) -> Tensor:
        """Volumes ``[B, C_in, X, Y, Z]`` in [0, 1] → logits ``[B, C]``."""
        maps = self.features(volume)
        if self.decode_head is None:
            return self.classifier(self.embed(maps))
        return self.classifier(self.decode_head.decode(maps)[0].mean((2, 3, 4)))


class PositionNetwork(VolumeEncoder):
    """Encoder and projector: what VoCo compares crops by.

    Args:
        backbone: see :class:`VolumeEncoder`.
        hidden_dim: width of the projector.
        out_dim: length of the projections.
        row_dropout: probability of dropping a crop's embedding in :meth:`project`.
    """

    def __init__(
        self, backbone: Any, hidden_dim: int = 1024, out_dim: int = 1024, row_dropout: float = 0.2
    ) -> None:
        super().__init__(backbone)
        self.projector = Projector(self.embed_dim, hidden_dim, out_dim)
        self.drop = RowDropout(row_dropout)

    def forward(self, volume: Tensor) -> Tensor:
        """Projections ``[N, out_dim]`` of crops ``[N, C, X, Y, Z]`` in [0, 1], nothing dropped."""
        return self.projector(self.embed(self.features(volume)))

    def project(self, embedding: Tensor) -> Tensor:
        """Projections of embeddings ``[N, embed_dim]`` of which some are dropped."""
        return self.projector(self.drop(embedding))


class OmniNetwork(PositionNetwork):
    """Encoder, projector and decoder: position prediction and segmentation in one. Its forward segments.

    Args:
        backbone: see :class:`VolumeEncoder`.
        num_classes: classes C, background included.
        **kwargs: see :class:`PositionNetwork`.
    """

    def __init__(self, backbone: Any, num_classes: int, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.decode_head = UNETRHead(backbone.channels, num_classes)

    def forward(self, volume: Tensor) -> Tensor:
        """Volumes ``[B, C_in, X, Y, Z]`` in [0, 1] → logits ``[B, C, X, Y, Z]``."""
        return resized(self.decode_head(self.features(volume)), volume)


def resized(logits: Tensor, volume: Tensor) -> Tensor:
    """Logits at the size of the volume, trilinear where the backbone's finest map is smaller."""
    if logits.shape[2:] == volume.shape[2:]:
        return logits
    return F.interpolate(logits, volume.shape[2:], mode="trilinear")


def _without_logits(head: UNETRHead) -> UNETRHead:
    head.out = nn.Identity()
    return head
