"""A network as a safetensors file whose header says everything that is needed to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo import __version__
from zoo.checkpoints.files import CheckpointError
from zoo.checkpoints.write import write_tensors, written_whole
from zoo.export.card import card_of, check_part, chosen_network
from zoo.export.readme import readme

if TYPE_CHECKING:
    from zoo.deployable import Deployable

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"


def save_pretrained(
    method: Deployable, folder: str | Path, network: str | None = None, part: str = "whole"
) -> Path:
    """Write the three files; see :meth:`zoo.Method.save_pretrained`."""
    folder = Path(folder)
    card = card_of(method, network, part)
    path = save_weights(method, folder / WEIGHTS, network, part)
    write_text(folder / CONFIG, json.dumps(card, indent=2) + "\n")
    write_text(folder / README, readme(card))
    return path


def save_weights(method: Deployable, path: Path, network: str | None = None, part: str = "whole") -> Path:
    """Write one network, or its backbone, under the names that its module has; the card is in the header.

    Raises:
        CheckpointError: no such network or part, weights that are not finite, or the file cannot be written.
    """
    check_part(part)
    _, module = chosen_network(method, network)
    state = module.state_dict()
    if part == "backbone":
        state = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    card = card_of(method, network, part)
    facts = {
        "hyper_parameters._class_path": card["class"],
        "hyper_parameters.backbone": card["hyper_parameters"].get("backbone", ""),
    }
    header = {
        "selfzoo": __version__,
        "method": card["method"],
        "network": card["network"],
        "part": part,
        "facts": json.dumps(facts),
        "card": json.dumps(card),
    }
    check_finite(state)
    return write_tensors(state, path, header)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where a tensor holds nan or inf: the training broke."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} holds nan or inf: the training broke, so nothing was exported")


def write_text(path: Path, text: str) -> None:
    """Write a small file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def header_of(path: Path, title: str) -> dict[str, Any]:
    """What the header of a safetensors file says; empty for a file that says nothing.

    Raises:
        CheckpointError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{title} is no safetensors file, or is damaged or cut short: download it again"
        ) from error
