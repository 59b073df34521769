"""Whether features still tell images apart: rank and spread."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.probe import Probe, batch_features, evaluating, features_of
from zoo.method import Batch, Method
from zoo.nn.effective_rank import effective_rank, rankme, relative_spread
from zoo.nn.ranks import gather_uneven, rank_count


class RankMe(Probe):
    """Effective rank of the features of evaluation images: ``val/rankme``, between 1 and D.

    See :func:`zoo.nn.effective_rank.rankme`. The number of images matters: compare runs at equal numbers.

    Args:
        max_images: of all ranks together; the paper takes 25,600.
        every: run with every such validation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, max_images: int = 25_600, every: int = 1) -> None:
        super().__init__(every)
        if max_images < 2:
            raise ValueError(f"max_images must be at least 2, got {max_images}.")
        self.max_images = max_images
        self._features: list[Tensor] = []

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Start collecting."""
        self._features = []

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Collect features up to the limit."""
        missing = self.max_images // rank_count() - sum(map(len, self._features))
        if missing > 0:
            self._features.append(batch_features(method, batch)["features"][:missing])

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """RankMe of all ranks' features."""
        features = gather_uneven(torch.cat(self._features))
        self._features = []
        return {"rankme": rankme(features)}


class CollapseMonitor(Callback):
    """Watches during training whether features collapse, and says so in plain words.

    Every ``every_n_steps`` steps, on the images of the batch (of all ranks), in evaluation mode, logged as
    ``train/feature_spread`` (0: all images look alike, 1: as different as random directions) and
    ``train/feature_rank`` (directions the features vary along, as a share of those possible). Warns when either
    falls below its limit, and again only after it has recovered.

    Args:
        every_n_steps: how often to look.
        min_spread: limit of the spread.
        min_rank: limit of the rank's share.

    Raises:
        ValueError: an argument is out of range.
    """

    family = "collapse_monitor"

    def __init__(self, every_n_steps: int = 100, min_spread: float = 0.1, min_rank: float = 0.05) -> None:
        if every_n_steps < 1 or not 0 <= min_spread <= 1 or not 0 <= min_rank <= 1:
            raise ValueError(
                "every_n_steps must be at least 1, min_spread and min_rank within [0, 1]; got "
                f"{every_n_steps}, {min_spread} and {min_rank}."
            )
        self.every_n_steps = every_n_steps
        self.limits = {"spread": min_spread, "rank": min_rank}
        self._below: set[str] = set()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, log and warn."""
        if batch_idx % self.every_n_steps:
            return
        assert isinstance(pl_module, Method)
        if "image" not in batch:
            raise MisconfigurationException(
                f"CollapseMonitor looks at batch['image'], and training batches hold {sorted(batch)}"
            )
        with evaluating(pl_module):
            features = gather_uneven(features_of(pl_module, batch["image"])["features"])
        if len(features) < 2:
            raise MisconfigurationException(
                "CollapseMonitor compares images with each other and a step has one: raise data.batch_size"
            )
        possible = min(len(features) - 1, features.shape[1])
        values = {
            "spread": float(relative_spread(features)),
            "rank": float(effective_rank(features)) / possible,
        }
        pl_module.log_dict(
            {f"train/feature_{name}": value for name, value in values.items()}, rank_zero_only=True
        )
        self._warn(values, len(features), possible, trainer.global_step)

    def _warn(self, values: dict[str, float], images: int, possible: int, step: int) -> None:
        below = {name for name, value in values.items() if value < self.limits[name]}
        said = {
            "spread": f"the features of {images} images are nearly the same (spread {values['spread']:.3f}, "
            "where 1 is as different as random directions)",
            "rank": f"the features of {images} images vary along {values['rank'] * possible:.1f} directions of "
            f"{possible} possible ones",
        }
        if new := below - self._below:
            rank_zero_warn(
                f"Step {step}: {' and '.join(said[name] for name in sorted(new))}. The representation is "
                "collapsing: look at the teacher's momentum and temperatures, at centring or the other terms "
                "against collapse, and at optim.lr."
            )
        self._below = below
