"""What the self-distillation methods share: student, teacher, targets, features."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import CollapseMonitor, EMATeacher, default_monitors
from zoo.backbones.tokens import create_token_backbone
from zoo.draws import rng_at
from zoo.method import Batch, Method
from zoo.nn.deployed import Tokens as DeployedTokens
from zoo.nn.heads.dino import DINOHead
from zoo.nn.masking import BlockMasking, Masks
from zoo.nn.targets import Centre, Sinkhorn
from zoo.nn.token_network import TokenNetwork
from zoo.nn.tokens import Tokens
from zoo.optim import Optim
from zoo.pictures import Picture, prepared
from zoo.schedules import linear
from zoo.teacher import Teacher

NO_DECAY = ["*.bias", "*norm*", "*gamma*", "*bn?.*", "*downsample.1.*"]
"""Names without weight decay: biases, layer scales, and the scales of norms, by whatever name timm has."""


class SelfDistillation(Method):
    """Base of DINO, iBOT, DINOv2 and POA: a student of many crops follows its own moving average.

    Training batches hold ``views`` (``global`` ``[2B, 3, g, g]``, ``local`` ``[V * B, 3, l, l]``, view-major),
    made by the datamodule with :class:`zoo.nn.MultiCrop`. Before the losses of a step the batch gets ``masks``
    (:class:`zoo.nn.masking.Masks` of the global views, in methods that mask) and ``teacher``, the logits of the
    teacher; one that holds them already is taken as it is. Masks depend on nothing but the run's seed, the step,
    the micro-batch and the rank.

    The teacher is in evaluation mode, takes over the student's buffers (batch norm of convolutional networks), sees
    only unmasked global views and moves after each step, with cosine momentum.

    Args:
        backbone: a vision transformer of timm, an elastic backbone, or any backbone with feature maps, which is
            pooled; see :func:`zoo.backbones.tokens.create_token_backbone`.
        pretrained: start from the weights that belong to the backbone's name, or from a source of weights.
        backbone_args: further arguments of the backbone (``img_size``, ``drop_path_rate``, ...).
        prototypes: K of the head.
        head_args: further arguments of :class:`zoo.nn.DINOHead`.
        targets: how teacher logits become targets: ``centring`` or ``sinkhorn``.
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher.
        teacher_temp_start: where it starts.
        teacher_temp_epochs: epochs of the linear way from there; 0: no warm-up.
        temp_every: whether the temperature moves every ``step`` (DINOv2) or every ``epoch`` (DINO, iBOT).
        momentum: of the teacher at first.
        final_momentum: where its cosine ends.
        optim: see :class:`zoo.optim.Optim`; its ``cosine_share`` holds for the momentum, too.
        init_from: see :class:`zoo.Method`.

    Raises:
        ValueError: an option out of range, a backbone that cannot do what the method needs.
    """

    student: TokenNetwork
    teacher: Teacher
    #: Whether the student's global views have masked patches; ``masking`` then draws them.
    masks_patches: ClassVar[bool] = False
    masking: BlockMasking
    #: Whether the prototypes' gains are trained; ``head_args: {train_gain: ...}`` says otherwise.
    trains_gain: ClassVar[bool] = True

    def __init__(
        self,
        backbone: str = "vit_small_patch16_224",
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        prototypes: int = 65536,
        head_args: dict[str, Any] | None = None,
        targets: Literal["centring", "sinkhorn"] = "centring",
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        teacher_temp_start: float = 0.04,
        teacher_temp_epochs: int = 0,
        temp_every: Literal["step", "epoch"] = "epoch",
        momentum: float = 0.996,
        final_momentum: float = 1.0,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("targets", targets, ("centring", "sinkhorn")),
            ("temp_every", temp_every, ("step", "epoch")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        if min(student_temp, teacher_temp, teacher_temp_start) <= 0:
            raise ValueError("student_temp, teacher_temp and teacher_temp_start must be positive")
        self.prototypes, self.targets = prototypes, targets
        self.student_temp, self.temp_every = student_temp, temp_every
        self.teacher_temp = (teacher_temp_start, teacher_temp, teacher_temp_epochs)
        self.momentum, self.final_momentum = momentum, final_momentum
        self.student = self.build_student(backbone, pretrained, backbone_args or {}, head_args or {})
        self.teacher = Teacher(self.student, buffers="copy")
        self.cls_targets = self.build_targets()

    def build_student(
        self, backbone: str, pretrained: bool | str, backbone_args: dict[str, Any], head_args: dict[str, Any]
    ) -> TokenNetwork:
        """Backbone and head."""
        network = create_token_backbone(backbone, pretrained, mask_token=self.masks_patches, **backbone_args)
        return TokenNetwork(network, self.build_head(network.embed_dim, head_args))

    def build_head(self, embed_dim: int, head_args: dict[str, Any]) -> nn.Module:
        """From tokens to the logits of the prototypes."""
        return DINOHead(embed_dim, self.prototypes, **{"train_gain": self.trains_gain, **head_args})

    def build_targets(self) -> nn.Module:
        """What makes targets of the logits of one head."""
        return Centre(self.prototypes) if self.targets == "centring" else Sinkhorn()

    def default_optim(self) -> Optim:
        """What the releases share: AdamW, rising weight decay, a cosine after ten epochs, prototypes that wait for one.

        The rate is DINO's, 5e-4 per 256 images, for the published batches of 1024.
        """
        return Optim(
            "adamw",
            options={"fused": True},
            lr=2e-3,
            weight_decay=0.04,
            final_weight_decay=0.4,
            no_decay=NO_DECAY,
            schedule="warmup_cosine",
            warmup_epochs=10,
            warmup_ratio=0.0,
            final_lr=1e-6,
            frozen=["*last_layer*"],
            frozen_epochs=1,
            clip_norm=3.0,
        )

    def default_callbacks(self) -> list[Callback]:
        """The teacher moves after each step, with cosine momentum; its features are watched for collapse."""
        return [
            EMATeacher(
                timing="after_step",
                decay=self.momentum,
                schedule="cosine",
                final_decay=self.final_momentum,
                cosine_share=self.optim.cosine_share,
            ),
            *default_monitors(self, CollapseMonitor()),
        ]

    def setup(self, stage: str) -> None:
        """Check prototypes against the benchmark's classes."""
        super().setup(stage)
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", 0)
        if stage == "fit" and self.prototypes < classes:
            raise MisconfigurationException(
                f"prototypes={self.prototypes} cannot tell the {classes} classes of the benchmark apart: raise "
                "model.prototypes"
            )

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Ask the teacher, take the losses, then let the targets remember what the teacher said."""
        batch = self.prepared(batch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        self.update_targets(batch["teacher"])
        return loss

    def prepared(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """The batch with ``masks`` and ``teacher``.

        Raises:
            MisconfigurationException: there are no views.
        """
        if "teacher" in batch:
            return batch
        if "views" not in batch:
            raise MisconfigurationException(
                f"{type(self).__name__} learns from views and the batch has none: set data.views to "
                "{class_path: zoo.nn.MultiCrop}"
            )
        image = batch["views"]["global"]
        masks = batch.get("masks") or self.draw_masks(image, batch_idx)
        return {**batch, "masks": masks, "teacher": self.teach(image, masks)}

    def draw_masks(self, image: Tensor, batch_idx: int) -> Masks | None:
        """Masks of global views ``[2B, 3, g, g]``."""
        if not self.masks_patches:
            return None
        rng = rng_at(self.place(batch_idx))
        return self.masking(len(image), self.student.backbone.grid(*image.shape[-2:]), rng).to(image.device)

    @torch.no_grad()
    def teach(self, image: Tensor, masks: Masks | None) -> dict[str, Tensor]:
        """Logits of the teacher for global views: ``cls`` ``[2B, K]``."""
        network: Any = self.teacher.network
        return {"cls": network.head(self.teacher(image).cls)}

    def update_targets(self, teacher: dict[str, Tensor]) -> None:
        """Let the targets of the next step know this step's logits of the teacher."""
        self.cls_targets.update(teacher["cls"])  # type: ignore[operator]

    def student_tokens(self, batch: Batch) -> tuple[Tokens, Tensor]:
        """Tokens of the global views, masked where there are masks, and class tokens of the local ones, if any."""
        views, masks = batch["views"], batch["masks"]
        tokens = self.student(views["global"], None if masks is None else masks.mask)
        return tokens, self.student(views["local"]).cls if "local" in views else tokens.cls[:0]

    def temperature(self, start: float, end: float, epochs: int) -> float:
        """The teacher's temperature at this step."""
        if not epochs:
            return end
        per_epoch = self.steps_per_epoch
        if self.temp_every == "epoch":
            return linear(self.global_step // per_epoch, epochs, start, end)
        return linear(self.global_step, epochs * per_epoch, start, end)

    # -- evaluation -------------------------------------------------------------------------------------

    def evaluated(self) -> nn.Module:
        """The teacher."""
        return self.teacher

    def deployed(self, network: nn.Module) -> nn.Module:
        """``cls`` and ``patches`` of images; the heads of pre-training are left out."""
        return DeployedTokens(network)

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`features`."""
        return self.features(image)

    def features(self, image: Tensor) -> Tensor:
        """Class tokens ``[B, D]`` of the teacher for images ``[B, 3, H, W]`` in [0, 1]."""
        return self.teacher(image).cls

    def dense_features(self, image: Tensor) -> Tensor:
        """Patch tokens of the teacher as a map ``[B, D, h, w]`` for images ``[B, 3, H, W]`` in [0, 1]."""
        grid = self.student.backbone.grid(*image.shape[-2:])
        return self.teacher(image).patches.transpose(1, 2).unflatten(2, grid)

    @torch.no_grad()
    def probe_features(self, image: Tensor) -> dict[str, Tensor]:
        """What linear probes choose from: ``last`` or ``four`` class tokens, with the mean patch (``+ mean``) or not.

        The four are those of four blocks of the teacher, or the pooled maps of its four stages, fine to coarse
        (POA, section 10 of the card).

        Args:
            image: ``[B, 3, H, W]`` in [0, 1].
        """
        network: Any = self.teacher.network
        pixels = (image - network.mean) / network.std
        if hasattr(network.backbone, "intermediate_tokens"):
            blocks = network.backbone.intermediate_tokens(pixels)
            four, last = [tokens.cls for tokens in blocks], blocks[-1]
        else:
            four = [maps.mean((2, 3)) for maps in network.backbone.forward_features(pixels)]
            last = network.backbone.forward_tokens(pixels)
        mean = last.patches.mean(1)
        return {
            "last": last.cls,
            "last + mean": torch.cat((last.cls, mean), 1),
            "four": torch.cat(four, 1),
            "four + mean": torch.cat((*four, mean), 1),
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing is validated without probes; they read these batches."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing is tested without probes; they read these batches."""

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Features ``[B, D]`` of one batch."""
        kept = {key: value for key, value in batch.items() if key in ("index", "name")}
        return {"features": self.features(batch["image"]), **kept}

    @torch.no_grad()
    def predict(self, image: Picture) -> Tensor:
        """Describe one image, resized and cut as those of the benchmark it was trained on.

        Args:
            image: PIL image; array ``[H, W, 3]`` or tensor ``[3, H, W]``, uint8 or float in [0, 1].

        Returns:
            Features ``[D]``, on the method's device.
        """
        return self.features(prepared(image, self.preprocessing, self.device))[0]
