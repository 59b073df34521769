"""How good frozen features are for classification: nearest neighbours and linear classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.probe import Kinds, Probe, bank, batch_features, features_of, image_benchmark
from zoo.method import Batch, Method
from zoo.nn.knn import check_k, knn_scores
from zoo.nn.linear_grid import LinearGrid
from zoo.nn.ranks import rank_count, sum_over_ranks

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Base learning rates of DINOv2's linear evaluation, for a batch of 256."""


class KNNProbe(Probe):
    """Weighted k-nearest-neighbour accuracy on the labelled training images, in percent: ``val/knn<k>``.

    Cosine similarity, votes ``softmax(similarity / temperature)``: see :func:`zoo.nn.knn.knn_scores`. The bank is
    shown with the evaluation's resize and crop; every rank computes its share of it and holds all of it.

    Args:
        k: numbers of neighbours, all measured at once.
        temperature: of the votes.
        chunk: bank features compared with a batch at once; bounds the memory beside the bank.
        every: run with every such validation.

    Raises:
        ValueError: an argument is out of range; k is larger than the bank.
    """

    def __init__(
        self,
        k: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        chunk: int = 65536,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        if not k or min(k) < 1 or temperature <= 0 or chunk < 1:
            raise ValueError(
                f"k must be one or more numbers from 1, temperature and chunk positive; got k={list(k)}, "
                f"temperature={temperature}, chunk={chunk}."
            )
        self.k, self.temperature, self.chunk = tuple(k), temperature, chunk
        self._counts: Tensor | None = None
        self._right: list[Tensor] = []

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Compute the bank."""
        self._right = []
        check_k(self.k, len(bank(trainer, method).labels))
        self._counts = torch.zeros(len(self.k) + 1, device=method.device, dtype=torch.long)

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Count the images whose class the neighbours name."""
        assert self._counts is not None
        reference, label = bank(trainer, method), batch["label"]
        scores = knn_scores(
            batch_features(method, batch)["features"],
            reference.features["features"],
            reference.labels,
            image_benchmark(trainer).num_classes,
            self.k,
            self.temperature,
            self.chunk,
        )
        right = torch.stack([score.argmax(1) == label for score in scores.values()])
        if trainer.state.fn == "test":
            self._right.append(right)
        self._counts += torch.stack([*right.sum(1), torch.tensor(len(label), device=label.device)])

    def sample_scores(self) -> dict[str, Tensor]:
        """Of this rank's test images in order, for every k: 100 where the neighbours were right, else 0."""
        if not self._right:
            return {}
        return {f"knn{k}": 100.0 * row for k, row in zip(self.k, torch.cat(self._right, 1), strict=True)}

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """Accuracy for every k."""
        assert self._counts is not None
        *right, total = sum_over_ranks(self._counts)
        return {f"knn{k}": 100.0 * count / total for k, count in zip(self.k, right, strict=True)}


class LinearProbe(Probe):
    """Accuracy of linear classifiers on frozen features, in percent: ``val/linear``.

    The protocol of DINOv2 and POA: a classifier for every learning rate and every kind of features, all trained
    together (:class:`zoo.nn.linear_grid.LinearGrid`), the best on the validation images reported. Tests choose
    on validation images, too. Kinds are those of ``method.probe_features(image)``, where a method has that, and
    otherwise ``method.features(image)``; of several kinds the best of each is logged as ``val/linear_<kind>``.

    Args:
        learning_rates: base rates; each is multiplied by images a step / 256.
        epochs: passes over the labelled training images.
        batch_size: images a step, with ``augment`` on every device.
        augment: train on random resized crops, mirrored at random, as published; the network then runs on every
            training image in every epoch. Otherwise each image's features are computed once, which is fast
            enough to do while training.
        seed: of initial weights and order.
        every: run with every such validation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        learning_rates: Sequence[float] = LEARNING_RATES,
        epochs: int = 10,
        batch_size: int = 256,
        augment: bool = False,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}.")
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(
                f"learning_rates must be one or more positive numbers, got {list(learning_rates)}."
            )
        self.learning_rates, self.epochs, self.batch_size = tuple(learning_rates), epochs, batch_size
        self.augment, self.seed = augment, seed
        self._grid: LinearGrid | None = None
        self._right: Tensor | None = None
        self._total = 0

    def begin(self, trainer: L.Trainer, method: Method) -> None:
        """Train the classifiers."""
        # Validation runs in inference mode, whose tensors know no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            self._grid = self._trained(trainer, method)
        self._right, self._total = None, 0

    def see(self, trainer: L.Trainer, method: Method, batch: Batch) -> None:
        """Count the images each classifier gets right."""
        self._count(batch_features(method, batch, several=True), batch["label"])

    def end(self, trainer: L.Trainer, method: Method) -> dict[str, Tensor]:
        """Accuracy of the best classifier, and where there are several kinds of features that of each."""
        assert self._grid is not None
        accuracy = chosen_by = self._accuracy()
        if trainer.state.fn == "test":
            chosen_by = self._validation_accuracy(trainer, method)
        best = {
            kind: values[by.argmax()]
            for kind, values, by in zip(self._grid.kinds, accuracy, chosen_by, strict=True)
        }
        result = {"linear": accuracy.flatten()[chosen_by.argmax()]}
        return result if len(best) == 1 else {**result, **{f"linear_{kind}": v for kind, v in best.items()}}

    def _trained(self, trainer: L.Trainer, method: Method) -> LinearGrid:
        if self.augment:
            loader = image_benchmark(trainer).labelled_dataloader(self.batch_size)
            steps, batches = self.epochs * len(loader), self._augmented(trainer, method, loader)
        else:
            features, labels = bank(trainer, method, several=True)
            # Copies made here are ordinary tensors.
            features = {kind: value.clone() for kind, value in features.items()}
            steps = self.epochs * -(-len(labels) // self.batch_size)
            batches = self._stored(features, labels.clone())
        ranks = rank_count() if self.augment else 1
        grid: LinearGrid | None = None
        for kinds, label in batches:
            if grid is None:
                rates = [rate * self.batch_size * ranks / 256 for rate in self.learning_rates]
                dims = {kind: value.shape[1] for kind, value in kinds.items()}
                classes = image_benchmark(trainer).num_classes
                grid = LinearGrid(dims, classes, rates, steps, self.seed).to(label.device)
            grid.fit(kinds, label)
        assert grid is not None
        return grid

    def _stored(self, features: Kinds, labels: Tensor) -> Iterator[tuple[Kinds, Tensor]]:
        """Batches of the bank in a new order each epoch, the same on all ranks."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            for index in order.split(self.batch_size):
                yield {kind: value[index] for kind, value in features.items()}, labels[index]

    def _augmented(self, trainer: L.Trainer, method: Method, loader: Any) -> Iterator[tuple[Kinds, Tensor]]:
        """Batches of this rank's augmented images."""
        for epoch in range(self.epochs):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                on_device = method.transfer_batch_to_device(batch, method.device, 0)
                # The host's sizes of padded images: boxes are drawn there.
                image = image_benchmark(trainer).crop_and_mirror(on_device["image"], batch.get("size"))
                yield features_of(method, image, several=True), on_device["label"]

    def _validation_accuracy(self, trainer: L.Trainer, method: Method) -> Tensor:
        self._right, self._total = None, 0
        for batch in image_benchmark(trainer).subset_dataloader("val"):
            on_device = trainer.strategy.batch_to_device(batch)
            self._count(features_of(method, on_device["image"], several=True), on_device["label"])
        return self._accuracy()

    def _count(self, kinds: Kinds, label: Tensor) -> None:
        assert self._grid is not None
        right = self._grid.correct(kinds, label)
        self._right = right if self._right is None else self._right + right
        self._total += len(label)

    def _accuracy(self) -> Tensor:
        """Percent right of every classifier, ``[kinds, L]``."""
        assert self._right is not None
        total = torch.tensor(self._total, device=self._right.device)
        return 100.0 * sum_over_ranks(self._right) / sum_over_ranks(total)
