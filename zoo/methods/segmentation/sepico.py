"""SePiCo: semantic-guided pixel contrast for domain adaptation (Xie et al., TPAMI 2023, arXiv 2204.08808)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from zoo.method import Batch
from zoo.methods.segmentation.self_training import SelfTraining
from zoo.methods.segmentation.sepico_labels import SePiCoLabeler
from zoo.nn import (
    ClassBalancedCrop,
    ClassStatistics,
    DayNight,
    DayNightFusion,
    ProjectionHead,
    ScoreShare,
    bank_contrast,
    distribution_contrast,
    label_of_cells,
    proto_contrast,
    rarity_weights,
)
from zoo.nn.class_statistics import Centroids
from zoo.nn.crop import Rule
from zoo.teacher import Teacher


class SePiCo(SelfTraining):
    """Self-training in which pixels of both domains are drawn to the semantic concept of their class.

    A projection head maps features to unit vectors. What a class means is learned from labelled source images
    only, as the *teacher* sees them, un-augmented: running statistics of its pixels. The student's source
    pixels (by their labels) and target pixels (by the teacher's, without any filter on confidence) are then
    contrasted with all classes:

    * ``protocl``: one prototype per class, the running mean;
    * ``bankcl``: the last ``bank_length`` centroids per class;
    * ``distcl``: a Gaussian per class, of which infinitely many samples are taken in closed form.

    The rest is self-training with class mixing, on one strong view of every image. The projector and the
    statistics play no part in inference. The teacher runs with its own batch statistics and every dropout off.

    **Virtual steps leave the statistics alone.** They change once a training step, before its losses are
    taken; :meth:`losses` only reads them and may be called any number of times. A look-ahead
    (:class:`callbacks.FutureTeacher`) runs on the pixels of the step that follows, or on batches that are
    never trained on: counting them would weigh some source pixels many times in what is their exact mean and
    variance. Virtual students are therefore contrasted with the statistics of the real step before.

    Args:
        contrast: the variant.
        contrast_start: optimiser step from which there is contrast; statistics are gathered from the first.
            With several ranks set ``trainer.strategy`` to ``ddp_find_unused_parameters_true`` unless it is 0.
        contrast_weight: of the contrast, in either domain.
        regulariser: weight of :func:`zoo.nn.contrast.contrast_regulariser` within the contrast.
        temperature: divides similarities; 100 as released.
        contrast_layers: indices of the backbone's maps that are projected; ``None``: all.
        layer_fusion: ``concat`` them, upsampled to the finest, for one head; or ``separate`` heads and
            statistics for each, whose losses are summed.
        projection_dim: channels of the embedding.
        label_ratio: least share of one class in a feature cell that counts.
        bank_length: centroids kept per class.
        centroids: of a class in a ``batch`` (released) or in each ``image`` (as the paper's text has it).
        source_view: the student learns source images from their ``strong`` view (released) or ``clean``.
        crop_rule: how target images larger than the source's are cut, see :class:`zoo.nn.ClassBalancedCrop`;
            the benchmark hands them over whole with ``crop_target: false``.
        day_night: rules for night images with day partners (``target.day``): fused labels, and class weights
            in cross-entropy and evaluation. ``{}`` takes those of Cityscapes → Dark Zurich.
        ignore_top: rows of weight 0 as in self-training: 15 of Cityscapes, 0 of Dark Zurich.
        ignore_bottom: the same: 120 and 0.
        **kwargs: see :class:`SelfTraining`.

    Raises:
        ValueError: an unknown option.
        MisconfigurationException: a map the backbone does not have; other than one frequency per class; a
            distributed strategy that cannot train in the warm-up.
    """

    train_weight: Tensor
    test_weight: Tensor

    def __init__(
        self,
        contrast: Literal["protocl", "bankcl", "distcl"] = "distcl",
        contrast_start: int = 3000,
        contrast_weight: float = 1.0,
        regulariser: float = 1.0,
        temperature: float = 100.0,
        contrast_layers: Sequence[int] | None = None,
        layer_fusion: Literal["concat", "separate"] = "concat",
        projection_dim: int = 512,
        label_ratio: float = 0.75,
        bank_length: int = 200,
        centroids: Centroids = "batch",
        source_view: Literal["strong", "clean"] = "strong",
        crop_rule: Rule = "balanced",
        day_night: DayNight | dict[str, Any] | None = None,
        ignore_top: int = 15,
        ignore_bottom: int = 120,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_top=ignore_top, ignore_bottom=ignore_bottom, **kwargs)
        if self.has_auxiliary:
            raise ValueError("SePiCo takes no auxiliary_head: its projection has that place. Set it to null")
        for argument, value, allowed in (
            ("contrast", contrast, ("protocl", "bankcl", "distcl")),
            ("layer_fusion", layer_fusion, ("concat", "separate")),
            ("source_view", source_view, ("strong", "clean")),
        ):
            if value not in allowed:
                raise ValueError(f"SePiCo({argument}={value!r}): expected one of {', '.join(allowed)}")
        self.variant, self.contrast_start, self.temperature = contrast, contrast_start, temperature
        self.contrast_weight, self.regulariser = contrast_weight, regulariser
        self.label_ratio, self.source_view, self.crop_rule = label_ratio, source_view, crop_rule
        self.day_night = DayNight(**day_night) if isinstance(day_night, dict) else day_night

        channels: Any = self.student.backbone.channels
        self.projected = self._projected(contrast_layers, layer_fusion, len(channels))
        self.student.auxiliary_head = nn.ModuleList(
            ProjectionHead([channels[layer] for layer in layers], projection_dim) for layers in self.projected
        )
        self.teacher = Teacher(self.student, mode=self.teacher.mode)  # again, now with the projection
        banked = bank_length if contrast == "bankcl" else 0
        self.statistics = nn.ModuleList(
            ClassStatistics(self.num_classes, projection_dim, banked, centroids, self.ignore_index)
            for _ in self.projected
        )
        if self.day_night:
            self._weight_classes(self.day_night)

    def labelling(self) -> dict[str, Any]:
        """As in self-training, from windows of target images and, where there are any, day partners."""
        parts = {**super().labelling(), "crop": ClassBalancedCrop(self.num_classes, self.crop_rule)}
        if self.day_night is not None:
            parts["fuse"] = DayNightFusion(self.day_night)
        return parts

    def pixel_weighting(self) -> nn.Module:
        """As in self-training; fused day and night labels come as scores, of which only the share is known."""
        if self.day_night is None:
            return super().pixel_weighting()
        if self.weighting != "share" or self.weighting_args:
            raise MisconfigurationException(
                f"weighting={self.weighting!r}, weighting_args={self.weighting_args}: with day_night, predictions "
                "are scores that do not sum to 1, which only weighting='share' without arguments takes"
            )
        return ScoreShare(self.threshold)

    def pseudo_labeler(self) -> SePiCoLabeler:
        """Predict (teacher) → crop → predict → weight → ClassMix → strong views of everything."""
        return SePiCoLabeler(**self.labelling())

    def setup(self, stage: str) -> None:
        """Refuse ranks that would wait for the gradients of a projection not used yet."""
        super().setup(stage)
        if stage == "fit" and self.contrast_start:
            self.refuse_plain_ddp(
                f"contrast_start={self.contrast_start}: before that step the projection has no gradient",
                ", or model.contrast_start to 0",
            )

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take the batch's source pixels into the statistics, then the losses: they know this batch already."""
        self.update_statistics(batch["source"])
        return super().training_step(batch, batch_idx)

    @torch.no_grad()
    def update_statistics(self, source: Batch) -> None:
        """Add the teacher's embeddings of clean source images, by their labels, to what is known of classes."""
        network: Any = self.teacher.network
        features = network.backbone(network.normalize(source["image"]))
        for embedding, known in self._embedded(network, features):
            known.update(embedding, self._cells(source["label"], embedding))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Those of self-training; ``contrast_source`` and ``contrast_target`` once contrast has started."""
        source, target = self._view(batch["source"], self.source_view), batch.get("target", {})
        losses, features = self.source_losses(source)
        if self.global_step >= self.contrast_start:
            losses["contrast_source"] = self.contrast(features, source["label"])
            if "pseudo_label" in target:
                image = self.student.normalize(self._view(target, "strong")["image"])
                label = target["pseudo_label"].masked_fill(target["pseudo_weight"] == 0, self.ignore_index)
                features = self.student.backbone(image)
                losses["contrast_target"] = self.contrast(features, label)
        return {**losses, **self.mixed_losses(batch)}

    def contrast(self, features: list[Tensor], label: Tensor) -> Tensor:
        """The weighted contrast of the student's maps ``features`` with labels ``[B, H, W]``."""
        terms = [
            self._contrast(q, self._cells(label, q), s) for q, s in self._embedded(self.student, features)
        ]
        return self.contrast_weight * torch.stack(terms).sum()

    def cross_entropy(self, logits: Tensor, part: Batch) -> Tensor:
        """As in self-training; by night rare classes weigh more, and the mean is still over all pixels."""
        if self.day_night is None:
            return super().cross_entropy(logits, part)
        weight = self.train_weight[part["label"].clamp(max=self.num_classes - 1)]
        return super().cross_entropy(logits, {**part, "weight": weight * part.get("weight", 1.0)})

    def logits(self, image: Tensor) -> Tensor:
        """Logits of the evaluated network; by night probabilities are multiplied by the class weights."""
        logits = super().logits(image)
        return logits if self.day_night is None else logits + self.test_weight.log().view(1, -1, 1, 1)

    def _embedded(self, network: Any, features: Sequence[Tensor]) -> Iterable[tuple[Tensor, ClassStatistics]]:
        """Unit vectors ``[B, A, h, w]`` of ``network``'s maps, and what is known of them, head by head."""
        known: Any = self.statistics
        for head, layers, statistics in zip(network.auxiliary_head, self.projected, known, strict=True):
            yield head([features[layer] for layer in layers]), statistics

    def _contrast(self, embedding: Tensor, cells: Tensor, known: ClassStatistics) -> Tensor:
        shared: dict[str, Any] = {
            "temperature": self.temperature, "ignore_index": self.ignore_index, "regulariser": self.regulariser,
        }  # fmt: skip
        if self.variant == "distcl":
            return distribution_contrast(embedding, cells, known.mean, known.variance, **shared)
        if known.bank is not None:
            bank = known.bank
            return bank_contrast(embedding, cells, bank.entries, bank.size, mean=known.mean, **shared)
        return proto_contrast(embedding, cells, known.mean, **shared)

    def _cells(self, label: Tensor, embedding: Tensor) -> Tensor:
        return label_of_cells(label, embedding, self.num_classes, self.label_ratio, self.ignore_index)

    @staticmethod
    def _view(part: Batch, view: str) -> Batch:
        """The part with the images of a view; clean ones where nobody made strong ones."""
        return {**part, "image": part["strong"]} if view == "strong" and "strong" in part else part

    @staticmethod
    def _projected(layers: Sequence[int] | None, fusion: str, count: int) -> list[tuple[int, ...]]:
        """The maps, of ``count``, that each projection head gets."""
        chosen = tuple(range(count) if layers is None else layers)
        if not chosen or any(not -count <= layer < count for layer in chosen):
            raise MisconfigurationException(
                f"contrast_layers={list(chosen)}: the backbone has {count} maps, 0 (finest) to {count - 1}; name "
                "at least one of them, or set contrast_layers to null for all"
            )
        return [chosen] if fusion == "concat" else [(layer,) for layer in chosen]

    def _weight_classes(self, rules: DayNight) -> None:
        if len(rules.frequencies) != self.num_classes:
            raise MisconfigurationException(
                f"day_night.frequencies names {len(rules.frequencies)} classes, but "
                f"num_classes={self.num_classes}: give one frequency per class"
            )
        for name, scale in (("train_weight", rules.train_scale), ("test_weight", rules.test_scale)):
            self.register_buffer(name, rarity_weights(rules.frequencies, scale), persistent=False)
