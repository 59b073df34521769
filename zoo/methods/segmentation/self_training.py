"""Source-only training and mean-teacher self-training by class mixing (DACS), for domain adaptation."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import EMATeacher, PseudoLabeler
from zoo.method import Batch
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.methods.segmentation.pseudo_labels import Parts, PseudoLabelMethod
from zoo.nn import (
    ClassMix,
    CowMix,
    CutMix,
    DACSAugment,
    NoMix,
    PhotometricJitter,
    feature_distance,
)
from zoo.optim import Optim, ParameterRule
from zoo.teacher import Frozen, Mode, Teacher

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Cityscapes trainIds of countable objects, whose ImageNet features DAFormer keeps."""


class SourceOnly(SegmentationMethod):
    """Cross-entropy on the labelled images alone: the lower bound of adaptation and semi-supervision.

    With the datamodule's ``oracle: true`` the same class is the upper bound, trained on target labels.

    Args:
        labelled: key of the labelled part of the batch, ``source`` or ``labelled``; names the loss term too.
        **kwargs: see :class:`SegmentationMethod`.
    """

    def __init__(self, labelled: str = "source", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labelled = labelled

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Pixel cross-entropy, and that of the auxiliary head if there is one."""
        part = batch[self.labelled]
        logits, features = self.student.forward_with_features(part["image"])
        losses = {self.labelled: self.cross_entropy(logits, part)}
        return losses | self.auxiliary_losses(self.labelled, features, part)


class SelfTraining(PseudoLabelMethod):
    """Mean-teacher self-training with class mixing: DACS (Tranheden et al., WACV 2021), as FST's baseline runs it.

    The teacher labels target images; classes of source images are pasted onto them together with their
    labels; the student learns from the clean source images and from the mixed, strongly augmented ones. Pixels
    labelled by the teacher count with one weight: the share of confident pixels in the batch.

    The defaults are the arithmetic shared by the released DACS, DAFormer and FST code: the teacher moves
    *before* each forward, keeps its batch norm in training mode (own batch statistics) with every dropout off, and
    cross-entropy divides by all pixels, ignored ones included.

    Args:
        decay: largest EMA decay; it is warmed up as ``min(1 - 1/(t+1), decay)``.
        mix_start: optimiser step from which target images take part.
        mix: what is pasted onto target images from source images: ``classmix`` (half of the classes), ``cutmix``
            (a box), ``cowmix`` (blobs), or nothing (``none``).
        classes_from: choose half of the classes present in the whole ``batch`` (released code) or in each ``image``.
        strong_augment: of mixed images: ``dacs`` (jitter and blur of the papers), ``photometric`` (milder, for
            small images), ``none``.
        teacher_mode: see :class:`zoo.teacher.Teacher`.
        feature_distance: weight of DAFormer's ImageNet feature distance on thing classes; 0 leaves it out.
        feature_distance_classes: trainIds it looks at.
        feature_distance_ratio: share of one class from which a feature cell belongs to it.
        **kwargs: the threshold and weighting of pseudo-labels, borders without any, the weights of the source
            and the mixed term: see :class:`PseudoLabelMethod`; network, optimiser and inference: see
            :class:`SegmentationMethod`.
    """

    teacher: Teacher
    imagenet: Frozen

    def __init__(
        self,
        decay: float = 0.999,
        mix_start: int = 0,
        mix: Literal["classmix", "cutmix", "cowmix", "none"] = "classmix",
        classes_from: Literal["batch", "image"] = "batch",
        strong_augment: Literal["dacs", "photometric", "none"] = "dacs",
        teacher_mode: Mode = "train_no_dropout",
        feature_distance: float = 0.0,
        feature_distance_classes: tuple[int, ...] = THINGS,
        feature_distance_ratio: float = 0.75,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.decay, self.mix = decay, mix
        self.mix_start, self.classes_from, self.strong_augment = mix_start, classes_from, strong_augment
        self.feature_distance = feature_distance
        self.feature_distance_classes = tuple(feature_distance_classes)
        self.feature_distance_ratio = feature_distance_ratio
        self.teacher = Teacher(self.student, mode=teacher_mode)
        if feature_distance:
            self.imagenet = Frozen(self.student.backbone)

    def default_optim(self) -> Optim:
        """AdamW as in DAFormer and FST: decode head at ten times the rate, no decay on layer norms."""
        rules = {"head": ParameterRule(lr=10.0), "norm": ParameterRule(weight_decay=0.0)}
        return Optim("adamw", lr=6e-5, weight_decay=0.01, rules=rules, schedule="poly", warmup_steps=1500)

    def default_callbacks(self) -> list[Callback]:
        """Who moves the teacher, and the labelling pipeline."""
        return [self.teacher_callback(), self.pseudo_labeler(), *super().default_callbacks()]

    def teacher_callback(self) -> EMATeacher:
        """EMA before each step."""
        return EMATeacher(decay=self.decay)

    def pseudo_labeler(self) -> PseudoLabeler:
        """Predict (teacher) → weight → mix → strong augmentation."""
        return PseudoLabeler(**self.labelling())

    def labelling(self) -> dict[str, Any]:
        """The arguments of the pseudo-labeller.

        Raises:
            UnknownNameError: there is no such weighting, mixer or augmentation.
        """
        mixers: Parts = {
            "classmix": partial(ClassMix, self.classes_from, self.ignore_index),
            "cutmix": partial(CutMix, p=1.0, partner="labelled"),
            "cowmix": partial(CowMix, p=1.0, partner="labelled"),
            "none": NoMix,
        }
        augments: Parts = {"dacs": DACSAugment, "photometric": PhotometricJitter, "none": nn.Identity}
        return {
            "weight": self.trust(),
            "mix": self.choose("mix", mixers)(**self.mix_args),
            "augment": self.choose("strong_augment", augments)(),
            "start_step": self.mix_start,
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``source``, optionally ``feature_distance``, and ``mixed`` once target images take part."""
        losses, _ = self.source_losses(batch["source"])
        return {**losses, **self.mixed_losses(batch)}

    def source_losses(self, source: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The terms of labelled source images, and the student's maps of the same forward."""
        logits, features = self.student.forward_with_features(source["image"])
        weight = self.supervised_weight(self.global_step)
        losses = {"source": weight * self.cross_entropy(logits, source)}
        losses |= self.auxiliary_losses("source", features, source, weight)
        if self.feature_distance:
            imagenet = self.imagenet(self.student.normalize(source["image"]))
            losses["feature_distance"] = self.feature_distance * feature_distance(
                features[-1],
                imagenet[-1],
                source["label"],
                self.feature_distance_classes,
                self.feature_distance_ratio,
                self.num_classes,
                self.ignore_index,
            )
        return losses, features

    def mixed_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of mixed images, once there are any."""
        if "mixed" not in batch:
            return {}
        mixed = batch["mixed"]
        weight = self.unsupervised_weight(self.global_step)
        logits, features = self.student.forward_with_features(mixed["image"])
        losses = {"mixed": weight * self.cross_entropy(logits, mixed)}
        return losses | self.auxiliary_losses("mixed", features, mixed, weight)
