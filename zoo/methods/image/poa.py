"""POA: pre-training once for models of all sizes (Zhang et al., ECCV 2024, arXiv 2408.01031)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from zoo.backbones.elastic import ElasticBackbone
from zoo.method import Batch
from zoo.methods.image.base import SelfDistillation
from zoo.nn.distillation import cross_view_loss, koleo_loss, masked_patch_loss, soft_cross_entropy
from zoo.nn.early_backward import early_backward
from zoo.nn.elastic import Size
from zoo.nn.heads.dino import MultiHead
from zoo.nn.masking import BlockMasking, Masks
from zoo.nn.ranks import rank_count
from zoo.nn.size_cycle import SizeCycle, size_copies
from zoo.nn.targets import sinkhorn_knopp
from zoo.nn.token_network import TokenNetwork
from zoo.optim import Optim, ParameterRule

NO_DECAY = ["*bias", "*norm*", "*gamma*"]


class Said(NamedTuple):
    """What one student says of a batch.

    Attributes:
        cls: class tokens of the global views before the heads, ``[2B, D]``.
        views: per head, logits of the global and the local views, ``[2B + V * B, K]``.
        patches: per head, logits of the masked patches, ``[M, K]``; M is 0 while nothing is masked.
    """

    cls: Tensor
    views: Sequence[Tensor]
    patches: Sequence[Tensor]


class POA(SelfDistillation):
    """Self-distillation of one network and, in every step, of one smaller network cut out of it.

    Three branches share one set of weights: the teacher T; the intact student I; an elastic student E, the
    leading channels and an even choice of blocks (:mod:`zoo.nn.elastic`), drawn anew in each step. E sees the crops and
    masks that I sees. With lambda the ``intact_weight`` and means over the heads:

    * ``dino``, ``ibot``: lambda × T teaches I across views and on masked patches;
    * ``dino_elastic``, ``ibot_elastic``: (1 - lambda) × T teaches E in the same way;
    * ``same_view``: (1 - lambda) × I, detached, teaches E on each view, global and local;
    * ``koleo``, ``koleo_elastic``: half of the sum over both global views of each student.

    Targets are Sinkhorn-Knopp's, over all ranks, for every head; they are used as they are (the paper's equation 5
    has a further softmax, the released code has not). Until ``mask_start_epochs`` nothing is masked and the patch
    terms are missing.

    Teacher: evaluation mode, no masks, moved after each step with momentum .992 → .9999 of a cosine that the run may
    leave early (``optim.cosine_share``). Its sub-networks are what is exported (``zoo export``), without further
    training.

    Args:
        backbone: an elastic backbone: ``elastic_vit_large``, ``elastic_swin_base``, ``elastic_resnet152``, ...
        prototypes: K of every head.
        intact_weight: lambda.
        width_emphasis: how much more often the narrowest network is drawn than the widest, see
            :func:`zoo.nn.size_cycle.size_copies`.
        depth_emphasis: the same for depths.
        draws: each ``rank`` draws for itself (released), or all ranks train one ``common`` network, which
            balances their time and changes the statistics of the gradient.
        mask_ratio: (least, largest) share of patches in a masked view: up to .5 for ViT, .3 for Swin and ResNet.
        mask_share: of the global views that are masked.
        mask_start_epochs: epochs without masks at first.
        koleo_weight: of the KoLeo term; 0 leaves it out.
        separate_backward: differentiate I's terms before E runs, which frees its activations: the same gradients at
            about the memory of DINOv2. Not with ``16-mixed`` precision, whose loss scale is not known that early.
        head_args: further arguments of :class:`zoo.nn.heads.dino.MultiHead`.
        **kwargs: see :class:`zoo.methods.image.base.SelfDistillation`; the defaults that differ are the release's.

    Raises:
        ValueError: an option out of range, a backbone that is not elastic.
        MisconfigurationException: ``separate_backward`` with 16-mixed precision.
    """

    masks_patches = True
    refuses: ClassVar[Mapping[str, str]] = {
        "compile": "every step trains a network of another size, and each of the sizes would be compiled anew"
    }

    def __init__(
        self,
        backbone: str = "elastic_vit_large",
        prototypes: Sequence[int] = (8192, 16384, 32768, 65536),
        intact_weight: float = 0.8,
        width_emphasis: float = 3.0,
        depth_emphasis: float = 3.0,
        draws: Literal["rank", "common"] = "rank",
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_share: float = 0.5,
        mask_start_epochs: int = 30,
        koleo_weight: float = 0.1,
        separate_backward: bool = True,
        targets: Literal["sinkhorn"] = "sinkhorn",
        head_args: dict[str, Any] | None = None,
        teacher_temp: float = 0.07,
        teacher_temp_epochs: int = 30,
        temp_every: Literal["step", "epoch"] = "step",
        momentum: float = 0.992,
        final_momentum: float = 0.9999,
        **kwargs: Any,
    ) -> None:
        if targets != "sinkhorn":
            raise ValueError(f"targets={targets!r}: POA's heads are taught by sinkhorn alone")
        super().__init__(
            backbone=backbone,
            prototypes=min(prototypes),
            head_args={"prototypes": tuple(prototypes), **(head_args or {})},
            targets=targets,
            teacher_temp=teacher_temp,
            teacher_temp_epochs=teacher_temp_epochs,
            temp_every=temp_every,
            momentum=momentum,
            final_momentum=final_momentum,
            **kwargs,
        )
        if draws not in ("rank", "common"):
            raise ValueError(f"draws={draws!r}: expected rank or common")
        if not 0.0 <= intact_weight <= 1.0:
            raise ValueError(f"intact_weight={intact_weight}: expected a share, within [0, 1]")
        elastic = self.student.backbone
        if not isinstance(elastic, ElasticBackbone):
            raise ValueError(
                f"backbone={backbone!r} has no smaller networks within: take an elastic one, see "
                "`zoo list backbones 'elastic_*'`"
            )
        self.cycle = SizeCycle(size_copies(elastic.sizes(), width_emphasis, depth_emphasis))
        self.intact_weight, self.koleo_weight, self.draws = intact_weight, koleo_weight, draws
        self.masking = BlockMasking(mask_ratio, mask_share)
        self.mask_start_epochs = mask_start_epochs
        self.separate_backward = separate_backward

    def build_head(self, embed_dim: int, head_args: dict[str, Any]) -> nn.Module:
        """Independent heads, shared by both students and both kinds of tokens."""
        return MultiHead(embed_dim, **{"train_gain": self.trains_gain, **head_args})

    def default_optim(self) -> Optim:
        """AdamW at 4e-3 * sqrt(batch / 1024), here that of batches of 1024; a cosine left at 78 % (ViT)."""
        return replace(
            super().default_optim(),
            lr=4e-3,
            no_decay=NO_DECAY,
            rules={"patch_embed": ParameterRule(lr=0.2)},
            layer_decay=0.9,
            final_lr=2e-5,
            cosine_share=0.78,
            clip_norm=1.5,
            clip_by="module",
        )

    def setup(self, stage: str) -> None:
        """Refuse a loss scale that is not known when the intact student is differentiated."""
        super().setup(stage)
        if stage == "fit" and self.separate_backward and self.trainer.precision == "16-mixed":
            raise MisconfigurationException(
                "separate_backward=True does not know the loss scale of trainer.precision='16-mixed': take bf16-mixed, "
                "or set model.separate_backward to false"
            )

    # -- training ---------------------------------------------------------------------------------------

    def draw_size(self) -> Size:
        """The elastic student of this step."""
        rank = self.global_rank if self.draws == "rank" else "all"
        return self.cycle(self.global_step, f"{os.environ.get('PL_GLOBAL_SEED', '0')}/sizes/{rank}")

    def draw_masks(self, image: Tensor, batch_idx: int) -> Masks | None:
        """Masks of global views ``[2B, 3, g, g]``, once masking has started."""
        if self.mask_start_epochs and self.global_step < self.mask_start_epochs * self.steps_per_epoch:
            return None
        return super().draw_masks(image, batch_idx)

    @torch.no_grad()
    def teach(self, image: Tensor, masks: Masks | None) -> dict[str, Any]:
        """Logits of the teacher's heads: ``cls`` ``[2B, K]`` each, ``patch`` ``[M, K]`` each."""
        tokens, network = self.teacher(image), self.teacher.network
        cls, patch = cast(TokenNetwork, network).project(tokens.cls, _masked(tokens.patches, masks))
        return {"cls": cls, "patch": patch}

    def update_targets(self, teacher: dict[str, Any]) -> None:
        """Sinkhorn-Knopp remembers nothing."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the class docstring."""
        batch = self.prepared(batch)
        teacher, heads = batch["teacher"], len(batch["teacher"]["cls"])
        targets = sinkhorn_knopp([*teacher["cls"], *teacher["patch"]], self.temperature(*self.teacher_temp))
        cls_targets, patch_targets = targets[:heads], targets[heads:]

        intact = self.says(batch, None)
        losses = self.taught(intact, cls_targets, patch_targets, batch["masks"], self.intact_weight)
        if batch["masks"] is None and rank_count() > 1:
            # DDP waits for the gradient of every parameter.
            losses["dino"] = losses["dino"] + 0.0 * self.student.backbone.mask_token.sum()
        said = [logits.detach() for logits in intact.views]
        if self.separate_backward:
            gradient = early_backward(torch.stack(list(losses.values())).sum(), self.student.parameters())
            del intact  # with it go its activations
            losses = {name: loss.detach() for name, loss in losses.items()}
            losses["dino"] = losses["dino"] + gradient

        weight = 1.0 - self.intact_weight
        elastic = self.says(batch, self.draw_size())
        terms = self.taught(elastic, cls_targets, patch_targets, batch["masks"], weight)
        losses |= {f"{name}_elastic": loss for name, loss in terms.items()}
        losses["same_view"] = weight * self.same_view(said, elastic.views, len(elastic.cls))
        return losses

    def says(self, batch: Batch, size: Size | None) -> Said:
        """Tokens and logits of the student of that size; ``None``: the intact one."""
        views, masks = batch["views"], batch["masks"]
        tokens = self.student(views["global"], None if masks is None else masks.mask, size=size)
        local = [self.student(views["local"], size=size).cls] if "local" in views else []
        logits, patches = self.student.project(
            torch.cat((tokens.cls, *local)), _masked(tokens.patches, masks)
        )
        return Said(tokens.cls, logits, patches)

    def taught(
        self,
        student: Said,
        cls_targets: Sequence[Tensor],
        patch_targets: Sequence[Tensor],
        masks: Masks | None,
        weight: float,
    ) -> dict[str, Tensor]:
        """The teacher's terms, means over the heads times ``weight``, and KoLeo."""
        G = len(student.cls)
        cross = [
            cross_view_loss(target, logits[:G], logits[G:], self.student_temp)
            for target, logits in zip(cls_targets, student.views, strict=True)
        ]
        losses = {"dino": weight * torch.stack(cross).mean()}
        if masks is not None:
            patch = [
                masked_patch_loss(target, logits, masks.weight, G, self.student_temp)
                for target, logits in zip(patch_targets, student.patches, strict=True)
            ]
            losses["ibot"] = weight * torch.stack(patch).mean()
        if self.koleo_weight:
            spread = torch.stack([koleo_loss(view) for view in student.cls.chunk(2)]).sum()
            losses["koleo"] = 0.5 * self.koleo_weight * spread
        return losses

    def same_view(self, said: Sequence[Tensor], views: Sequence[Tensor], G: int) -> Tensor:
        """Cross-entropy of E's logits against what I said: a mean over the G global views and one over the local."""
        terms = []
        for target, logits in zip(said, views, strict=True):
            probability = (target.float() / self.student_temp).softmax(-1)
            rows = soft_cross_entropy(logits, probability, self.student_temp)
            terms.append(rows[:G].mean() + (rows[G:].mean() if len(rows) > G else 0.0))
        return torch.stack(terms).mean()

    # -- evaluation -------------------------------------------------------------------------------------

    def features(self, image: Tensor, size: Size | None = None) -> Tensor:
        """Class tokens ``[B, D]`` of the teacher at one size for images ``[B, 3, H, W]`` in [0, 1]."""
        return self.teacher(image, size=size).cls


def _masked(patches: Tensor, masks: Masks | None) -> Tensor:
    """The masked ones of ``[2B, N, D]`` → ``[M, D]``; none without masks."""
    return patches[:0, 0] if masks is None else masks.gather(patches)
