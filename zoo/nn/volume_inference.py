"""How a segmentation network is run on whole volumes: in overlapping windows, through MONAI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from zoo.extras import require


@dataclass
class SlidingWindow:
    """Sliding-window inference; several windows go through the network at once.

    A volume smaller than the window is padded with zeros on both sides and cut back, as MONAI does it.

    Args:
        window: sides in voxels; for Swin UNETR multiples of 32 of at least 64.
        overlap: of neighbouring windows, as a share of their side, within [0, 1).
        blend: weight of a window's voxels where windows overlap: ``constant``, or ``gaussian`` (less at borders).
        window_batch: windows that go through the network together.
        gather_on: where logits of the whole volume are put together: the network's ``device``, or the ``cpu``, for
            volumes that do not fit beside the network.

    Raises:
        ValueError: an argument out of range.
    """

    window: tuple[int, int, int] = (96, 96, 96)
    overlap: float = 0.75
    blend: Literal["constant", "gaussian"] = "constant"
    window_batch: int = 2
    gather_on: Literal["device", "cpu"] = "device"

    def __post_init__(self) -> None:
        """Check the arguments; checkpoints hold lists for tuples."""
        self.window = (self.window[0], self.window[1], self.window[2])
        if min(self.window) < 1 or self.window_batch < 1:
            raise ValueError(
                f"inference.window={list(self.window)} and inference.window_batch={self.window_batch} must be positive"
            )
        if not 0.0 <= self.overlap < 1.0:
            raise ValueError(f"inference.overlap must be within [0, 1), got {self.overlap}")
        for name, allowed in {"blend": ("constant", "gaussian"), "gather_on": ("device", "cpu")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"inference.{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}"
                )

    def __call__(self, network: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
        """Logits ``[B, C, X, Y, Z]`` of volumes ``[B, C_in, X, Y, Z]``.

        Args:
            network: windows ``[n, C_in, *window]`` → logits ``[n, C, *window]``, in evaluation mode.
            volume: in [0, 1].

        Raises:
            ImportError: MONAI is not installed.
        """
        return require("monai.inferers", "medical", "SlidingWindow").sliding_window_inference(
            volume,
            self.window,
            self.window_batch,
            network,
            overlap=self.overlap,
            mode=self.blend,
            device=volume.device if self.gather_on == "device" else "cpu",
            sw_device=volume.device,
        )
