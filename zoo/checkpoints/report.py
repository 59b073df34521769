"""What a load did: shares, what is missing, what was left, what was made to fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from zoo.checkpoints.adapt import Adaptation


@dataclasses.dataclass(frozen=True)
class PartShare:
    """How much of one part of the network (``backbone``, ``decode_head``, ...) the file filled.

    Counters of batch norm do not count: they change nothing that is computed.

    Args:
        tensors: of the network.
        loaded_tensors: of these, filled.
        parameters: numbers in these tensors (running statistics included).
        loaded_parameters: of these, filled.
    """

    tensors: int
    loaded_tensors: int
    parameters: int
    loaded_parameters: int

    @property
    def share(self) -> float:
        """The smaller of the two shares: a file without its biases is no whole file."""
        tensors = self.loaded_tensors / max(self.tensors, 1)
        return min(tensors, self.loaded_parameters / max(self.parameters, 1))


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading weights did.

    Args:
        source: where they came from.
        importer: layout of the file.
        network: which network of the file (``student``, ``teacher``, ...).
        architecture: what the file's network is, where that can be told.
        parts: share of each part of the network.
        missing: the network's tensors that the file does not have; they stay as initialised.
        unexpected: the file's tensors that the network does not have.
        mismatched: (name, shape in the file, shape in the network) of those that do not fit.
        adapted: those that were made to fit, and classifiers left as initialised.
        others: further networks that the file holds.
        note: what else must be right for the weights to mean what they meant to their authors.
    """

    source: str
    importer: str
    network: str
    architecture: str
    parts: dict[str, PartShare]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    adapted: tuple[Adaptation, ...] = ()
    others: tuple[str, ...] = ()
    note: str = ""

    @property
    def share(self) -> float:
        """Share of the backbone (of the whole network, if it has none) that was filled, 0 to 1."""
        parts = [self.parts["backbone"]] if "backbone" in self.parts else list(self.parts.values())
        return min((part.share for part in parts), default=0.0)

    @property
    def resized(self) -> tuple[Adaptation, ...]:
        """Embeddings that were resampled to another grid."""
        kinds = ("position embedding", "position grid", "relative positions")
        return tuple(a for a in self.adapted if a.what in kinds)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the network was filled with one of its own shape."""
        return not (self.missing or self.mismatched or self.adapted)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the run card; names are all there, so that nothing is lost."""
        return {**dataclasses.asdict(self), "share": self.share}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """A short table."""
        what = f", {self.architecture}" if self.architecture else ""
        others = f"; also in the file: {', '.join(self.others)} (#network=...)" if self.others else ""
        yield f"weights of {self.source}: {self.importer} layout{what}, {self.network}{others}"
        yield f"  {'part':<15}{'tensors':>12}{'parameters':>20}"
        for name, part in self.parts.items():
            tensors = f"{part.loaded_tensors}/{part.tensors}"
            numbers = f"{_short(part.loaded_parameters)}/{_short(part.parameters)}"
            share = 100 * part.loaded_parameters / max(part.parameters, 1)
            yield f"  {name:<15}{tensors:>12}{numbers:>20}  {share:5.1f} %"
        for adaptation in self.adapted:
            before, after = list(adaptation.before), list(adaptation.after)
            kept = ", left as initialised" if adaptation.what == "classes" else ""
            yield f"  adapted ({adaptation.what}{kept}): {adaptation.name} {before} -> {after}"
        yield from _listed("missing, stays as initialised", self.missing)
        yield from _listed("unexpected, not used", self.unexpected)
        yield from _listed(
            "of another shape, stays as initialised",
            [f"{name} {list(given)}, wanted {list(wanted)}" for name, given, wanted in self.mismatched],
        )
        if self.note:
            yield f"  note: {self.note}"


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > 4 else ""
        yield f"  {what}: {', '.join(names[:4])}{more}"


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)
