"""The omni-supervised stage of VoCo: position prediction, segmentation, and pseudo-labels on unlabelled crops."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import PseudoLabeler, PseudoLabelMonitor, SnapshotTeacher
from zoo.method import Batch, Method
from zoo.methods.medical.voco import VoCo
from zoo.nn import FixedThreshold
from zoo.nn.deployed import VolumeFeatures
from zoo.nn.volume_losses import dice_cross_entropy
from zoo.nn.volume_networks import OmniNetwork, resized
from zoo.teacher import Teacher


class CropPrediction(nn.Module):
    """Logits of one of the method's teachers on crops.

    Args:
        teacher: attribute path of the teacher on the method; its network segments.
    """

    def __init__(self, teacher: str = "labeler") -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, method: Method, crops: Tensor) -> Tensor:
        """Crops ``[N, C_in, x, y, z]`` in [0, 1] → logits ``[N, C, x, y, z]``."""
        return method.get_submodule(self.teacher)(crops)


class CropLabeler(PseudoLabeler):
    """Label the random crops of unlabelled volumes, from the step after the labelling teacher was taken.

    The very crops that the student sees are labelled, as released: no stronger view, no mixing.

    Args:
        predict: ``(method, crops) -> logits``; default: the method's frozen ``labeler``.
        weight: ``(logits, index) -> weight``, see ``zoo.nn.weighting``; default: every voxel counts, as released.
        labelled: key of the labelled part of the batch.
        unlabelled: key of the unlabelled part.
        start_step: before this optimiser step nothing is labelled either.
    """

    def __init__(
        self,
        predict: nn.Module | None = None,
        weight: nn.Module | None = None,
        labelled: str = "labelled",
        unlabelled: str = "unlabelled",
        start_step: int = 0,
    ) -> None:
        super().__init__(
            predict or CropPrediction(),
            weight or FixedThreshold(0.0),
            labelled=labelled,
            unlabelled=unlabelled,
            start_step=start_step,
        )

    def label(self, method: Method, batch: Batch) -> Batch:
        """As the parent's, but nothing while there is no teacher to label."""
        teacher = getattr(method, "labeler", None)
        if isinstance(teacher, Teacher) and teacher.steps == 0:
            return dict(batch)
        return super().label(method, batch)

    def scores(self, method: Method, part: Batch) -> Tensor:
        """Logits of all random crops of the unlabelled volumes ``[B n, C, x, y, z]``."""
        return self.parts["predict"](method, part["crops"].flatten(0, 1)).float()


class VoCoOmni(VoCo):
    """VoCo on unlabelled volumes, segmentation of labelled ones, and of unlabelled ones as a teacher labels them.

    Further terms beside VoCo's: ``dice`` and ``cross_entropy`` on labelled crops; ``pseudo_dice`` and
    ``pseudo_cross_entropy`` on the random crops of unlabelled volumes. Their labels come from a copy of the student
    that is taken in the middle of the run and frozen (teacher ``labeler``, evaluation mode). Batches are
    ``{"labelled": {"volume": [b, C, x, y, z], "label": int64 [b, x, y, z]}, "unlabelled": {crops, base, crop_box,
    base_box}}``.

    Args:
        num_classes: classes of the decoder, background included; 21 in VoComni.
        semi_start: optimiser step before which the labelling copy is taken; ``None``: the middle of the run.
        detach: pseudo-labels train the decoder; which maps carry their gradient into the encoder: ``released``, those
            that are not pooled (Swin UNETR's bare hidden state at stride 16, which the release forgot), ``all`` are
            cut off, or ``none``.
        segmentation_weight: of the terms of labelled crops.
        pseudo_weight: of the terms of pseudo-labels.
        ignore_index: label of voxels that do not count.
        **kwargs: see :class:`VoCo`. Its teacher here is the projector's.

    Raises:
        ValueError: an option out of range.
    """

    student: OmniNetwork
    labeler: Teacher

    def __init__(
        self,
        num_classes: int = 21,
        semi_start: int | None = None,
        detach: Literal["released", "all", "none"] = "released",
        segmentation_weight: float = 1.0,
        pseudo_weight: float = 1.0,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        self.num_classes = num_classes  # the parent's constructor builds the network
        super().__init__(**kwargs)
        if detach not in ("released", "all", "none"):
            raise ValueError(f"detach={detach!r}: expected one of released, all, none")
        if self.teacher_network == "whole":
            raise ValueError(
                "teacher_network='whole': the omni-supervised stage shares its backbone, use 'projector'"
            )
        self.semi_start, self.detach, self.ignore_index = semi_start, detach, ignore_index
        self.segmentation_weight, self.pseudo_weight = segmentation_weight, pseudo_weight
        self.labeler = Teacher(self.student)

    def build_student(self, backbone: Any) -> OmniNetwork:
        """The network around a backbone, with a decoder."""
        return OmniNetwork(backbone, self.num_classes, row_dropout=self.row_dropout, **self.sizes)

    def default_callbacks(self) -> list[Callback]:
        """VoCo's teacher, the labelling copy, and the labelling."""
        snapshot = SnapshotTeacher(teacher="labeler", at=self.semi_start)
        return [*super().default_callbacks(), snapshot, CropLabeler(), PseudoLabelMonitor()]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """VoCo's terms, those of labelled crops, and those of pseudo-labels once there are any."""
        part, labelled = batch["unlabelled"], batch["labelled"]
        views = self.views(part)
        maps = self.student.features(views)
        terms = self.position_losses(part, views, maps)
        supervised = self._segmentation(self.student(labelled["volume"]), labelled["label"])
        terms |= {name: self.segmentation_weight * loss for name, loss in supervised.items()}
        if "pseudo_label" in part:
            crops = part["crops"].flatten(0, 1)
            logits = resized(self.student.decode_head(self._detached(maps, len(crops))), crops)
            taught = self._segmentation(logits, part["pseudo_label"], part["pseudo_weight"])
            terms |= {f"pseudo_{name}": self.pseudo_weight * loss for name, loss in taught.items()}
        return terms

    def deployed(self, network: nn.Module) -> nn.Module:
        """Embeddings and logits of volumes."""
        return VolumeFeatures(network, segments=True)

    def _segmentation(self, logits: Tensor, label: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        return dice_cross_entropy(logits, label, weight, self.ignore_index)

    def _detached(self, maps: list[Tensor], rows: int) -> list[Tensor]:
        """The maps of the first ``rows`` views, cut off from the encoder as ``detach`` says."""
        cut = {"released": self.student.pooled, "all": range(len(maps)), "none": ()}[self.detach]
        return [m[:rows].detach() if i in cut else m[:rows] for i, m in enumerate(maps)]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Positions of the unlabelled part; flat batches are taken as they are."""
        super().validation_step(batch.get("unlabelled", batch), batch_idx)

    @torch.no_grad()
    def segment(self, volume: Tensor) -> Tensor:
        """Logits ``[B, C, X, Y, Z]`` of volumes ``[B, C_in, X, Y, Z]`` in [0, 1]."""
        return self.student(volume)
