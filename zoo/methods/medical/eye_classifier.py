"""Classification of images or of volumes with a unified transformer: fine-tuning of Uni4Eye, or from scratch."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassCohenKappa

from callbacks import default_monitors
from zoo.backbones.unified_vit import UnifiedViT
from zoo.method import Batch
from zoo.methods.medical.unified import UnifiedMethod
from zoo.optim import Optim
from zoo.registry import create_backbone

Pooling = Literal["cls", "patches"]


class UnifiedClassifier(nn.Module):
    """Encoder without masking, and one linear layer.

    Args:
        backbone: a :class:`zoo.backbones.UnifiedViT`.
        num_classes: C.
        pooling: what the layer sees: the class token, or the mean of the patch tokens.
    """

    def __init__(self, backbone: Any, num_classes: int, pooling: Pooling = "cls") -> None:
        super().__init__()
        self.backbone, self.pooling, self.num_blocks = backbone, pooling, backbone.num_blocks
        self.classifier = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, C]`` of images or volumes in [0, 1]."""
        tokens = self.backbone.forward_tokens(x)
        return self.classifier(tokens.cls if self.pooling == "cls" else tokens.patches.mean(1))

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; the classifier comes after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


class EyeClassifier(UnifiedMethod):
    """The downstream recipe of Uni4Eye: a linear layer on the class token, cross-entropy, all weights trained.

    Batches hold ``image`` or ``volume``, all of one dimension, and ``label``, int64 ``[B]``. The other dimension's
    embedding is not built: say in ``backbone_args`` which one it is (``volume_size: null``, or ``img_size: null``).

    Logs ``val/accuracy``, ``val/auc`` (one class against the rest, mean over classes) and ``val/kappa``, in percent,
    likewise ``test/...``. The released fine-tuning was not to be had: the optimiser's settings are ours.

    Args:
        backbone: ``unified_vit_small``, ``unified_vit_base`` or ``unified_vit_large``.
        num_classes: C; must be the benchmark's.
        backbone_args: further arguments of :class:`zoo.backbones.UnifiedViT`.
        pretrained: start the backbone from a source of weights, see :func:`zoo.checkpoints.load_pretrained`; that
            of a run of Uni4Eye goes into ``init_from``.
        pooling: ``cls``, or the mean of the ``patches``.
        kappa: weights of Cohen's kappa: ``quadratic``, as grades of retinopathy are judged, ``linear`` or ``none``.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Raises:
        ValueError: an option out of range, both dimensions, or a backbone that is no unified ViT.
    """

    monitor = "val/accuracy"
    student: UnifiedClassifier

    def __init__(
        self,
        backbone: str = "unified_vit_large",
        num_classes: int = 2,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        pooling: Pooling = "cls",
        kappa: Literal["quadratic", "linear", "none"] = "quadratic",
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("pooling", pooling, ("cls", "patches")),
            ("kappa", kappa, ("quadratic", "linear", "none")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        network = create_backbone(backbone, pretrained, **(backbone_args or {}))
        if not isinstance(network, UnifiedViT) or len(network.sizes) != 1:
            raise ValueError(
                f"backbone={backbone!r} must be a unified ViT of one dimension: set backbone_args to "
                "{volume_size: null} for images, or {img_size: null} for volumes"
            )
        self.student = UnifiedClassifier(network, num_classes, pooling)
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "auc": MulticlassAUROC(num_classes, thresholds=None),
                "kappa": MulticlassCohenKappa(num_classes, weights=None if kappa == "none" else kappa),
            },
            compute_groups=False,
        )
        self.metrics = nn.ModuleDict({"val_": metrics.clone("val/"), "test_": metrics.clone("test/")})

    def default_optim(self) -> Optim:
        """AdamW at 1e-4, 5 warm-up epochs, half a cosine to 0."""
        return Optim(
            "adamw",
            lr=1e-4,
            weight_decay=0.05,
            no_decay=["*.bias", "*norm*"],
            schedule="warmup_cosine",
            warmup_epochs=5,
            warmup_ratio=0.0,
        )

    def default_callbacks(self) -> list[Callback]:
        """Monitors."""
        return default_monitors(self)

    def setup(self, stage: str) -> None:
        """Check the classes against the benchmark's."""
        super().setup(stage)
        wanted = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        have = self.student.classifier.out_features
        if wanted is not None and wanted != have:
            raise MisconfigurationException(
                f"model.num_classes={have}, but the benchmark has {wanted} classes: set model.num_classes to {wanted}"
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """One term, ``cross_entropy``."""
        return {"cross_entropy": F.cross_entropy(self(self.input_of(batch)).float(), batch["label"])}

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, C]`` of images ``[B, 3, H, W]`` or volumes ``[B, 1, X, Y, Z]`` in [0, 1]."""
        return self.student(x)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Logits."""
        return network

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self.count("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Count one batch; returns ``scores``: 100 for every item that is right, else 0."""
        logits = self.count("test", batch)
        return {"scores": {"accuracy": 100.0 * (logits.argmax(1) == batch["label"])}}

    def count(self, stage: str, batch: Batch) -> Tensor:
        """Take logits into the metrics of a stage; returns them."""
        logits = self(self.input_of(batch)).float()
        metrics: Any = self.metrics[f"{stage}_"]
        metrics.update(logits.softmax(1), batch["label"])
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        metrics: Any = self.metrics[f"{stage}_"]
        # Ranks hold equal values, the metrics have synchronised them; sync_dist only says so to Lightning.
        values = {name: 100.0 * value for name, value in metrics.compute().items()}
        self.log_dict(values, prog_bar=True, sync_dist=True)
        metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Class (int64) and its probability ``[B]`` of one batch."""
        confidence, label = self(self.input_of(batch)).float().softmax(1).max(1)
        kept = {key: value for key, value in batch.items() if key in ("name", "index")}
        return {"label": label, "confidence": confidence, **kept}
