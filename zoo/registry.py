"""Methods, benchmarks and backbones by name. Importing this module imports neither torch nor lightning."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from zoo.cards import BenchmarkCard, Card, CardError, MethodCard, read_card
from zoo.pretrained import started_from

Factory = TypeVar("Factory", bound=Callable[..., Any])
SomeCard = TypeVar("SomeCard", bound=Card)

_backbones: dict[str, Callable[..., Any]] = {}


class UnknownNameError(ValueError):
    """A name that is not registered; the message holds the nearest ones."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], command: str) -> None:
        near = suggest(name, choices)
        hint = f"did you mean {' or '.join(near)}?" if near else "there is nothing like it."
        super().__init__(f"unknown {kind} {name!r}: {hint} `{command}` shows all.")


def suggest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Return up to ``n`` of ``choices`` that ``name`` may have been meant to be, nearest first."""
    by_lower: dict[str, str] = {}
    for choice in choices:
        by_lower.setdefault(choice.lower(), choice)
    near = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.6)
    return [by_lower[key] for key in near]


# -- methods and benchmarks: found by their cards --------------------------------------------------------


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the methods that match a shell ``pattern``, sorted."""
    return _matching(_method_cards(), pattern)


def method_card(name: str) -> MethodCard:
    """Card of a method.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return _look_up(_method_cards(), name, "method", "zoo list methods")


def get_method(name: str) -> type:
    """Class of a method; imports its module, and with it torch.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return _import_class(method_card(name))


def list_benchmarks(pattern: str = "*") -> list[str]:
    """Names of the benchmarks that match a shell ``pattern``, sorted."""
    return _matching(_benchmark_cards(), pattern)


def benchmark_card(name: str) -> BenchmarkCard:
    """Card of a benchmark.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return _look_up(_benchmark_cards(), name, "benchmark", "zoo list benchmarks")


def get_benchmark(name: str) -> type:
    """Datamodule class of a benchmark; imports its module, and with it torch.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return _import_class(benchmark_card(name))


def read_cards(kind: type[SomeCard], paths: Iterable[Path]) -> dict[str, SomeCard]:
    """Read card files into a dict by name.

    Raises:
        CardError: a card is malformed, or two carry the same name.
    """
    cards: dict[str, SomeCard] = {}
    for path in sorted(paths):
        card = read_card(kind, path)
        if card.name in cards:
            raise CardError(f"{path}: name: {card.name!r} is taken by {cards[card.name].path}")
        cards[card.name] = card
    return cards


@cache
def _method_cards() -> dict[str, MethodCard]:
    return read_cards(MethodCard, (_package_folder("zoo") / "methods").rglob("*.yaml"))


@cache
def _benchmark_cards() -> dict[str, BenchmarkCard]:
    return read_cards(BenchmarkCard, _package_folder("datamodules").glob("*.yaml"))


def _package_folder(package: str) -> Path:
    """Folder of a top-level package, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatchcase(name, pattern))


def _look_up(cards: dict[str, SomeCard], name: str, kind: str, command: str) -> SomeCard:
    if name not in cards:
        raise UnknownNameError(kind, name, cards, command)
    return cards[name]


def _import_class(card: Card) -> type:
    found = getattr(importlib.import_module(card.module), card.class_name, None)
    if not isinstance(found, type):
        raise CardError(f"{card.path}: class: {card.module} has no class {card.class_name}")
    return found


# -- backbones: our own factories by decorator, every timm model by its own name --------------------------


def register_backbone(name: str) -> Callable[[Factory], Factory]:
    """Register a factory ``(pretrained, in_chans, **kwargs) -> nn.Module`` as backbone ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if name in _backbones:
            raise ValueError(f"backbone {name!r} is already registered, by {_backbones[name].__module__}")
        _backbones[name] = factory
        return factory

    return register


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of our own and timm's backbones that match a shell ``pattern``, sorted; imports timm."""
    import timm

    return _matching({*_own_backbones(), *timm.list_models()}, pattern)


@contextmanager
def named_options(what: str, option: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Build something from the options that a user gave under ``option``.

    Raises:
        ValueError: it takes no option of that name, in place of Python's TypeError.
    """
    try:
        yield
    except TypeError as error:
        odd = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if odd is None or odd[1] not in given:
            raise
        raise ValueError(
            f"{what} takes no {odd[1]!r}: model.{option} gives {', '.join(given)}, perhaps another one's; give those "
            f"of this one, or none with --model.{option} '{{}}'"
        ) from error


def create_backbone(name: str, pretrained: bool | str = False, in_chans: int = 3, **kwargs: Any) -> Any:
    """Build a feature extractor: ours, if the name is registered, or else timm's.

    Args:
        name: a name of ``zoo list backbones``; timm names may carry a weight tag (``resnet50.a1_in1k``). Or a
            ``.safetensors`` file of ``zoo export``, which brings its weights.
        pretrained: load the weights that belong to the name, or those of a source: a path,
            ``hf-hub:owner/name``, ... (:func:`zoo.checkpoints.load_pretrained`).
        in_chans: channels of the input image.
        **kwargs: handed to the factory.

    Returns:
        An ``nn.Module`` with ``forward_features(image) -> list[Tensor]`` and the facts ``channels``,
        ``strides``, ``in_chans``, ``mean`` and ``std`` (see docs/architecture.md).

    Raises:
        UnknownNameError: neither registered nor known to timm.
        CheckpointError: a source whose weights cannot be read or do not belong to this backbone.
    """
    if name.endswith(".safetensors"):
        from zoo.extraction import load_extracted

        return started_from(pretrained, lambda known: load_extracted(name, in_chans=in_chans, **kwargs))
    own = _own_backbones()
    if name in own:
        with named_options(f"backbone {name!r}", "backbone_args", kwargs):
            return started_from(
                pretrained, lambda known: own[name](pretrained=known, in_chans=in_chans, **kwargs)
            )

    import timm

    from zoo.backbones.timm import create_timm_backbone

    if not timm.is_model(name):
        raise UnknownNameError("backbone", name, list_backbones(), "zoo list backbones")
    with named_options(f"backbone {name!r}", "backbone_args", kwargs):
        return started_from(pretrained, lambda known: create_timm_backbone(name, known, in_chans, **kwargs))


def _own_backbones() -> dict[str, Callable[..., Any]]:
    importlib.import_module("zoo.backbones")  # its modules register their factories
    return _backbones
