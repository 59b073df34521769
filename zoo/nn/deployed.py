"""Networks with plain tensors in and out: the form in which they are exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn.signal_augment import zscore
from zoo.nn.volume_networks import resized


class Normalised(nn.Module):
    """A backbone that normalises its input, which is in [0, 1], by itself.

    Args:
        backbone: with the facts ``mean`` and ``std``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        like = next(backbone.parameters())
        for name in ("mean", "std"):
            values = torch.tensor(getattr(backbone, name), dtype=like.dtype, device=like.device)
            self.register_buffer(name, values, persistent=False)

    def normalised(self, x: Tensor) -> Tensor:
        """``(x - mean) / std`` per channel."""
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        return (x - self.mean.view(shape)) / self.std.view(shape)


class BackboneFeatures(Normalised):
    """Class and patch tokens of a token backbone, or all feature maps of another one, fine to coarse."""

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self.gives_tokens = hasattr(backbone, "forward_tokens")
        maps = tuple(f"map{i}" for i in range(len(getattr(backbone, "channels", ()))))
        self.outputs = ("cls", "patches") if self.gives_tokens else maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images or volumes ``[B, C, ...]`` in [0, 1] → tokens or maps."""
        features = self.backbone.forward_tokens if self.gives_tokens else self.backbone.forward_features
        return tuple(features(self.normalised(x)))


class Tokens(nn.Module):
    """``cls`` ``[B, D]`` and ``patches`` ``[B, N, D]`` of a :class:`zoo.nn.token_network.TokenNetwork`."""

    outputs = ("cls", "patches")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, C, H, W]`` in [0, 1] → tokens."""
        return tuple(self.network(image))


class OfSpectrograms(nn.Module):
    """What a network of images makes of spectrograms as pipelines give them, ``[B, T, mels]``.

    Args:
        network: takes ``[B, 1, mels, T]``.
        outputs: names of what it returns.
    """

    def __init__(self, network: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, spectrogram: Tensor) -> Any:
        """See the class."""
        return self.network(spectrogram.transpose(1, 2)[:, None])


class SignalFeatures(nn.Module):
    """Embeddings ``[B, D]`` of a signal backbone that has ``embed``; standardises segments by itself.

    Args:
        backbone: takes standardised signals.
    """

    outputs = ("features",)

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, signal: Tensor) -> Tensor:
        """Segments ``[B, C, T]`` as recorded → embeddings."""
        return self.backbone.embed(zscore(signal))


class VolumeFeatures(nn.Module):
    """Embeddings ``[B, D]`` of a :class:`zoo.nn.volume_networks.VolumeEncoder`; with a decoder, ``logits`` as well.

    Args:
        network: the encoder.
        segments: whether its forward gives logits of voxels.
    """

    def __init__(self, network: Any, segments: bool = False) -> None:
        super().__init__()
        self.network, self.segments = network, segments
        self.outputs = ("features", "logits") if segments else ("features",)

    def forward(self, volume: Tensor) -> Any:
        """Volumes ``[B, C, X, Y, Z]`` in [0, 1] → embeddings, and logits of voxels where there are any."""
        maps = self.network.features(volume)
        embedding = self.network.embed(maps)
        return (embedding, resized(self.network.decode_head(maps), volume)) if self.segments else embedding


class FusedTokens(nn.Module):
    """Fused tokens of a :class:`zoo.backbones.audio_visual.AudioVisualEncoder`, nothing masked."""

    outputs = ("video_tokens", "audio_tokens")

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, video: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """Videos ``[B, 3, T, H, W]`` in [0, 1] and spectrograms ``[B, T, mels]`` → ``[B, N, D]`` and ``[B, M, D]``."""
        tokens = self.backbone(video, spectrogram)
        return tokens.video, tokens.audio


class OfVideoAndSound(nn.Module):
    """What a network of videos and spectrograms gives, with names.

    Args:
        network: takes both.
        outputs: names of what it returns.
    """

    def __init__(self, network: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, video: Tensor, spectrogram: Tensor) -> Any:
        """See the class."""
        return self.network(video, spectrogram)
