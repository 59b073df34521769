"""What frozen embeddings of signals know of the person: linear probes, retrieval, dispersion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from callbacks.probe import Probe, batch_features, features_of
from zoo.method import Batch, Method
from zoo.nn.logistic import logistic_probe
from zoo.nn.ranks import gather_uneven
from zoo.nn.ridge import ALPHAS, ridge_probe

Classifier = Literal["ridge", "logistic"]

Embedded = dict[str, Tensor]
"""Features ``[N, D]``, ``participant`` and ``index`` int64 ``[N]``, ``trait`` ``[N, K]``."""


class ParticipantProbe(Probe):
    """Probes of people, on embeddings of segments (Abbaspourazad et al., ICLR 2024).

    * ``val/<trait>_auc`` (percent; of traits that are 0 or 1, if both occur) or ``val/<trait>_mae`` (in the trait's
      unit): embeddings averaged over a person's segments; a linear probe fitted to the labelled training people, the
      traits of the evaluated ones predicted. No person is in both.
    * ``val/retrieval``: percent of segments whose nearest other segment (cosine) is of the same person.
    * ``val/dispersion``: mean cosine distance of segments of one person over that of different people; small is good,
      and 1 where all embeddings are the same.

    Args:
        alphas: penalties of the probes, chosen on the labelled training people: of ridge by leaving out each in turn,
            of logistic regression by cross-validation.
        classifier: of traits that are 0 or 1: ``ridge``, as in the code of the authors' follow-up, or ``logistic``
            regression (extra ``signals``). Other traits are predicted by ridge.
        max_segments: of all ranks together, for retrieval and dispersion, which compare each with each.
        every: run with every such validation.

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: the benchmark has no participants.
    """

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        max_segments: int = 4096,
        every: int = 1,
        classifier: Classifier = "ridge",
    ) -> None:
        super().__init__(every)
        if classifier not in ("ridge", "logistic"):
            raise ValueError(f"classifier={classifier!r}: expected ridge or logistic.")
        if not alphas or min(alphas) <= 0 or max_segments < 2:
            raise ValueError(
                f"alphas={list(alphas)} must be positive and max_segments={max_segments} at least 2."
            )
        self.alphas, self.max_segments = tuple(alphas), max_segments
        self.classifier: Classifier = classifier
        self._seen: list[Embedded] = []

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Start collecting."""
        if not hasattr(trainer.datamodule, "traits"):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                f"ParticipantProbe compares people, and {type(trainer.datamodule).__name__} has none: "  # type: ignore[attr-defined]
                "leave it out of trainer.callbacks"
            )
        self._seen = []

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Embed one batch."""
        self._seen.append(_of(batch, batch_features(method, batch)["features"]))

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """All measures of what was seen."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found, self._seen = _gathered(self._seen), []
        measured = same_person(found["features"], found["participant"], self.max_segments)
        if not data.traits:
            return measured
        known = []
        for batch in data.bank_dataloader():
            on_device = trainer.strategy.batch_to_device(batch)
            known.append(_of(on_device, features_of(method, on_device["signal"])["features"]))
        return measured | trait_scores(_gathered(known), found, data.traits, self.alphas, self.classifier)


def trait_scores(
    known: Embedded,
    found: Embedded,
    traits: Sequence[str],
    alphas: Sequence[float] = ALPHAS,
    classifier: Classifier = "ridge",
) -> dict[str, Tensor]:
    """``<trait>_auc`` (percent) or ``<trait>_mae`` of linear probes on embeddings averaged over a person's segments.

    Args:
        known: segments of labelled people, whom probes are fitted to.
        found: segments of the people that are asked about.
        traits: what the columns of both's ``trait`` are called.
        alphas: penalties to choose from.
        classifier: of traits that are 0 or 1.
    """
    (bank, labels), (people, truth), measured = averaged(known), averaged(found), {}
    for number, name in enumerate(traits):
        fits, counts = labels[:, number].isfinite(), truth[:, number].isfinite()
        target, wanted = labels[fits, number], truth[counts, number]
        binary = bool(((target == 0) | (target == 1)).all())
        if binary and classifier == "logistic":
            prediction = logistic_probe(bank[fits], target, people[counts], alphas)
        else:
            prediction = ridge_probe(bank[fits], target, people[counts], alphas).prediction
        if binary:
            if wanted.unique().numel() == 2:
                measured[f"{name}_auc"] = 100.0 * binary_auroc(prediction.sigmoid(), wanted.long())
        else:
            measured[f"{name}_mae"] = (prediction - wanted).abs().mean()
    return measured


def same_person(features: Tensor, participant: Tensor, limit: int = 4096) -> dict[str, Tensor]:
    """``retrieval`` (percent) and ``dispersion`` of segments.

    Args:
        features: ``[N, D]``.
        participant: whose each is, ``[N]``. Segments of people who have one only are no queries.
        limit: so many segments at most, the first ones.
    """
    unit, who = F.normalize(features[:limit].float(), dim=1), participant[:limit]
    similarity, same = unit @ unit.T, who[:, None] == who[None]
    other = ~torch.eye(len(who), dtype=torch.bool, device=who.device)
    nearest = similarity.masked_fill(~other, -2.0).argmax(1)
    queries = (same & other).any(1)
    distance = 1.0 - similarity
    apart = distance[~same].mean()
    return {
        "retrieval": 100.0 * (who[nearest] == who)[queries].float().mean(),
        "dispersion": torch.where(apart > 0, distance[same & other].mean() / apart, 1.0),
    }


def averaged(found: Embedded) -> tuple[Tensor, Tensor]:
    """Mean features ``[P, D]`` and traits ``[P, K]`` of every person, traits without their gaps."""
    people, person = found["participant"].unique(return_inverse=True)
    features, trait = found["features"].double(), found["trait"].double()

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(people), values.shape[1]).index_add_(0, person, values)

    known = trait.isfinite()
    count = torch.bincount(person).double()[:, None]
    return summed(features) / count, summed(trait.nan_to_num()) / summed(known.double())


def _of(batch: Batch, features: Tensor) -> Embedded:
    return {"features": features, **{key: batch[key] for key in ("participant", "index", "trait")}}


def _gathered(parts: list[Embedded]) -> Embedded:
    """Of all batches and ranks, in the order of the dataset: sums do not depend on who computed what."""
    joined = {key: gather_uneven(torch.cat([part[key] for part in parts])) for key in parts[0]}
    order = joined["index"].argsort()
    return {key: value[order] for key, value in joined.items()}
