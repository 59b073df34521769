"""Augmentation of audio in batches on the device, with draws of each clip's own; as released with SSAST and AST."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid


def centred(waveform: Tensor, length: Tensor) -> Tensor:
    """Clips without their mean over the valid samples; what lies beyond ``length`` becomes 0.

    Args:
        waveform: ``[B, samples]``, zero beyond ``length``.
        length: valid samples, int64 ``[B]``.
    """
    mean = waveform.sum(1) / length.clamp(min=1)
    return torch.where(within(length, waveform.shape[1]), waveform - mean[:, None], 0.0)


def within(length: Tensor, size: int) -> Tensor:
    """Bool ``[B, size]``: whether a position lies below the clip's ``length`` ``[B]``."""
    return torch.arange(size, device=length.device) < length[:, None]


def louder(waveform: Tensor, alpha: float) -> Tensor:
    """Clips ``[B, samples]`` times a factor of each one's own, Beta(alpha, alpha) + 0.5 (AudioMAE, HiCMAE).

    The release also means to roll clips in time, by a shift below the number of channels: of one channel it is 0.
    """
    return waveform * (_beta(len(waveform), alpha, waveform.device)[:, None] + 0.5)


def draw_mixup(clips: int, probability: float, alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Partners ``[B]``, uniform over the batch (a clip may be its own), and shares ``[B]`` that clips keep.

    A share is Beta(alpha, alpha) with ``probability``, or else 1.
    """
    partner = torch.randint(clips, (clips,), device=device)
    share = _beta(clips, alpha, device)
    mixed = torch.rand(clips, device=device) < probability
    return partner, torch.where(mixed, share, 1.0)


def _beta(clips: int, alpha: float, device: torch.device) -> Tensor:
    concentration = torch.full((clips,), alpha, device=device)
    return torch.distributions.Beta(concentration, concentration, validate_args=False).sample()


def mixup(waveform: Tensor, length: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Mix waveforms: ``share`` of the clip and the rest of its partner, cut or padded to the clip's length.

    The mixture is centred again (card of SSAST, section 2.2). Clips with a share of 1 stay as they are.

    Args:
        waveform: centred clips ``[B, samples]``, zero beyond ``length``.
        length: valid samples, int64 ``[B]``.
        partner: position of the other clip in the batch, int64 ``[B]``.
        share: ``[B]``.
    """
    weight = share[:, None]
    mixed = centred(weight * waveform + (1 - weight) * waveform[partner], length)
    return torch.where(weight < 1, mixed, waveform)


def mix_labels(label: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Labels of mixed clips: ``share`` of one's own multi-hot row ``[B, C]`` and the rest of the partner's."""
    weight = share[:, None]
    return weight * label + (1 - weight) * label[partner]


def multi_hot(label: Tensor, num_classes: int) -> Tensor:
    """Float ``[B, C]`` of class indices ``[B]``."""
    return (label[:, None] == torch.arange(num_classes, device=label.device)).float()


def spec_augment(spectrogram: Tensor, freq_mask: int, time_mask: int) -> Tensor:
    """One frequency mask, then one time mask per clip, filled with 0 (Park et al., 2019; torchaudio's semantics).

    Args:
        spectrogram: ``[B, T, mels]``, in the log domain and not yet normalised.
        freq_mask: bound on the number of masked triangles; 0 masks none.
        time_mask: bound on the number of masked frames; 0 masks none.
    """
    for axis, bound in ((2, freq_mask), (1, time_mask)):
        if bound:
            spectrogram = mask_along_axis_iid(spectrogram, bound, 0.0, axis)
    return spectrogram


def add_noise(spectrogram: Tensor) -> Tensor:
    """Add uniform noise in [0, 1) times u / 10, with u uniform in [0, 1) once per clip, to ``[B, T, mels]``."""
    strength = torch.rand(len(spectrogram), 1, 1, device=spectrogram.device) / 10
    return spectrogram + strength * torch.rand_like(spectrogram)


def roll_in_time(spectrogram: Tensor, shift: int) -> Tensor:
    """Roll each clip of ``[B, T, mels]`` by an integer, uniform in {-shift, ..., shift - 1}; what leaves comes back."""
    clips, frames, _ = spectrogram.shape
    by = torch.randint(-shift, shift, (clips, 1), device=spectrogram.device)
    source = (torch.arange(frames, device=spectrogram.device) - by) % frames
    return spectrogram.gather(1, source[..., None].expand_as(spectrogram))
