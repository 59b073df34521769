"""Fine-tuning HiCMAE on emotions, as classes or as numbers (Sun et al., Information Fusion 2024, section 3.4)."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from zoo.backbones.audio_visual import create_audio_visual
from zoo.method import Batch
from zoo.methods.audio.base import named
from zoo.methods.audio_visual.base import AudioVisualMethod
from zoo.methods.audio_visual.scores import class_scores, value_scores
from zoo.nn.audio_visual import AudioVisualClassifierNetwork, Modalities
from zoo.nn.deployed import OfVideoAndSound
from zoo.optim import Optim


class HiCMAEClassifier(AudioVisualMethod):
    """Supervised training on features of all levels, from scratch or from a pre-training run (``init_from``).

    Everything is seen, nothing masked. Labels are class indices ``[B]`` or shares ``[B, C]`` of mixed clips, trained by
    cross-entropy with smoothed labels; with ``task: regression`` numbers ``[B, K]``, by the squared error. Mixing is
    the datamodule's :class:`zoo.nn.VideoAugment`, which as released leaves the sound unmixed.

    Of a test clip all views count: the mean of their softmaxes, or of their numbers. Logs ``val/UAR`` (mean recall of
    the classes), ``val/WAR`` (accuracy) and ``val/F1`` (weighted), in percent, or ``val/CCC`` and ``val/PCC``, times
    100, their means over the numbers and, below ``val/CCC/<name>``, each. The mean over folds that
    ``zoo fit --folds`` reports is not the score of the pooled folds that is published as total.

    Args:
        backbone: ``hicmae_tiny``, ``hicmae_small`` or ``hicmae_base``.
        num_classes: C, or K numbers; must be the benchmark's.
        backbone_args: further arguments of :class:`zoo.backbones.audio_visual.AudioVisualEncoder`.
        pretrained: weights of the encoders: ``False``, or a source such as the released file.
        task: ``classification`` or ``regression``.
        modalities: ``both``; or ``video`` or ``audio`` alone, without fusion.
        label_smoothing: share of the label that is spread over all classes.
        selected_by: metric by which checkpoints are kept: ``WAR``, ``UAR`` or ``F1``; in regression always ``CCC``.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`; a released file will do.

    Raises:
        ValueError: an option out of range.
    """

    student: AudioVisualClassifierNetwork

    def __init__(
        self,
        backbone: str = "hicmae_base",
        num_classes: int = 6,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        task: Literal["classification", "regression"] = "classification",
        modalities: Modalities = "both",
        label_smoothing: float = 0.1,
        selected_by: Literal["WAR", "UAR", "F1"] = "WAR",
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("task", task, ("classification", "regression")),
            ("selected_by", selected_by, ("WAR", "UAR", "F1")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        encoder = create_audio_visual(
            backbone, pretrained, **{"drop_path_rate": 0.1, **(backbone_args or {})}
        )
        self.student = AudioVisualClassifierNetwork(encoder, num_classes, modalities)
        self.num_classes, self.task, self.label_smoothing = num_classes, task, label_smoothing
        regression = task == "regression"
        self.scores = value_scores(num_classes) if regression else class_scores(num_classes)
        self.monitor = f"val/{'CCC' if regression else selected_by}"

    def default_optim(self) -> Optim:
        """AdamW at 1e-3 times batch / 256, here for batches of 56, with layer-wise rates."""
        return Optim(
            "adamw",
            lr=2.1875e-4,
            weight_decay=0.05,
            options={"betas": [0.9, 0.999]},
            no_decay=["*bias", "*norm*", "*layer_weights"],
            layer_decay=0.75,
            schedule="warmup_cosine",
            final_lr=2.1875e-7,
            warmup_epochs=5,
        )

    def setup(self, stage: str) -> None:
        """Check number and kind of the outputs against the benchmark's."""
        super().setup(stage)
        benchmark: Any = getattr(self.trainer, "datamodule", None)
        values, classes = (getattr(benchmark, name, 0) for name in ("num_values", "num_classes"))
        if wanted := values or classes:
            task = "regression" if values else "classification"
            if (wanted, task) != (self.num_classes, self.task):
                raise MisconfigurationException(
                    f"num_classes={self.num_classes} and task={self.task!r}, but {type(benchmark).__name__} is a "
                    f"{task} of {wanted}: set model.num_classes and model.task to these"
                )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """One term, ``classification`` or ``regression``."""
        outputs, label = self.student(*self.inputs(batch)).float(), batch["label"]
        if self.task == "regression":
            return {"regression": F.mse_loss(outputs, label)}
        return {"classification": F.cross_entropy(outputs, label, label_smoothing=self.label_smoothing)}

    # -- evaluation -------------------------------------------------------------------------------------

    def deployed(self, network: nn.Module) -> nn.Module:
        """Logits, or numbers, of videos and spectrograms."""
        return OfVideoAndSound(network, ("logits",) if self.task == "classification" else ("values",))

    def forward(self, video: Tensor, spectrogram: Tensor) -> Tensor:  # type: ignore[override]
        """Scores ``[B, C]`` in [0, 1], or numbers ``[B, K]``."""
        outputs = self.student(video, spectrogram).float()
        return outputs.softmax(1) if self.task == "classification" else outputs

    def features(self, video: Tensor, spectrogram: Tensor) -> Tensor:  # type: ignore[override]
        """What the head is given, ``[B, 4 D]``, or ``[B, 2 D]`` of one modality."""
        return self.student.features(video, spectrogram)

    def answers(self, batch: Batch) -> Tensor:
        """:meth:`forward` of the clips of a batch, the mean over their views."""
        answers = self(*self.inputs(batch))
        return answers.unflatten(0, (len(batch["index"]), -1)).mean(1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect scores."""
        self.scores.update(self.answers(batch), batch["label"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect scores."""
        self.scores.update(self.answers(batch), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        values = {name: 100 * value for name, value in self.scores.compute().items()}
        self.scores.reset()
        names = self.benchmark.get("classes") or [str(number) for number in range(self.num_classes)]
        for name, value in list(values.items()):
            if value.ndim:
                values[name] = value.mean()
                values |= {f"{name}/{each}": one for each, one in zip(names, value, strict=True)}
        # Ranks hold equal values, the metrics have synchronised them; sync_dist only says so to Lightning.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Scores ``[B, C]`` and the class of the highest ``[B]``, or numbers ``[B, K]``, of one batch."""
        answers = self.answers(batch)
        if self.task == "regression":
            return {"values": answers, **named(batch)}
        return {"scores": answers, "label": answers.argmax(1), **named(batch)}
