"""What an exported file says of itself: enough to build the method again, and to use the network without the zoo."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

import lightning
import timm
import torch
from torch import nn

from zoo import __version__
from zoo.checkpoints.files import CheckpointError
from zoo.deployable import Deployable
from zoo.registry import list_methods, method_card

FORMAT = 1
"""Version of the card; a reader refuses newer ones."""

INPUTS = {
    "image": "RGB images [B, 3, H, W], float in [0, 1]",
    "spectrogram": "log-mel spectrograms [B, T, mels] of the feature pipeline",
    "signal": "signals [B, C, T] as recorded; each segment is standardised by the network",
    "volume": "volumes [B, C, X, Y, Z], float in [0, 1], prepared as the benchmark's",
    "video": "RGB videos [B, 3, T, H, W], float in [0, 1]",
}


def chosen_network(method: Deployable, name: str | None) -> tuple[str, nn.Module]:
    """A whole network of the method by name; by default the one that predicts.

    Raises:
        CheckpointError: there is none of that name.
    """
    networks = method.networks()
    name = name or method.evaluated_name()
    if name not in networks:
        raise CheckpointError(
            f"{type(method).__name__} has no whole network {name!r}: there is {', '.join(networks)}"
        )
    return name, networks[name]


def deployed(method: Deployable, name: str | None, part: str) -> nn.Module:
    """The network to run without the method, in evaluation mode: plain tensors in and out.

    Raises:
        CheckpointError: no such network or part.
    """
    network: Any = chosen_network(method, name)[1]
    check_part(part)
    return _wrapped(method, network, part).eval()


def _wrapped(method: Deployable, network: Any, part: str) -> nn.Module:
    return method.deployed(network) if part == "whole" else method.deployed_backbone(network)


def check_part(part: str) -> None:
    """Raises CheckpointError unless it is one of the two."""
    if part not in ("whole", "backbone"):
        raise CheckpointError(f"part={part!r}: expected whole or backbone")


def output_names(module: nn.Module) -> tuple[str, ...]:
    """Names of what a deployed network returns."""
    names: Any = getattr(module, "outputs", ("logits",))
    return tuple(names)


def card_of(method: Deployable, network: str | None, part: str) -> dict[str, Any]:
    """The card of one network of the method: plain values.

    Raises:
        CheckpointError: no such network or part; a hyper-parameter that is no plain value.
    """
    check_part(part)
    name, module = chosen_network(method, network)
    kept: dict[str, Any] = {}
    method.on_save_checkpoint(kept)
    cls = type(method)
    backbone: Any = getattr(module, "backbone", None)
    card = {
        "format": FORMAT,
        "library_name": "selfzoo",
        "method": registered_name(cls),
        "class": kept.pop("class_path"),
        "network": name,
        "part": part,
        "hyper_parameters": dict(method.hparams),
        "kept": kept,
        "input": {
            "name": method.input_name,
            **({"more": list(method.more_inputs)} if method.more_inputs else {}),
            "is": " and ".join(INPUTS[name] for name in method.input_names()),
            "mean": list(getattr(backbone, "mean", ())),
            "std": list(getattr(backbone, "std", ())),
            "normalised": "by the network itself",
        },
        "outputs": list(output_names(_wrapped(method, module, part))),
        "versions": {
            "selfzoo": __version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
    }
    return plain(card, "card")


def registered_name(cls: type) -> str:
    """Registry name of a method's class; empty for one that is not registered."""
    cards = map(method_card, list_methods())
    path = (cls.__module__, cls.__qualname__)
    return next((card.name for card in cards if (card.module, card.class_name) == path), "")


def plain(value: Any, name: str) -> Any:
    """``value`` as JSON has it: lists for tuples.

    Raises:
        CheckpointError: something in it cannot be written so; it is named.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"{name} has the key {key!r}, which is no text: it cannot be exported")
        return {key: plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise CheckpointError(
        f"{name} is a {type(value).__name__}, no plain value: methods whose hyper-parameters are objects cannot be "
        "exported; give them as text, numbers, lists and dicts"
    )


def read_card(text: str, title: str) -> dict[str, Any]:
    """The card of a file's header.

    Raises:
        CheckpointError: damaged, or written by a newer version.
    """
    try:
        card = json.loads(text)
        found = card["format"]
        needed = {"class", "network", "part", "hyper_parameters", "kept"} <= card.keys()
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{title}: the card in its header is damaged: download it again") from error
    if not isinstance(found, int) or found > FORMAT:
        raise CheckpointError(
            f"{title} has a card of format {found}, this selfzoo reads up to {FORMAT}: update it"
        )
    if not needed or not all(isinstance(card[key], dict) for key in ("hyper_parameters", "kept")):
        raise CheckpointError(f"{title}: the card in its header is damaged: download it again")
    return card
