"""SSAST: self-supervised audio spectrogram transformer (Gong et al., AAAI 2022, arXiv 2110.09784)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import CollapseMonitor, ReconstructionPanel, ReduceOnPlateau
from zoo.draws import generator_at
from zoo.method import Batch
from zoo.methods.audio.base import AudioMethod
from zoo.nn.masked_prediction import (
    Axis,
    filled_in,
    match_scores,
    matching_accuracy,
    matching_loss,
    patches_of,
)
from zoo.nn.masking import Masks
from zoo.nn.masking_clusters import ClusterMasking, UniformMasking
from zoo.optim import Optim
from zoo.registry import create_backbone

Task = Literal["joint", "discriminative", "generative"]
TERMS = {
    "joint": ("discriminative", "generative"),
    "discriminative": ("discriminative",),
    "generative": ("generative",),
}


class SSASTNetwork(nn.Module):
    """Backbone with a mask token, and the two prediction heads (card, section 3.3).

    Args:
        backbone: a :class:`zoo.backbones.AST` with a mask token and patches that do not overlap.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        rows, columns = backbone.patch
        width, values = backbone.embed_dim, backbone.in_chans * rows * columns
        self.num_blocks = backbone.num_blocks
        self.matching = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, values))
        self.reconstruction = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, values))

    def forward(self, image: Tensor, masks: Masks) -> Tensor:
        """Tokens of the masked patches, ``[B, M, D]``, of spectrograms ``[B, 1, mels, T]``."""
        patches = self.backbone.forward_tokens(image, masks.mask).patches
        return masks.gather(patches).unflatten(0, (len(image), -1))

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; heads come after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


class SSAST(AudioMethod):
    """Masked spectrogram patch modelling: find and rebuild the patches of a clip that were masked.

    ``discriminative``: which of the masked patches of this clip is it, InfoNCE on the inner product of raw
    patch values and a head's prediction, without temperature. ``generative``: the mean squared error of the
    other head's prediction, times ``generative_weight``. Patches are the normalised spectrogram's values,
    without gradient.

    As released, both terms have masks of their own, so two forward passes (here one, of twice the batch);
    patch-shaped tokens are masked in clusters, frame-shaped ones singly. There is no teacher.

    Logs ``train/masked_accuracy`` and, in validation, ``val/masked_accuracy``, the terms and ``val/loss``.

    Args:
        backbone: ``ast_tiny``, ``ast_small`` or ``ast_base``.
        backbone_args: further arguments of :class:`zoo.backbones.AST`: ``frames``, ``mels``, ``patch``
            (``[128, 2]`` for frame-shaped tokens).
        pretrained: weights to start from; ``False``: none, as published.
        task: ``joint``, ``discriminative`` or ``generative``.
        masked: N, masked patches per clip.
        val_masked: the same in validation; ``None``: N. The release always validates with 400.
        clusters: (least, largest) side of a cluster of masked patches; ``None``: single patches. ``auto``: 3 to
            5 for patch-shaped tokens, ``None`` for frame-shaped ones.
        cluster_form: ``released`` with its quirks, or ``fixed``, see :class:`zoo.nn.ClusterMasking`.
        contrast_over: what competes in the discriminative term: ``predictions`` as released, or ``targets`` as
            in the paper's equation.
        shared_mask: one mask and one pass for both terms (the paper's description).
        generative_weight: weight of the generative term in the joint task.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`; a released SSAST file will do.

    Raises:
        ValueError: an option out of range, more masked patches than there are, or a backbone that is no AST.
    """

    monitor = "val/masked_accuracy"
    student: SSASTNetwork

    def __init__(
        self,
        backbone: str = "ast_base",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        task: Task = "joint",
        masked: int = 400,
        val_masked: int | None = None,
        clusters: tuple[int, int] | Literal["auto"] | None = "auto",
        cluster_form: Literal["released", "fixed"] = "released",
        contrast_over: Axis = "predictions",
        shared_mask: bool = False,
        generative_weight: float = 10.0,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("task", task, tuple(TERMS)),
            ("cluster_form", cluster_form, ("released", "fixed")),
            ("contrast_over", contrast_over, ("predictions", "targets")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        network = create_backbone(
            backbone, pretrained, in_chans=1, **{"mask_token": True, **(backbone_args or {})}
        )
        if not hasattr(network, "forward_blocks") or network.stride != network.patch:
            raise ValueError(
                f"backbone={backbone!r} must be an AST whose patches do not overlap (no stride in backbone_args)"
            )
        self.student = SSASTNetwork(network)
        self.task, self.terms, self.contrast_over = task, TERMS[task], contrast_over
        self.shared_mask, self.generative_weight = shared_mask, generative_weight
        if clusters == "auto":
            clusters = (3, 5) if network.patch[0] < network.mels else None

        def masking(count: int) -> UniformMasking:
            if clusters is None:
                return UniformMasking(count)
            return ClusterMasking(count, (clusters[0], clusters[1]), cluster_form == "released")

        self.masking, self.val_masking = masking(masked), masking(val_masked or masked)
        grid = network.grid(network.mels, network.frames)
        for generator in (self.masking, self.val_masking):
            generator.check(grid)
        if task == "generative":
            self.monitor, self.monitor_mode = "val/generative", "min"

    def default_optim(self) -> Optim:
        """Adam at 1e-4 for batches of 24 (base); tiny has 5e-4 for batches of 120."""
        return Optim(
            "adam",
            lr=1e-4,
            weight_decay=5e-7,
            options={"betas": [0.95, 0.999]},
            schedule="constant",
            warmup_steps=1000,
            warmup_ratio=0.0,
            warmup_every=50,
        )

    def default_callbacks(self) -> list[Callback]:
        """Halve the rate when validation has not improved three times running; watch, draw reconstructions."""
        assert self.monitor is not None
        watched: list[Callback] = [CollapseMonitor(), *super().default_callbacks()]
        if "generative" in self.terms:
            watched.append(ReconstructionPanel())
        return [ReduceOnPlateau(self.monitor, self.monitor_mode), *watched]

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw masks, take the losses, log how many masked patches were found."""
        batch = self.prepared(batch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        if "masked_accuracy" in batch and self.writes_logs():
            self.log("train/masked_accuracy", batch["masked_accuracy"], prog_bar=True)
        return loss

    def prepared(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """The batch with ``masks``, one for each term; they depend on seed, rank, step and micro-batch alone."""
        if "masks" in batch:
            return batch
        return {
            **batch,
            "masks": self.draw_masks(batch, self.place(batch_idx)),
        }

    def draw_masks(self, batch: Batch, place: str, masking: UniformMasking | None = None) -> dict[str, Masks]:
        """Masks of every term for the spectrograms of a batch."""
        image = self.image(batch)
        generator = generator_at(place, image.device)
        grid = self.student.backbone.grid(*image.shape[-2:])

        def draw() -> Masks:
            return (masking or self.masking)(len(image), grid, image.device, generator)

        if self.shared_mask:
            return dict.fromkeys(self.terms, draw())
        return {term: draw() for term in self.terms}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``discriminative`` and ``generative``, those of the task.

        ``batch["masked_accuracy"]`` is left behind: the share of masked patches that were found.
        """
        batch = batch if "masks" in batch else self.prepared(batch)
        image, masks = self.image(batch), batch["masks"]
        tokens = self.masked_tokens(image, masks)
        targets = patches_of(image, self.student.backbone.patch)
        losses = {}
        for term in self.terms:
            target = masks[term].gather(targets).unflatten(0, (len(image), -1))
            if term == "discriminative":
                scores = match_scores(self.student.matching(tokens[term]), target)
                losses[term] = matching_loss(scores, self.contrast_over)
                batch["masked_accuracy"] = matching_accuracy(scores.detach(), self.contrast_over)
            else:
                error = F.mse_loss(self.student.reconstruction(tokens[term]).float(), target)
                losses[term] = error * (self.generative_weight if self.task == "joint" else 1.0)
        return losses

    def masked_tokens(self, image: Tensor, masks: dict[str, Masks]) -> dict[str, Tensor]:
        """Tokens ``[B, M, D]`` of the masked patches of every term; separately masked terms are one large batch."""
        if self.shared_mask or len(self.terms) == 1:
            return dict.fromkeys(self.terms, self.student(image, masks[self.terms[0]]))
        joined = Masks.joined([masks[term] for term in self.terms])
        tokens = self.student(image.repeat(len(self.terms), 1, 1, 1), joined)
        return dict(zip(self.terms, tokens.chunk(len(self.terms)), strict=True))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """What the generative head makes of masked patches, for pictures; the masks are those of validation.

        Returns:
            ``original``, ``masked`` (nan where patches are) and ``reconstructed`` (predictions there), each
            ``[B, mels, T]``.

        Raises:
            ValueError: the task has no generative term, so nobody trained that head.
        """
        if "generative" not in self.terms:
            raise ValueError(f"task={self.task!r} trains no reconstruction: use joint or generative")
        image = self.image(batch)
        masks = self.draw_masks(batch, "pictures", self.val_masking)["generative"]
        values = self.student.reconstruction(self.student(image, masks))
        seen, rebuilt = filled_in(image, values, masks.mask, self.student.backbone.patch)
        return {"original": image[:, 0], "masked": seen[:, 0], "reconstructed": rebuilt[:, 0]}

    # -- evaluation -------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses and accuracy on masks that are the same in every validation."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on test clips."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        masks = self.draw_masks(batch, f"{self.global_rank}/{stage}/{batch_idx}", self.val_masking)
        batch = {**batch, "masks": masks}
        losses = self.losses(batch)
        values = {f"{stage}/{term}": loss for term, loss in losses.items()}
        values[f"{stage}/loss"] = torch.stack(list(losses.values())).sum()
        if "masked_accuracy" in batch:
            values[f"{stage}/masked_accuracy"] = batch["masked_accuracy"]
        self.log_dict(values, batch_size=len(batch["spectrogram"]), sync_dist=True)
