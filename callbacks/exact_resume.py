"""ExactResume: a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import random
import warnings
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.checkpoint_io import AtomicCheckpointIO
from datamodules.sampling import ResumableLoader, TurnsLoader
from zoo.method import Method
from zoo.nn.ranks import broadcast_buffers, gather_objects


class ExactResume(Callback):
    """Store what Lightning leaves out of checkpoints, so that stopping and resuming changes no number.

    * The random states of Python, NumPy, torch and the GPU, of every rank.
    * The position within an epoch: the loaders of the zoo's benchmarks go on with the batch that comes next,
      whatever their workers had read ahead.
    * Buffers: all ranks go on with those of rank 0, which are the ones that checkpoints hold.
    * Files are written in one step (:class:`~callbacks.checkpoint_io.AtomicCheckpointIO`).

    ``zoo fit`` adds it. What it cannot keep is the gradient of an optimiser step that is still accumulating: such a
    checkpoint counts the micro-batches in ``pending``, and resuming from it says so.
    """

    family = "exact_resume"
    step_order = 1000  # random states are restored when nobody else draws before the first batch

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write files in one step, unless another way of writing was chosen."""
        if stage == "fit" and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back the random states and tell the loaders where the run stands."""
        combined = trainer.fit_loop._combined_loader
        loaders = combined.flattened if combined is not None else []
        for loader in loaders:
            if isinstance(loader, (ResumableLoader, TurnsLoader)):
                loader.position = partial(batches_of_epoch, trainer)
        if all(isinstance(loader, (ResumableLoader, TurnsLoader)) for loader in loaders):
            warnings.filterwarnings("ignore", message=r".*your dataloader is\s+not resumable.*")
        stored, self._restored = self._restored, None
        if stored is None:
            return
        states = stored["rng_state"]
        if len(states) == trainer.world_size:
            set_rng_state(states[trainer.global_rank])
        else:
            rank_zero_warn(
                f"The checkpoint holds the random states of {len(states)} processes and {trainer.world_size} go on: "
                "random numbers and batches are others than those of an unbroken run."
            )
        for name, now in sizes_of(trainer, pl_module).items():
            if (before := stored.get("sizes", {}).get(name, now)) != now:
                rank_zero_warn(
                    f"{name} was {before} where the checkpoint was written and is {now}: an unbroken run would "
                    "have gone on otherwise"
                )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store random states and how far the open step is; every rank goes on with the buffers that are stored."""
        broadcast_buffers(pl_module)
        accumulates = trainer.fit_loop._should_accumulate()
        checkpoint["callbacks"][self.state_key] = {
            "rng_state": gather_objects(rng_state()),
            "sizes": sizes_of(trainer, pl_module),
            "pending": batches_of_epoch(trainer) % trainer.accumulate_grad_batches if accumulates else 0,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: what is built until then draws numbers, too."""
        self._restored = state_dict


def sizes_of(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
    """What decides on batches and on rates, beside the checkpoint: images a batch, and steps of the schedule."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    found: dict[str, float] = {} if batch_size is None else {"data.batch_size": batch_size}
    if isinstance(pl_module, Method) and pl_module.optim.has_end:
        found["the number of steps of the schedule"] = pl_module.total_steps
    return found


def batches_of_epoch(trainer: L.Trainer) -> int:
    """Number of batches of the current epoch that training has taken."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def rng_state() -> dict[str, Any]:
    """Global random states of this process, as tensors and plain values."""
    version, words, gauss = random.getstate()
    _, numpy_words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state, which others use
    state = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(numpy_words, np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
