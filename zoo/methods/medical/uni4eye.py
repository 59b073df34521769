"""Uni4Eye: one masked autoencoder for 2-D and 3-D ophthalmic images (Cai et al., MICCAI 2022, arXiv 2203.04614)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from callbacks import CollapseMonitor, default_monitors
from zoo.backbones.unified_vit import UnifiedViT
from zoo.draws import generator_at
from zoo.method import Batch
from zoo.methods.medical.unified import UnifiedMethod
from zoo.nn.entropy import patch_entropy
from zoo.nn.gradient_map import VolumeGradient, gradient_map
from zoo.nn.masked_prediction import filled_in
from zoo.nn.masking_clusters import masks_of_noise
from zoo.nn.unified_autoencoder import UnifiedAutoencoder, image_values, normalised_patches, patch_values
from zoo.optim import Optim
from zoo.registry import create_backbone


class Uni4Eye(UnifiedMethod):
    """Rebuild masked patches of images and volumes, and of their gradient maps, with one encoder.

    Batches hold images or volumes in [0, 1], never both: dimensions take turns
    (:class:`datamodules.TakingTurns`). Of every item ``int(L (1 - mask_ratio))`` patches are seen. Each decoder's
    loss is the squared error averaged within patches and over the masked ones: ``intensity`` against the input,
    ``gradient`` against its gradient map (:func:`zoo.nn.gradient_map.gradient_map`), which is never normalised.
    There is no teacher. Weights of one dimension get no gradient in the other's turn, so several processes need
    ``trainer.strategy: ddp_find_unused_parameters_true``, as the release has it.

    Choices where sources disagree or are silent: the mask ratio is that of the released two-decoder loop, 0.75 (the
    Uni4Eye++ loop has 0.5 fixed); positions are the paper's sine-cosine tables, while those of the release stay 0
    (``backbone_args: {positions: zero}``); gradients of volumes, which the release lacks, are taken slice by slice.

    Logs ``train/`` and ``val/`` ``intensity_2d``, ``gradient_2d``, ``intensity_3d``, ``gradient_3d`` and ``loss``, the
    mean over what was shown of both dimensions.

    Args:
        backbone: ``unified_vit_small``, ``unified_vit_base`` or ``unified_vit_large``.
        backbone_args: further arguments of :class:`zoo.backbones.UnifiedViT`: ``img_size``, ``volume_size``, ...
        pretrained: weights to start from; ``False``: none.
        decoder_dim: channels of the decoders.
        decoder_depth: blocks of each.
        decoder_heads: their attention heads.
        mask_ratio: share of patches that are masked.
        gradient_weight: weight of the gradient decoder; 0 leaves it out: a plain masked autoencoder.
        normalise_patches: intensity targets are patches with mean 0 and variance 1 (MAE); off as released.
        volume_gradient: ``slices`` across the middle axis, or over the ``volume``.
        entropy_guided: mask patches of high entropy more often (Uni4Eye++).
        dynamic_head: predicted patches of images are mixed by weights that depend on the image and on its data source
            (Uni4Eye++, :class:`zoo.nn.dynamic_head.DynamicHead`); batches then hold ``source``, int64 ``[B]``.
            ``released``: what it reads of the decoder's tokens, values above 0, is also all that the decoder's blocks
            see (a ReLU in place); ``plain``: they see the tokens as they are; ``none``.
        num_sources: how many data sources there are.
        background: what standardised volumes hold where nothing was recorded (0): ``noise`` from N(0, 1) as
            published, in training and validation; or ``zero``.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`; a released file will do.

    Raises:
        ValueError: an option out of range, or a backbone that is no unified ViT.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    student: UnifiedAutoencoder

    def __init__(
        self,
        backbone: str = "unified_vit_large",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        gradient_weight: float = 1.0,
        normalise_patches: bool = False,
        volume_gradient: VolumeGradient = "slices",
        entropy_guided: bool = False,
        dynamic_head: Literal["none", "released", "plain"] = "none",
        num_sources: int = 7,
        background: Literal["noise", "zero"] = "noise",
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("volume_gradient", volume_gradient, ("slices", "volume")),
            ("background", background, ("noise", "zero")),
            ("dynamic_head", dynamic_head, ("none", "released", "plain")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        if not 0.0 < mask_ratio < 1.0 or gradient_weight < 0 or num_sources < 1:
            raise ValueError(
                f"mask_ratio={mask_ratio} must be within (0, 1), gradient_weight={gradient_weight} not negative and "
                f"num_sources={num_sources} at least 1"
            )
        network = create_backbone(backbone, pretrained, **(backbone_args or {}))
        if not isinstance(network, UnifiedViT):
            raise ValueError(f"backbone={backbone!r} must be a unified ViT: unified_vit_base, ...")
        sources = 0 if dynamic_head == "none" else num_sources
        decoder = decoder_dim, decoder_depth, decoder_heads, gradient_weight > 0
        self.student = UnifiedAutoencoder(network, *decoder, sources, rectified=dynamic_head == "released")
        self.mask_ratio, self.gradient_weight = mask_ratio, gradient_weight
        self.normalise_patches, self.volume_gradient = normalise_patches, volume_gradient
        self.entropy_guided, self.background = entropy_guided, background

    def default_optim(self) -> Optim:
        """AdamW at 2.5e-4 for batches of 64 images (1e-3 for 256), 40 epochs of warm-up, half a cosine to 0.

        Epochs of the trainer are rounds here, an epoch of each dimension: 20 of warm-up.
        """
        return Optim(
            "adamw",
            lr=2.5e-4,
            weight_decay=0.05,
            options={"betas": [0.9, 0.95]},
            no_decay=["*.bias", "*norm*"],
            schedule="warmup_cosine",
            warmup_epochs=20,
            warmup_ratio=0.0,
        )

    def default_callbacks(self) -> list[Callback]:
        """Monitors."""
        return default_monitors(self, CollapseMonitor())

    def setup(self, stage: str) -> None:
        """Refuse ranks that would wait for the gradients of the dimension whose turn it is not."""
        super().setup(stage)
        if stage == "fit" and len(self.student.backbone.sizes) > 1:
            self.refuse_plain_ddp(
                "images and volumes take turns, and weights of one dimension have no gradient in the other's turn"
            )

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw masks and take the losses."""
        return super().training_step(self.masked(batch, self.place(batch_idx)), batch_idx)

    @torch.no_grad()
    def masked(self, batch: Batch, place: str = "0") -> Batch:
        """The batch with ``masks`` and, of volumes, ``background``: functions of the run's seed and ``place`` alone."""
        if "masks" in batch:
            return batch
        x = self.input_of(batch)
        generator = generator_at(place, x.device)
        tokens = math.prod(self.student.backbone.grid(*x.shape[2:]))
        noise = torch.rand(len(x), tokens, device=x.device, generator=generator)
        if self.entropy_guided:
            values = patch_values(x, self.student.backbone.patches[x.ndim - 2])
            noise = noise * patch_entropy(values, x.shape[1])
        count = tokens - int(tokens * (1 - self.mask_ratio))
        added: Batch = {"masks": masks_of_noise(noise, count)}
        if x.ndim == 5 and self.background == "noise" and self.student.backbone.standardise:
            added["background"] = torch.randn(x.shape, device=x.device, generator=generator)
        return {**batch, **added}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``intensity_2d`` and ``gradient_2d`` of images, ``intensity_3d`` and ``gradient_3d`` of volumes."""
        batch = self.masked(batch)
        masks, x = batch["masks"], self.network_input(batch)
        predicted, axes = self.student(x, masks, source=batch.get("source")), x.ndim - 2
        targets = self.targets(batch, x)
        weights = {"intensity": 1.0, "gradient": self.gradient_weight}
        return {
            f"{name}_{axes}d": weights[name] * F.mse_loss(values.float(), masks.gather(targets[name]))
            for name, values in predicted.items()
        }

    def network_input(self, batch: Batch) -> Tensor:
        """Images, or standardised volumes, with noise where nothing was recorded."""
        raw = self.input_of(batch)
        x = self.student.backbone.prepared(raw)
        return torch.where(raw > 0, x, batch["background"]) if "background" in batch else x

    def targets(self, batch: Batch, x: Tensor) -> dict[str, Tensor]:
        """What the decoders are to predict, values of every patch ``[B, N, values]``."""
        patch = self.student.backbone.patches[x.ndim - 2]
        values = patch_values(x, patch)
        found = {"intensity": normalised_patches(values) if self.normalise_patches else values}
        if self.student.gradient is not None:
            found["gradient"] = patch_values(gradient_map(self.input_of(batch), self.volume_gradient), patch)
        return found

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """What decoders make of masked patches, for pictures; masks are those of validation.

        Returns:
            ``original``, ``masked`` (nan where patches are) and ``reconstructed`` (predictions there), of inputs
            ``[B, C, *sides]``; with a gradient decoder also of their maps, ``gradient_original`` and so on.
        """
        batch = self.masked(batch, "pictures")
        x, masks = self.network_input(batch), batch["masks"]
        patch = self.student.backbone.patches[x.ndim - 2]
        shown: dict[str, Tensor] = {}
        predicted = self.student(x, masks, source=batch.get("source"))
        for name, values in predicted.items():
            whole = x if name == "intensity" else gradient_map(self.input_of(batch), self.volume_gradient)
            if name == "intensity" and self.normalise_patches:
                hidden = masks.gather(patch_values(x, patch))
                variance, mean = torch.var_mean(hidden, dim=-1, keepdim=True)
                values = values * (variance + 1e-6).sqrt() + mean
            rows = image_values(values.float().unflatten(0, (len(x), -1)), whole.shape[1])
            seen, rebuilt = filled_in(whole, rows, masks.mask, patch)
            prefix = "" if name == "intensity" else "gradient_"
            shown |= {f"{prefix}original": whole, f"{prefix}masked": seen, f"{prefix}reconstructed": rebuilt}
        return shown

    # -- evaluation -------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses with masks that are the same in every validation."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on test data."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        losses = self.losses(self.masked(batch, f"{self.global_rank}/{stage}/{batch_idx}"))
        values = {f"{stage}/{term}": loss for term, loss in losses.items()}
        values[f"{stage}/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(values, batch_size=len(self.input_of(batch)), sync_dist=True)

    def forward(self, x: Tensor) -> Tensor:
        """The same as :meth:`features`."""
        return self.features(x)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Features ``[B, D]`` of one batch."""
        kept = {key: value for key, value in batch.items() if key in ("index", "name")}
        return {"features": self.features(self.input_of(batch)), **kept}
