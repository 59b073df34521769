"""CowMix: mixing by irregular blobs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.nn.mixing import MaskMix, Partner


class CowMix(MaskMix):
    """Fill blobs, like the patches of a cow, from another image: pixels, labels and weights.

    French et al., "Milking CowMask for Semi-Supervised Image Classification" (2020), section 3.1, with the
    scales that ClassMix's and DACS's code use for segmentation. White noise is smoothed by a Gaussian whose
    sigma is drawn log-uniformly for each image; its lowest part, by the quantile of the normal distribution
    that has the drawn share, is filled. Smoothing multiplies the spectrum, at one cost for every sigma; the
    pattern therefore wraps around the image's border, where the released code reflects it.

    Args:
        p: probability that a call mixes at all.
        partner: see :class:`zoo.nn.mixing.MaskMix`.
        sigma: (least, largest) standard deviation of the smoothing in pixels; at most a quarter of the image's
            shorter side is used, beyond which an image would be one blob.
        share: (least, largest) expected share of the pixels that is filled, drawn uniformly for each image.

    Raises:
        ValueError: an interval is empty or out of range.
    """

    def __init__(
        self,
        p: float = 0.5,
        partner: Partner = "unlabelled",
        sigma: tuple[float, float] = (8.0, 32.0),
        share: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        super().__init__(p, partner)
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma must be (least, largest), both positive, got {tuple(sigma)}")
        if not 0 < share[0] <= share[1] < 1:
            raise ValueError(f"share must be (least, largest), both within (0, 1), got {tuple(share)}")
        self.sigma, self.share = (sigma[0], sigma[1]), (share[0], share[1])

    def kept(self, label: Tensor) -> Tensor:
        """Return the pixels outside the blobs."""
        noise = self.noise(label)
        share = torch.empty(len(label), 1, 1, device=label.device).uniform_(*self.share)
        quantile = math.sqrt(2) * torch.erfinv(2 * share - 1)
        deviation, mean = torch.std_mean(noise, (1, 2), keepdim=True)
        return noise > mean + quantile * deviation

    def noise(self, label: Tensor) -> Tensor:
        """Draw smooth noise of mean about 0, float32 ``[B, H, W]``."""
        height, width = label.shape[1:]
        low, high = (math.log(min(sigma, min(height, width) / 4)) for sigma in self.sigma)
        sigma = torch.empty(len(label), 1, 1, device=label.device).uniform_(low, high).exp()
        y = torch.fft.fftfreq(height, device=label.device)[:, None]
        x = torch.fft.rfftfreq(width, device=label.device)
        smoothing = torch.exp(-2 * (math.pi * sigma) ** 2 * (y**2 + x**2))
        spectrum = torch.fft.rfft2(torch.randn(label.shape, device=label.device))
        return torch.fft.irfft2(spectrum * smoothing, s=(height, width))
