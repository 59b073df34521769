"""What audio methods share: the feature pipeline, inputs that are not finite, waveforms to predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchaudio.functional as AF
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks import default_monitors
from zoo.method import Batch, Method
from zoo.nn.audio_features import AudioFeatures
from zoo.nn.deployed import BackboneFeatures, OfSpectrograms
from zoo.optim import Optim

Waveform = np.ndarray | Tensor


class AudioMethod(Method):
    """Base of methods on log-mel spectrograms.

    Batches hold ``spectrogram`` float32 ``[B, T, mels]``, made by the datamodule with
    :class:`zoo.nn.AudioFeatures`. The datamodule's pipeline is the method's, too, and its settings are in every
    checkpoint, so that ``predict`` takes plain waveforms.

    Args:
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.
    """

    input_name = "spectrogram"

    def __init__(self, optim: Optim | None = None, init_from: str | None = None) -> None:
        super().__init__(optim, init_from)
        self.front_end = AudioFeatures()

    def default_callbacks(self) -> list[Callback]:
        """Monitors."""
        return default_monitors(self)

    # -- the feature pipeline ---------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the datamodule's feature pipeline."""
        super().setup(stage)
        features = getattr(getattr(self.trainer, "datamodule", None), "features", None)
        if isinstance(features, AudioFeatures):
            self.front_end = AudioFeatures.of(features.settings).to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what makes spectrograms of waveforms."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["audio_features"] = self.front_end.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up."""
        super().on_load_checkpoint(checkpoint)
        if "audio_features" in checkpoint:
            self.front_end = AudioFeatures.of(checkpoint["audio_features"]).to(self.device)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The pipeline's settings."""
        return {"audio_features": self.front_end.settings}

    def example_input(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Two spectrograms ``[2, T, mels]`` of noise, as long as the pipeline makes them.

        Args:
            size: another (T, mels).
        """
        settings: dict[str, Any] = self.front_end.settings
        shape = size or (settings["target_length"], settings["bank"]["mels"])
        return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(self.device) / 2

    def deployed(self, network: nn.Module) -> nn.Module:
        """Tokens of the backbone, ``cls`` and ``patches``."""
        return self.deployed_backbone(network)

    def deployed_backbone(self, network: Any) -> nn.Module:
        """The same."""
        return OfSpectrograms(BackboneFeatures(network.backbone), ("cls", "patches"))

    def image(self, batch: Batch) -> Tensor:
        """Spectrograms of a batch the way backbones take them: ``[B, 1, mels, T]``.

        Raises:
            ValueError: the batch has none.
        """
        if "spectrogram" not in batch:
            raise ValueError(
                f"{type(self).__name__} learns from spectrograms and the batch has {', '.join(batch)}: set "
                "data.features to {class_path: zoo.nn.AudioFeatures}"
            )
        return as_image(batch["spectrogram"])

    # -- prediction -------------------------------------------------------------------------------------

    def forward(self, spectrogram: Tensor) -> Tensor:
        """The same as :meth:`features`."""
        return self.features(spectrogram)

    def features(self, spectrogram: Tensor) -> Tensor:
        """One vector per clip, ``[B, D]`` of ``[B, T, mels]``: the mean of the backbone's patch tokens."""
        backbone: Any = self.student.backbone
        return backbone.forward_tokens(as_image(spectrogram)).patches.mean(1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Features ``[B, D]`` of one batch."""
        return {"features": self.features(batch["spectrogram"]), **named(batch)}

    @torch.no_grad()
    def predict(self, waveform: Waveform, sample_rate: int = 16_000) -> Tensor:
        """What :meth:`forward` says of one clip; for the arguments see :meth:`spectrogram`."""
        clip, training = self.spectrogram(waveform, sample_rate), self.training
        self.eval()
        answer = self(clip)[0]
        self.train(training)
        return answer

    def spectrogram(self, waveform: Waveform, sample_rate: int) -> Tensor:
        """Spectrogram ``[1, T, mels]`` of one clip, by the pipeline of training and without its augmentation.

        Args:
            waveform: float ``[samples]`` in [-1, 1], or ``[channels, samples]``, which are averaged.
            sample_rate: in Hz; clips of another rate than the pipeline's are resampled.

        Raises:
            ValueError: integers, another shape, samples that are not finite, or less than one frame of them.
        """
        clip = torch.as_tensor(waveform)
        if not clip.is_floating_point() or clip.ndim not in (1, 2):
            raise ValueError(
                f"waveform must be float [samples] or [channels, samples] in [-1, 1], got {clip.dtype} "
                f"{list(clip.shape)}: use waveform / 32768 for 16-bit integers"
            )
        clip = clip.to(self.device, torch.float32)
        clip = clip.mean(0) if clip.ndim == 2 else clip
        if not bool(clip.isfinite().all()):
            raise ValueError("waveform holds nan or inf: the recording or its decoding is broken")
        rate, bank = self.front_end.sample_rate, self.front_end.bank
        if sample_rate != rate:
            clip = AF.resample(clip, sample_rate, rate)
        if len(clip) < bank.size:
            raise ValueError(
                f"waveform has {len(clip)} samples at {rate} Hz, fewer than one frame ({bank.size}): there is "
                "nothing to predict"
            )
        batch = {"waveform": clip[None], "length": torch.tensor([len(clip)], device=clip.device)}
        return self.front_end(batch)["spectrogram"]


def as_image(spectrogram: Tensor) -> Tensor:
    """``[B, T, mels]`` → ``[B, 1, mels, T]``."""
    return spectrogram.transpose(1, 2)[:, None]


def named(batch: Batch) -> Batch:
    """What says which clips a batch holds."""
    return {key: batch[key] for key in ("index", "name") if key in batch}
