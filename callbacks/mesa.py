"""Mesa: train any method in less memory, activations saved for backward in 8 bits (arXiv 2111.11124)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from zoo.method import Batch, Method
from zoo.nn.quantise import Overflow, RunningRange
from zoo.nn.saved_activations import RangesOf, Rounding, SavedActivations

MEGABYTE = 2**20


class Mesa(Callback):
    """Keep what the student saves for backward in few bits; the forward pass stays exact.

    Works with any method: it wraps ``method.losses``, look-aheads included, and watches the layers of the trained
    networks (:class:`zoo.nn.saved_activations.SavedActivations` says how). On the steps the logger writes, the bytes
    kept by the last call of ``losses`` and those that would have been kept without are logged as ``mesa/kept_mb`` and
    ``mesa/exact_mb``.

    Running ranges are part of a full checkpoint. Each process has its own, and the first one's are stored: a run over
    several processes resumes with ranges of the first (they forget within about ``1 / (1 - decay)`` steps). Gradient
    checkpointing inside a network moves ranges twice a step.

    Args:
        bits: 8 (the paper), 4, or 32, which only measures.
        groups: channel groups with a range of their own: ``heads`` takes each block's number of attention heads (the
            paper's setting); a number suits networks without attention.
        decay: of the running ranges.
        rounding: ``stochastic`` (the paper) or ``nearest``.
        overflow: values above the running range: ``clip``, as the paper says, or ``wrap``, as in the released kernel.
        ranges_of: channel ``groups`` (the paper), or ``tokens``, each with its own range, which costs a tenth of what
            is saved: for networks in which some tokens are much shorter than others, as class tokens are behind
            layer scales near 0 at the start of POA and DINOv2.
        exact: patterns of layer names, such as ``student.head*``, that are left alone. By default projection heads:
            they save normalised prototypes, which are computed from weights.

    Raises:
        ValueError: an argument is out of range.
    """

    family = "mesa"
    step_order = -2  # before look-aheads, whose virtual steps are compressed too

    def __init__(
        self,
        bits: Literal[4, 8, 32] = 8,
        groups: int | Literal["heads"] = "heads",
        decay: float = 0.9,
        rounding: Rounding = "stochastic",
        overflow: Overflow = "clip",
        ranges_of: RangesOf = "groups",
        exact: Sequence[str] = ("*head", "*head.*", "*heads.*"),
    ) -> None:
        SavedActivations(
            {}, bits, groups, decay, rounding, overflow, ranges_of
        )  # so that wrong values fail here
        self._options = (bits, groups, decay, rounding, overflow, ranges_of, tuple(exact))
        self._saved: SavedActivations | None = None
        self._restored: dict[str, RunningRange] = {}
        self._moment = (-1, 0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the trained networks and wrap the losses.

        Raises:
            MisconfigurationException: no layer is left to compress.
        """
        assert isinstance(pl_module, Method)
        trained = {id(module) for module in pl_module.trained_modules()}
        networks = {name: module for name, module in pl_module.named_modules() if id(module) in trained}
        self._saved = SavedActivations(networks, *self._options)
        if not self._saved.layers:
            raise MisconfigurationException(
                f"Mesa(exact={list(self._options[-1])}) leaves none of the layers of {', '.join(networks)} to compress"
            )
        self._saved.ranges = self._restored
        pl_module.losses = self._compressed(pl_module.losses, trainer)  # type: ignore[method-assign,assignment]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the bytes."""
        assert isinstance(pl_module, Method)
        if self._saved is not None and pl_module.writes_logs():
            sizes = {"kept": self._saved.kept_bytes, "exact": self._saved.exact_bytes}
            pl_module.log_dict({f"mesa/{name}_mb": size / MEGABYTE for name, size in sizes.items()})

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the method as it was; also after an error."""
        if self._saved is not None:
            self._restored = self._saved.ranges
            self._saved.detach()
            self._saved = None
            del pl_module.losses

    def state_dict(self) -> dict[str, Any]:
        """The running ranges."""
        ranges = self._restored if self._saved is None else self._saved.ranges
        return {place: running.state() for place, running in ranges.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the running ranges of a checkpoint."""
        decay = self._options[2]
        self._restored = {place: RunningRange(decay, *state) for place, state in state_dict.items()}

    def _compressed(
        self, losses: Callable[[Batch], dict[str, Tensor]], trainer: L.Trainer
    ) -> Callable[[Batch], dict[str, Tensor]]:
        @wraps(losses)
        def compressed(batch: Batch) -> dict[str, Tensor]:
            if self._saved is None:
                return losses(batch)
            # Random numbers depend on nothing but the step and the call in it: a resumed run draws the same.
            step, call = self._moment
            self._moment = (trainer.global_step, call + 1 if step == trainer.global_step else 0)
            with self._saved.compress(hash((*self._moment, trainer.global_rank))):
                return losses(batch)

        return compressed
