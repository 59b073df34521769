"""Semi-supervised mean teacher with an entropy filter (the baseline of semi-supervised FST, after U2PL)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import EMATeacher, PseudoLabeler, TeacherPrediction
from zoo.method import Batch
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.nn import (
    CutMix,
    FixedThreshold,
    NoMix,
    entropy_filtered_cross_entropy,
    ohem_cross_entropy,
    pixel_cross_entropy,
)
from zoo.optim import Optim, ParameterRule
from zoo.teacher import Teacher


class SemiMeanTeacher(SegmentationMethod):
    """Few labels, many unlabelled images of the same domain; the mean teacher labels the latter.

    The teacher labels in evaluation mode; a second forward in training mode, on the very images the student
    sees, gives the entropy by which the least certain pixels are dropped. The teacher is evaluated.

    As released (Wang et al., U2PL, CVPR 2022, contrastive branch off; Du et al., FST, section 3.4 of the card):
    during the first epoch teacher and student share their weights, afterwards the teacher moves after each
    step with ``min(1 - 1/(t+1), decay)``.

    Args:
        decay: largest EMA decay.
        percent: percentile of the entropy from which pixels are dropped; 100 drops only the maximum.
        mix: ``cutmix`` or ``none``.
        supervised: cross-entropy over labelled pixels (``ce``) or over the hard ones (``ohem``, Cityscapes).
        ohem_threshold: true-class probability up to which a pixel is hard.
        ohem_min_kept: least number of pixels kept.
        copy_epochs: epochs in which teacher and student are one.
        **kwargs: see :class:`SegmentationMethod`.
    """

    teacher: Teacher

    def __init__(
        self,
        decay: float = 0.99,
        percent: float = 80.0,
        mix: Literal["cutmix", "none"] = "cutmix",
        supervised: Literal["ce", "ohem"] = "ce",
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        copy_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.decay, self.percent, self.copy_epochs = decay, percent, copy_epochs
        self.supervised = supervised
        self.ohem_threshold, self.ohem_min_kept = ohem_threshold, ohem_min_kept
        self.mix = mix
        self.teacher = Teacher(self.student, mode="eval")

    def default_optim(self) -> Optim:
        """SGD with poly decay, decoder at ten times the rate (PASCAL VOC setting)."""
        return Optim(
            "sgd",
            lr=1e-3,
            weight_decay=1e-4,
            options={"momentum": 0.9},
            rules={"head": ParameterRule(lr=10.0)},
            schedule="poly",
            power=0.9,
        )

    def default_callbacks(self) -> list[Callback]:
        """Who moves the teacher, and the labelling pipeline."""
        return [self.teacher_callback(), self.pseudo_labeler(), *super().default_callbacks()]

    def teacher_callback(self) -> EMATeacher:
        """EMA after each step; in the first epoch the teacher is the student."""
        return EMATeacher(timing="after_step", decay=self.decay, copy_epochs=self.copy_epochs)

    def pseudo_labeler(self) -> PseudoLabeler:
        """Predict (teacher, evaluation mode) → CutMix; every pixel counts until the entropy filter."""
        return PseudoLabeler(
            predict=TeacherPrediction(mode="eval"),
            weight=FixedThreshold(0.0),
            mix=CutMix() if self.mix == "cutmix" else NoMix(),
            labelled="labelled",
            unlabelled="unlabelled",
        )

    def evaluated(self) -> nn.Module:
        """The teacher, with running statistics."""
        return self.teacher

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``supervised`` and ``unsupervised`` from one forward of student and teacher each."""
        labelled, mixed = batch["labelled"], batch["mixed"]
        images = torch.cat([labelled["image"], mixed["image"]])
        own, other = self.student(images).split([len(labelled["image"]), len(mixed["image"])])
        with self.teacher.using("train"):
            judge = self.teacher(images)[len(own) :]
        return {
            "supervised": self._supervised(own, labelled["label"]),
            "unsupervised": entropy_filtered_cross_entropy(
                other, judge, mixed["label"], self.percent, self.ignore_index
            ),
        }

    def _supervised(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.supervised == "ohem":
            keep = self.ohem_threshold, self.ohem_min_kept
            return ohem_cross_entropy(logits, label, *keep, ignore_index=self.ignore_index)
        return pixel_cross_entropy(logits, label, ignore_index=self.ignore_index, average="valid")
