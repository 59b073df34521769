"""Files of the POA authors: the same names for all three families, other orders of rows and columns."""

from __future__ import annotations

from torch import nn

from zoo.backbones.elastic import ElasticBackbone
from zoo.backbones.elastic_layouts import poa_state_dict
from zoo.checkpoints.files import CheckpointError, Tensors
from zoo.checkpoints.readings import Candidate


def in_order_of(network: nn.Module, candidate: Candidate) -> Tensors:
    """The tensors of a reading, in the order of rows and columns that ``network`` computes with.

    Raises:
        CheckpointError: names and shapes fit, but the network would compute something else.
    """
    if candidate.importer.name != "poa":
        return candidate.tensors
    backbone = getattr(network, "backbone", network)
    if isinstance(backbone, ElasticBackbone):
        parts = {name: name.removeprefix("backbone.") for name in candidate.tensors}
        inner = {short: candidate.tensors[name] for name, short in parts.items() if short != name}
        outer = {name: candidate.tensors[name] for name, short in parts.items() if short == name}
        return outer | {f"backbone.{name}": t for name, t in poa_state_dict(backbone, inner).items()}
    if any(".downsample.reduction." in name for name in candidate.tensors):
        raise CheckpointError(
            "an elastic Swin of POA is no plain one, whatever its names: write the size you want with `zoo export` "
            "and take that file"
        )
    return candidate.tensors
