"""PackagedPhotographs: real photographs that packages ship, with noise that neighbouring pixels share."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from datamodules.denoising import DenoisingDataModule, WholePictures
from datamodules.layout import Layout, LayoutError
from datamodules.readers import read_image

#: Split → package and file of its photographs. motorcycle_right shows the scene of motorcycle_left and is left out.
PHOTOGRAPHS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/ihc.png"),
    ),
    "val": (("sklearn", "datasets/images/flower.jpg"),),
    "test": (("sklearn", "datasets/images/china.jpg"), ("skimage", "data/chelsea.png")),
}
_NOISE_SEED: Final = 11
_SHRINK: Final = 2


class PackagedPhotographs(DenoisingDataModule):
    """Nine photographs of scikit-image and scikit-learn at half their size, split by photograph.

    Noise is Gaussian, blurred by a 3x3 box and scaled back to ``sigma``: a pixel shares two thirds of it with its
    neighbour and nothing with what is three pixels away. Every photograph has one noise, always the same, rounded and
    clipped to 8 bits as a camera's file is. Evaluation shows tiles. Nothing is downloaded; needs the extra
    ``denoising``.

    Args:
        sigma: standard deviation of the noise, of 255.
        blur: side of the box; 1 leaves pixels independent.
        tile: side of evaluation images.
        crop: side of training crops.
        num_crops: training crops of a pass over the data.
        batch_size: training crops a step, on every device.
        eval_batch_size: tiles a batch in evaluation.
        num_workers: loader processes; 0 loads in the training process.
        **common: see :class:`~datamodules.denoising.DenoisingDataModule`.

    Raises:
        ValueError: an argument is out of range.
        LayoutError: a package or one of its photographs is missing.
    """

    name = "packaged_photographs"
    layout: ClassVar[Mapping[str, Layout]] = {}
    test_split = "test"

    def __init__(
        self,
        sigma: float = 25.0,
        blur: int = 3,
        tile: int = 72,
        crop: int = 60,
        num_crops: int = 1200,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, crop=crop, **common)
        if sigma <= 0 or blur < 1 or blur % 2 == 0:
            raise ValueError(f"sigma={sigma} must be positive and blur={blur} odd and at least 1.")
        if min(tile, num_crops) < 1:
            raise ValueError(f"tile={tile} and num_crops={num_crops} must be at least 1.")
        self.sigma, self.blur, self.tile, self.num_crops = sigma, blur, tile, num_crops

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """No folder of the user's."""
        return {}

    def setup(self, stage: str | None = None) -> None:
        """Read the photographs of a stage and add their noise."""
        for name, split in self.eval_splits(stage).items():
            tiles = [tile for place in PHOTOGRAPHS[split] for tile in self._tiles(*place)]
            clean, noisy, names = zip(*tiles, strict=True)
            self.datasets[name] = WholePictures(noisy, names, clean)
        if stage in (None, "fit"):
            photographs = [self.noisy(photograph(*place), place[1]) for place in PHOTOGRAPHS["train"]]
            areas = np.array([picture.shape[0] * picture.shape[1] for picture in photographs])
            # A crop is drawn of each photograph as often as its share of all pixels.
            shares = np.maximum(1, np.round(areas / areas.sum() * self.num_crops)).astype(int)
            repeated = [picture for picture, n in zip(photographs, shares, strict=True) for _ in range(n)]
            files = [
                file for (_, file), n in zip(PHOTOGRAPHS["train"], shares, strict=True) for _ in range(n)
            ]
            self.datasets["train"] = self.drawn(repeated, lambda index: files[index])

    def noisy(self, clean: np.ndarray, file: str) -> np.ndarray:
        """A photograph ``[H, W, 3]`` uint8 with its noise, which depends on its file's name."""
        height, width = clean.shape[:2]
        rng = np.random.default_rng([_NOISE_SEED, zlib.crc32(file.encode())])
        white = rng.normal(size=(height + self.blur - 1, width + self.blur - 1, 3))
        windows = np.lib.stride_tricks.sliding_window_view(white, (self.blur, self.blur), (0, 1))
        noise = windows.sum((3, 4)) * (self.sigma / self.blur)
        return np.clip(np.round(clean + noise), 0, 255).astype(np.uint8)

    def _tiles(self, package: str, file: str) -> list[tuple[np.ndarray, np.ndarray, str]]:
        clean = photograph(package, file)
        noisy, side = self.noisy(clean, file), self.tile
        if min(clean.shape[:2]) < side:
            raise ValueError(
                f"tile={side} is larger than {file}, {clean.shape[0]} x {clean.shape[1]} pixels."
            )
        rows, columns = (range(0, length - side + 1, side) for length in clean.shape[:2])
        return [
            (
                clean[y : y + side, x : x + side],
                noisy[y : y + side, x : x + side],
                f"{Path(file).stem}-{y}-{x}",
            )
            for y in rows
            for x in columns
        ]


def photograph(package: str, file: str) -> np.ndarray:
    """A photograph ``[H, W, 3]`` uint8 at half its size, which also halves the noise it has itself.

    Raises:
        LayoutError: the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / file
    if path is None or not path.is_file():
        raise LayoutError(
            f"PackagedPhotographs needs {file} of {package}, which is not there: pip install 'selfzoo[denoising]'"
        )
    stored = read_image(path)[:, None].float()
    height, width = (side // _SHRINK * _SHRINK for side in stored.shape[-2:])
    halved = stored[..., :height, :width].unflatten(3, (-1, _SHRINK)).unflatten(2, (-1, _SHRINK)).mean((3, 5))
    return halved[:, 0].round().byte().permute(1, 2, 0).numpy()
