"""From waveforms of a loader to normalised log-mel spectrograms, augmented, in one batch on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.audio_augment import (
    add_noise,
    centred,
    draw_mixup,
    louder,
    mix_labels,
    mixup,
    multi_hot,
    roll_in_time,
    spec_augment,
    within,
)
from zoo.nn.fbank import LogMel

#: Mean and standard deviation of log-mel cells (128 triangles) that SSAST and AST were released with.
STATISTICS: dict[str, tuple[float, float]] = {
    "audioset": (-4.2677393, 4.5689974),  # all pre-training (LibriSpeech too), and the tasks of SUPERB
    "esc50": (-6.6268077, 5.358466),
    "speech_commands": (-6.845978, 5.5654526),
}


class AudioFeatures(nn.Module):
    """The feature pipeline of SSAST and AST (Gong et al.), batched: one object per datamodule.

    In this order: subtract each clip's mean; change its loudness (training); mix waveforms and labels (training);
    log-mel filter bank; cut to the first ``target_length`` frames or pad with 0 in the log domain; SpecAugment
    (training); ``(x - mean) / (2 std)``; noise and a roll in time (training). With ``pad_normalised`` padding comes
    after normalisation, so that it is exactly 0 (the released SUPERB path, which has ``centre=False`` as well).

    Clips shorter than one frame become padding only; silence lies at the logarithm's floor and is finite. Samples
    that are not finite stay so in the spectrogram, for the method to name the clip.

    Args:
        target_length: T, frames of every spectrogram (10 ms each by default).
        bank: the filter bank; ``None``: 128 triangles at 16 kHz (:class:`zoo.nn.LogMel`).
        mean: of the log-mel cells of the training data, see :data:`STATISTICS`.
        std: of the same.
        centre: subtract each clip's mean first.
        pad_normalised: pad after normalisation, as above.
        loudness: alpha of the factor that training clips are multiplied by, Beta(alpha, alpha) + 0.5; 0: none.
        mixup: probability that a training clip is mixed with another clip *of its batch* (as released: of the
            whole training set, which a device batch does not hold).
        mixup_alpha: shares are Beta(alpha, alpha).
        num_classes: C; only needed to mix labels that are class indices.
        freq_mask: bound of SpecAugment's frequency mask, in triangles; 0: none.
        time_mask: bound of its time mask, in frames; 0: none.
        noise: whether noise is added to the normalised spectrogram, see :func:`zoo.nn.audio_augment.add_noise`.
        roll: with ``noise``, clips are rolled by -roll to roll - 1 frames.

    Attributes:
        samples: that T frames reach over; loaders need not keep more of a clip.
        sample_rate: that waveforms must have, in Hz.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        target_length: int = 1024,
        bank: LogMel | None = None,
        mean: float = STATISTICS["audioset"][0],
        std: float = STATISTICS["audioset"][1],
        centre: bool = True,
        pad_normalised: bool = False,
        loudness: float = 0.0,
        mixup: float = 0.0,
        mixup_alpha: float = 10.0,
        num_classes: int | None = None,
        freq_mask: int = 0,
        time_mask: int = 0,
        noise: bool = False,
        roll: int = 10,
    ) -> None:
        super().__init__()
        self.bank = LogMel() if bank is None else bank
        if target_length < 1 or std <= 0 or roll < 1:
            raise ValueError(f"target_length={target_length}, std={std} and roll={roll} must be positive")
        if not 0.0 <= mixup <= 1.0 or mixup_alpha <= 0:
            raise ValueError(f"mixup={mixup} must be within [0, 1] and mixup_alpha={mixup_alpha} positive")
        if not 0 <= freq_mask <= self.bank.mels or not 0 <= time_mask <= target_length:
            raise ValueError(
                f"freq_mask={freq_mask} must be within [0, {self.bank.mels}] triangles and "
                f"time_mask={time_mask} within [0, {target_length}] frames"
            )
        #: What prediction must repeat, plain values: ``AudioFeatures.of(settings)`` makes the same spectrograms.
        self.settings = {
            "target_length": target_length,
            "bank": self.bank.settings,
            "mean": mean,
            "std": std,
            "centre": centre,
            "pad_normalised": pad_normalised,
        }
        self.target_length, self.mean, self.std = target_length, mean, std
        self.centre, self.pad_normalised = centre, pad_normalised
        self.loudness = loudness
        self.mixup, self.mixup_alpha, self.num_classes = mixup, mixup_alpha, num_classes
        self.freq_mask, self.time_mask, self.noise, self.roll = freq_mask, time_mask, noise, roll

    @classmethod
    def of(cls, settings: dict[str, Any]) -> AudioFeatures:
        """The pipeline of ``features.settings``, without augmentation."""
        return cls(**{**settings, "bank": LogMel(**settings["bank"])})

    @property
    def samples(self) -> int:
        """Samples that ``target_length`` frames reach over."""
        return self.bank.samples(self.target_length)

    @property
    def sample_rate(self) -> int:
        """Sampling rate of the waveforms, in Hz."""
        return self.bank.sample_rate

    @torch.no_grad()
    def forward(self, batch: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``batch`` with ``spectrogram`` and ``frames``; nothing is changed in place.

        Args:
            batch: ``waveform`` float32 ``[B, samples]``, zero beyond ``length`` (int64 ``[B]``, valid samples),
                and, where there are labels, ``label``: int64 ``[B]``, or float multi-hot ``[B, C]``.
            training: whether to augment.

        Returns:
            ``spectrogram`` float32 ``[B, T, mels]``, ``frames`` int64 ``[B]`` (those of the clip, at most T);
            ``label`` of mixed batches is float ``[B, C]``.

        Raises:
            ValueError: no samples at all, or labels that cannot be mixed.
        """
        waveform, length = batch["waveform"], batch["length"]
        if waveform.ndim != 2 or waveform.numel() == 0:
            raise ValueError(
                f"waveform has shape {list(waveform.shape)}: expected [B, samples] with at least one sample; "
                "leave out empty clips"
            )
        made: dict[str, Any] = {}
        if self.centre:
            waveform = centred(waveform, length)
        if training and self.loudness:
            waveform = louder(waveform, self.loudness)
        if training and self.mixup:
            partner, share = draw_mixup(len(waveform), self.mixup, self.mixup_alpha, waveform.device)
            waveform = mixup(waveform, length, partner, share)
            if "label" in batch:
                made["label"] = mix_labels(self._multi_hot(batch["label"]), partner, share)
        frames = self.bank.frames(length).clamp(max=self.target_length)
        spectrogram = self.normalised(self.log_mel(waveform), frames, training)
        return {**batch, **made, "spectrogram": spectrogram, "frames": frames}

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Log-mel energies of the first T frames, ``[B, T, mels]``; what complete frames do not fill is undefined."""
        waveform = waveform[:, : self.samples]
        energies = self.bank(F.pad(waveform, (0, max(self.bank.size - waveform.shape[1], 0))))
        return F.pad(energies, (0, 0, 0, self.target_length - energies.shape[1]))

    def normalised(self, energies: Tensor, frames: Tensor, training: bool = False) -> Tensor:
        """Pad, augment and normalise log-mel energies ``[B, T, mels]`` of which ``frames`` ``[B]`` are the clip's."""
        valid = within(frames, energies.shape[1])[..., None]
        if self.pad_normalised:
            spectrogram = torch.where(valid, self._scaled(energies), 0.0)
            spectrogram = self._masked(spectrogram, training)
        else:
            spectrogram = self._scaled(self._masked(torch.where(valid, energies, 0.0), training))
        return roll_in_time(add_noise(spectrogram), self.roll) if training and self.noise else spectrogram

    def _masked(self, spectrogram: Tensor, training: bool) -> Tensor:
        return spec_augment(spectrogram, self.freq_mask, self.time_mask) if training else spectrogram

    def _scaled(self, energies: Tensor) -> Tensor:
        return (energies - self.mean) / (2 * self.std)

    def _multi_hot(self, label: Tensor) -> Tensor:
        if label.is_floating_point():
            return label
        if self.num_classes is None:
            raise ValueError(
                f"mixup={self.mixup} mixes labels, which are class indices here: set num_classes of the features"
            )
        return multi_hot(label, self.num_classes)
