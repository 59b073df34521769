"""Networks of HiCMAE: the masked autoencoder of video and sound, and the classifier of several levels of features.

Sun et al., "HiCMAE" (Information Fusion 2024, arXiv 2401.05698), as released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zoo.nn.masked_prediction import patches_of, standardised
from zoo.nn.masking import Masks
from zoo.nn.masking_clusters import gathered, seen_and_hidden
from zoo.nn.skip_decoder import SkipDecoder

Modalities = Literal["both", "video", "audio"]


class Rebuilt(NamedTuple):
    """What an :class:`AudioVisualAutoencoder` says of a batch.

    Attributes:
        video: values of the masked patches, ``[B, M, values]``.
        audio: the same of spectrograms.
        pooled: of every level, the means of the visible tokens of videos and of spectrograms, ``[B, D]`` each.
    """

    video: Tensor
    audio: Tensor
    pooled: list[tuple[Tensor, Tensor]]


class AudioVisualAutoencoder(nn.Module):
    """Encoder of the visible tokens of both modalities, and a decoder with skips for each.

    Intermediate layers go through the encoder's final norm before they are pooled, or looked back at.

    Args:
        backbone: a :class:`zoo.backbones.AudioVisualEncoder`.
        levels: blocks of the encoders, counted from 0, that are contrasted and looked back at; ascending.
        embed_dim: channels of the decoders' tokens.
        num_heads: their attention heads.

    Raises:
        ValueError: levels that are no ascending blocks of the encoders; heads that do not divide the width.
    """

    def __init__(self, backbone: Any, levels: Sequence[int], embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if list(levels) != sorted(set(levels)) or not all(0 <= level < backbone.depth for level in levels):
            raise ValueError(
                f"levels={list(levels)} must be ascending numbers of the {backbone.depth} blocks of the encoders, "
                "counted from 0"
            )
        self.backbone, self.levels = backbone, tuple(levels)
        self.num_blocks: int = backbone.num_blocks

        def decoder(encoder: Any) -> SkipDecoder:
            values = encoder.in_chans * math.prod(encoder.patch)
            tokens = math.prod(encoder.grid)
            return SkipDecoder(tokens, backbone.embed_dim, embed_dim, num_heads, len(levels), values)

        self.video_decoder, self.audio_decoder = decoder(backbone.video), decoder(backbone.audio)

    def forward(self, video: Tensor, spectrogram: Tensor, video_masks: Masks, audio_masks: Masks) -> Rebuilt:
        """Predict what is masked.

        Args:
            video: ``[B, 3, frames, height, width]`` in [0, 1].
            spectrogram: ``[B, frames, mels]``.
            video_masks: over the tokens of videos, equally many of every item.
            audio_masks: the same of spectrograms.
        """
        (seen, unseen), (heard, unheard) = seen_and_hidden(video_masks), seen_and_hidden(audio_masks)
        fused = self.backbone(video, spectrogram, seen, heard, self.levels)
        of_video = [self.backbone.video.norm(layer) for layer in fused.video_layers]
        of_audio = [self.backbone.audio.norm(layer) for layer in fused.audio_layers]
        pooled = [(v.mean(1), a.mean(1)) for v, a in zip(of_video, of_audio, strict=True)]
        return Rebuilt(
            self.video_decoder(fused.video, of_video, seen, unseen),
            self.audio_decoder(fused.audio, of_audio, heard, unheard),
            pooled,
        )

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; decoders come after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


def video_targets(
    video: Tensor, patch: Sequence[int], masks: Masks, normalise: bool = True, differences: bool = True
) -> Tensor:
    """What is to be predicted of masked patches of videos, ``[B, M, values]``: pixels first, then colours.

    Args:
        video: ``[B, C, frames, height, width]`` in [0, 1].
        patch: frames, height and width of a patch.
        masks: equally many of every item.
        normalise: standardise every colour over the pixels of a patch.
        differences: after that, in place of the second frame of each pair in a patch, its difference from the first.
    """
    hidden = seen_and_hidden(masks)[1]
    values = gathered(patches_of(video, patch), hidden).unflatten(-1, (video.shape[1], -1))
    values = standardised(values) if normalise else values
    if differences:
        pairs = values.unflatten(-1, (patch[0] // 2, 2, -1))
        pairs[..., 1, :] -= pairs[..., 0, :]
    return values.transpose(-1, -2).flatten(-2)


def audio_targets(spectrogram: Tensor, patch: Sequence[int], masks: Masks, normalise: bool = True) -> Tensor:
    """What is to be predicted of masked patches of spectrograms ``[B, frames, mels]``: ``[B, M, values]``."""
    values = gathered(patches_of(spectrogram[:, None], patch), seen_and_hidden(masks)[1])
    return standardised(values) if normalise else values


class AudioVisualClassifierNetwork(nn.Module):
    """Features of all levels, side by side, and a linear layer.

    For each modality the mean of all blocks' outputs after the encoder's final norm, weighted by a softmax of learned
    numbers (equal at first), and the mean of what leaves the fusion; ``LayerNorm - Linear`` on all four. With one
    modality alone there is no fusion, and its encoder's normed output takes that place; the parameters of the other
    are frozen.

    Args:
        backbone: a :class:`zoo.backbones.AudioVisualEncoder`.
        outputs: classes, or numbers that are estimated.
        modalities: what is looked at: ``both``, ``video`` or ``audio``.

    Raises:
        ValueError: another word for the modalities.
    """

    def __init__(self, backbone: Any, outputs: int, modalities: Modalities = "both") -> None:
        super().__init__()
        if modalities not in ("both", "video", "audio"):
            raise ValueError(f"modalities={modalities!r}: expected both, video or audio")
        self.backbone, self.modalities = backbone, modalities
        self.num_blocks: int = backbone.num_blocks
        self.video_layer_weights = nn.Parameter(torch.full((backbone.depth,), 1 / backbone.depth))
        self.audio_layer_weights = nn.Parameter(torch.full((backbone.depth,), 1 / backbone.depth))
        width = backbone.embed_dim * (4 if modalities == "both" else 2)
        self.fc_norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if modalities != "both":
            other = {"video": "audio", "audio": "video"}[modalities]
            backbone.fusion.requires_grad_(False)
            getattr(backbone, other).requires_grad_(False)
            getattr(self, f"{other}_layer_weights").requires_grad_(False)

    def forward(self, video: Tensor, spectrogram: Tensor) -> Tensor:
        """Logits ``[B, outputs]`` of videos ``[B, 3, frames, height, width]`` and spectrograms ``[B, T, mels]``."""
        return self.head(self.fc_norm(self.features(video, spectrogram)))

    def features(self, video: Tensor, spectrogram: Tensor) -> Tensor:
        """What the head is given: ``[B, 4 D]``, or ``[B, 2 D]`` of one modality."""
        every = range(self.backbone.depth)
        if self.modalities == "video":
            seen = self.backbone.encode_video(video, layers=every)
            return torch.cat((self._of_video(seen.layers), seen.tokens.mean(1)), 1)
        if self.modalities == "audio":
            heard = self.backbone.encode_audio(spectrogram, layers=every)
            return torch.cat((self._of_audio(heard.layers), heard.tokens.mean(1)), 1)
        fused = self.backbone(video, spectrogram, layers=every)
        levels = self._of_video(fused.video_layers), self._of_audio(fused.audio_layers)
        return torch.cat((*levels, fused.video.mean(1), fused.audio.mean(1)), 1)

    def _of_video(self, layers: Sequence[Tensor]) -> Tensor:
        return mixed([self.backbone.video.norm(layer) for layer in layers], self.video_layer_weights)

    def _of_audio(self, layers: Sequence[Tensor]) -> Tensor:
        return mixed([self.backbone.audio.norm(layer) for layer in layers], self.audio_layer_weights)

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; what is not in it comes after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


def mixed(layers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Means over the tokens of ``[B, N, D]`` layers, weighted by ``softmax(weights)``: ``[B, D]``."""
    pooled = torch.stack([layer.mean(1) for layer in layers], -1)
    return pooled @ weights.softmax(0)
