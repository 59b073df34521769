"""Fine-tuning a spectrogram transformer on audio and speech classification (SSAST section 3, AST)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from zoo.method import Batch
from zoo.methods.audio.base import AudioMethod, as_image, named
from zoo.methods.audio.scores import ClipScores
from zoo.nn.audio_augment import multi_hot
from zoo.nn.deployed import OfSpectrograms
from zoo.optim import Optim
from zoo.registry import create_backbone

Pooling = Literal["patches", "cls", "layers"]


class AudioClassifierNetwork(nn.Module):
    """A token backbone and a classification head.

    ``patches`` and ``cls`` have ``LayerNorm - Linear`` (eps 1e-5) on the mean of the patch tokens, or on the
    mean of class and distillation token, after the final norm. ``layers`` is SUPERB's head: a learned,
    softmax-weighted sum of all block outputs, ``Linear`` to ``hidden``, mean over all tokens, ``Linear``.

    Args:
        backbone: a :class:`zoo.backbones.AST`; or any :class:`zoo.nn.TokenBackbone`, but for ``layers``.
        num_classes: C.
        pooling: as above.
        hidden: width of SUPERB's head.

    Raises:
        ValueError: ``layers`` with a backbone that does not give them.
    """

    def __init__(
        self, backbone: Any, num_classes: int, pooling: Pooling = "patches", hidden: int = 256
    ) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.num_blocks: int = backbone.num_blocks
        if pooling == "layers":
            if not hasattr(backbone, "forward_blocks"):
                raise ValueError(
                    f"pooling='layers' needs a backbone with forward_blocks, {type(backbone).__name__} has none: "
                    "take an AST"
                )
            self.layer_weight = nn.Parameter(torch.zeros(self.num_blocks))
            self.projection = nn.Linear(backbone.embed_dim, hidden)
            self.head: nn.Module = nn.Linear(hidden, num_classes)
        else:
            self.head = nn.Sequential(
                nn.LayerNorm(backbone.embed_dim), nn.Linear(backbone.embed_dim, num_classes)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, C]`` of spectrograms ``[B, 1, mels, T]``."""
        if self.pooling == "layers":
            weight = self.layer_weight.softmax(0)
            mixed = sum(w * x for w, x in zip(weight, self.backbone.forward_blocks(image), strict=True))
            return self.head(self.projection(mixed).mean(1))
        tokens = self.backbone.forward_tokens(image)
        return self.head(tokens.cls if self.pooling == "cls" else tokens.patches.mean(1))

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; what is not in it comes after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


class AudioClassifier(AudioMethod):
    """Supervised training of a spectrogram transformer, from scratch or from a pre-training run (``init_from``).

    Labels are class indices ``[B]`` or multi-hot ``[B, C]``, fractions of mixed clips included (mixup and
    SpecAugment are the datamodule's :class:`zoo.nn.AudioFeatures`). With ``cross_entropy`` fractions are taken
    as they are; the released recipes cut them to integers there, and use mixup with ``bce`` alone. Weight
    averages over epochs, as AudioSet is reported: :class:`callbacks.EpochAverage`. Layer-wise rates:
    ``optim.layer_decay``.

    Logs ``val/accuracy``, ``val/mAP``, ``val/EER`` (percent) and ``val/dprime``, likewise ``test/...``; scores
    are sigmoid (``bce``) or softmax outputs.

    Args:
        backbone: ``ast_tiny``, ``ast_small``, ``ast_base`` or ``ast_base_nokd``.
        num_classes: C; must be the benchmark's.
        backbone_args: further arguments of :class:`zoo.backbones.AST`; published are ``frames`` as the features
            have, and ``stride: [10, 10]`` for patch-shaped, ``patch: [128, 2]``, ``stride: [128, 1]`` for
            frame-shaped tokens.
        pretrained: weights of the backbone: ``False``, or a source such as
            ``timm:deit_base_distilled_patch16_384.fb_in1k`` or a released file.
        pooling: what is classified: the mean of ``patches`` (as released), ``cls``, or all ``layers`` (SUPERB).
        loss: ``cross_entropy`` (one class per clip) or ``bce`` (several; or one, with mixup).
        selected_by: metric by which checkpoints are kept, ``accuracy`` or ``mAP``.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`; positions are cut or interpolated to this network's grid.

    Raises:
        ValueError: an option out of range.
    """

    monitor = "val/accuracy"
    student: AudioClassifierNetwork

    def __init__(
        self,
        backbone: str = "ast_base",
        num_classes: int = 527,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        pooling: Pooling = "patches",
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        selected_by: Literal["accuracy", "mAP"] = "accuracy",
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("pooling", pooling, ("patches", "cls", "layers")),
            ("loss", loss, ("cross_entropy", "bce")),
            ("selected_by", selected_by, ("accuracy", "mAP")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        network = create_backbone(backbone, pretrained, in_chans=1, **(backbone_args or {}))
        self.student = AudioClassifierNetwork(network, num_classes, pooling)
        self.num_classes, self.loss = num_classes, loss
        self.monitor = f"val/{selected_by}"
        self.scores = ClipScores()

    def default_optim(self) -> Optim:
        """Adam at 1e-4, times 0.85 after six epochs and after each further one (ESC-50)."""
        return Optim(
            "adam",
            lr=1e-4,
            weight_decay=5e-7,
            options={"betas": [0.95, 0.999]},
            schedule="drops",
            drop_start=6,
            drop_every=1,
            drop_factor=0.85,
        )

    def setup(self, stage: str) -> None:
        """Check the number of classes against the benchmark's."""
        super().setup(stage)
        benchmark = getattr(self.trainer, "datamodule", None)
        classes = getattr(benchmark, "num_classes", 0)
        if classes and classes != self.num_classes:
            raise MisconfigurationException(
                f"num_classes={self.num_classes}, but {type(benchmark).__name__} has {classes} classes: set "
                f"model.num_classes to {classes}"
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """One term, ``classification``."""
        logits, label = self.student(self.image(batch)), batch["label"]
        if self.loss == "bce":
            return {"classification": F.binary_cross_entropy_with_logits(logits, self._multi_hot(label))}
        return {"classification": F.cross_entropy(logits, label)}

    def _multi_hot(self, label: Tensor) -> Tensor:
        return label if label.is_floating_point() else multi_hot(label, self.num_classes)

    # -- evaluation -------------------------------------------------------------------------------------

    def deployed(self, network: nn.Module) -> nn.Module:
        """Logits of spectrograms."""
        return OfSpectrograms(network, ("logits",))

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Scores ``[B, C]`` in [0, 1] of spectrograms ``[B, T, mels]``."""
        logits = self.student(as_image(spectrogram)).float()
        return logits.sigmoid() if self.loss == "bce" else logits.softmax(1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the scores of one batch."""
        self.scores.update(self(batch["spectrogram"]), self._multi_hot(batch["label"]))

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Collect the scores of one batch; returns ``scores``: 100 where the highest is right, else 0."""
        scores, label = self(batch["spectrogram"]), self._multi_hot(batch["label"])
        self.scores.update(scores, label)
        return {"scores": {"accuracy": 100.0 * (scores.argmax(1) == label.int().argmax(1))}}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        result = self.scores.compute()
        self.scores.reset()
        # Ranks hold equal values, the metric has synchronised them; sync_dist only says so to Lightning.
        self.log_dict({f"{stage}/{name}": value for name, value in result.items()}, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Scores ``[B, C]`` and the class of the highest ``[B]`` of one batch."""
        scores = self(batch["spectrogram"])
        return {"scores": scores, "label": scores.argmax(1), **named(batch)}
