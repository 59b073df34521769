"""DINO: self-distillation with no labels (Caron et al., ICCV 2021, arXiv 2104.14294)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.method import Batch
from zoo.methods.image.base import SelfDistillation
from zoo.nn.distillation import cross_view_loss
from zoo.optim import Optim


class DINO(SelfDistillation):
    """The student's class token of every crop predicts the teacher's of the other global crops.

    One term, :func:`zoo.nn.distillation.cross_view_loss`: cross-entropy over K prototypes against centred,
    sharpened targets. The prototypes' gains stay 1 (``norm_last_layer``; the ViT-S recipe of the release trains
    them: ``head_args: {train_gain: true}``), and the prototypes stand still for an epoch.

    Teacher: evaluation mode, buffers copied, moved after each step with momentum .996 → 1.

    The release trains ViTs with a drop path that rises linearly to .1, which backbones here have only if told:
    ``backbone_args: {drop_path_rate: 0.1}`` (``dino/imagenet``).

    Args:
        **kwargs: see :class:`zoo.methods.image.base.SelfDistillation`.
    """

    trains_gain = False

    def default_optim(self) -> Optim:
        """AdamW at 5e-4 per 256 images: the rate here is that of the published batches of 1024."""
        return replace(super().default_optim(), freeze_by="gradient", clip_by="parameter")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """One term, ``dino``."""
        batch = self.prepared(batch)
        target = self.cls_targets(batch["teacher"]["cls"], self.temperature(*self.teacher_temp))
        tokens, local = self.student_tokens(batch)
        logits = self.student.head(torch.cat((tokens.cls, local)))
        views = len(tokens.cls)
        return {"dino": cross_view_loss(target, logits[:views], logits[views:], self.student_temp)}
