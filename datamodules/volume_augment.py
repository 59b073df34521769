"""Augmentation of labelled windows of volumes, on their device."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.nn.volume_turns import draw_turns, draw_within, per_volume, turned


class VolumeAugment(nn.Module):
    """Mirror, turn and change the intensity of each window; labels follow. Defaults: VoCo's fine-tuning for BTCV.

    Draws are made on the host from torch's global generator.

    Args:
        flip: probability of mirroring, for each axis.
        rotate: probability of one to three quarter turns in the plane of the first two axes; windows whose sides
            differ there are turned by half.
        scale: intensities are multiplied by ``1 ± scale``.
        scale_probability: probability of that.
        shift: intensities are moved within ``± shift``.
        shift_probability: probability of that.

    Raises:
        ValueError: a probability outside [0, 1], or a negative strength.
    """

    def __init__(
        self,
        flip: float = 0.2,
        rotate: float = 0.2,
        scale: float = 0.1,
        scale_probability: float = 0.1,
        shift: float = 0.1,
        shift_probability: float = 0.5,
    ) -> None:
        super().__init__()
        chances = {"flip": flip, "rotate": rotate, "scale_probability": scale_probability}
        for name, value in {**chances, "shift_probability": shift_probability}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"augment.{name} must be a probability in [0, 1], got {value}.")
        if min(scale, shift) < 0:
            raise ValueError(f"augment.scale={scale} and augment.shift={shift} must not be negative.")
        self.flip, self.rotate = flip, rotate
        self.scale, self.scale_probability = scale, scale_probability
        self.shift, self.shift_probability = shift, shift_probability

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Augment windows.

        Args:
            batch: ``volume`` float ``[N, C, x, y, z]`` and, where there are label maps, ``label``
                ``[N, x, y, z]``.

        Returns:
            the same entries.
        """
        volume = batch["volume"]
        N, square = len(volume), volume.shape[-3] == volume.shape[-2]
        turns = draw_turns(N, self.flip, self.rotate, square)
        moved = {name: turned(tensor, turns) for name, tensor in batch.items()}
        factor = per_volume(1 + draw_within(N, self.scale, self.scale_probability), volume)
        offset = per_volume(draw_within(N, self.shift, self.shift_probability), volume)
        return {**moved, "volume": moved["volume"] * factor + offset}
