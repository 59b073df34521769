"""What methods on volumes share: volumes to predict, raw or prepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.method import Method
from zoo.nn.deployed import VolumeFeatures

if TYPE_CHECKING:
    from datamodules.volume_processing import Processed

Volume = str | Path | np.ndarray | Tensor


class VolumeMethod(Method):
    """Base of methods on volumes. The benchmark's processing is in every checkpoint, so that raw scans can be given.

    Args:
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.
    """

    input_name = "volume"

    def example_input(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Two volumes ``[2, C, X, Y, Z]`` of noise in [0, 1]; by default of the inference window's size, or 64³."""
        backbone: Any = self.student.backbone
        window = getattr(getattr(self, "inference", None), "window", None)
        shape = size or window or (64, 64, 64)
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, backbone.in_chans, *shape, generator=generator).to(self.device)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Embeddings of volumes."""
        return VolumeFeatures(network)

    def prepared(self, volume: Volume, affine: np.ndarray | Tensor | None) -> tuple[Tensor, Processed | None]:
        """One volume as a batch ``[1, C, X, Y, Z]`` in [0, 1], and how it was processed, if it was.

        Args:
            volume: a NIfTI or MetaImage file; or an array or tensor ``[X, Y, Z]`` or ``[C, X, Y, Z]``, with
                ``affine`` as stored in the scan, without it as the method was trained: float in [0, 1].
            affine: voxel numbers → millimetres ``[4, 4]`` (RAS+); given it, the volume is oriented, spaced and
                windowed as the benchmark's were.

        Raises:
            ValueError: another shape, values outside [0, 1] without ``affine``, or a method that was trained on no
                benchmark, so that it knows no processing.
            BrokenVolumeError: the file cannot be used, or shows nothing.
        """
        if not isinstance(volume, (str, Path)) and affine is None:
            return one_volume(volume, self.device), None
        from datamodules.volume_files import Volume as Scan
        from datamodules.volume_files import read_volume
        from datamodules.volume_processing import process_read, settings_of

        if "volume" not in self.preprocessing:
            raise ValueError(
                "this method was trained on no benchmark of volumes, so how scans are processed is not known: give "
                "the prepared volume, float in [0, 1], and no affine"
            )
        settings = settings_of(self.preprocessing["volume"])
        if isinstance(volume, (str, Path)):
            scan = read_volume(Path(volume), settings.channels, settings.missing_affine)
        else:
            array = np.asarray(torch.as_tensor(volume).cpu(), np.float32)
            array = array[None] if array.ndim == 3 else array
            scan = Scan(
                _checked(array), np.asarray(torch.as_tensor(affine).cpu(), np.float64), Path("volume")
            )
        done = process_read(scan, None, settings)
        return torch.from_numpy(done.volume)[None].to(self.device), done


def one_volume(volume: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """One prepared volume as a batch ``[1, C, X, Y, Z]``.

    Raises:
        ValueError: it has neither three nor four axes, or is not float in [0, 1].
    """
    volume = torch.from_numpy(np.ascontiguousarray(volume)) if isinstance(volume, np.ndarray) else volume
    if volume.ndim not in (3, 4) or not volume.numel():
        raise ValueError(f"volume has shape {list(volume.shape)}: expected [X, Y, Z] or [C, X, Y, Z]")
    low, high = float(volume.min()), float(volume.max())
    if not volume.is_floating_point() or not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            f"volume holds {volume.dtype} from {low:.4g} to {high:.4g}: expected float in [0, 1], prepared as in "
            "training; for a raw scan give its file, or its affine"
        )
    return volume.float().to(device)[None] if volume.ndim == 4 else volume.float().to(device)[None, None]


def _checked(array: np.ndarray) -> np.ndarray:
    if array.ndim != 4 or not np.isfinite(array).all():
        raise ValueError(
            f"volume has shape {list(array.shape)}: expected [X, Y, Z] or [C, X, Y, Z], all finite"
        )
    return array
