"""Semi-supervised mean teacher with an entropy filter (the baseline of semi-supervised FST, after U2PL)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import EMATeacher, PseudoLabeler, TeacherPrediction
from zoo.method import Batch
from zoo.methods.segmentation.pseudo_labels import Parts, PseudoLabelMethod
from zoo.nn import (
    CowMix,
    CutMix,
    CutOut,
    NoMix,
    UnlabelledClassMix,
    entropy_filtered_cross_entropy,
    ohem_cross_entropy,
    pixel_cross_entropy,
)
from zoo.optim import Optim, ParameterRule
from zoo.teacher import Teacher


class SemiMeanTeacher(PseudoLabelMethod):
    """Few labels, many unlabelled images of the same domain; the mean teacher labels the latter.

    The teacher labels in evaluation mode; a second forward in training mode, on the very images the student
    sees, gives the entropy by which the least certain pixels are dropped. The teacher is evaluated.

    As released (Wang et al., U2PL, CVPR 2022, contrastive branch off; Du et al., FST, section 3.4 of the card):
    during the first epoch teacher and student share their weights, afterwards the teacher moves after each
    step with ``min(1 - 1/(t+1), decay)``.

    Args:
        decay: largest EMA decay.
        percent: percentile of the entropy from which pixels are dropped; 100 drops only the maximum.
        mix: of unlabelled images with one another: ``cutmix``, ``cowmix``, ``classmix``, ``cutout`` or ``none``.
        weighting: by which pixels are left out before the entropy filter: a ``threshold`` of the teacher's
            confidence, ``flexmatch``, ``freematch`` or ``class_balanced``; all count (``none``) as released.
        threshold: the confidence, for weightings that have one.
        supervised: cross-entropy over labelled pixels (``ce``) or over the hard ones (``ohem``, Cityscapes).
        ohem_threshold: true-class probability up to which a pixel is hard.
        ohem_min_kept: least number of pixels kept.
        copy_epochs: epochs in which teacher and student are one.
        **kwargs: borders without pseudo-labels, the weights of the two terms: see :class:`PseudoLabelMethod`;
            network, optimiser and inference: see :class:`SegmentationMethod`.
    """

    teacher: Teacher

    def __init__(
        self,
        decay: float = 0.99,
        percent: float = 80.0,
        mix: Literal["cutmix", "cowmix", "classmix", "cutout", "none"] = "cutmix",
        weighting: Literal["none", "threshold", "flexmatch", "freematch", "class_balanced"] = "none",
        threshold: float = 0.95,
        supervised: Literal["ce", "ohem"] = "ce",
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        copy_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(weighting=weighting, threshold=threshold, **kwargs)
        if weighting in ("share", "entropy"):
            raise ValueError(
                f"weighting={weighting!r}: the entropy filter takes or leaves pixels; use none, threshold, flexmatch, "
                "freematch or class_balanced"
            )
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
        """Predict (teacher, evaluation mode) → weight → mix.

        Raises:
            UnknownNameError: there is no such weighting or mixer.
        """
        mixers: Parts = {
            "cutmix": CutMix,
            "cowmix": CowMix,
            "classmix": UnlabelledClassMix,
            "cutout": partial(CutOut, ignore_index=self.ignore_index),
            "none": NoMix,
        }
        return PseudoLabeler(
            predict=TeacherPrediction(mode="eval"),
            weight=self.trust(),
            mix=self.choose("mix", mixers)(**self.mix_args),
            labelled="labelled",
            unlabelled="unlabelled",
        )

    def evaluated(self) -> nn.Module:
        """The teacher, with running statistics."""
        return self.teacher

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``supervised``, ``unsupervised``, ``auxiliary``, from one forward of student and teacher each."""
        labelled, mixed = batch["labelled"], batch["mixed"]
        images = torch.cat([labelled["image"], mixed["image"]])
        logits, features = self.student.forward_with_features(images)
        own, other = logits.split([len(labelled["image"]), len(mixed["image"])])
        with self.teacher.using("train"):
            judge = self.teacher(images)[len(own) :]
        trusted = mixed["label"].masked_fill(mixed["weight"] == 0, self.ignore_index)
        unsupervised = entropy_filtered_cross_entropy(other, judge, trusted, self.percent, self.ignore_index)
        weight = self.supervised_weight(self.global_step)
        losses = {
            "supervised": weight * self._supervised(own, labelled["label"]),
            "unsupervised": self.unsupervised_weight(self.global_step) * unsupervised,
        }
        if self.has_auxiliary:
            # Its batch norm sees all images, its loss the labelled ones.
            hidden = self.student.auxiliary(features, labelled["label"].shape[-2:])[: len(own)]
            term = self._supervised(hidden, labelled["label"])
            losses["auxiliary"] = weight * self.auxiliary_weight * term
        return losses

    def _supervised(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.supervised == "ohem":
            keep = self.ohem_threshold, self.ohem_min_kept
            return ohem_cross_entropy(logits, label, *keep, ignore_index=self.ignore_index)
        return pixel_cross_entropy(logits, label, ignore_index=self.ignore_index, average="valid")
