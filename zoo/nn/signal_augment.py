"""Augmentation of biosignals, batched on the device: the stochastic cascade of Abbaspourazad et al. (ICLR 2024).

Functions take signals ``[B, C, T]`` and what was drawn; :class:`SignalAugment` draws. Arithmetic as released.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from zoo.nn.ranks import this_rank

KNOTS = 7
"""Knots of both warps, ends included."""

PPG = {"cut_out": 0.4, "magnitude_warp": 0.25, "time_warp": 0.15, "noise": 0.25, "channel_permute": 0.25}
"""Probabilities of the cascade for photoplethysmograms, in the order of application."""

ECG = {"cut_out": 0.8, "magnitude_warp": 0.5, "noise": 0.5, "time_warp": 0.3}
"""The same for electrocardiograms (of the paper; the released code has PPG's alone)."""


def zscore(signal: Tensor) -> Tensor:
    """Every channel of every segment with mean 0 and (population) standard deviation 1; constant ones become 0."""
    centred = signal - signal.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return centred / torch.where(spread > 0, spread, 1.0)


@lru_cache
def spline_basis(length: int, knots: int = KNOTS) -> Tensor:
    """Matrix ``[length, knots]``, float64, that turns values at equidistant knots into their cubic spline.

    The spline is the not-a-knot one (SciPy's default): cubics joined at all knots but the first and last two.
    """
    breaks = torch.arange(2, knots - 2, dtype=torch.float64)

    def terms(place: Tensor) -> Tensor:
        powers = place[:, None] ** torch.arange(4, dtype=torch.float64)
        return torch.cat([powers, (place[:, None] - breaks).clamp(min=0) ** 3], 1)

    at_knots = terms(torch.arange(knots, dtype=torch.float64))
    between = terms(torch.linspace(0, knots - 1, length, dtype=torch.float64))
    return between @ torch.linalg.inv(at_knots)


def cut_out(signal: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Zero the samples from ``start`` on, ``length`` of them, ``[B]`` each, in all channels."""
    time = torch.arange(signal.shape[-1], device=signal.device)
    begin, end = start[:, None, None], (start + length)[:, None, None]
    return signal.masked_fill((time >= begin) & (time < end), 0.0)


def magnitude_warp(signal: Tensor, scale: Tensor) -> Tensor:
    """Multiply by a smooth curve through ``scale`` ``[B, knots]``, the same for all channels."""
    curve = scale @ spline_basis(signal.shape[-1], scale.shape[-1]).to(scale).T
    return signal * curve[:, None].to(signal.dtype)


def time_warp(signal: Tensor, factor: Tensor) -> Tensor:
    """Stretch and compress time smoothly, each channel on its own.

    Equidistant knots are moved to their position times ``factor`` ``[B, C, knots]``; the spline through them says
    where every sample goes, scaled so that the last one stays, and cut to the segment. Between them values are
    interpolated. Where the spline runs backwards, the first passage counts (as in NumPy's ``interp``).
    """
    length, knots = signal.shape[-1], factor.shape[-1]
    moved = factor * torch.linspace(0, length - 1, knots, device=signal.device, dtype=factor.dtype)
    place = moved @ spline_basis(length, knots).to(factor).T
    place = (place * ((length - 1) / place[..., -1:])).clamp(0, length - 1)
    time = torch.arange(length, device=signal.device, dtype=factor.dtype).expand_as(place).contiguous()
    left = torch.searchsorted(place.cummax(-1).values, time, right=True) - 1
    right = (left + 1).clamp(max=length - 1)
    at, after = place.gather(-1, left), place.gather(-1, right)
    share = torch.where(right > left, (time - at) / (after - at), 0.0).to(signal.dtype)
    value = signal.gather(-1, left)
    return value + share * (signal.gather(-1, right) - value)


def permute_channels(signal: Tensor, order: Tensor) -> Tensor:
    """Channel ``order[b, c]`` of every segment in place of c."""
    return signal.gather(1, order[..., None].expand_as(signal))


class SignalAugment(nn.Module):
    """Standardise segments and send them through the cascade, each with coins and draws of its own.

    Coins and draws are made on the device from a generator that is seeded with torch's global one and the rank; nothing
    waits for the device.

    Args:
        cut_out: probability of zeroing a block.
        magnitude_warp: probability of a smooth change of amplitude.
        time_warp: probability of a smooth change of time.
        noise: probability of Gaussian noise.
        channel_permute: probability of a random order of channels.
        order: in which they are applied; None takes PPG's, that of the release.
        cut_range: bounds of the zeroed share of a segment, the upper one excluded.
        magnitude_sigma: spread of the amplitude at the knots, around 1.
        time_sigma: the same of positions.
        noise_range: bounds of the noise's standard deviation, in those of the signal.
        standardise: start with :func:`zscore`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        cut_out: float = PPG["cut_out"],
        magnitude_warp: float = PPG["magnitude_warp"],
        time_warp: float = PPG["time_warp"],
        noise: float = PPG["noise"],
        channel_permute: float = PPG["channel_permute"],
        order: tuple[str, ...] | None = None,
        cut_range: tuple[float, float] = (0.3, 0.5),
        magnitude_sigma: float = 0.2,
        time_sigma: float = 0.1,
        noise_range: tuple[float, float] = (0.05, 0.1),
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.probabilities: Mapping[str, float] = {
            "cut_out": cut_out,
            "magnitude_warp": magnitude_warp,
            "time_warp": time_warp,
            "noise": noise,
            "channel_permute": channel_permute,
        }
        for name, value in self.probabilities.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is a probability, which lies within [0, 1]; got {value}")
        self.order = tuple(PPG) if order is None else tuple(order)
        if sorted(self.order) != sorted(PPG):
            raise ValueError(f"order must name each of {', '.join(PPG)} once, got {list(self.order)}")
        if not 0.0 <= cut_range[0] < cut_range[1] <= 1.0:
            raise ValueError(f"cut_range must be two rising shares in [0, 1], got {list(cut_range)}")
        if not 0.0 <= noise_range[0] <= noise_range[1] or min(magnitude_sigma, time_sigma) < 0:
            raise ValueError(
                f"noise_range={list(noise_range)} must rise, magnitude_sigma={magnitude_sigma} and time_sigma="
                f"{time_sigma} not be negative"
            )
        self.cut_range, self.noise_range = tuple(cut_range), tuple(noise_range)
        self.magnitude_sigma, self.time_sigma, self.standardise = magnitude_sigma, time_sigma, standardise

    @torch.no_grad()
    def forward(self, signal: Tensor) -> Tensor:
        """Segments ``[B, C, T]`` in any unit → augmented ones, standardised before."""
        signal = zscore(signal) if self.standardise else signal
        seed = int(torch.randint(2**62, ())) + this_rank()
        generator = torch.Generator(signal.device).manual_seed(seed)
        for name in self.order:
            if self.probabilities[name]:
                coin = torch.rand(len(signal), device=signal.device, generator=generator)
                changed = getattr(self, f"_{name}")(signal, generator)
                signal = torch.where((coin < self.probabilities[name])[:, None, None], changed, signal)
        return signal

    def _cut_out(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        B, _, T = signal.shape
        low, high = (int(share * T) for share in self.cut_range)
        drawn = torch.rand(2, B, device=signal.device, generator=generator)
        length = low + (drawn[0] * max(high - low, 1)).long()
        return cut_out(signal, (drawn[1] * (T - length)).long(), length)

    def _magnitude_warp(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(len(signal), KNOTS, device=signal.device, generator=generator)
        return magnitude_warp(signal, 1.0 + self.magnitude_sigma * drawn)

    def _time_warp(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(*signal.shape[:2], KNOTS, device=signal.device, generator=generator)
        return time_warp(signal, 1.0 + self.time_sigma * drawn)

    def _noise(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self.noise_range
        sigma = low + (high - low) * torch.rand(len(signal), 1, 1, device=signal.device, generator=generator)
        noise = torch.randn(signal.shape, device=signal.device, generator=generator, dtype=signal.dtype)
        return signal + sigma * noise

    def _channel_permute(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        keys = torch.rand(signal.shape[:2], device=signal.device, generator=generator)
        return permute_channels(signal, keys.argsort(1))
