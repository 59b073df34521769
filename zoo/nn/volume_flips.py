"""Light augmentation of volumes for masked pre-training: mirroring and noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.nn.volume_turns import Turns, per_volume, turned


class VolumeFlips(nn.Module):
    """Mirror each volume along its axes, and add noise to some: a datamodule's ``views`` (Uni4Eye, as released).

    Draws are made on the host from torch's global generator; noise is drawn there too. Voxels that are 0 stay 0:
    nothing was recorded there.

    Args:
        flip: probability of mirroring, for each of the three axes.
        noise_probability: of Gaussian noise.
        noise_variance: its variance is drawn from 0 to this, in grey levels of 1/255.

    Raises:
        ValueError: a probability outside [0, 1], or a negative variance.
    """

    def __init__(
        self,
        flip: tuple[float, float, float] = (0.5, 0.5, 0.5),
        noise_probability: float = 0.2,
        noise_variance: float = 5.0,
    ) -> None:
        super().__init__()
        if not all(0 <= chance <= 1 for chance in (*flip, noise_probability)) or noise_variance < 0:
            raise ValueError(
                f"flip={list(flip)} and noise_probability={noise_probability} must be within [0, 1], "
                f"noise_variance={noise_variance} not negative"
            )
        self.flip, self.noise_probability, self.noise_variance = (
            tuple(flip),
            noise_probability,
            noise_variance,
        )

    def forward(self, volume: Tensor) -> dict[str, Tensor]:
        """``{"volume": ...}``, augmented volumes ``[B, C, X, Y, Z]`` in [0, 1]."""
        mirrored = torch.rand(len(volume), 3) < torch.tensor(self.flip)
        volume = turned(volume, Turns(torch.zeros(len(volume), dtype=torch.bool), mirrored))
        chosen = torch.rand(len(volume)) < self.noise_probability
        spread = (torch.rand(len(volume)) * self.noise_variance).sqrt() / 255 * chosen
        noise = torch.randn(volume.shape).to(volume.device, non_blocking=True)
        noisy = (volume + noise * per_volume(spread, volume)).clamp(0, 1)
        return {"volume": torch.where(volume > 0, noisy, volume)}
