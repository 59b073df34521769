"""How good pseudo-labels are: coverage, confidence, classes and, where the truth is known, accuracy and calibration."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.monitor import Monitor, over_ranks
from callbacks.pseudo_label import PseudoLabeler
from zoo.method import Batch, Method, trainer_callbacks
from zoo.nn.calibration import calibration_error, calibration_sums, counts

BINS = 15


class PseudoLabelMonitor(Monitor):
    """Watches what the :class:`PseudoLabeler` of a run says, on the steps that the logger writes.

    Logs ``pseudo/coverage`` (mean weight: the share that is trained on), ``pseudo/confidence`` (mean largest
    probability) and ``pseudo/share_<class>`` (of all labels). Benchmarks that know the labels of their unlabelled
    training images keep them aside (``BenchmarkDataModule.truth``), where neither losses nor pseudo-labellers see them;
    then also ``pseudo/accuracy`` (of all labels), ``pseudo/accuracy_trusted`` (weighted as training weights them) and
    ``pseudo/calibration_error``. Of the batch of the step, of all ranks; the rest of a look-ahead is not watched.

    Warns when one class takes nearly all labels in three looks running.

    Args:
        max_share: share of one class from which it takes nearly all labels.
        patience: looks in a row before it warns.

    Raises:
        ValueError: an argument is out of range.
    """

    family = "pseudo_labels"
    step_order = 15  # behind teachers and their look-aheads, before the labeller

    def __init__(self, max_share: float = 0.99, patience: int = 3) -> None:
        if not 0 < max_share <= 1 or patience < 1:
            raise ValueError(
                f"max_share must be within (0, 1] and patience at least 1, got {max_share}, {patience}."
            )
        self.max_share, self.patience = max_share, patience
        self._alike = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ask the labeller to keep its confidence, in steps that are looked at."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        assert isinstance(pl_module, Method)
        for labeler in self._labelers(trainer):
            labeler.keeps_confidence = pl_module.writes_logs()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, and let labellers keep nothing further."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        for labeler in self._labelers(trainer):
            labeler.keeps_confidence = False

    def look(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Measure the labels of this batch, if there are any yet."""
        for labeler in self._labelers(trainer):
            part = batch[labeler.unlabelled]
            if "confidence" in part:
                truth = getattr(getattr(trainer, "datamodule", None), "truth", None)
                sums = label_sums(part, labeler.num_classes, truth)
                self._log(trainer, method, over_ranks(trainer, sums), labeler.num_classes)

    def _labelers(self, trainer: L.Trainer) -> list[PseudoLabeler]:
        return [c for c in trainer_callbacks(trainer) if isinstance(c, PseudoLabeler)]

    def _log(self, trainer: L.Trainer, method: Method, sums: Tensor, classes: int) -> None:
        (number, weight, confidence), of_class, known = sums[:3], sums[3 : 3 + classes], sums[3 + classes :]
        names, counted = class_names(trainer, method, classes)
        share = of_class / number
        values = {"pseudo/coverage": weight / number, "pseudo/confidence": confidence / number}
        values |= {f"pseudo/share_{names[c]}": share[c] for c in counted}
        if len(known):
            valid, correct, trusted, trusted_correct = known[:4]
            values["pseudo/accuracy"] = correct / valid
            values["pseudo/accuracy_trusted"] = trusted_correct / trusted
            values["pseudo/calibration_error"] = calibration_error(known[4:].view(3, BINS))
        method.log_dict(values)
        self._warn(trainer.global_step, share, names)

    def _warn(self, step: int, share: Tensor, names: list[str]) -> None:
        largest = share.max(0)
        self._alike = self._alike + 1 if float(largest.values) >= self.max_share else 0
        if self._alike == self.patience:
            rank_zero_warn(
                f"Step {step}: {100 * float(largest.values):.1f} % of the pseudo-labels are "
                f"{names[int(largest.indices)]!r}, in {self.patience} looks running. "
                "The teacher has collapsed onto one class, and training on its labels makes that worse: look at the "
                "supervised loss, start labelling later (start_step of the labeller, mix_start of the method), or "
                "raise the threshold."
            )


def label_sums(part: Batch, classes: int, truth: Tensor | None) -> Tensor:
    """Everything that is counted, as one vector whose sum over ranks is that of their batches.

    Returns:
        Number, weight, confidence, numbers of the classes and, with a truth of the labels' shape, its valid number,
        correct ones, weight, correct weight and :func:`~zoo.nn.calibration.calibration_sums`; float32.
    """
    label, weight, confidence = (
        part["pseudo_label"],
        part["pseudo_weight"].float(),
        part["confidence"].float(),
    )
    weight = weight.expand_as(confidence)
    number = torch.full((), float(label.numel()), device=label.device)
    sums = [torch.stack([number, weight.sum(), confidence.sum()]), counts(label, classes)]
    if truth is not None and truth.shape == label.shape:
        valid = (truth >= 0) & (truth < classes)
        correct = (truth == label) & valid
        weighed = torch.stack([valid.sum(), correct.sum(), (weight * valid).sum(), (weight * correct).sum()])
        sums += [weighed.float(), calibration_sums(confidence, correct, valid, BINS).flatten()]
    return torch.cat(sums)


def class_names(trainer: L.Trainer, method: Method, classes: int) -> tuple[list[str], list[int]]:
    """Names of the classes, and those whose share is logged: the ones that the benchmark evaluates."""
    benchmark: Any = getattr(trainer, "datamodule", None)
    names = list(getattr(benchmark, "classes", ()))
    if len(names) != classes:
        names = [str(c) for c in range(classes)]
    counted = getattr(benchmark, "eval_classes", range(classes))
    return names, [c for c in counted if c < classes]
