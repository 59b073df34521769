"""How far a pseudo-label is trusted: teacher logits → a weight per pixel (or per image).

Every module maps ``logits`` ``[B, C, *]`` and, where it remembers single samples, their dataset positions
``index`` ``[B]`` to a float weight ``[B, *]`` without gradient. What a module has learned about the classes
lives in buffers: it is in every checkpoint, changes in training mode only, and is the same on all ranks.

Modules of one's own need no more than that. Those here are :class:`Weighting`: they judge a
:class:`~zoo.nn.prediction.Prediction`, so that who needs its label and confidence too computes them once.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from zoo.nn.entropy import masked_percentile, prediction_entropy
from zoo.nn.prediction import Prediction
from zoo.nn.ranks import gather_ranks, mean_over_ranks
from zoo.registry import UnknownNameError


class Weighting(nn.Module, ABC):
    """Base of the weightings."""

    @torch.no_grad()
    def forward(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the weight ``[B, *]`` for logits ``[B, C, *]``."""
        return self.judge(Prediction(logits), index)

    @abstractmethod
    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight, called without gradient."""


@torch.no_grad()
def weigh(weighting: nn.Module, prediction: Prediction, index: Tensor | None = None) -> Tensor:
    """The weight by any module, which may know logits only."""
    if isinstance(weighting, Weighting):
        return weighting.judge(prediction, index)
    return weighting(prediction.logits, index)


class ConfidenceShare(Weighting):
    """One weight for the whole batch: the share of its pixels whose confidence reaches a threshold.

    Tranheden et al., "DACS" (WACV 2021), section 3.3; so used by DAFormer and FST.

    Args:
        threshold: least confidence (largest softmax probability) that counts.
    """

    def __init__(self, threshold: float = 0.968) -> None:
        super().__init__()
        self.threshold = threshold

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight of every pixel."""
        return self.share(prediction.confidence)

    def share(self, confidence: Tensor) -> Tensor:
        """Return the weight of every pixel for a ``confidence`` ``[B, *]`` that is known already."""
        return (confidence >= self.threshold).float().mean().repeat(confidence.shape)


class FixedThreshold(Weighting):
    """Weight 1 where the confidence reaches a threshold, else 0.

    Sohn et al., "FixMatch" (NeurIPS 2020), section 2.2.

    Args:
        threshold: least confidence that is trusted; 0 trusts everything, without a look at confidences.
    """

    def __init__(self, threshold: float = 0.95) -> None:
        super().__init__()
        self.threshold = threshold

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight of every pixel."""
        if self.threshold <= 0:
            return prediction.logits.new_ones(prediction.logits[:, 0].shape)
        return (prediction.confidence >= self.threshold).float()


class FlexMatch(Weighting):
    """A threshold per class, lower for classes that are learned slower (curriculum pseudo-labelling).

    Zhang et al., "FlexMatch" (NeurIPS 2021), sections 3.1-3.3. With ``s(c)`` the share of samples confidently
    predicted as c and ``u = 1 - sum_c s(c)`` the share of those never confident yet, the threshold of class c
    is ``threshold * M(s(c) / max(max_c s(c), u))`` with ``M(x) = x / (2 - x)``: u is the paper's warm-up, by
    which all thresholds start at 0.

    With ``num_samples`` the shares come, as in the paper, from a memory of every sample's last confident
    class (one prediction per image, ``logits`` ``[B, C]``). Without, they are moving averages over the
    batches, which suits dense predictions. Either way a batch is judged by what was known before it.

    Args:
        num_classes: number of classes C.
        threshold: confidence that counts as confident, and the threshold of a class learned best.
        num_samples: size of the unlabelled set, for the memory; ``None``: moving averages.
        momentum: of the moving averages.
    """

    share: Tensor
    memory: Tensor

    def __init__(
        self,
        num_classes: int,
        threshold: float = 0.95,
        num_samples: int | None = None,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_samples = num_classes, num_samples
        self.threshold, self.momentum = threshold, momentum
        if num_samples is None:
            self.register_buffer("share", torch.zeros(num_classes))
        else:
            # The class of a sample that was never confident is num_classes.
            self.register_buffer("memory", torch.full((num_samples,), num_classes))

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight, 0 or 1, of every sample or pixel.

        Raises:
            ValueError: with ``num_samples``, the logits are not one prediction per sample or ``index`` is
                missing.
        """
        confidence, label = prediction.confidence, prediction.label
        weight = (confidence >= self.thresholds()[label]).float()
        if self.training:
            self._update(confidence >= self.threshold, label, index)
        return weight

    def thresholds(self) -> Tensor:
        """Return the current threshold of every class, ``[C]``."""
        share = self.share if self.num_samples is None else _class_shares(self.memory, self.num_classes)
        beta = share / torch.maximum(share.max(), 1 - share.sum())
        return self.threshold * beta / (2 - beta)

    def _update(self, confident: Tensor, label: Tensor, index: Tensor | None) -> None:
        state = label.masked_fill(~confident, self.num_classes)
        if self.num_samples is None:
            share = mean_over_ranks(_class_shares(state, self.num_classes))
            self.share.lerp_(share, 1 - self.momentum)
            return
        if index is None or label.dim() != 1:
            raise ValueError(
                f"FlexMatch(num_samples={self.num_samples}) needs one prediction per sample, logits [B, C], "
                f"and the samples' index [B]; got predictions {list(label.shape)} and index "
                f"{None if index is None else list(index.shape)}. For dense ones leave num_samples out."
            )
        state, index = gather_ranks(torch.where(confident, label, self.memory[index])), gather_ranks(index)
        # A sample that comes twice (samplers pad) has one result, whatever the order: the lower class.
        self.memory.scatter_reduce_(0, index, state, "amin", include_self=False)


class FreeMatch(Weighting):
    """Thresholds that follow the network's own confidence, globally and per class.

    Wang et al., "FreeMatch" (ICLR 2023), section 4.1: the global threshold is a moving average of the mean
    confidence, scaled per class by ``p(c) / max_c p(c)`` with p a moving average of the mean prediction. Both
    start at 1 / C, and a batch is judged after it has moved them.

    Args:
        num_classes: number of classes C.
        momentum: of the moving averages.
    """

    level: Tensor
    prediction: Tensor

    def __init__(self, num_classes: int, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("level", torch.tensor(1 / num_classes))
        self.register_buffer("prediction", torch.full((num_classes,), 1 / num_classes))

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight, 0 or 1, of every pixel."""
        probability = prediction.logits.softmax(1)
        confidence, label = probability.max(1)
        if self.training:
            classes = probability.transpose(0, 1).flatten(1).mean(1)
            seen = mean_over_ranks(torch.cat((confidence.mean()[None], classes)))
            self.level.lerp_(seen[0], 1 - self.momentum)
            self.prediction.lerp_(seen[1:], 1 - self.momentum)
        return (confidence >= self.thresholds()[label]).float()

    def thresholds(self) -> Tensor:
        """Return the current threshold of every class, ``[C]``."""
        return self.level * self.prediction / self.prediction.max()


class ClassBalanced(Weighting):
    """Trust the most confident ``portion`` of every class, so that rare and hard classes are not starved.

    Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training"
    (ECCV 2018), Algorithm 2, which ranks the whole target set between rounds; here each batch is ranked, and
    the per-class thresholds are moving averages over the batches. A batch is judged after it has moved them.

    Args:
        num_classes: number of classes C.
        portion: share of a class's pixels to trust, in (0, 1].
        threshold: cap of the thresholds, and their start: what is more confident than this is always trusted.
        momentum: of the moving averages; a class absent from a batch keeps its threshold.
    """

    thresholds: Tensor

    def __init__(
        self, num_classes: int, portion: float = 0.5, threshold: float = 0.9, momentum: float = 0.9
    ) -> None:
        super().__init__()
        if not 0 < portion <= 1:
            raise ValueError(f"portion must be within (0, 1], got {portion}")
        self.portion, self.threshold, self.momentum = portion, threshold, momentum
        self.register_buffer("thresholds", torch.full((num_classes,), threshold))

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight, 0 or 1, of every pixel."""
        confidence, label = prediction.confidence, prediction.label
        if self.training:
            self._update(confidence, label)
        return (confidence >= self.thresholds[label]).float()

    def _update(self, confidence: Tensor, label: Tensor) -> None:
        C = len(self.thresholds)
        count = _class_counts(label, C)
        # One sort for all classes: float64 keeps the confidence exact below the class, and classes 2 apart.
        ranked = (label * 2 + confidence.double()).flatten().sort().values
        end = count.cumsum(0)
        trusted = (count.double() * self.portion).round().long().clamp(min=1)
        lowest = ranked[(end - trusted).clamp(min=0)] - 2 * torch.arange(C, device=label.device)
        weighted = lowest.float().clamp(max=self.threshold) * count
        # Ranks are averaged by how many pixels of the class each has seen.
        mean = mean_over_ranks(torch.stack((weighted, count.float())))
        target = mean[0] / mean[1].clamp(min=torch.finfo(torch.float32).tiny)
        moved = torch.lerp(self.thresholds, target, 1 - self.momentum)
        self.thresholds.copy_(torch.where(mean[1] > 0, moved, self.thresholds))


class EntropyFilter(Weighting):
    """Trust the pixels whose entropy is below a percentile of the batch, with weights of mean 1.

    The weight is ``pixels / kept`` on the kept ones, so that :func:`zoo.nn.losses.pixel_cross_entropy` over
    all pixels is the mean over the kept ones. After Wang et al., "U2PL" (CVPR 2022), section 3.2, whose loss
    is ``pixels / kept`` times that mean: :func:`zoo.nn.losses.entropy_filtered_cross_entropy` is the exact
    form.

    Args:
        percent: percentile, in [0, 100]; entropies equal to it are dropped, the maximum at 100 as well.
    """

    def __init__(self, percent: float = 80.0) -> None:
        super().__init__()
        self.percent = percent

    def judge(self, prediction: Prediction, index: Tensor | None = None) -> Tensor:
        """Return the weight of every pixel; all 0 where nothing is below the percentile."""
        entropy = prediction_entropy(prediction.logits)
        everywhere = torch.ones_like(entropy, dtype=torch.bool)
        kept = entropy < masked_percentile(entropy, everywhere, self.percent)
        return kept * (kept.numel() / kept.sum().clamp(min=1))


WEIGHTINGS: Final[Mapping[str, type[nn.Module]]] = {
    "share": ConfidenceShare,
    "threshold": FixedThreshold,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "class_balanced": ClassBalanced,
    "entropy": EntropyFilter,
}
"""The weightings by the names that methods take as ``weighting``."""


def create_weighting(
    name: str, num_classes: int, threshold: float, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a weighting by its name.

    Args:
        name: a key of :data:`WEIGHTINGS`.
        num_classes: number of classes C, for those that keep something of every class.
        threshold: the confidence, for those that have one.
        options: further arguments of the class; they win over the two facts.

    Raises:
        UnknownNameError: there is no such weighting.
        TypeError: the class has no such argument.
    """
    if name not in WEIGHTINGS:
        raise UnknownNameError("weighting", name, WEIGHTINGS, "help(zoo.nn.weighting)")
    accepted = inspect.signature(WEIGHTINGS[name]).parameters
    facts = {"num_classes": num_classes, "threshold": threshold}
    known = {key: value for key, value in facts.items() if key in accepted}
    return WEIGHTINGS[name](**{**known, **(options or {})})


def _class_counts(label: Tensor, num_classes: int) -> Tensor:
    """Count labels per class, ``[C]``; the label ``num_classes`` is no class."""
    # bincount would make the host wait for the largest label.
    counts = torch.zeros(num_classes + 1, dtype=torch.long, device=label.device)
    return counts.scatter_add_(0, label.flatten(), torch.ones_like(label).flatten())[:num_classes]


def _class_shares(label: Tensor, num_classes: int) -> Tensor:
    return _class_counts(label, num_classes) / label.numel()
