"""PseudoLabeler: predict → weight → mix → augment, before every training step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from zoo.method import TRAINING_PARTS, Batch, Method
from zoo.nn import ConfidenceShare, Prediction, weigh
from zoo.teacher import Mode, Teacher


class TeacherPrediction(nn.Module):
    """Logits of one of the method's teachers on the un-augmented unlabelled images.

    Args:
        teacher: attribute path of the teacher on the method.
        mode: run it in another mode than its own (``eval``, ``train_no_dropout``, ``train``).
    """

    def __init__(self, teacher: str = "teacher", mode: Mode | None = None) -> None:
        super().__init__()
        self.teacher, self.mode = teacher, mode

    def forward(self, method: Method, image: Tensor) -> Tensor:
        """Return logits ``[B, C, ...]`` for ``image``."""
        teacher = method.get_submodule(self.teacher)
        if not isinstance(teacher, Teacher):
            raise MisconfigurationException(f"TeacherPrediction(teacher={self.teacher!r}) is no Teacher")
        with teacher.using(self.mode or teacher.mode):
            return teacher(image)


class PseudoLabeler(Callback):
    """Write ``pseudo_label`` and ``pseudo_weight`` into the batch, and the mixed images made with them.

    The three parts are small modules and each can be replaced from YAML. Their state (FlexMatch and FreeMatch
    thresholds) is registered on the method, so it is in the checkpoint and follows the device.

    Args:
        predict: ``(method, image) -> logits``; default: the method's teacher, :class:`TeacherPrediction`.
        weight: ``(logits, index) -> weight``, see ``zoo.nn.weighting``; default: the confidence share of DACS.
        mix: ``(labelled, unlabelled) -> {image, label, weight}``, see ``zoo.nn.mixing``; ``None``: the batch gets
            no ``mixed``.
        augment: strong augmentation of the mixed images in [0, 1], or ``None``.
        labelled: key of the labelled part of the batch.
        unlabelled: key of the unlabelled part of the batch.
        start_step: before this optimiser step nothing is labelled (an untrained teacher knows nothing).
    """

    family = "pseudo_labeler"
    step_order = 20

    def __init__(
        self,
        predict: nn.Module | None = None,
        weight: nn.Module | None = None,
        mix: nn.Module | None = None,
        augment: nn.Module | None = None,
        labelled: str = "source",
        unlabelled: str = "target",
        start_step: int = 0,
    ) -> None:
        self.parts = nn.ModuleDict(
            {"predict": predict or TeacherPrediction(), "weight": weight or ConfidenceShare()}
        )
        if mix is not None:
            self.parts["mix"] = mix
        if augment is not None:
            self.parts["augment"] = augment
        self.labelled, self.unlabelled, self.start_step = labelled, unlabelled, start_step
        #: Whether ``confidence`` is kept beside the pseudo-labels; monitors ask for it in the steps they look at.
        self.keeps_confidence = False
        #: Classes of the last scores.
        self.num_classes = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hand the parts to the method: their buffers belong into its checkpoint and onto its device."""
        if stage == "fit":
            pl_module.add_module(TRAINING_PARTS, self.parts)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Label the batch in place: this very dict is what ``training_step`` receives."""
        assert isinstance(pl_module, Method)
        batch.update(self.label(pl_module, batch))

    def label(self, method: Method, batch: Batch) -> Batch:
        """Return a shallow copy of ``batch`` with pseudo-labels and mixed images; ``batch`` itself stays as it is.

        Public: look-ahead callbacks draw a fresh labelling per virtual step, and offline labelling uses the
        same code.

        Raises:
            MisconfigurationException: the batch lacks the labelled or unlabelled part.
        """
        missing = [key for key in (self.labelled, self.unlabelled) if key not in batch]
        if missing:
            raise MisconfigurationException(
                f"PseudoLabeler(labelled={self.labelled!r}, unlabelled={self.unlabelled!r}): the batch has no "
                f"{missing[0]!r}, only {sorted(batch)}. Use a datamodule that gives both, or set the two keys."
            )
        if method.global_step < self.start_step:
            return self.augment(dict(batch))
        with torch.no_grad():
            with method.forward_context():
                labelled = {**batch, self.unlabelled: self.annotate(method, batch)}
            if "mix" in self.parts:
                labelled["mixed"] = self.parts["mix"](batch[self.labelled], labelled[self.unlabelled])
            return self.augment(labelled)

    def annotate(self, method: Method, batch: Batch) -> Batch:
        """Return the unlabelled part with ``pseudo_label`` and ``pseudo_weight``."""
        part = batch[self.unlabelled]
        prediction = Prediction(self.scores(method, part))
        weight = weigh(self.parts["weight"], prediction, part.get("index"))
        self.num_classes = prediction.logits.shape[1]
        kept = {"confidence": prediction.confidence} if self.keeps_confidence else {}
        return {**part, "pseudo_label": prediction.label, "pseudo_weight": weight, **kept}

    def scores(self, method: Method, part: Batch) -> Tensor:
        """Return what labels and weights are made of: the logits of the unlabelled images."""
        return self.parts["predict"](method, part["image"]).float()

    def augment(self, batch: Batch) -> Batch:
        """Replace the mixed images of a fresh batch dict, where it has any, by augmented ones."""
        if "mixed" in batch and "augment" in self.parts:
            batch["mixed"]["image"] = self.parts["augment"](batch["mixed"]["image"])
        return batch
