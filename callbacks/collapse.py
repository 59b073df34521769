"""Whether features still tell images apart: rank and spread."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.monitor import Monitor
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


class CollapseMonitor(Monitor):
    """Watches during training whether features collapse, and says so in plain words.

    On steps that the logger writes, but once in ``every_n_steps`` at most: an extra forward, in evaluation mode, of
    what ``method.features`` takes of the batch (images, or the first global view of each; spectrograms; signals;
    crops of volumes), of all ranks. Logged as ``train/feature_spread`` (0: all samples look alike, 1: as different as
    random directions) and ``train/feature_rank`` (directions the features vary along, as a share of those possible).
    Warns when either falls below its limit, and again only after it has recovered.

    Args:
        every_n_steps: how often to look at most.
        min_spread: limit of the spread.
        min_rank: limit of the rank's share.
        max_samples: of the batch, on every rank.

    Raises:
        ValueError: an argument is out of range.
    """

    family = "collapse_monitor"

    def __init__(
        self,
        every_n_steps: int = 100,
        min_spread: float = 0.1,
        min_rank: float = 0.05,
        max_samples: int = 64,
    ) -> None:
        if every_n_steps < 1 or not 0 <= min_spread <= 1 or not 0 <= min_rank <= 1 or max_samples < 2:
            raise ValueError(
                "every_n_steps must be at least 1, min_spread and min_rank within [0, 1], max_samples at least 2; got "
                f"{every_n_steps}, {min_spread}, {min_rank} and {max_samples}."
            )
        self.every_n_steps, self.max_samples = every_n_steps, max_samples
        self.limits = {"spread": min_spread, "rank": min_rank}
        self._below: set[str] = set()
        self._told = False

    def look(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Measure, log and warn, if it is time."""
        step, between = trainer.global_step, getattr(trainer, "log_every_n_steps", 1)
        if step // self.every_n_steps == (step - between) // self.every_n_steps:
            return  # a function of the step alone: a resumed run looks when the unbroken one does
        with evaluating(method):
            features = gather_uneven(features_of(method, samples_of(batch)[: self.max_samples])["features"])
        if len(features) < 2:
            if not self._told:
                rank_zero_warn(
                    "CollapseMonitor compares samples with each other and a step has one: it watches nothing. Raise "
                    "data.batch_size to have it."
                )
            self._told = True
            return
        possible = min(len(features) - 1, features.shape[1])
        if not bool(features.isfinite().all()):
            return  # decompositions fail on nan; the method's own checks of losses and teachers say where it is
        values = {
            "spread": float(relative_spread(features)),
            "rank": float(effective_rank(features)) / possible,
        }
        method.log_dict({f"train/feature_{name}": value for name, value in values.items()})
        self._warn(values, len(features), possible, trainer.global_step)

    def _warn(self, values: dict[str, float], images: int, possible: int, step: int) -> None:
        below = {name for name, value in values.items() if value < self.limits[name]}
        said = {
            "spread": f"the features of {images} samples are nearly the same (spread {values['spread']:.3f}, "
            "where 1 is as different as random directions)",
            "rank": f"the features of {images} samples vary along {values['rank'] * possible:.1f} directions of "
            f"{possible} possible ones",
        }
        if new := below - self._below:
            rank_zero_warn(
                f"Step {step}: {' and '.join(said[name] for name in sorted(new))}. The representation is "
                "collapsing: look at the teacher's momentum and temperatures, at centring or the other terms "
                "against collapse, and at optim.lr."
            )
        self._below = below


def samples_of(batch: Batch) -> Tensor:
    """What ``method.features`` takes: images, or the first global views; spectrograms; first
    segments of pairs; crops of volumes, or volumes.

    Raises:
        MisconfigurationException: the batch holds none of them.
    """
    part = batch.get("unlabelled", batch)
    if "image" in part:
        return part["image"]
    if "views" in part:
        return part["views"]["global"].chunk(2)[0]
    if "spectrogram" in part:
        return part["spectrogram"]
    if "pair" in part:
        return part["pair"][:, 0]
    if "crops" in part:
        return part["crops"].flatten(0, 1)
    if "volume" in part:
        return part["volume"]
    raise MisconfigurationException(
        "CollapseMonitor looks at images, views, spectrograms, pairs, volumes or their crops, and training "
        f"batches hold {sorted(batch)}: leave it out with callbacks.NoMonitors"
    )
