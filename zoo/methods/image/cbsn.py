"""C-BSN: denoising with a conditional blind-spot network (Jang et al., ICCV 2023, arXiv 2304.09507)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from callbacks import WriteImages, default_monitors
from zoo.draws import generator_at
from zoo.method import Batch, Method
from zoo.nn.blind_spot import batch_to_space, draw_cells, normalised, space_to_batch, subsample
from zoo.nn.denoiser import BlindSpotNetwork, Denoiser
from zoo.optim import Optim
from zoo.pictures import Picture, prepared
from zoo.registry import create_backbone


class CBSN(Method):
    """One network with a blind and an open mode; the blind one learns from phases and teaches the open one.

    With x a noisy crop, normalised by its own mean and deviation, f_b and f_o the two modes of the same weights, S the
    ``blind_stride**2`` phases of an image (far enough apart that their noise is independent) and R a random pixel of
    each 2 x 2 cell, the same one in both places::

        blind      = mean |S^-1 f_b(S x) - x|
        self       = r(t) mean |f_o(x) - x|
        invariance = r(t) lambda mean |R f_o(x) - stop_gradient(f_b(R x))|

    r(t) rises linearly from 0 to 1 in ``ramp_steps`` optimiser steps. What denoises is the open mode on the whole
    image, which has its centre pixels back. There is no teacher; clean images are read in evaluation only.

    Logs ``val/psnr`` (dB) and ``val/ssim`` of images rounded to 8 bits, ``val/noisy_psnr`` of the input, likewise
    ``test/...``; where a benchmark has no clean images, ``val/blind``. No checkpoint is chosen by clean images: the
    last one counts.

    Args:
        backbone: a backbone with a blind mode (``has_blind_mode``): ``blind_spot``.
        backbone_args: its further arguments, ``width`` and ``modules``.
        pretrained: weights to start from; ``False``: none, as published.
        blind_stride: distance of the pixels that the blind mode sees in training; 1 is a plain blind spot, right for
            noise without correlation.
        subsample_stride: side of the cells of R.
        invariance: lambda.
        ramp_steps: optimiser steps until r(t) is 1.
        blind_only: train the blind mode alone, and denoise with it: the baseline.
        padding: mirrored pixels around an image that is denoised; fewer where an image is smaller.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Raises:
        ValueError: an option out of range, or a backbone that has no blind mode.
    """

    student: BlindSpotNetwork

    def __init__(
        self,
        backbone: str = "blind_spot",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        blind_stride: int = 5,
        subsample_stride: int = 2,
        invariance: float = 2.0,
        ramp_steps: int = 200_000,
        blind_only: bool = False,
        padding: int = 32,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, least in (
            *(("blind_stride", blind_stride, 1), ("subsample_stride", subsample_stride, 1)),
            *(("invariance", invariance, 0), ("ramp_steps", ramp_steps, 1), ("padding", padding, 0)),
        ):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}")
        network = create_backbone(backbone, pretrained, **(backbone_args or {}))
        if not getattr(network, "has_blind_mode", False):
            raise ValueError(f"backbone={backbone!r} has no blind mode: take blind_spot")
        self.student = BlindSpotNetwork(network)
        self.blind_stride, self.subsample_stride = blind_stride, subsample_stride
        self.invariance, self.ramp_steps = invariance, ramp_steps
        self.blind_only, self.padding = blind_only, padding

    def default_optim(self) -> Optim:
        """Adam at 1e-4 for batches of 4, halved every 100,000 steps of 500,000."""
        return Optim(
            *("adam", 1e-4, 0.0),
            schedule="drops",
            drop_in="steps",
            drop_start=100_000,
            drop_every=100_000,
        )

    def default_callbacks(self) -> list[Callback]:
        """Files of denoised images in prediction, and monitors."""
        return [WriteImages(), *default_monitors(self)]

    def setup(self, stage: str) -> None:
        """Check that crops have whole phases and cells."""
        super().setup(stage)
        crop = getattr(getattr(self.trainer, "datamodule", None), "crop", None)
        strides = (self.blind_stride, 1 if self.blind_only else self.subsample_stride)
        if stage == "fit" and isinstance(crop, int) and any(crop % stride for stride in strides):
            raise MisconfigurationException(
                f"data.crop={crop} must be a multiple of model.blind_stride={strides[0]} and "
                f"model.subsample_stride={strides[1]}"
            )

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw the sub-sampler's pixels, then take the losses."""
        return super().training_step(self.prepared(batch, batch_idx), batch_idx)

    def prepared(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """The batch with ``cells``; they depend on seed, rank, step and micro-batch alone."""
        if "cells" in batch or self.blind_only:
            return batch
        image = batch["image"]
        generator = generator_at(self.place(batch_idx), image.device)
        return {**batch, "cells": draw_cells(image, self.subsample_stride, generator)}

    def ramp(self) -> float:
        """r(t) at this optimiser step."""
        return min(self.global_step / self.ramp_steps, 1.0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``blind``, ``self`` and ``invariance``, as the class says."""
        image = normalised(batch["image"])
        losses = {"blind": self.blind_loss(image)}
        if self.blind_only:
            return losses
        cells, stride, ramp = self.prepared(batch)["cells"], self.subsample_stride, self.ramp()
        opened = self.student(image)
        with torch.no_grad():
            guide = self.student(subsample(image, cells, stride), blind=True)
        losses["self"] = ramp * l1_loss(opened, image)
        losses["invariance"] = ramp * self.invariance * l1_loss(subsample(opened, cells, stride), guide)
        return losses

    def blind_loss(self, image: Tensor) -> Tensor:
        """Mean absolute error of the blind mode on the phases of normalised images."""
        phases = space_to_batch(image, self.blind_stride)
        return l1_loss(batch_to_space(self.student(phases, blind=True), self.blind_stride), image)

    # -- evaluation -------------------------------------------------------------------------------------

    def deployed(self, network: nn.Module) -> nn.Module:
        """Denoised images of noisy ones, both in [0, 1]."""
        return Denoiser(network, self.blind_only, self.padding)

    def deployed_backbone(self, network: Any) -> nn.Module:
        """The trunk's map of images in [0, 1]."""
        return Denoiser(network.backbone, self.blind_only, self.padding, restores=False)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] without their noise."""
        return self.deployed(self.student)(image)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare one batch with its clean images; the blind loss where there are none."""
        if "clean" in batch:
            self._evaluate(batch, "val")
            return
        H, W = (side - side % self.blind_stride for side in batch["image"].shape[-2:])
        loss = self.blind_loss(normalised(batch["image"][..., :H, :W]))
        self.log("val/blind", loss, batch_size=len(batch["image"]), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Compare one batch with its clean images; returns ``scores``: each image's ``psnr`` and ``ssim``."""
        return {"scores": self._evaluate(batch, "test")}

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        clean = batch["clean"].float()
        denoised = (255 * self(batch["image"]).float()).round() / 255
        scores = {
            "psnr": psnr(denoised, clean),
            "ssim": torch.as_tensor(
                structural_similarity_index_measure(denoised, clean, data_range=1.0, reduction="none")
            ).view(-1),
        }
        means = {f"{stage}/{name}": values.mean() for name, values in scores.items()}
        means[f"{stage}/noisy_psnr"] = psnr(batch["image"].float(), clean).mean()
        self.log_dict(means, batch_size=len(clean), sync_dist=True, prog_bar=stage == "val")
        return scores

    # -- prediction -------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Denoised ``image`` ``[B, 3, H, W]`` of one batch."""
        kept = {key: value for key, value in batch.items() if key in ("index", "name")}
        return {"image": self(batch["image"]), **kept}

    @torch.no_grad()
    def predict(self, image: Picture) -> Tensor:
        """Denoise one image.

        Args:
            image: PIL image; array ``[H, W, 3]`` or tensor ``[3, H, W]``, uint8 or float in [0, 1].

        Returns:
            ``[3, H, W]``, float in [0, 1]; ``(255 * x).byte()`` truncates it to 8 bits as released.
        """
        return self(prepared(image, self.preprocessing, self.device))[0]


def psnr(image: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every image ``[B]`` in dB, for images in [0, 1]."""
    return peak_signal_noise_ratio(image, clean, data_range=1.0, reduction="none", dim=(1, 2, 3))
