"""Participant-level contrast of wearable biosignals (Abbaspourazad et al., ICLR 2024, arXiv 2312.05409)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import CollapseMonitor, EMATeacher, default_monitors
from zoo.method import Batch, Method
from zoo.nn.deployed import SignalFeatures
from zoo.nn.distillation import koleo_loss
from zoo.nn.participant_contrast import Negatives, participant_info_nce
from zoo.nn.ranks import gather_uneven
from zoo.nn.signal_augment import zscore
from zoo.optim import Optim
from zoo.registry import create_backbone
from zoo.teacher import Teacher


class BiosignalNetwork(nn.Module):
    """Encoder and projection head ``Linear - ReLU - Dropout - Linear``.

    Args:
        backbone: gives embeddings ``[B, embed_dim]`` of signals by ``embed``, such as
            :class:`zoo.backbones.EfficientNet1d`.
        hidden_dim: width within the head.
        projection_dim: what is contrasted.
        dropout: within the head.
    """

    def __init__(
        self, backbone: Any, hidden_dim: int = 1024, projection_dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Linear(backbone.embed_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, projection_dim),
        )

    def forward(self, signal: Tensor) -> Tensor:
        """Standardised signals ``[B, C, T]`` → projections ``[B, projection_dim]``."""
        return self.head(self.backbone.embed(signal))


class WearableContrast(Method):
    """Two segments of one participant attract each other, those of all others in the batch repel.

    The student f sees one segment, a momentum teacher g the other, and the other way round; there is no predictor:

    * ``contrast``: mean of :func:`zoo.nn.participant_contrast.participant_info_nce` of (f(v1), g(v2)) and
      (f(v2), g(v1));
    * ``koleo``: :func:`zoo.nn.distillation.koleo_loss`, mean over both sides of both, times ``koleo_weight``. The
      teacher's side carries no gradient and only shifts the number.

    What a pair is, is the datamodule's choice (``data.pairs``): two segments of a participant, as published, or two
    augmented views of one segment (SimCLR's). Every rank contrasts within its own batch, as released.

    Teacher: training mode, dropout included; its batch-norm statistics are those of its own batches and are never
    averaged; moved *before* each step with 0.99. In validation both networks are in evaluation mode.

    Batches hold ``pair`` float ``[B, 2, C, T]``, standardised and augmented by the datamodule's ``views``, and
    ``participant`` int64 ``[B]``; in evaluation ``signal`` ``[B, C, T]`` as recorded, which is standardised here.

    Logs ``val/loss``: both terms for the first and the last segment of every participant, without augmentation.

    Args:
        backbone: a backbone of signals.
        in_chans: channels C: 4 for PPG, 1 for ECG.
        pretrained: weights of the backbone: ``False``, or a file.
        backbone_args: further arguments of the backbone.
        hidden_dim: width within the projection head.
        projection_dim: width of what is contrasted.
        dropout: within the head.
        temperature: of the contrast.
        koleo_weight: of KoLeo; 0 leaves it out.
        negatives: ``both`` views' other participants, as released, or ``cross``: the other view's alone (the formula
            that the paper displays).
        momentum: share of the teacher that stays at each update.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Raises:
        ValueError: an option out of range, or a backbone that is none of signals.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    input_name = "signal"
    student: BiosignalNetwork

    def __init__(
        self,
        backbone: str = "efficientnet1d",
        in_chans: int = 4,
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        hidden_dim: int = 1024,
        projection_dim: int = 128,
        dropout: float = 0.1,
        temperature: float = 0.04,
        koleo_weight: float = 0.1,
        negatives: Negatives = "both",
        momentum: float = 0.99,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        if temperature <= 0 or koleo_weight < 0:
            raise ValueError(
                f"temperature={temperature} must be positive, koleo_weight={koleo_weight} not negative"
            )
        if negatives not in ("both", "cross"):
            raise ValueError(f"negatives={negatives!r}: expected both or cross")
        network = create_backbone(backbone, pretrained, in_chans=in_chans, **(backbone_args or {}))
        if not hasattr(network, "embed"):
            raise ValueError(f"backbone={backbone!r} must embed signals [B, C, T], such as efficientnet1d")
        self.student = BiosignalNetwork(network, hidden_dim, projection_dim, dropout)
        self.teacher = Teacher(self.student, mode="train", buffers="none")
        self.temperature, self.koleo_weight, self.momentum = temperature, koleo_weight, momentum
        self.negatives: Negatives = negatives
        self._seen: list[dict[str, Tensor]] = []

    def default_optim(self) -> Optim:
        """Adam at 1e-3 for batches of 256, halved every 125,000 steps."""
        return Optim(
            "adam",
            lr=1e-3,
            weight_decay=1e-5,
            schedule="drops",
            drop_in="steps",
            drop_start=125_000,
            drop_every=125_000,
        )

    def default_callbacks(self) -> list[Callback]:
        """The momentum of the teacher; monitors."""
        moves = EMATeacher(timing="before_step", decay=self.momentum, schedule="constant")
        return [moves, *default_monitors(self, CollapseMonitor())]

    # -- training ---------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``contrast`` and ``koleo``."""
        views = batch["pair"].unbind(1)
        students = [self.student(view) for view in views]
        teachers = [self.teacher(view) for view in reversed(views)]
        return self.terms(students, teachers, batch["participant"])

    def terms(self, students: list[Tensor], teachers: list[Tensor], participant: Tensor) -> dict[str, Tensor]:
        """Both terms, averaged over the directions.

        Args:
            students: projections ``[B, D]`` of the student, for every direction.
            teachers: the teacher's, of the other segment.
            participant: whose they are, ``[B]``.
        """
        contrasts, spreads = [], []
        for mine, other in zip(students, teachers, strict=True):
            contrasts.append(participant_info_nce(mine, other, participant, self.temperature, self.negatives))
            if self.koleo_weight:
                spreads += [koleo_loss(mine), koleo_loss(other)]
        losses = {"contrast": torch.stack(contrasts).mean()}
        return {**losses, "koleo": self.koleo_weight * torch.stack(spreads).mean()} if spreads else losses

    # -- evaluation -------------------------------------------------------------------------------------

    def forward(self, signal: Tensor) -> Tensor:
        """The same as :meth:`features`."""
        return self.features(signal)

    def features(self, signal: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` of segments ``[B, C, T]`` as recorded, before the projection."""
        return self.student.backbone.embed(zscore(signal))

    def deployed(self, network: Any) -> nn.Module:
        """Embeddings of segments as recorded."""
        return SignalFeatures(network.backbone)

    def example_input(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Two segments ``[2, C, T]`` of noise, of ``size`` (T,) or 3840 samples."""
        shape = (2, self.student.backbone.in_chans, *(size or (3840,)))
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Project the segments of one batch by both networks."""
        signal = zscore(batch["signal"])
        with self.teacher.using("eval"):
            seen = {"student": self.student(signal), "teacher": self.teacher(signal)}
        self._seen.append({**seen, "participant": batch["participant"], "index": batch["index"]})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``."""
        self._log_loss("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss``."""
        self._log_loss("test")

    def _log_loss(self, stage: str) -> None:
        seen = {key: gather_uneven(torch.cat([part[key] for part in self._seen])) for key in self._seen[0]}
        self._seen = []
        order = seen.pop("index").argsort()
        seen = {key: value[order] for key, value in seen.items()}
        first, last = ends_of(seen["participant"])
        if len(first) < 2:
            raise ValueError(
                f"{stage} shows {len(first)} participants with two segments or more, and a contrast needs two: take "
                "more participants, or set trainer.limit_val_batches to 0"
            )
        students = [seen["student"][rows] for rows in (first, last)]
        teachers = [seen["teacher"][rows] for rows in (last, first)]
        losses = self.terms(students, teachers, seen["participant"][first])
        self.log(f"{stage}/loss", torch.stack(list(losses.values())).sum(), sync_dist=True, prog_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Embeddings ``[B, D]`` of one batch."""
        kept: Batch = {key: batch[key] for key in ("index", "name", "participant") if key in batch}
        return {"features": self.features(batch["signal"]), **kept}

    @torch.no_grad()
    def predict(self, signal: np.ndarray | Tensor) -> Tensor:
        """Embedding ``[D]`` of one segment ``[C, T]``, or ``[T]`` of one channel, as recorded.

        Raises:
            ValueError: another shape or number of channels, or samples that are not finite.
        """
        segment = torch.as_tensor(signal)
        segment = segment[None] if segment.ndim == 1 else segment
        channels = self.student.backbone.in_chans
        if segment.ndim != 2 or len(segment) != channels or not segment.shape[1]:
            raise ValueError(f"signal has shape {list(segment.shape)}: expected [{channels}, T]")
        segment = segment.to(self.device, torch.float32)
        if not bool(segment.isfinite().all()):
            raise ValueError("signal holds nan or inf: fill gaps or leave the segment out")
        training = self.student.training
        self.student.eval()
        embedding = self.features(segment[None])[0]
        self.student.train(training)
        return embedding


def ends_of(participant: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the first and of the last segment of everybody who has two or more.

    Args:
        participant: whose each row is, int64 ``[N]``.

    Returns:
        Two tensors of rows, int64 ``[P]``.
    """
    _, person = participant.unique(return_inverse=True)
    rows = torch.arange(len(person), device=person.device)
    count = int(person.max()) + 1
    last = torch.zeros(count, dtype=torch.long, device=person.device).scatter_reduce_(0, person, rows, "amax")
    first = torch.full_like(last, len(rows)).scatter_reduce_(0, person, rows, "amin")
    several = last > first
    return first[several], last[several]
