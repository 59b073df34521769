"""How a layout is told and turned into ours: markers, then rules in order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from zoo.checkpoints.files import CheckpointError, Tensors, WeightFile

PLAIN: Mapping[str, str] = {
    "network": "",
    "model": r"(?:model|state_dict|net)\.",
    "ema": r"(?:model_ema|state_dict_ema|ema)\.",
}
"""Networks of a file that says nothing of students and teachers."""

WRAPPERS = ("module", "_orig_mod")  # of data-parallel training and of torch.compile
CONTAINERS = ("state_dict", "model", "network_weights", "net", "model_state_dict")


class Rule(Protocol):
    """One step from the authors' names and shapes to ours."""

    def apply(self, state: Tensors) -> Tensors:
        """Return the state after this step."""


@dataclasses.dataclass(frozen=True)
class Rename:
    """Replace what ``pattern`` finds in each name by ``to`` (``re.sub``).

    Raises:
        CheckpointError: two tensors would carry the same name.
    """

    pattern: str
    to: str | Callable[[re.Match[str]], str]

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        return _unique((re.sub(self.pattern, self.to, name), tensor) for name, tensor in state.items())


@dataclasses.dataclass(frozen=True)
class Drop:
    """Leave out the tensors in whose name ``pattern`` is found."""

    pattern: str

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        return {name: tensor for name, tensor in state.items() if not re.search(self.pattern, name)}


@dataclasses.dataclass(frozen=True)
class Split:
    """Cut matching tensors along the first axis.

    Args:
        pattern: finds the tensors.
        to: what replaces the pattern in the name of each part, and the part's share of the axis:
            ``{"q": 1, "kv": 2}``.

    Raises:
        CheckpointError: the axis cannot be cut that way.
    """

    pattern: str
    to: Mapping[str, int]

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        shares = sum(self.to.values())
        parts: list[tuple[str, Tensor]] = []
        for name, tensor in state.items():
            if not re.search(self.pattern, name):
                parts.append((name, tensor))
                continue
            if tensor.ndim == 0 or tensor.shape[0] % shares:
                raise CheckpointError(
                    f"{name} has shape {tuple(tensor.shape)}: its first axis cannot be cut into {shares} parts"
                )
            sizes = [share * (tensor.shape[0] // shares) for share in self.to.values()]
            names = [re.sub(self.pattern, to, name) for to in self.to]
            parts += zip(names, tensor.split(sizes), strict=True)
        return _unique(parts)


@dataclasses.dataclass(frozen=True)
class Join:
    """Put matching tensors one behind the other along the first axis; the opposite of :class:`Split`.

    Args:
        pattern: finds the tensors; its one group says which part a tensor is.
        parts: the parts, in order.
        to: what replaces the pattern in the name of the whole.

    Raises:
        CheckpointError: a part is missing.
    """

    pattern: str
    parts: tuple[str, ...]
    to: str

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        wholes: dict[str, dict[str, Tensor]] = {}
        others: list[tuple[str, Tensor]] = []
        for name, tensor in state.items():
            if match := re.search(self.pattern, name):
                wholes.setdefault(re.sub(self.pattern, self.to, name), {})[match[1]] = tensor
            else:
                others.append((name, tensor))
        for name, found in wholes.items():
            if absent := [part for part in self.parts if part not in found]:
                raise CheckpointError(
                    f"{name} needs the parts {', '.join(self.parts)}: there is no {absent[0]}"
                )
        joined = [(name, torch.cat([found[part] for part in self.parts])) for name, found in wholes.items()]
        return _unique([*others, *joined])


@dataclasses.dataclass(frozen=True)
class Permute:
    """Reorder the axes of matching tensors; those with another number of axes stay as they are."""

    pattern: str
    order: tuple[int, ...]

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        return {
            name: tensor.permute(self.order)
            if re.search(self.pattern, name) and tensor.ndim == len(self.order)
            else tensor
            for name, tensor in state.items()
        }


@dataclasses.dataclass(frozen=True)
class Flatten:
    """Make linear weights of matching 1×1 convolutions: ``[D, C, 1, 1]`` → ``[D, C]``."""

    pattern: str

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        return {
            name: tensor.flatten(1) if re.search(self.pattern, name) and tensor.ndim > 1 else tensor
            for name, tensor in state.items()
        }


@dataclasses.dataclass(frozen=True)
class Below:
    """Apply ``rules`` to the names below ``part``, as if they began there."""

    part: str
    rules: tuple[Rule, ...]

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        prefix = f"{self.part}."
        inner = {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}
        for rule in self.rules:
            inner = rule.apply(inner)
        outer = [(name, tensor) for name, tensor in state.items() if not name.startswith(prefix)]
        return _unique([*outer, *((prefix + name, tensor) for name, tensor in inner.items())])


@dataclasses.dataclass(frozen=True)
class AsBackbone:
    """Put a network that is not divided into parts below ``backbone.``."""

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        if any(name.startswith("backbone.") for name in state):
            return state
        return {f"backbone.{name}": tensor for name, tensor in state.items()}


@dataclasses.dataclass(frozen=True)
class Importer:
    """One layout of released weights, and how it becomes ours.

    Ours is: ``backbone.``, ``decode_head.`` and so on before the names of the module that takes them.

    Args:
        name: what ``importer=`` and cards call it.
        title: what the file is, in a few words.
        markers: regular expressions; a network has this layout if each is found in one of its names.
        rules: applied in order.
        networks: the networks a file may hold, as patterns their tensors' names start with; the first counts
            where the user does not choose.
        facts: plain values that the file must carry beside the weights.
        describe: architecture of a network of this layout in a few words, from its converted tensors.
        note: what else must be right for the network to compute what its authors' did.
    """

    name: str
    title: str
    markers: tuple[str, ...]
    rules: tuple[Rule, ...] = (AsBackbone(),)
    networks: Mapping[str, str] = dataclasses.field(default_factory=lambda: PLAIN)
    facts: tuple[str, ...] = ()
    describe: Callable[[Tensors], str] | None = None
    note: str = ""

    def find(self, file: WeightFile) -> dict[str, Tensors]:
        """The networks of this layout in ``file``, under the authors' names; empty if it is another layout."""
        if any(fact not in file.facts for fact in self.facts):
            return {}
        tensors = unwrapped(file.tensors)
        found = {network: _under(prefix, tensors) for network, prefix in self.networks.items()}
        return {network: state for network, state in found.items() if self._marks(state)}

    def _marks(self, state: Collection[str]) -> bool:
        return bool(state) and all(any(re.search(m, name) for name in state) for m in self.markers)

    def convert(self, state: Tensors) -> Tensors:
        """The tensors of one network under our names.

        Raises:
            CheckpointError: a rule does not fit: the file only looks like this layout.
        """
        try:
            for rule in self.rules:
                state = rule.apply(state)
        except CheckpointError:
            raise
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"a tensor is missing or has another shape than in the {self.name} layout ({error}): the file is "
                "damaged, or another layout"
            ) from error
        return _unique((canonical(name), tensor) for name, tensor in state.items())


def renames(pairs: Iterable[tuple[str, str]]) -> tuple[Rename, ...]:
    """Rules of an ordered list of (regular expression, replacement)."""
    return tuple(Rename(pattern, to) for pattern, to in pairs)


def canonical(name: str) -> str:
    """A name without the wrappers around a backbone: ``backbone.model.conv1.weight`` → ``backbone.conv1.weight``."""
    return re.sub(r"^backbone\.(?:(?:model|backbone)\.)+", "backbone.", name)


def unwrapped(tensors: Tensors, containers: bool = True) -> Tensors:
    """Names without the levels that data-parallel training, compilation and containers put in between.

    Such a level is the only child of its parent: all names below the parent go through it. A container
    counts at the beginning of the names alone, and not without ``containers``.
    """
    children: dict[str, set[str]] = {}
    for name in tensors:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            children.setdefault(".".join(parts[:depth]), set()).add(part)
    renamed = []
    for name, tensor in tensors.items():
        kept: list[str] = []
        parts = name.split(".")
        for depth, part in enumerate(parts):
            levels = WRAPPERS if kept or not containers else WRAPPERS + CONTAINERS
            only_child = len(children[".".join(parts[:depth])]) == 1
            if not (only_child and part in levels and depth < len(parts) - 1):
                kept.append(part)
        renamed.append((".".join(kept), tensor))
    return _unique(renamed)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    matches = ((re.match(prefix, name), name, tensor) for name, tensor in tensors.items())
    return _unique((name[match.end() :], tensor) for match, name, tensor in matches if match)


def _unique(pairs: Iterable[tuple[str, Tensor]]) -> Tensors:
    state: Tensors = {}
    for name, tensor in pairs:
        if name in state:
            raise CheckpointError(f"two tensors of the file stand for {name!r}: this is another layout")
        state[name] = tensor
    return state
