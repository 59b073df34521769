"""Encoder of video and sound: a transformer for each, and parallel cross-attention between them (HiCMAE).

Sun et al., "HiCMAE: Hierarchical Contrastive Masked Autoencoder for Self-Supervised Audio-Visual Emotion Recognition"
(Information Fusion 2024, arXiv 2401.05698), as released.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from zoo.nn.cross_attention import CrossBlock, LayerNorm, SelfBlock, init_blocks, sinusoids
from zoo.nn.masking_clusters import gathered
from zoo.pretrained import started_from
from zoo.registry import UnknownNameError

#: Width and heads of the published sizes, and those of the decoders; the decoder of the smallest was not released.
SIZES: dict[str, dict[str, int]] = {
    "hicmae_tiny": {"embed_dim": 256, "num_heads": 4},
    "hicmae_small": {"embed_dim": 384, "num_heads": 6},
    "hicmae_base": {"embed_dim": 512, "num_heads": 8},
}
DECODERS: dict[str, dict[str, int]] = {
    "hicmae_tiny": {"embed_dim": 128, "num_heads": 2},  # half the width, as of the small one
    "hicmae_small": {"embed_dim": 192, "num_heads": 3},
    "hicmae_base": {"embed_dim": 384, "num_heads": 6},
}


class Encoded(NamedTuple):
    """What a :class:`ModalityEncoder` makes of a batch.

    Attributes:
        tokens: ``[B, N, D]`` after the final norm.
        layers: of the blocks that were asked for, ``[B, N, D]`` each, before it.
    """

    tokens: Tensor
    layers: list[Tensor]


class ModalityEncoder(nn.Module):
    """Pre-norm transformer over patches of one modality, of which some may be left out.

    Positions are fixed sinusoids over the tokens in row-major order, no parameters and not in checkpoints.

    Args:
        in_chans: channels of the input.
        size: its sides (frames, height and width of videos; frames and mel bands of spectrograms).
        patch: sides of a patch, which does not overlap with others.
        embed_dim: D, channels of tokens.
        depth: number of blocks.
        num_heads: attention heads.
        drop_path_rate: of stochastic depth, linear from 0 in the first block.

    Raises:
        ValueError: patches do not divide the input, or heads not the width.
    """

    positions: Tensor

    def __init__(
        self,
        in_chans: int,
        size: Sequence[int],
        patch: Sequence[int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if any(side % part for side, part in zip(size, patch, strict=True)):
            raise ValueError(
                f"patches of {' x '.join(map(str, patch))} do not divide an input of {' x '.join(map(str, size))}: "
                "change one of the two in backbone_args"
            )
        self.in_chans, self.size, self.patch = in_chans, tuple(size), tuple(patch)
        self.grid = tuple(side // part for side, part in zip(size, patch, strict=True))
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(self.size)]
        projection = convolution(in_chans, embed_dim, kernel_size=self.patch, stride=self.patch)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.register_buffer("positions", sinusoids(math.prod(self.grid), embed_dim), persistent=False)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(SelfBlock(embed_dim, num_heads, rate) for rate in rates)
        self.norm = LayerNorm(embed_dim)

    def forward(self, x: Tensor, visible: Tensor | None = None, layers: Sequence[int] = ()) -> Encoded:
        """Encode a batch ``[B, in_chans, *size]``.

        Args:
            x: the input.
            visible: positions of the tokens that are not left out, int64 ``[B, N]``; None sees all.
            layers: blocks whose outputs are wanted as well, ascending.

        Raises:
            ValueError: an input of another size.
        """
        if tuple(x.shape[1:]) != (self.in_chans, *self.size):
            raise ValueError(
                f"the network was built for inputs {[self.in_chans, *self.size]}, got {list(x.shape[1:])}: set frames, "
                "image_size, audio_frames and mels in backbone_args to what the datamodule gives"
            )
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.positions
        if visible is not None:
            x = gathered(x, visible)
        kept = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in layers:
                kept.append(x)
        return Encoded(self.norm(x), kept)


class ParallelFusion(nn.Module):
    """Cross-attention between modalities: in every layer both attend to what the other was before it.

    Args:
        embed_dim: D, channels of tokens.
        depth: number of layers.
        num_heads: attention heads.
        drop_path_rates: of stochastic depth, one for each layer.
    """

    def __init__(
        self, embed_dim: int, depth: int, num_heads: int, drop_path_rates: Sequence[float] = ()
    ) -> None:
        super().__init__()
        rates = drop_path_rates or [0.0] * depth
        self.video_blocks = nn.ModuleList(CrossBlock(embed_dim, num_heads, rate) for rate in rates)
        self.audio_blocks = nn.ModuleList(CrossBlock(embed_dim, num_heads, rate) for rate in rates)
        self.video_norm, self.audio_norm = LayerNorm(embed_dim), LayerNorm(embed_dim)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, D]`` and ``[B, M, D]`` → the same, after norms of their own."""
        for of_video, of_audio in zip(self.video_blocks, self.audio_blocks, strict=True):
            video, audio = of_video(video, audio), of_audio(audio, video)
        return self.video_norm(video), self.audio_norm(audio)


class AudioVisualTokens(NamedTuple):
    """What an :class:`AudioVisualEncoder` makes of a batch.

    Attributes:
        video: ``[B, N, D]`` after fusion.
        audio: ``[B, M, D]`` after fusion.
        video_layers: of the encoder's blocks that were asked for, ``[B, N, D]`` each, not normed.
        audio_layers: the same of sound.
    """

    video: Tensor
    audio: Tensor
    video_layers: list[Tensor]
    audio_layers: list[Tensor]


class AudioVisualEncoder(nn.Module):
    """Encoders of video and of spectrograms of the same moment, and their fusion.

    Args:
        embed_dim: D, channels of all tokens.
        num_heads: attention heads.
        depth: blocks of each encoder.
        fusion_depth: layers of the fusion.
        image_size: height and width of frames.
        frames: of a video.
        patch: frames, height and width of a video's patch ("tubelet").
        audio_frames: of a spectrogram.
        mels: its bands.
        audio_patch: frames and bands of a spectrogram's patch.
        drop_path_rate: of stochastic depth, linear from 0 in the first block of each encoder, and again in the fusion.

    Attributes:
        mean, std: by which frames in [0, 1] are normalised; the encoder does so itself.

    Raises:
        ValueError: patches do not divide an input, or heads not the width.
    """

    def __init__(
        self,
        embed_dim: int = 512,
        num_heads: int = 8,
        depth: int = 10,
        fusion_depth: int = 2,
        image_size: int = 160,
        frames: int = 16,
        patch: Sequence[int] = (2, 16, 16),
        audio_frames: int = 256,
        mels: int = 128,
        audio_patch: Sequence[int] = (16, 16),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim, self.depth, self.fusion_depth = embed_dim, depth, fusion_depth
        self.num_blocks = depth + fusion_depth
        self.mean, self.std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        shared = (embed_dim, depth, num_heads, drop_path_rate)
        self.video = ModalityEncoder(3, (frames, image_size, image_size), patch, *shared)
        self.audio = ModalityEncoder(1, (audio_frames, mels), audio_patch, *shared)
        rates = [drop_path_rate * i / max(fusion_depth - 1, 1) for i in range(fusion_depth)]
        self.fusion = ParallelFusion(embed_dim, fusion_depth, num_heads, rates)
        init_blocks(self)

    def encode_video(
        self, video: Tensor, visible: Tensor | None = None, layers: Sequence[int] = ()
    ) -> Encoded:
        """Tokens of videos ``[B, 3, frames, height, width]`` in [0, 1]."""
        return self.video(normalised(video, self.mean, self.std), visible, layers)

    def encode_audio(
        self, spectrogram: Tensor, visible: Tensor | None = None, layers: Sequence[int] = ()
    ) -> Encoded:
        """Tokens of spectrograms ``[B, frames, mels]``."""
        return self.audio(spectrogram[:, None], visible, layers)

    def forward(
        self,
        video: Tensor,
        spectrogram: Tensor,
        seen: Tensor | None = None,
        heard: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> AudioVisualTokens:
        """Encode and fuse.

        Args:
            video: ``[B, 3, frames, height, width]`` in [0, 1].
            spectrogram: ``[B, frames, mels]``.
            seen: positions of the video's tokens that are not left out, int64 ``[B, N]``; None sees all.
            heard: the same of the spectrogram.
            layers: blocks of the encoders whose outputs are wanted as well.
        """
        of_video = self.encode_video(video, seen, layers)
        of_audio = self.encode_audio(spectrogram, heard, layers)
        video, audio = self.fusion(of_video.tokens, of_audio.tokens)
        return AudioVisualTokens(video, audio, of_video.layers, of_audio.layers)

    def block_of(self, parameter_name: str) -> int:
        """0 for patch embeddings, i+1 for block i of either encoder, then the fusion's; norms come after everything."""
        if match := re.match(r"(video|audio)\.blocks\.(\d+)\.", parameter_name):
            return int(match[2]) + 1
        if match := re.match(r"fusion\.(video|audio)_blocks\.(\d+)\.", parameter_name):
            return self.depth + int(match[2]) + 1
        return 0 if ".patch_embed." in parameter_name else self.num_blocks + 1


def normalised(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(video - mean) / std`` of every channel of ``[B, C, ...]``."""
    shape = (-1, *[1] * (video.ndim - 2))
    means, stds = (torch.tensor(values, device=video.device).view(shape) for values in (mean, std))
    return (video - means) / stds


def create_audio_visual(name: str, pretrained: bool | str = False, **kwargs: Any) -> AudioVisualEncoder:
    """Build an encoder of a published size.

    Args:
        name: ``hicmae_tiny``, ``hicmae_small`` or ``hicmae_base``.
        pretrained: ``False``, or a source of weights, such as the released file.
        **kwargs: other arguments of :class:`AudioVisualEncoder` than the size has.

    Raises:
        UnknownNameError: there is no such size.
        ValueError: ``pretrained=True``: no weights can be fetched by name.
    """
    if name not in SIZES:
        raise UnknownNameError("backbone", name, SIZES, f"{', '.join(SIZES)}")

    def build(known: bool) -> AudioVisualEncoder:
        if known:
            raise ValueError(
                f"{name} has no weights of its own to fetch: set pretrained to false, or to the released file"
            )
        return AudioVisualEncoder(**{**SIZES[name], **kwargs})

    return started_from(pretrained, build)
