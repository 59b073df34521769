"""VoCo: contextual position prediction on volumes (Wu, Zhuang and Chen; CVPR 2024 and TPAMI)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks import CollapseMonitor, EMATeacher, PositionPanel, default_monitors
from zoo.method import Batch
from zoo.methods.medical.base import Volume, VolumeMethod
from zoo.nn.heads.voco import Projector
from zoo.nn.positions import Negatives, overlap_labels, position_loss, separation_loss, similarity
from zoo.nn.volume_networks import PositionNetwork
from zoo.optim import Optim
from zoo.registry import create_backbone
from zoo.teacher import Teacher


class VoCo(VolumeMethod):
    """Predict from features alone how much a random crop of a volume overlaps each of its base crops.

    Predicted overlaps are similarities (ReLU of the cosine) of projections. Terms: ``intra``, the student's crops
    against the teacher's bases of the same volume, with overlaps as labels; ``inter``, the student's crops and
    bases against those of the next volume in the batch, with the teacher's similarities as labels; ``separation``,
    the student's bases of a volume against one another. Batches hold ``crops`` ``[B, n, C, x, y, z]``, ``base``
    ``[B, m, C, x, y, z]``, float in [0, 1], ``crop_box`` and ``base_box`` (int64, voxels), as
    :class:`zoo.nn.volume_crops.VolumeCrops` makes them.

    The defaults are the large-scale version ("Large-Scale 3D Medical Image Pre-training with Geometric Context
    Priors"): the backbone is shared, only the projector has a teacher. :class:`VoCoCVPR` is the conference version.
    The teacher starts with weights of its own and moves between the student's forward and its own; since a
    forward changes no weights, that is before each step, the first included. It holds no running statistics: the
    projector's norm uses the batch, in evaluation too.

    Args:
        backbone: a 3-D backbone with maps: ``swin_unetr_b`` (``_l``, ``_h``), ``residual_unet``, or one of your own.
        pretrained: start the backbone from a source of weights, see :func:`zoo.checkpoints.load_pretrained`.
        backbone_args: further arguments of the backbone (``feature_size``, ``checkpointing``, ...).
        in_chans: channels of the volumes.
        hidden_dim: width of the projector.
        projection_dim: length of the projections.
        row_dropout: probability that a crop's embedding is dropped as a whole before the student's projector.
        teacher_network: what has a teacher: the ``projector``, or the ``whole`` network.
        logits: how overlaps are predicted: by the ``student``'s crops and the teacher's bases, or by the ``mean`` of
            that and the teacher's crops with the student's bases.
        negatives: loss where crop and base do not touch: ``log`` or ``squared``, see
            :func:`zoo.nn.positions.position_loss`.
        intra_weight: of the term ``intra``.
        inter_weight: of the term ``inter``; 0 leaves it out.
        separation_weight: of the term ``separation``; 0 leaves it out.
        momentum: share of the teacher that stays at each step.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Raises:
        ValueError: an option out of range.

    Logs ``val/position_accuracy``, the share (in percent) of crops whose most similar base is one they overlap most,
    where validation batches hold crops.
    """

    student: PositionNetwork
    teacher: Teacher

    def __init__(
        self,
        backbone: str = "swin_unetr_b",
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        in_chans: int = 1,
        hidden_dim: int = 1024,
        projection_dim: int = 1024,
        row_dropout: float = 0.2,
        teacher_network: Literal["projector", "whole"] = "projector",
        logits: Literal["student", "mean"] = "student",
        negatives: Negatives = "log",
        intra_weight: float = 1.0,
        inter_weight: float = 1.0,
        separation_weight: float = 1.0,
        momentum: float = 0.9,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("teacher_network", teacher_network, ("projector", "whole")),
            ("logits", logits, ("student", "mean")),
            ("negatives", negatives, ("log", "squared")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        if min(intra_weight, inter_weight, separation_weight) < 0:
            raise ValueError("intra_weight, inter_weight and separation_weight must not be negative")
        self.source = {"pretrained": pretrained, "in_chans": in_chans, **(backbone_args or {})}
        self.sizes = {"hidden_dim": hidden_dim, "out_dim": projection_dim}
        self.row_dropout, self.teacher_network = row_dropout, teacher_network
        self.logits, self.negatives, self.momentum = logits, negatives, momentum
        self.intra_weight, self.inter_weight = intra_weight, inter_weight
        self.separation_weight = separation_weight
        self.student = self.build_student(create_backbone(backbone, **self.source))
        if teacher_network == "whole":
            other: Any = self.build_student(create_backbone(backbone, **self.source))
        else:
            other = Projector(self.student.embed_dim, **self.sizes)
        self.teacher = Teacher(other, init="independent")

    def build_student(self, backbone: Any) -> PositionNetwork:
        """The network around a backbone."""
        return PositionNetwork(backbone, row_dropout=self.row_dropout, **self.sizes)

    def default_optim(self) -> Optim:
        """AdamW with AMSGrad at 1e-4 (for 8 devices × 2 volumes), 5000 warm-up steps, half a cosine to 0."""
        return Optim(
            "adamw",
            lr=1e-4,
            weight_decay=0.01,
            options={"amsgrad": True},
            schedule="warmup_cosine",
            warmup_steps=5000,
            warmup_peak="next",
            warmup_ratio=0.0,
        )

    def default_callbacks(self) -> list[Callback]:
        """The teacher moves before each step, the first included, with constant momentum; watch and draw positions."""
        student = "student" if self.teacher_network == "whole" else "student.projector"
        teacher = EMATeacher(student=student, decay=self.momentum, schedule="constant", first_step=True)
        return [teacher, PositionPanel(), *default_monitors(self, CollapseMonitor())]

    # -- training ---------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``intra``, ``inter`` and ``separation``.

        Raises:
            MisconfigurationException: the batch holds no crops.
        """
        views = self.views(batch)
        return self.position_losses(batch, views, self.student.features(views))

    def views(self, batch: Batch) -> Tensor:
        """All random crops of a batch, volume by volume, and behind them all base crops ``[B (n + m), C, ...]``."""
        if "crops" not in batch:
            raise MisconfigurationException(
                f"{type(self).__name__} learns from crops of volumes and the batch has none: set data.views to "
                "{class_path: zoo.nn.VolumeCrops}"
            )
        return torch.cat((batch["crops"].flatten(0, 1), batch["base"].flatten(0, 1)))

    def position_losses(self, batch: Batch, views: Tensor, maps: list[Tensor]) -> dict[str, Tensor]:
        """The three terms, from the student's maps of ``views``."""
        embedding = self.student.embed(maps)
        crops, bases = self.by_volume(batch, self.student.project(embedding))
        crops_t, bases_t = self.by_volume(batch, self.teach(views, embedding))
        predicted = similarity(crops, bases_t)
        if self.logits == "mean":
            predicted = (predicted + similarity(crops_t, bases)) / 2
        label = overlap_labels(batch["crop_box"], batch["base_box"])
        terms = {"intra": self.intra_weight * position_loss(label, predicted, self.negatives).mean()}
        if self.inter_weight:
            wanted = similarity(crops_t, bases_t.roll(-1, 0))
            found = similarity(crops, bases.roll(-1, 0))
            terms["inter"] = self.inter_weight * position_loss(wanted, found, self.negatives).mean()
        if self.separation_weight:
            terms["separation"] = self.separation_weight * separation_loss(bases).mean()
        return terms

    def teach(self, views: Tensor, embedding: Tensor) -> Tensor:
        """The teacher's projections, of the views or of the student's embeddings, by what has a teacher."""
        # In training mode alone does SyncBatchNorm look at other devices; no norm here has running statistics.
        with self.teacher.using("train_no_dropout" if self.training else "eval"):
            return self.teacher(views if self.teacher_network == "whole" else embedding)

    @staticmethod
    def by_volume(batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of all views as those of crops ``[B, n, D]`` and of bases ``[B, m, D]``."""
        (B, n), m = batch["crops"].shape[:2], batch["base"].shape[1]
        return rows[: B * n].unflatten(0, (B, n)), rows[B * n :].unflatten(0, (B, m))

    # -- evaluation -------------------------------------------------------------------------------------

    def positions(self, batch: Batch) -> Tensor:
        """Predicted overlaps ``[B, n, m]`` of crops and bases, nothing dropped: the maps to compare with labels."""
        views = self.views(batch)
        embedding = self.student.embed(self.student.features(views))
        crops, _ = self.by_volume(batch, self.student.projector(embedding))
        _, bases = self.by_volume(batch, self.teach(views, embedding))
        return similarity(crops, bases)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare predicted with true positions; batches without crops are for probes."""
        if "crops" not in batch:
            return
        predicted = self.positions(batch)
        label = overlap_labels(batch["crop_box"], batch["base_box"])
        chosen = label.gather(-1, predicted.argmax(-1, keepdim=True))[..., 0]
        correct = (chosen == label.amax(-1)).float().mean()
        B = len(predicted)
        self.log("val/position_accuracy", 100.0 * correct, prog_bar=True, batch_size=B, sync_dist=True)
        loss = position_loss(label, predicted, self.negatives).mean()
        self.log("val/intra", loss, batch_size=B, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing is tested without probes; they read these batches."""

    def forward(self, volume: Tensor) -> Tensor:
        """The same as :meth:`features`."""
        return self.features(volume)

    def features(self, volume: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` of volumes ``[B, C, X, Y, Z]`` in [0, 1]."""
        return self.student.embed(self.student.features(volume))

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Features ``[B, D]`` of one batch."""
        kept = {key: value for key, value in batch.items() if key in ("index", "name")}
        return {"features": self.features(batch["volume"]), **kept}

    @torch.no_grad()
    def predict(self, volume: Volume, affine: np.ndarray | Tensor | None = None) -> Tensor:
        """Describe one volume: features ``[D]``; for the arguments see :meth:`prepared`."""
        training = self.student.training
        self.student.eval()
        features = self.features(self.prepared(volume, affine)[0])[0]
        self.student.train(training)
        return features


class VoCoCVPR(VoCo):
    """The conference version (CVPR 2024).

    Student and teacher are two whole networks that start independently; overlaps are predicted both ways and
    averaged, negatives are squared, nothing is dropped and volumes are not compared with one another. Bases there
    are 16 crops of 96³ resized to 64³ (``VolumeCrops(crop: [96, 96, 96], grid: [4, 4, 1], resize: [64, 64, 64],
    fit: resize, shift_probability: 0.1)``); its norms were synchronised over devices (``trainer.sync_batchnorm``).

    Args:
        **kwargs: see :class:`VoCo`; the presets are those of the release.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        projection_dim: int = 2048,
        row_dropout: float = 0.0,
        teacher_network: Literal["projector", "whole"] = "whole",
        logits: Literal["student", "mean"] = "mean",
        negatives: Negatives = "squared",
        inter_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hidden_dim=hidden_dim,
            projection_dim=projection_dim,
            row_dropout=row_dropout,
            teacher_network=teacher_network,
            logits=logits,
            negatives=negatives,
            inter_weight=inter_weight,
            **kwargs,
        )
