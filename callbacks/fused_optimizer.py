"""The optimiser's step as one fused kernel."""

from __future__ import annotations

import inspect

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.networks import refuse
from zoo.method import Method


class FusedOptimizer(Callback):
    """Set ``optim.options.fused`` of any method, its other options left as they are.

    Parameters, gradients and state pass through memory once a step. States of fused and other optimisers are
    exchangeable, so a run may be resumed with or without it.
    """

    family = "fused"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the option before the optimiser is built.

        Raises:
            MisconfigurationException: the optimiser has no fused form, or another form is asked for.
        """
        assert isinstance(pl_module, Method)
        if stage != "fit":
            return
        refuse(pl_module, self.family)
        optim = pl_module.optim
        classes = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
        kind = classes.get(optim.name.lower())
        if kind is None:
            return  # building it says what is wrong
        if "fused" not in inspect.signature(kind).parameters:
            known = sorted(
                name for name, other in classes.items() if "fused" in inspect.signature(other).parameters
            )
            raise MisconfigurationException(
                f"callbacks.FusedOptimizer: torch.optim.{kind.__name__} has no fused form, only {', '.join(known)} do: "
                "set optim.name to one of them, or leave it out"
            )
        other = [key for key in ("foreach", "differentiable") if optim.options.get(key)]
        if other or optim.options.get("fused") is False:
            asked = f"{other[0]}: true" if other else "fused: false"
            raise MisconfigurationException(
                f"callbacks.FusedOptimizer: optim.options asks for {asked}; remove one of both"
            )
        optim.options = {**optim.options, "fused": True}
