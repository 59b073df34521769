"""Gradient checkpointing: blocks are computed again in the backward pass (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.checkpoint import checkpoint

from callbacks.mesa import Mesa
from callbacks.networks import refuse
from zoo.method import Method, trainer_callbacks

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class GradientCheckpointing(Callback):
    """Keep only what goes into the blocks of the trained networks, and compute the rest again for the backward pass.

    Blocks are the members of lists and chains that hold at least two linear or convolution layers each; of nested
    ones the innermost: blocks of a transformer, bottlenecks of a ResNet. Gradients are those without it: random
    numbers are drawn again alike, and running statistics of normalisation do not move a second time.
    """

    family = "checkpointing"

    def __init__(self) -> None:
        self.blocks: list[nn.Module] = []  #: those of the run

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the blocks and have them computed again.

        Raises:
            MisconfigurationException: the method says why it cannot, Mesa compresses what would not be kept, or there
                are no blocks.
        """
        assert isinstance(pl_module, Method)
        if stage != "fit":
            return
        refuse(pl_module, self.family)
        if any(isinstance(other, Mesa) for other in trainer_callbacks(trainer)):
            raise MisconfigurationException(
                "callbacks.GradientCheckpointing and callbacks.Mesa both change what is kept for backward: take one"
            )
        found = (block for network in pl_module.trained_modules() for block in _blocks(network))
        self.blocks = list(dict.fromkeys(found))
        if not self.blocks:
            raise MisconfigurationException(
                f"callbacks.GradientCheckpointing: the trained networks of {type(pl_module).__name__} have no blocks "
                "(members of a list or chain with two linear or convolution layers each): leave it out"
            )
        for block in self.blocks:
            block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See after the first batch that blocks are called as a whole.

        Raises:
            MisconfigurationException: none was, so nothing is computed again.
        """
        if batch_idx == 0 and not any(getattr(block, "was_recomputed", False) for block in self.blocks):
            raise MisconfigurationException(
                f"callbacks.GradientCheckpointing: a step of {type(pl_module).__name__} calls none of the "
                f"{len(self.blocks)} blocks of its networks as a whole, so nothing is saved: leave it out"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the blocks as they were; also after an error."""
        for block in self.blocks:
            block.__class__ = type(block).__mro__[2]
            vars(block).pop("was_recomputed", None)
        self.blocks = []


class _Recomputed:
    """Put before the class of a block: its forward is checkpointed where gradients are wanted."""

    was_recomputed = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run: Any = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        self.was_recomputed = True
        return checkpoint(
            run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _still(self)), **kwargs
        )


@cache
def _recomputed(kind: type) -> type:
    """The class of a block with :class:`_Recomputed` before it; a class and no closure, so that copies are right."""
    return type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})


@contextmanager
def _still(block: Any) -> Iterator[None]:
    """Running statistics of normalisation layers in training do not move."""
    layers = [
        module
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
    ]
    kept = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, momentum, tracked in kept:
            layer.momentum, layer.num_batches_tracked = momentum, tracked


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Members of lists and chains with two layers each; of nested ones the innermost."""
    inner = [block for child in network.children() for block in _blocks(child)]
    if inner or not isinstance(network, nn.ModuleList | nn.Sequential):
        return inner
    return [c for c in network if sum(isinstance(module, _LAYERS) for module in c.modules()) >= 2]
