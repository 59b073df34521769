"""A linear classifier that is trained beside the method, on detached features."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks.probe import Probe, batch_features, evaluating, features_of, image_benchmark
from zoo.method import Batch, Method
from zoo.nn.ranks import mean_over_ranks, sum_over_ranks


class OnlineLinearProbe(Probe):
    """One linear layer that learns with every training step: ``train/<name>`` and ``val/<name>``, in percent.

    It sees the features of ``batch["image"]`` in evaluation mode and without gradients, so the method is not
    influenced; it costs one more forward a step. Images with label -1 do not count. Layer and optimiser (Adam)
    are in the checkpoint, under the name.

    Args:
        lr: learning rate.
        every_n_steps: train with every such batch.
        name: of the metrics and of the state in checkpoints; two probes of one run need two names.
        every: measure with every such validation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, lr: float = 1e-3, every_n_steps: int = 1, name: str = "online_linear", every: int = 1
    ) -> None:
        super().__init__(every)
        if lr <= 0 or every_n_steps < 1:
            raise ValueError(
                f"lr must be positive and every_n_steps at least 1, got {lr} and {every_n_steps}."
            )
        self.lr, self.every_n_steps, self.name = lr, every_n_steps, name
        self._layer: nn.Linear | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._stored: dict[str, Any] | None = None
        self._counts = torch.zeros(2)

    @property
    def state_key(self) -> str:
        """Own state in checkpoints, whatever other probes there are."""
        return f"{type(self).__qualname__}[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        """Layer and optimiser."""
        counted = super().state_dict()
        if self._layer is None or self._optimizer is None:
            return {**(self._stored or {}), **counted}
        return {"layer": self._layer.state_dict(), "optimizer": self._optimizer.state_dict(), **counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what was stored until the layer is built."""
        super().load_state_dict(state_dict)
        self._layer = self._optimizer = None
        self._stored = {key: value for key, value in state_dict.items() if key != "validations"}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take one step on this batch."""
        if batch_idx % self.every_n_steps:
            return
        assert isinstance(pl_module, Method)
        if "image" not in batch or "label" not in batch:
            raise MisconfigurationException(
                f"OnlineLinearProbe needs image and label in training batches, found {sorted(batch)}"
            )
        with evaluating(pl_module):
            features = features_of(pl_module, batch["image"])["features"]
        layer = self._built(trainer, pl_module, features.shape[1])
        label = batch["label"]
        known = (label >= 0).sum().clamp(min=1)
        with torch.enable_grad():
            logits = layer(features)
            loss = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / known
            gradients = torch.autograd.grad(loss, list(layer.parameters()))
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.grad = mean_over_ranks(gradient)
        assert self._optimizer is not None
        self._optimizer.step()
        if pl_module.writes_logs():
            accuracy = 100.0 * (logits.argmax(1) == label).sum() / known
            pl_module.log_dict({f"train/{self.name}": accuracy, f"train/{self.name}_loss": loss.detach()})

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Start counting.

        Raises:
            MisconfigurationException: there is no trained layer.
        """
        if self._layer is None and not self._stored:
            raise MisconfigurationException(
                f"OnlineLinearProbe(name={self.name!r}) has no trained layer: it learns while the method does. Pass "
                "a --ckpt_path of a run that had it, or use LinearProbe"
            )
        self._counts = torch.zeros(2, device=method.device)

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Count the images it gets right."""
        features = batch_features(method, batch)["features"]
        right = self._built(trainer, method, features.shape[1])(features).argmax(1) == batch["label"]
        self._counts += torch.stack([right.sum(), torch.tensor(len(right), device=right.device)])

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """Accuracy."""
        right, total = sum_over_ranks(self._counts)
        return {self.name: 100.0 * right / total}

    def _built(self, trainer: L.Trainer, method: Method, dim: int) -> nn.Linear:
        """The layer, made when the number of features is known; equal on all ranks."""
        if self._layer is None:
            # Validation runs in inference mode, whose tensors cannot be trained later.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                layer = nn.Linear(dim, image_benchmark(trainer).num_classes).to(method.device)
                optimizer = torch.optim.Adam(layer.parameters(), lr=self.lr)
                if self._stored:
                    layer.load_state_dict(self._stored["layer"])
                    optimizer.load_state_dict(self._stored["optimizer"])
            self._layer, self._optimizer, self._stored = layer, optimizer, None
        return self._layer
