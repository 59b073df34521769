"""HiCMAE: hierarchical contrastive masked autoencoder (Sun et al., Information Fusion 2024, arXiv 2401.05698)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.backbones.audio_visual import DECODERS, create_audio_visual
from zoo.draws import generator_at
from zoo.method import Batch
from zoo.methods.audio_visual.base import AudioVisualMethod
from zoo.nn.audio_visual import AudioVisualAutoencoder, audio_targets, video_targets
from zoo.nn.masking import Masks
from zoo.nn.masking_clusters import TubeMasking, UniformMasking
from zoo.nn.paired_contrast import paired_contrast
from zoo.optim import Optim


class HiCMAE(AudioVisualMethod):
    """Masked autoencoding of faces and voices, with three uses of the encoders' intermediate layers.

    Most patches of both modalities are hidden: of the video the same places in all frames, of the spectrogram
    any. Encoders see the rest, parallel cross-attention fuses them, and a decoder for each modality predicts what is
    hidden, looking back into the encoder, deepest layer first. ``video`` and ``audio`` are mean squared errors of
    standardised patches, equally weighted. ``contrast`` asks of each level which sound of the batch belongs to which
    video, summed over levels (not averaged, as released) and weighted.

    There is no teacher, and no normalisation over the batch. As released only the clips of the same process
    compete in the contrast; ``gather`` lets all of them. Logs ``train/...`` and ``val/...`` of each term and
    ``val/loss``, under masks that are the same in every validation.

    Args:
        backbone: ``hicmae_tiny``, ``hicmae_small`` or ``hicmae_base``. Decoders have the published width with it; that
            of the tiny one was not released and is half of the encoder's here.
        backbone_args: further arguments of :class:`zoo.backbones.audio_visual.AudioVisualEncoder`.
        decoder_args: ``embed_dim`` and ``num_heads`` of both decoders, where they differ from the published ones.
        pretrained: weights of the encoders to start from; ``False``: none, as published.
        levels: blocks of the encoders, counted from 0, that are contrasted and looked back at.
        video_ratio: share of the places that are hidden, rounded down.
        audio_ratio: share of the spectrogram's patches that are hidden, rounded down.
        contrast_weight: of the sum over levels. The released script sets 0.0025, its parser's default is 0.1.
        temperature: of the contrast.
        gather: contrast the clips of all processes.
        normalise: standardise the targets of each patch (of videos, for each colour).
        differences: predict the second frame of each pair as its difference from the first, as the released script
            does; the paper's equation predicts both frames.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`; the released file will do.

    Raises:
        ValueError: an option out of range, or ratios that hide nothing or everything.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    student: AudioVisualAutoencoder

    def __init__(
        self,
        backbone: str = "hicmae_base",
        backbone_args: dict[str, Any] | None = None,
        decoder_args: dict[str, int] | None = None,
        pretrained: bool | str = False,
        levels: Sequence[int] = (3, 6, 9),
        video_ratio: float = 0.9,
        audio_ratio: float = 0.8,
        contrast_weight: float = 0.0025,
        temperature: float = 0.07,
        gather: bool = False,
        normalise: bool = True,
        differences: bool = True,
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        if temperature <= 0 or contrast_weight < 0:
            raise ValueError(
                f"temperature={temperature} must be positive and contrast_weight={contrast_weight} not negative"
            )
        encoder = create_audio_visual(backbone, pretrained, **(backbone_args or {}))
        if differences and encoder.video.patch[0] % 2:
            raise ValueError(
                f"differences=True is of pairs of frames, but patches of the video have {encoder.video.patch[0]}: "
                "set an even number (backbone_args.patch), or differences=False"
            )
        self.student = AudioVisualAutoencoder(
            encoder, levels, **{**DECODERS[backbone], **(decoder_args or {})}
        )
        places, patches = math.prod(encoder.video.grid[1:]), math.prod(encoder.audio.grid)
        self.video_masking = TubeMasking(hidden_of("video_ratio", video_ratio, places))
        self.audio_masking = UniformMasking(hidden_of("audio_ratio", audio_ratio, patches))
        self.contrast_weight, self.temperature, self.gather = contrast_weight, temperature, gather
        self.normalise, self.differences = normalise, differences

    def default_optim(self) -> Optim:
        """AdamW at 3e-4 times batch / 256, here for batches of 160; five epochs of warm-up, then a cosine."""
        return Optim(
            "adamw",
            lr=1.875e-4,
            weight_decay=0.05,
            options={"betas": [0.9, 0.95]},
            no_decay=["*bias", "*norm*", "video_decoder.mask_token"],  # not the audio decoder's, as released
            schedule="warmup_cosine",
            final_lr=6.25e-6,
            warmup_epochs=5,
            warmup_ratio=1 / 300,
        )

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw masks, which depend on seed, rank, step and micro-batch alone, and take the losses."""
        if "masks" not in batch:
            batch = {
                **batch,
                "masks": self.draw_masks(batch, self.place(batch_idx)),
            }
        return super().training_step(batch, batch_idx)

    def draw_masks(self, batch: Batch, place: str) -> dict[str, Masks]:
        """Masks of ``video`` and ``audio`` for the clips of a batch."""
        video, _ = self.inputs(batch)
        generator = generator_at(place, video.device)
        backbone = self.student.backbone
        return {
            "video": self.video_masking(len(video), backbone.video.grid, video.device, generator),
            "audio": self.audio_masking(len(video), backbone.audio.grid, video.device, generator),
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``video``, ``audio`` and ``contrast``."""
        video, spectrogram = self.inputs(batch)
        masks = batch["masks"] if "masks" in batch else self.draw_masks(batch, "losses")
        rebuilt = self.student(video, spectrogram, masks["video"], masks["audio"])
        seen, heard = self.student.backbone.video, self.student.backbone.audio
        pixels = video_targets(video, seen.patch, masks["video"], self.normalise, self.differences)
        cells = audio_targets(spectrogram, heard.patch, masks["audio"], self.normalise)
        levels = [paired_contrast(v, a, self.temperature, self.gather) for v, a in rebuilt.pooled]
        return {
            "video": F.mse_loss(rebuilt.video.float(), pixels),
            "audio": F.mse_loss(rebuilt.audio.float(), cells),
            "contrast": self.contrast_weight * torch.stack(levels).sum(),
        }

    # -- evaluation -------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The terms under masks that are the same in every validation."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on test clips."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        masks = self.draw_masks(batch, f"{self.global_rank}/{stage}/{batch_idx}")
        losses = self.losses({**batch, "masks": masks})
        values = {f"{stage}/{term}": loss for term, loss in losses.items()}
        values[f"{stage}/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(values, batch_size=len(batch["video"]), sync_dist=True)


def hidden_of(argument: str, ratio: float, tokens: int) -> int:
    """How many of ``tokens`` a ratio hides.

    Raises:
        ValueError: none, or all of them.
    """
    count = int(ratio * tokens)
    if not 0 < count < tokens:
        raise ValueError(
            f"{argument}={ratio} hides {count} of {tokens} tokens: some must be hidden, and some seen"
        )
    return count
