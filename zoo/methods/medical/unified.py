"""What methods on images and volumes share: inputs of either kind, predictions, exported forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zoo.method import Batch
from zoo.methods.medical.base import Volume, VolumeMethod
from zoo.pictures import Picture, prepared


class UnifiedTokens(nn.Module):
    """``cls`` ``[B, D]`` and ``patches`` ``[B, N, D]`` of a :class:`zoo.backbones.UnifiedViT`."""

    outputs = ("cls", "patches")

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, C, H, W]`` or volumes ``[B, 1, X, Y, Z]`` in [0, 1] → tokens."""
        return tuple(self.backbone.forward_tokens(x))


class UnifiedMethod(VolumeMethod):
    """Base of methods with a :class:`zoo.backbones.UnifiedViT`: a batch holds ``image`` or ``volume``, in [0, 1].

    Exported networks take images; with ``--input_size XxYxZ`` (:meth:`example_input`) volumes.

    Args:
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.
    """

    input_name = "image"

    def input_of(self, batch: Batch) -> Tensor:
        """What the network sees of a batch: its images or its volumes.

        Raises:
            ValueError: it holds neither, or both.
        """
        found = [batch[key] for key in ("image", "volume") if key in batch]
        if len(found) != 1:
            raise ValueError(
                f"{type(self).__name__} takes batches with image or volume, one of the two, and this one holds "
                f"{', '.join(batch)}"
            )
        return found[0]

    def example_input(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Two images of noise in [0, 1]; two volumes where ``size`` has three sides, or the network knows no images."""
        backbone: Any = self.student.backbone
        sides = size or next(iter(backbone.sizes.values()))
        channels = backbone.in_chans if len(sides) == 2 else 1
        return torch.rand(2, channels, *sides, generator=torch.Generator().manual_seed(0)).to(self.device)

    def deployed(self, network: Any) -> nn.Module:
        """Tokens of the backbone."""
        return UnifiedTokens(network.backbone)

    def deployed_backbone(self, network: Any) -> nn.Module:
        """The same."""
        return UnifiedTokens(network.backbone)

    def features(self, x: Tensor) -> Tensor:
        """Class tokens ``[B, D]`` of images ``[B, C, H, W]`` or volumes ``[B, 1, X, Y, Z]`` in [0, 1]."""
        backbone: Any = self.student.backbone
        return backbone.forward_tokens(x).cls

    def one_input(self, x: Picture | Volume, affine: np.ndarray | Tensor | None = None) -> Tensor:
        """One picture or scan as a batch of one.

        Three axes of which the first or the last has three entries are a picture, unless there is an ``affine``;
        everything else is a volume, see :func:`zoo.pictures.as_pixels` and :meth:`prepared`.
        """
        if isinstance(x, Image.Image) or (
            isinstance(x, (np.ndarray, Tensor))
            and x.ndim == 3
            and affine is None
            and 3 in (x.shape[0], x.shape[2])
        ):
            return prepared(x, self.preprocessing, self.device)
        assert not isinstance(x, Image.Image)
        return self.prepared(x, affine)[0]

    @torch.no_grad()
    def predict(self, x: Picture | Volume, affine: np.ndarray | Tensor | None = None) -> Tensor:
        """What :meth:`forward` says of one picture or volume; for the arguments see :meth:`one_input`."""
        example, training = self.one_input(x, affine), self.training
        self.eval()
        answer = self(example)[0]
        self.train(training)
        return answer
