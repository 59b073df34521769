"""What a file can be read as: which layout, and which of the networks in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from itertools import islice

from zoo.checkpoints.files import CheckpointError, Tensors, WeightFile
from zoo.checkpoints.layouts import IMPORTERS, get_importer
from zoo.checkpoints.rules import Importer


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One reading of a file.

    Args:
        importer: a layout that the file has.
        network: one of the networks in it.
        tensors: that network's, under our names.
        others: further networks in it.
    """

    importer: Importer
    network: str
    tensors: Tensors
    others: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """What the network is, where that can be told."""
        try:
            return self.importer.describe(self.tensors) if self.importer.describe else ""
        except (LookupError, TypeError, ValueError):  # tensors of other shapes than the layout's
            return ""


def candidates(
    file: WeightFile, importer: str | Importer | None = None, network: str | None = None
) -> Iterator[Candidate]:
    """The readings of ``file``, likeliest first; of those asked for, if they fit.

    Args:
        file: what was read.
        importer: a layout or its name; ``None`` tries all.
        network: name of a network in the file; ``None``: the one that the layout's authors evaluate.

    Raises:
        UnknownNameError: there is no such importer.
    """
    if isinstance(importer, str):
        importer = get_importer(importer)
    for tried in IMPORTERS.values() if importer is None else [importer]:
        found = tried.find(file)
        for name in [network] if network in found else preferred(tried, found) if network is None else []:
            others = tuple(other for other in found if other != name)
            yield Candidate(tried, name, tried.convert(found[name]), others)


def preferred(importer: Importer, found: Collection[str]) -> list[str]:
    """Where nobody chose: the first of the networks, and the one that may be the whole file.

    A later one never stands in for the first: a damaged teacher is an error, not a reason to take the student.
    """
    named = [name for name in found if importer.networks[name]]
    return [name for name in found if name in named[:1] or not importer.networks[name]]


def readings(
    file: WeightFile, importer: str | Importer | None = None, which: str | None = None
) -> list[Candidate]:
    """The readings that were asked for.

    Raises:
        CheckpointError: there are none; the message says what there is.
    """
    found = list(candidates(file, importer, which))
    if found:
        return found
    likely = [f"{c.importer.name} ({c.network})" for c in candidates(file)]
    asked = " ".join(
        [
            *([f"{which} network"] if which else ["network"]),
            *([f"in the {getattr(importer, 'name', importer)} layout"] if importer else []),
        ]
    )
    raise CheckpointError(
        f"{file.title} holds no {asked}. It can be read as: {', '.join(likely) or 'nothing known'}; its tensors are "
        f"called {examples(file.tensors)}"
    )


def examples(tensors: Tensors) -> str:
    """The first names and shapes, for messages."""
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in islice(tensors.items(), 2)) + ", ..."
