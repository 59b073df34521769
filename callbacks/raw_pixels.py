"""The rows that belong beside every probe: what raw pixels reach on the same images."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from callbacks.probe import Probe, image_benchmark
from datamodules.image_sets import balanced_choice
from zoo.method import Batch, Method
from zoo.nn.ranks import sum_over_ranks
from zoo.raw_pixels import RawPixels


class RawPixelProbe(Probe):
    """Accuracy of raw pixels, in percent: ``val/pixels_knn<k>`` and ``val/pixels_logistic``.

    Weighted k-NN and logistic regression (:class:`zoo.raw_pixels.RawPixels`) on the labelled training images: a
    probe of features that does not beat these has shown nothing. Pixels do not change: later validations of a
    run repeat what the first one measured.

    Args:
        k: number of neighbours.
        images: use at most so many training images, with equal shares of the classes.
        every: run with every such validation.

    Raises:
        ValueError: an argument is out of range; k is larger than the bank.
    """

    def __init__(self, k: int = 20, images: int = 10_000, every: int = 1) -> None:
        super().__init__(every)
        if k < 1 or images < k:
            raise ValueError(f"k must be at least 1 and images at least k, got k={k}, images={images}.")
        self.k, self.images = k, images
        self._pixels: RawPixels | None = None
        self._measured: dict[object, Tensor] = {}
        self._counts = torch.zeros(3, dtype=torch.long)

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Take the training images."""
        if self._pixels is None and trainer.state.stage not in self._measured:
            data = image_benchmark(trainer)
            subset = data.subset("labelled")
            chosen = balanced_choice(subset.labels, min(self.images, len(subset)), 0)
            batch = subset.batch(chosen)
            self._pixels = RawPixels(batch["image"], batch["label"], data.num_classes, self.k)
        self._counts = torch.zeros(3, dtype=torch.long)

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Count the images that are classified rightly."""
        if trainer.state.stage in self._measured:
            return
        assert self._pixels is not None
        image, label = batch["image"].cpu(), batch["label"].cpu()
        right = [(found(image) == label).sum() for found in (self._pixels.neighbours, self._pixels.logistic)]
        self._counts += torch.stack([*right, torch.tensor(len(label))])

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """Both accuracies."""
        stage = trainer.state.stage
        if stage not in self._measured:
            *right, total = sum_over_ranks(self._counts.to(method.device))
            self._measured[stage] = 100.0 * torch.stack(right) / total
        neighbours, logistic = self._measured[stage]
        return {f"pixels_knn{self.k}": neighbours, "pixels_logistic": logistic}
