"""DINOv2's pre-training: DINO, iBOT and KoLeo (Oquab et al., TMLR 2024, arXiv 2304.07193)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.methods.image.ibot import IBOT
from zoo.nn.distillation import koleo_loss
from zoo.optim import Optim, ParameterRule


class DINOv2(IBOT):
    """iBOT with KoLeo on the student's class tokens, trained gains, and everything scheduled step by step.

    Three terms: ``dino``, ``ibot`` and ``koleo``, the sum of :func:`zoo.nn.distillation.koleo_loss` over the two
    global views. Defaults are those of the released ImageNet-1k configuration: centring, one head for both kinds
    of tokens; the large runs had ``targets: sinkhorn`` and ``patch_head: true``. Exactly half of the global views
    are masked.

    Teacher: evaluation mode, buffers copied, moved after each step with momentum .992 → 1, never masked.

    The released ViT has layer scales of 1e-5 and a drop path of .3, the same in all blocks, that skips part of the
    batch: ``backbone_args: {init_values: 1.0e-5, drop_path_rate: 0.3, drop_path_uniform: true, drop_path_form: batch}``
    (``dinov2/imagenet``).

    Args:
        koleo_weight: of the KoLeo term; 0 leaves it out.
        **kwargs: see :class:`zoo.methods.image.ibot.IBOT`; the defaults that differ are those of the release.
    """

    trains_gain = True

    def __init__(
        self,
        koleo_weight: float = 0.1,
        prototypes: int = 65536,
        mask_stratified: bool = True,
        centre_patches: Literal["all", "masked"] = "masked",
        teacher_temp: float = 0.07,
        teacher_temp_epochs: int = 30,
        temp_every: Literal["step", "epoch"] = "step",
        momentum: float = 0.992,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            prototypes=prototypes,
            mask_stratified=mask_stratified,
            centre_patches=centre_patches,
            teacher_temp=teacher_temp,
            teacher_temp_epochs=teacher_temp_epochs,
            temp_every=temp_every,
            momentum=momentum,
            **kwargs,
        )
        self.koleo_weight = koleo_weight

    def default_optim(self) -> Optim:
        """AdamW at 4e-3 * sqrt(batch / 1024): the rate here is that of batches of 1024."""
        return replace(
            super().default_optim(),
            lr=4e-3,
            rules={"patch_embed": ParameterRule(lr=0.2)},
            layer_decay=0.9,
            freeze_by="rate",
            clip_by="module",
        )

    def token_losses(self, cls: Tensor) -> dict[str, Tensor]:
        """``koleo``: each global view for itself."""
        if not self.koleo_weight:
            return {}
        return {"koleo": self.koleo_weight * torch.stack([koleo_loss(view) for view in cls.chunk(2)]).sum()}
