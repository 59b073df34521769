"""Cards: the YAML file beside each method and benchmark that says what it is, without importing it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

Record = TypeVar("Record")


class CardError(ValueError):
    """A malformed card; the message names the file and the field."""


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    venue: str
    year: int
    url: str


@dataclasses.dataclass(frozen=True)
class Published:
    """One number of the authors'; ``value`` in the unit of ``metric`` (mIoU and accuracy in percent)."""

    benchmark: str
    backbone: str
    metric: str
    value: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Ours:
    """One number of this code: mean and standard deviation over ``seeds`` runs, and their record."""

    benchmark: str
    metric: str
    mean: float
    std: float
    seeds: int
    run: str


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint on offer."""

    url: str
    sha256: str
    licence: str
    importer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What every card says.

    Args:
        name: registry name, e.g. ``fst``.
        class_path: dotted path of the class; the field is called ``class`` in the file.
        title: the name in full.
        modality: what goes in: image, audio, volume, ...
        task: what it is for, e.g. semantic segmentation.
        path: the file the card was read from.
    """

    name: str
    class_path: str
    title: str
    modality: str
    task: str
    path: Path

    @property
    def module(self) -> str:
        """Dotted path of the module that holds the class."""
        return self.class_path.rpartition(".")[0]

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.class_path.rpartition(".")[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodCard(Card):
    """A method.

    Args:
        paper: where it was published.
        configs: names that ``zoo fit --config`` takes, the first being the recommended one.
        defaults: hyper-parameters of the recipe that are worth knowing.
        published: numbers of the authors.
        ours: numbers of this code.
        weights: checkpoints on offer.
        differences: where the paper and its released code differ, and which we follow.
    """

    paper: Paper
    configs: tuple[str, ...]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: tuple[Published, ...] = ()
    ours: tuple[Ours, ...] = ()
    weights: tuple[Weights, ...] = ()
    differences: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkCard(Card):
    """A benchmark.

    Args:
        metric: what is reported, e.g. ``mIoU19``.
        splits: number of samples per split.
        licence: terms of the data.
        url: where the data comes from; empty for data that is generated.
        notes: what a user must know.
    """

    metric: str
    splits: Mapping[str, int]
    licence: str
    url: str = ""
    notes: tuple[str, ...] = ()


SomeCard = TypeVar("SomeCard", bound=Card)


def read_card(kind: type[SomeCard], path: Path) -> SomeCard:
    """Read and check one card.

    Raises:
        CardError: a field is missing, unknown or of the wrong type.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise CardError(f"{path}: a card is a mapping of fields, found {_described(data)}")
    if "class" in data:
        data["class_path"] = data.pop("class")
    card = _build(kind, {**data, "path": path}, f"{path}: ")
    if not card.module:
        raise CardError(f"{path}: class: expected a dotted path, found {card.class_path!r}")
    return card


def _build(kind: type[Record], data: Any, where: str) -> Record:
    """Make the dataclass ``kind`` of a mapping, checking every field against its annotation."""
    if not isinstance(data, dict):
        raise CardError(f"{where.rstrip(': ')}: expected a mapping, found {_described(data)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    shown = {name: "class" if name == "class_path" else name for name in (*fields, *data)}
    for name in data:
        if name not in fields:
            expected = ", ".join(shown[field] for field in fields if field != "path")
            raise CardError(f"{where}unknown field {shown[name]!r}; a {kind.__name__} has {expected}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise CardError(f"{where}the field {shown[name]!r} is missing")
    checked = {name: _checked(hints[name], value, f"{where}{shown[name]}") for name, value in data.items()}
    return kind(**checked)


def _checked(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the annotation ``hint`` asks for; lists become tuples, mappings become records."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, f"{where}: ")
    if origin is tuple:
        if not isinstance(value, list):
            raise CardError(f"{where}: expected a list, found {_described(value)}")
        return tuple(_checked(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise CardError(f"{where}: expected a mapping, found {_described(value)}")
        return {key: _checked(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is not Any and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise CardError(f"{where}: expected {hint.__name__}, found {_described(value)}")
    return value


def _described(value: Any) -> str:
    return f"{type(value).__name__} {value!r}" if value is not None else "nothing"
