"""Write weights as safetensors under our names, with a card that says where they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo import __version__
from zoo.checkpoints.files import CheckpointError, WeightFile
from zoo.checkpoints.readings import Candidate
from zoo.checkpoints.write import write_tensors

#: Facts of the authors' file that say what it is; the others (settings of a whole run) stay behind.
KEPT_FACTS = (
    "epoch",
    "global_step",
    "iteration",
    "arch",
    "hyper_parameters._class_path",
    "hyper_parameters.backbone",
)


def card_of(file: WeightFile, candidate: Candidate) -> dict[str, str]:
    """The card of converted weights: strings, as the header of a safetensors file holds them."""
    facts = {name: _plain(file.facts[name]) for name in KEPT_FACTS if name in file.facts}
    return {
        "selfzoo": __version__,
        "source": Path(file.title).name if Path(file.title).exists() else file.title,
        "importer": candidate.importer.name,
        "network": candidate.network,
        "architecture": candidate.architecture,
        "note": candidate.importer.note,
        "facts": json.dumps(facts),
    }


def convert(file: WeightFile, candidate: Candidate, path: Path) -> None:
    """Write one network of ``file`` to ``path``; what is there is replaced in one step.

    Raises:
        CheckpointError: the name does not end in ``.safetensors``, or cannot be written.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: weights are written as safetensors; call the file {path.stem}.safetensors"
        )
    write_tensors(candidate.tensors, path, card_of(file, candidate))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
