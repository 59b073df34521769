"""Convolutions that keep the channel as the fastest axis, as fast kernels of GPUs want it."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from callbacks.networks import networks, refuse
from zoo.method import Method

_FORMATS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


class ChannelsLast(Callback):
    """Store the weights of convolutions channels-last; activations follow from the first of them on.

    Only strides change, so names, shapes and values in checkpoints stay. Images are converted by the first
    convolution, which costs less than a copy by hand.
    """

    family = "channels_last"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Convert student, teachers and frozen networks alike: a teacher moves fastest where both are laid out alike.

        Raises:
            MisconfigurationException: the method says why it cannot, or no convolution slides over its input.
        """
        assert isinstance(pl_module, Method)
        if stage != "fit":
            return
        refuse(pl_module, self.family)
        found = [
            (module, layout)
            for network in networks(pl_module)
            for module in network.modules()
            for kind, layout in _FORMATS.items()
            if isinstance(module, kind)
        ]
        if not any(_slides(module) for module, _ in found):
            raise MisconfigurationException(
                f"callbacks.ChannelsLast: the networks of {type(pl_module).__name__} have no 2-D or 3-D convolution "
                "that slides over its input (cutting into patches is none), so there is nothing to gain: leave it out"
            )
        for module, layout in found:
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def _slides(module: nn.modules.conv._ConvNd) -> bool:
    """Whether windows overlap, or at least are no patches."""
    return any(size > step for size, step in zip(module.kernel_size, module.stride, strict=True))
