"""Which tensor of a file goes where in a network; decided by names and shapes, before anything is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from zoo.checkpoints.adapt import FITS, Adaptation, is_classifier
from zoo.checkpoints.elastic import in_order_of
from zoo.checkpoints.files import CheckpointError, Tensors
from zoo.checkpoints.readings import Candidate
from zoo.checkpoints.report import LoadReport, PartShare
from zoo.checkpoints.rules import canonical, unwrapped


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a load will do.

    Args:
        copies: (tensor of the network, what it becomes).
        report: the same in words.
    """

    copies: list[tuple[Tensor, Tensor]]
    report: LoadReport


def parts_of(network: nn.Module) -> Tensors:
    """The tensors of a network under our names; of one without a ``backbone``, all count as such."""
    tensors = unwrapped(network.state_dict(keep_vars=True))
    prefix = "" if any(name.startswith("backbone.") for name in tensors) else "backbone."
    return {canonical(prefix + name): tensor for name, tensor in tensors.items()}


def plan(candidate: Candidate, network: nn.Module, source: str) -> Plan:
    """Pair the tensors of a reading with those of ``network``.

    Names are compared with dots as underscores: timm's feature extractors spell ``stages.0`` as ``stages_0``.

    Raises:
        CheckpointError: two tensors go by the same name, or one holds values that are not finite.
    """
    wanted, given = parts_of(network), _by_spelling(in_order_of(network, candidate))
    copies, loaded, missing, mismatched = [], set(), [], []
    adapted: list[Adaptation] = []
    for name, tensor in wanted.items():
        _, found = given.pop(_spelled(name), ("", None))
        if found is None:
            missing.append(name)
        elif (fitting := _fitted(name, found, tensor, wanted, adapted)) is not None:
            copies.append((tensor, fitting))
            loaded.add(name)
        elif not adapted or adapted[-1].name != name:
            mismatched.append((name, tuple(found.shape), tuple(tensor.shape)))
    report = LoadReport(
        source,
        candidate.importer.name,
        candidate.network,
        candidate.architecture,
        dict(_shares(wanted, loaded)),
        tuple(name for name in missing if not _counts_batches(name)),
        tuple(name for name, _ in given.values() if not _counts_batches(name)),
        tuple(mismatched),
        tuple(adapted),
        candidate.others,
        candidate.importer.note,
    )
    return Plan(copies, report)


def _fitted(
    name: str, given: Tensor, wanted: Tensor, network: Tensors, adapted: list[Adaptation]
) -> Tensor | None:
    """``given`` in the network's shape, or ``None``; notes in ``adapted`` what was done."""
    if given.is_floating_point() != wanted.is_floating_point():
        return None  # quantised weights, or an index where numbers belong
    if given.shape == wanted.shape:
        return given
    shapes = tuple(given.shape), tuple(wanted.shape)
    for what, fit in FITS.items():
        fitted = fit(name, given, wanted, network)
        if fitted is not None and fitted.shape == wanted.shape:
            adapted.append(Adaptation(name, what, *shapes))
            return fitted
    if is_classifier(name, given, wanted):
        adapted.append(Adaptation(name, "classes", *shapes))
    return None


def _shares(wanted: Mapping[str, Tensor], loaded: set[str]) -> Iterator[tuple[str, PartShare]]:
    counted = [name for name in wanted if not _counts_batches(name)]
    for part in dict.fromkeys(name.partition(".")[0] for name in counted):
        names = [name for name in counted if name.partition(".")[0] == part]
        filled = [name for name in names if name in loaded]
        sizes = (sum(wanted[name].numel() for name in some) for some in (names, filled))
        numbers, filled_numbers = sizes
        yield part, PartShare(len(names), len(filled), numbers, filled_numbers)


def _by_spelling(tensors: Tensors) -> dict[str, tuple[str, Tensor]]:
    spelled = {_spelled(name): (name, tensor) for name, tensor in tensors.items()}
    if len(spelled) < len(tensors):
        raise CheckpointError(
            "two tensors of the file differ in nothing but dots and underscores in their names"
        )
    return spelled


def _spelled(name: str) -> str:
    return name.replace(".", "_")


def _counts_batches(name: str) -> bool:
    return bool(re.search(r"(?:^|\.)num_batches_tracked$", name))


@torch.no_grad()
def carry_out(planned: Plan) -> None:
    """Write the planned values, all or none.

    Raises:
        CheckpointError: a value of the file is not finite; nothing was written.
    """
    for _, value in planned.copies:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{planned.report.source} holds values that are nan or inf: the file is damaged, or its training broke"
            )
    for tensor, value in planned.copies:
        tensor.copy_(value)
