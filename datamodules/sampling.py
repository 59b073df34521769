"""Which images a training step sees.

Training draws are numbered, and draw ``k`` is a pure function of ``(seed, k)``: which image of every domain,
and which window of it. So the stream does not depend on the number of workers, domains are sampled
independently of each other, rank ``r`` of ``R`` simply takes the draws ``r, r + R, ...``, and a run can be
continued at any draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from datamodules.readers import SegmentationDataset


@dataclass(frozen=True)
class Pick:
    """An image's position in its dataset and, for rare-class sampling, the class it was picked for."""

    index: int
    rare_class: int | None = None


class Picker(Protocol):
    """Chooses the image of a draw; ``rng`` belongs to that draw alone."""

    def __call__(self, draw: int, rng: np.random.Generator) -> Pick:
        """Return the image of this draw."""
        ...


class ShuffledPicker:
    """Every image once a pass, in a new order each pass; passes follow one another without end."""

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        self._size, self._seed = size, tuple(seed)
        self._pass, self._order = -1, np.empty(0, np.int64)

    def __call__(self, draw: int, rng: np.random.Generator) -> Pick:
        """Return the ``draw``-th image; ``rng`` is not used."""
        return Pick(self.position(draw))

    def position(self, draw: int) -> int:
        """Position of the ``draw``-th image."""
        number, position = divmod(draw, self._size)
        if number != self._pass:
            self._pass = number
            self._order = np.random.default_rng([*self._seed, number]).permutation(self._size)
        return int(self._order[position])


def rare_class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """Probability of drawing each class, ``softmax((1 - f) / temperature)`` over the classes that occur.

    ``f`` is a class's share of all labelled pixels (rare-class sampling of DAFormer, CVPR 2022).

    Args:
        pixels: ``[C]`` number of pixels of each class; a class without any gets probability 0.
        temperature: small values concentrate on the rarest classes.

    Returns:
        ``[C]`` float64, summing to 1.
    """
    scores = np.where(pixels > 0, (1 - pixels / pixels.sum()) / temperature, -np.inf)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


class RareClassPicker:
    """Draws a class, rare ones more often, then one of the images that show enough of it.

    Args:
        counts: ``[N, C]`` pixels of each class in each image, at the labels' stored size.
        temperature: see :func:`rare_class_probabilities`.
        min_pixels: an image is a candidate for a class if it has more pixels of it than this.
        classes: ``C`` names, for messages.

    Raises:
        ValueError: the temperature is not positive, or some class occurs but has no candidate.
    """

    def __init__(
        self, counts: np.ndarray, temperature: float, min_pixels: int, classes: Sequence[str]
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"rare_class_temperature must be positive, got {temperature}.")
        self.probabilities = rare_class_probabilities(counts.sum(0), temperature)
        self._images = [np.flatnonzero(column > min_pixels) for column in counts.T]
        for number, (images, name) in enumerate(zip(self._images, classes, strict=True)):
            if self.probabilities[number] > 0 and len(images) == 0:
                raise ValueError(
                    f"rare_class_min_pixels={min_pixels}: no image has more pixels of {name!r}, the most is "
                    f"{counts[:, number].max()}. Lower it, or set rare_class_temperature: null."
                )
        self._cumulative = self.probabilities.cumsum()

    def __call__(self, draw: int, rng: np.random.Generator) -> Pick:
        """Draw with replacement from ``rng``; the draw's number is not used."""
        # Scaling by the last sum keeps rounding from ever selecting a class past the end.
        score = rng.random() * self._cumulative[-1]
        chosen = int(np.searchsorted(self._cumulative, score, side="right"))
        images = self._images[chosen]
        return Pick(int(images[rng.integers(len(images))]), chosen)


class WeightedPicker:
    """Draws images in proportion to their weights, with replacement.

    Args:
        weights: ``[N]``, not negative and not all zero.

    Raises:
        ValueError: they are.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self._cumulative = np.cumsum(weights, dtype=np.float64)
        if not (np.asarray(weights) >= 0).all() or not 0 < self._cumulative[-1] < np.inf:
            raise ValueError("weights must be finite, none negative and not all of them zero.")

    def __call__(self, draw: int, rng: np.random.Generator) -> Pick:
        """Draw from ``rng``; the draw's number is not used."""
        # Scaling by the last sum keeps rounding from ever selecting past the end.
        score = rng.random() * self._cumulative[-1]
        return Pick(int(np.searchsorted(self._cumulative, score, side="right")))


class JointDataset(Dataset[dict[str, dict[str, Any]]]):
    """One image of every domain a draw: ``dataset[k]`` is draw ``k``, for any ``k`` however large.

    ``len`` is the size of the largest domain: after that many draws each of its images was seen once.

    Args:
        domains: name → images.
        seed: of every draw.
        pickers: how a domain's images are chosen, where not by :class:`ShuffledPicker`.
    """

    def __init__(
        self,
        domains: Mapping[str, SegmentationDataset],
        seed: int,
        pickers: Mapping[str, Picker] | None = None,
    ) -> None:
        self.domains, self._seed = dict(domains), seed
        shuffled = {
            name: ShuffledPicker(len(dataset), (seed, number, 1))
            for number, (name, dataset) in enumerate(self.domains.items())
        }
        self._pickers: dict[str, Picker] = {**shuffled, **(pickers or {})}

    def __len__(self) -> int:
        return max(len(dataset) for dataset in self.domains.values())

    def __getitem__(self, draw: int) -> dict[str, dict[str, Any]]:
        sample = {}
        for number, (name, dataset) in enumerate(self.domains.items()):
            # A stream of its own for every domain: what is drawn of one never shifts another.
            rng = np.random.default_rng([self._seed, number, 0, draw])
            pick = self._pickers[name](draw, rng)
            sample[name] = dataset.draw(pick.index, rng, pick.rare_class)
        return sample


class StridedSampler(DistributedSampler[int]):
    """This rank's share of ``size`` positions, in order: ``rank, rank + ranks, ...``.

    Being a ``DistributedSampler`` it is left alone by Lightning, which would otherwise wrap it once more and,
    at evaluation, show some images twice so that all ranks have equally many.

    Args:
        size: positions of one epoch, over all ranks.
        rank: this process.
        ranks: number of processes.
        endless: continue with new positions in the next epoch, instead of the same ones.

    Attributes:
        skip: how many of this rank's positions the next pass leaves out at its beginning.
    """

    def __init__(self, size: int, rank: int = 0, ranks: int = 1, endless: bool = False) -> None:
        super().__init__(range(size), num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._size, self._endless = size, endless
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self._size if self._endless else 0
        return iter(range(start + self.rank, start + self._size, self.num_replicas)[self.skip :])

    def __len__(self) -> int:
        return len(range(self.rank, self._size, self.num_replicas))


class ResumableLoader(DataLoader[Any]):
    """A loader over a :class:`StridedSampler` that begins a pass where the run stands, not always at its start.

    Takes the arguments of ``DataLoader``. Workers read ahead, and Lightning makes the iterator of a resumed run
    before it tells the sampler the epoch; so the pass begins, and :attr:`position` is asked, when its first batch
    is. Global random numbers are left alone: ``DataLoader`` takes one for every pass, which a resumed run, that
    begins another number of passes, could not match.

    Attributes:
        position: number of batches of the epoch that the run has seen; :class:`callbacks.ExactResume` sets it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "generator": kwargs.get("generator") or torch.Generator()})
        self.position: Callable[[], int] = int  # 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if isinstance(self.sampler, StridedSampler):
            # Where loaders of unequal length run side by side, the shorter ones start again within an epoch.
            self.sampler.skip = self.position() % max(1, len(self)) * (self.batch_size or 1)
        yield from super().__iter__()


class TurnsLoader:
    """Several loaders in turn: an epoch is one pass over each.

    As long in every epoch, unlike loaders that are exchanged from epoch to epoch, so that schedules know their end
    and a resumed run its place.

    Args:
        loaders: in order.
        mixed: spread the batches of all loaders evenly over the epoch, so that equally long ones alternate batch by
            batch. Otherwise each loader's pass is whole.

    Attributes:
        position: number of batches of the epoch that the run has seen; :class:`callbacks.ExactResume` sets it.
    """

    def __init__(self, loaders: Sequence[ResumableLoader], mixed: bool = False) -> None:
        self.loaders, self.mixed = list(loaders), mixed
        self.position: Callable[[], int] = int  # 0
        self.sampler, self.batch_sampler = self, None  # Lightning tells a loader's sampler the epoch

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers of all loaders."""
        for loader in self.loaders:
            if isinstance(loader.sampler, StridedSampler):
                loader.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def order(self) -> list[int]:
        """Number of the loader of every batch of an epoch."""
        sizes = list(map(len, self.loaders))
        places = [(number, batch) for number, size in enumerate(sizes) for batch in range(size)]
        if self.mixed:
            places.sort(key=lambda place: (2 * place[1] + 1) / sizes[place[0]])
        return [number for number, _ in places]

    def __iter__(self) -> Iterator[Any]:
        order = self.order()
        seen = self.position() % max(1, len(order))
        left = Counter(order[seen:])
        for number, loader in enumerate(self.loaders):
            loader.position = partial(int, order[:seen].count(number))
        passes = [iter(loader) for loader in self.loaders]  # each begins when its first batch is asked for
        for number in order[seen:]:
            yield next(passes[number])
            left[number] -= 1
            if not left[number]:
                next(passes[number], None)  # its workers end here, not with the epoch
