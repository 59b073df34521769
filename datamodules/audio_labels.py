"""Labels of clips: one class each, or several; and what follows from them for sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class Labels(ABC):
    """Classes of N clips out of ``num_classes``."""

    num_classes: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def part(self, positions: np.ndarray) -> Labels:
        """Labels of some clips."""

    @abstractmethod
    def tensor(self, positions: np.ndarray) -> Tensor:
        """What batches hold: int64 ``[B]``, or float32 ``[B, C]`` of zeros and ones."""

    @abstractmethod
    def counts(self) -> np.ndarray:
        """Clips of every class, int64 ``[C]``."""

    @abstractmethod
    def sums(self, of_class: np.ndarray) -> np.ndarray:
        """For every clip the sum of a value ``[C]`` over its classes, ``[N]`` float64."""

    @abstractmethod
    def strata(self) -> np.ndarray:
        """One class for every clip, int64 ``[N]``, by which class-balanced parts are chosen."""

    def balancing_weights(self) -> np.ndarray:
        """How often each clip is to be drawn so that classes become equally frequent, ``[N]`` float64.

        The sum, over a clip's classes, of ``1 / (n + 0.01)`` with n clips in the class (as released with AST).
        """
        return self.sums(1 / (self.counts() + 0.01))


class SingleLabels(Labels):
    """One class a clip.

    Args:
        classes: ``[N]`` int64.
        num_classes: C.
    """

    def __init__(self, classes: np.ndarray, num_classes: int) -> None:
        self.classes, self.num_classes = classes, num_classes

    def __len__(self) -> int:
        return len(self.classes)

    def part(self, positions: np.ndarray) -> SingleLabels:
        """Labels of some clips."""
        return SingleLabels(self.classes[positions], self.num_classes)

    def tensor(self, positions: np.ndarray) -> Tensor:
        """Classes, int64 ``[B]``."""
        return torch.from_numpy(self.classes[positions])

    def counts(self) -> np.ndarray:
        """Clips of every class."""
        return np.bincount(self.classes, minlength=self.num_classes)

    def sums(self, of_class: np.ndarray) -> np.ndarray:
        """The value of each clip's class."""
        return of_class[self.classes]

    def strata(self) -> np.ndarray:
        """The classes themselves."""
        return self.classes


class Values(Labels):
    """Numbers that are estimated, in place of classes.

    Args:
        values: ``[N, K]`` float32.
    """

    num_classes = 0

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def part(self, positions: np.ndarray) -> Values:
        """Numbers of some clips."""
        return Values(self.values[positions])

    def tensor(self, positions: np.ndarray) -> Tensor:
        """Numbers, float32 ``[B, K]``."""
        return torch.from_numpy(self.values[positions])

    def counts(self) -> np.ndarray:
        """There are no classes, ``[0]``."""
        return np.zeros(0, np.int64)

    def sums(self, of_class: np.ndarray) -> np.ndarray:
        """Raises ValueError: there are no classes, which ``balanced`` asks for."""
        raise ValueError("balanced: true needs classes, and these clips are labelled with numbers.")

    def strata(self) -> np.ndarray:
        """One class for all."""
        return np.zeros(len(self), np.int64)


class MultiLabels(Labels):
    """Any number of classes a clip, stored one bit a class: AudioSet's two million clips take 135 MB.

    Args:
        bits: ``[N, ceil(C / 8)]`` uint8, see :meth:`of`.
        num_classes: C.
    """

    _AT_ONCE = 8192

    def __init__(self, bits: np.ndarray, num_classes: int) -> None:
        self._bits, self.num_classes = bits, num_classes

    @classmethod
    def of(cls, clips: Iterable[Iterable[int]], num_classes: int) -> MultiLabels:
        """Of the classes of every clip."""
        rows = []
        for classes in clips:
            row = np.zeros(num_classes, np.uint8)
            row[list(classes)] = 1
            rows.append(np.packbits(row))
        return cls(np.array(rows, np.uint8).reshape(len(rows), -(-num_classes // 8)), num_classes)

    def __len__(self) -> int:
        return len(self._bits)

    def part(self, positions: np.ndarray) -> MultiLabels:
        """Labels of some clips."""
        return MultiLabels(self._bits[positions], self.num_classes)

    def tensor(self, positions: np.ndarray) -> Tensor:
        """Zeros and ones, float32 ``[B, C]``."""
        return torch.from_numpy(self._unpacked(self._bits[positions]).astype(np.float32))

    def counts(self) -> np.ndarray:
        """Clips of every class."""
        return np.stack([rows.sum(0, dtype=np.int64) for rows in self._chunks()]).sum(0)

    def sums(self, of_class: np.ndarray) -> np.ndarray:
        """The sum over each clip's classes."""
        return np.concatenate([rows @ of_class for rows in self._chunks()])

    def strata(self) -> np.ndarray:
        """The rarest of each clip's classes; of a clip without any, class 0."""
        rarity = 1 / np.maximum(self.counts(), 1)
        return np.concatenate([(rows * rarity).argmax(1) for rows in self._chunks()])

    def _chunks(self) -> Iterable[np.ndarray]:
        for start in range(0, len(self), self._AT_ONCE):
            yield self._unpacked(self._bits[start : start + self._AT_ONCE])

    def _unpacked(self, bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(bits, axis=1, count=self.num_classes)
