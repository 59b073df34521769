"""iBOT: image BERT with an online tokenizer (Zhou et al., ICLR 2022, arXiv 2111.07832)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zoo.method import Batch
from zoo.methods.image.dino import DINO
from zoo.nn.distillation import cross_view_loss, masked_patch_loss
from zoo.nn.masking import BlockMasking, Masks
from zoo.teacher import Teacher


class IBOT(DINO):
    """DINO on class tokens, and the same for masked patches: they predict the teacher's token of the patch.

    Two terms of weight 1: ``dino`` and ``ibot`` (:func:`zoo.nn.distillation.masked_patch_loss`). Only masked
    patches go through the student's head, which both kinds of tokens share. Class and patch tokens have centres
    and temperatures of their own; the patches' centre is the mean over *all* patches of the teacher.

    Teacher: evaluation mode, buffers copied, moved after each step with momentum .996 → 1, never masked.

    The release trains ViTs with ``backbone_args: {drop_path_rate: 0.1}``, as ``ibot/imagenet`` does, and trains the
    gains of ViT-S (``head_args: {train_gain: true}``).

    Args:
        prototypes: K of the head.
        mask_ratio: (least, largest) share of patches in a masked view.
        mask_share: of the global views that are masked.
        mask_stratified: exactly that share of views, with stratified ratios (DINOv2); otherwise each view draws
            for itself (iBOT).
        patch_temp: the teacher's temperature for patches.
        patch_temp_start: where it starts.
        patch_temp_epochs: epochs of the linear way from there.
        patch_head: patch tokens have a head of their own.
        centre_patches: the patches' centre follows ``all`` of the teacher's patches (iBOT) or the ``masked`` ones
            (DINOv2).
        head_args: further arguments of :class:`zoo.nn.DINOHead`.
        **kwargs: see :class:`zoo.methods.image.base.SelfDistillation`.

    Raises:
        ValueError: an option out of range, a backbone that cannot mask.
    """

    masks_patches = True

    def __init__(
        self,
        prototypes: int = 8192,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_share: float = 0.5,
        mask_stratified: bool = False,
        patch_temp: float = 0.07,
        patch_temp_start: float = 0.04,
        patch_temp_epochs: int = 30,
        patch_head: bool = False,
        centre_patches: Literal["all", "masked"] = "all",
        head_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(prototypes=prototypes, head_args=head_args, **kwargs)
        if centre_patches not in ("all", "masked"):
            raise ValueError(f"centre_patches={centre_patches!r}: expected all or masked")
        self.masking = BlockMasking(mask_ratio, mask_share, mask_stratified)
        self.patch_temp = (patch_temp_start, patch_temp, patch_temp_epochs)
        self.centre_patches = centre_patches
        self.patch_targets = self.build_targets()
        if patch_head:
            self.student.patch_head = self.build_head(self.student.backbone.embed_dim, head_args or {})
            self.teacher = Teacher(self.student, buffers="copy")  # again, now with this head

    @torch.no_grad()
    def teach(self, image: Tensor, masks: Masks | None) -> dict[str, Tensor]:
        """Logits of the teacher: ``cls`` ``[2B, K]``, ``patch`` ``[M, K]`` and what the centre of patches follows."""
        assert masks is not None
        network: Any = self.teacher.network
        tokens = self.teacher(image)
        cls, patch = network.project(tokens.cls, masks.gather(tokens.patches))
        if self.centre_patches == "masked" or self.targets != "centring":
            return {"cls": cls, "patch": patch, "patch_mean": patch}
        # Prototypes are linear without bias: the mean of all logits is what they say of the mean embedding.
        head = network.patch_head or network.head
        mean = head.last_layer(head.embed(tokens.patches).mean((0, 1))[None])
        return {"cls": cls, "patch": patch, "patch_mean": mean}

    def update_targets(self, teacher: dict[str, Tensor]) -> None:
        """Both centres."""
        super().update_targets(teacher)
        self.patch_targets.update(teacher["patch_mean"])  # type: ignore[operator]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``dino`` and ``ibot``."""
        batch = self.prepared(batch)
        teacher, masks = batch["teacher"], batch["masks"]
        cls_target = self.cls_targets(teacher["cls"], self.temperature(*self.teacher_temp))
        patch_target = self.patch_targets(teacher["patch"], self.temperature(*self.patch_temp))
        tokens, local = self.student_tokens(batch)
        views = len(tokens.cls)
        cls = torch.cat((tokens.cls, local))
        cls_logits, patch_logits = self.student.project(cls, masks.gather(tokens.patches))
        temperature = self.student_temp
        return {
            "dino": cross_view_loss(cls_target, cls_logits[:views], cls_logits[views:], temperature),
            "ibot": masked_patch_loss(patch_target, patch_logits, masks.weight, views, temperature),
            **self.token_losses(tokens.cls),
        }

    def token_losses(self, cls: Tensor) -> dict[str, Tensor]:
        """Further terms on the student's class tokens ``[2B, D]`` before the head; none here."""
        return {}
