"""The network of self-distillation: a token backbone with its projection heads, from plain images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn.tokens import TokenBackbone, Tokens


class TokenNetwork(nn.Module):
    """A token backbone that takes images in [0, 1], and heads on its tokens.

    The backbone's mean and standard deviation are applied inside.

    Args:
        backbone: see :class:`zoo.nn.tokens.TokenBackbone`.
        head: of class tokens; of patch tokens, too, where there is no ``patch_head``.
        patch_head: of patch tokens.

    Raises:
        TypeError: the backbone gives no tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: TokenBackbone, head: nn.Module, patch_head: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone) or not isinstance(backbone, nn.Module):
            raise TypeError(
                f"backbone {type(backbone).__name__} gives no tokens: build it with "
                "zoo.backbones.create_token_backbone(name), or give it forward_tokens and the facts of "
                "zoo.nn.tokens.TokenBackbone"
            )
        self.backbone: Any = backbone
        self.head = head
        self.patch_head = patch_head
        self.num_blocks = backbone.num_blocks
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor, mask: Tensor | None = None, **options: Any) -> Tokens:
        """Tokens of images ``[B, in_chans, H, W]`` in [0, 1], before the heads; ``mask`` is bool ``[B, N]``.

        ``options`` are the backbone's own (``size`` of an elastic one).

        Raises:
            TypeError: the images are integers, so not yet in [0, 1].
        """
        if not image.is_floating_point():
            raise TypeError(
                f"image must be float in [0, 1], got {image.dtype}: use image.float() / 255 for uint8"
            )
        return self.backbone.forward_tokens((image - self.mean) / self.std, mask, **options)

    def project(self, cls: Tensor, patches: Tensor) -> tuple[Any, Any]:
        """Logits of class tokens ``[n, D]`` and of patch tokens ``[M, D]``; a shared head runs once."""
        if self.patch_head is not None:
            return self.head(cls), self.patch_head(patches)
        rows = [len(cls), len(patches)]
        logits = self.head(torch.cat((cls, patches)))
        if isinstance(logits, Tensor):
            return logits.split(rows)
        return tuple(zip(*(o.split(rows) for o in logits), strict=True))  # type: ignore[return-value]

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; heads come after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1
