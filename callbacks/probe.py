"""What probes of frozen features share: when they run, and features that all of them use but one computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from zoo.method import Batch, Method
from zoo.nn.ranks import gather_uneven

Kinds = dict[str, Tensor]
"""Features ``[B, D]`` of several kinds by name."""


class Bank(NamedTuple):
    """Features of all labelled training images ``[N, D]`` by kind, and their classes, int64 ``[N]``."""

    features: Kinds
    labels: Tensor


class Probe(Callback, ABC):
    """Base of the probes: runs with every ``every``-th validation of a training, and with every test.

    So ``trainer.check_val_every_n_epoch`` and ``trainer.val_check_interval`` say how often probes run, checkpoints
    can be kept by what they measure, and ``zoo test --ckpt_path`` measures a checkpoint. The network is in
    evaluation mode and runs in the trainer's precision.

    Subclasses implement :meth:`begin`, :meth:`see` and :meth:`end`.

    Args:
        every: run with every such validation.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        self.every = every
        self._validations = 0
        self._runs = False

    @property
    def state_key(self) -> str:
        """Two probes of one class are told apart by their settings."""
        settings = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return self._generate_state_key(**settings)

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were: a resumed run measures at the same steps."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations = state_dict.get("validations", 0)

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Prepare for the evaluation images."""

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Take one batch of evaluation images, float in [0, 1]."""

    @abstractmethod
    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """Return what was measured, by name; equal on all ranks."""

    # -- Lightning's hooks ------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, if it is this validation's turn."""
        self._runs = not trainer.sanity_checking
        if self._runs and trainer.state.fn == "fit":
            self._validations += 1
            self._runs = self._validations % self.every == 0
        self._begin(trainer, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        self._runs = True
        self._begin(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Take the batch."""
        if self._runs:
            assert isinstance(pl_module, Method)
            self.see(trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Take the batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log ``val/<name>``."""
        self._end(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log ``test/<name>``."""
        self._end(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget features: the network will change."""
        _shared.pop(pl_module, None)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget features: another checkpoint may be tested next."""
        _shared.pop(pl_module, None)

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._runs:
            assert isinstance(pl_module, Method)
            self.begin(trainer, pl_module)

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._runs:
            assert isinstance(pl_module, Method)
            measured = self.end(trainer, pl_module)
            # Ranks hold equal values; sync_dist only says so to Lightning.
            values = {f"{stage}/{name}": value.float() for name, value in measured.items()}
            pl_module.log_dict(values, sync_dist=True, batch_size=1)


# -- features ---------------------------------------------------------------------------------------------


class _Shared:
    """What was computed for one probe and serves the others."""

    def __init__(self) -> None:
        self.image: Tensor | None = None  # or signals, spectrograms: what the method takes
        self.of_image: dict[bool, Kinds] = {}
        self.banks: dict[bool, Bank] = {}


_shared: WeakKeyDictionary[L.LightningModule, _Shared] = WeakKeyDictionary()


def features_of(method: Method, image: Tensor, several: bool = False) -> Kinds:
    """Features ``[B, D]`` of images in [0, 1], float32, without gradients.

    Args:
        method: what to probe.
        image: ``[B, 3, H, W]``.
        several: all kinds that ``method.probe_features(image)`` returns, where it has that; otherwise, and by
            default, the one kind ``features``.

    Raises:
        MisconfigurationException: the method has no ``features(image)``.
    """
    source = "probe_features" if several and hasattr(method, "probe_features") else "features"
    function = getattr(method, source, None)
    if function is None:
        raise MisconfigurationException(
            f"{type(method).__name__} has no features(image) -> [B, D], which probes need: leave them out of "
            "trainer.callbacks"
        )
    with torch.no_grad(), method.forward_context():
        features = function(image)
    kinds = features if source == "probe_features" else {"features": features}
    for kind, value in kinds.items():
        if value.ndim != 2 or len(value) != len(image):
            raise MisconfigurationException(
                f"{type(method).__name__}.{source} must return [B, D] = [{len(image)}, D], {kind!r} is "
                f"{list(value.shape)}"
            )
    return {kind: value.float() for kind, value in kinds.items()}


def batch_features(method: Method, batch: Batch, several: bool = False) -> Kinds:
    """:func:`features_of` an evaluation batch; a second probe that asks gets what the first had computed.

    What the network sees is the batch's ``method.input_name``: images, signals, ...
    """
    several = several and hasattr(method, "probe_features")
    shared, inputs = _shared.setdefault(method, _Shared()), batch[method.input_name]
    if shared.image is not inputs:
        shared.image, shared.of_image = inputs, {}
    if several not in shared.of_image:
        shared.of_image[several] = features_of(method, inputs, several)
    return shared.of_image[several]


def bank(trainer: L.Trainer, method: Method, several: bool = False) -> Bank:
    """Features of the labelled training images of all ranks, computed once for all probes of a validation.

    Raises:
        MisconfigurationException: the benchmark shows no labelled training images.
    """
    several = several and hasattr(method, "probe_features")
    shared = _shared.setdefault(method, _Shared())
    if several not in shared.banks:
        loader = image_benchmark(trainer).bank_dataloader()
        parts, labels = [], []
        for batch in loader:
            on_device = trainer.strategy.batch_to_device(batch)
            parts.append(features_of(method, on_device["image"], several))
            labels.append(on_device["label"])
        gathered = {kind: gather_uneven(torch.cat([part[kind] for part in parts])) for kind in parts[0]}
        shared.banks[several] = Bank(gathered, gather_uneven(torch.cat(labels)))
    return shared.banks[several]


def image_benchmark(trainer: L.Trainer) -> Any:
    """The run's datamodule, if it is an image benchmark.

    Raises:
        MisconfigurationException: it has no ``bank_dataloader``.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "bank_dataloader"):
        raise MisconfigurationException(
            f"probes compare with labelled training images, and {type(data).__name__} has no bank_dataloader(): use "
            "an image benchmark (`zoo list benchmarks`), or leave the probe out of trainer.callbacks"
        )
    return data


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Put every module into evaluation mode, and back into its own mode afterwards."""
    training = [module for module in method.modules() if module.training]
    method.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
