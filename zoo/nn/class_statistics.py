"""What is known of every class in an embedding space: running mean, diagonal variance, and a bank of centroids."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.nn.ranks import gather_ranks, sum_over_ranks

Centroids = Literal["batch", "image"]
CHANNELS = 128
"""Whose deviations are in memory at a time."""


class FeatureBank(nn.Module):
    """The last ``length`` vectors of every class, first in, first out.

    Each class starts with one zero vector, which counts like any other until ``length`` further ones have
    pushed it out (as released; see the card of SePiCo).

    Args:
        num_classes: number of classes C.
        dim: length A of a vector.
        length: places L of every class.
    """

    entries: Tensor
    written: Tensor

    def __init__(self, num_classes: int, dim: int, length: int) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"a bank needs at least one place per class, got length={length}")
        self.register_buffer("entries", torch.zeros(num_classes, length, dim))
        self.register_buffer("written", torch.ones(num_classes, dtype=torch.long))

    @torch.no_grad()
    def push(self, vectors: Tensor, present: Tensor) -> None:
        """Append one vector ``[C, A]`` to every class that is ``present``, bool ``[C]``."""
        C, L, A = self.entries.shape
        place = (self.written % L).view(C, 1, 1).expand(C, 1, A)
        chosen = torch.where(present.view(C, 1, 1), vectors[:, None], self.entries.gather(1, place))
        self.entries.scatter_(1, place, chosen)
        self.written += present

    @property
    def size(self) -> Tensor:
        """Filled places per class, int64 ``[C]``."""
        return self.written.clamp(max=self.entries.shape[1])


class ClassStatistics(nn.Module):
    """Pixel count, mean and diagonal variance of every class over all embeddings ever seen.

    The exact pooled moments: no momentum, no decay; variances are biased (divided by the count). Batches are
    merged as convex combinations around their own centres, so nothing cancels and the order does not matter
    beyond rounding. Everything is computed with one-hot matrix products on the map as it lies, in float32 even
    under autocast, and over all ranks: they hold the same statistics, those of one process with the joint
    batch. All state is buffers, hence in checkpoints.

    Xie et al., "SePiCo" (TPAMI 2023, arXiv 2204.08808), the running class-wise mean and covariance; the
    arithmetic is that of its release.

    Args:
        num_classes: number of classes C.
        dim: channels A of the embedding.
        bank_length: also keep the last so many centroids of every class, see :class:`FeatureBank`; 0: none.
        centroids: what a banked centroid is the mean of: a class in the whole ``batch`` (released code) or in
            one ``image`` (as the paper's text has it).
        ignore_index: label of pixels that do not count.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor
    bank: FeatureBank | None

    def __init__(
        self,
        num_classes: int,
        dim: int,
        bank_length: int = 0,
        centroids: Centroids = "batch",
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if centroids not in ("batch", "image"):
            raise ValueError(f"centroids must be 'batch' or 'image', got {centroids!r}")
        self.centroids, self.ignore_index = centroids, ignore_index
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(num_classes, dim))
        self.register_buffer("variance", torch.zeros(num_classes, dim))
        self.bank = FeatureBank(num_classes, dim, bank_length) if bank_length else None

    @torch.no_grad()
    def update(self, features: Tensor, label: Tensor) -> None:
        """Take in one batch.

        Args:
            features: ``[B, A, h, w]``.
            label: int64 ``[B, h, w]``, classes or ``ignore_index``.

        Raises:
            ValueError: the two differ in size.
        """
        if features.shape[:1] + features.shape[2:] != label.shape:
            raise ValueError(
                f"features {tuple(features.shape)} and label {tuple(label.shape)} do not fit: "
                "expected [B, A, h, w] and [B, h, w]"
            )
        with torch.autocast(features.device.type, enabled=False):
            pixels = features.detach().float().flatten(2)
            members = self._members(label)
            counts, sums = members.sum(2), torch.bmm(members, pixels.mT)  # of every image
            joint = sum_over_ranks(torch.cat((counts.sum(0)[:, None], sums.sum(0)), 1))
            count, mean = joint[:, 0], joint[:, 1:] / joint[:, :1].clamp(min=1)
            # A second pass around the batch's own means: squares minus squared means would cancel.
            squares = sum_over_ranks(
                torch.cat(
                    [
                        _squared_deviations(part, centre, members)
                        for part, centre in zip(
                            pixels.split(CHANNELS, 1), mean.split(CHANNELS, 1), strict=True
                        )
                    ],
                    1,
                )
            )
        self.merge(count.long(), mean, squares / count.clamp(min=1)[:, None])
        if self.bank is None:
            return
        if self.centroids == "batch":
            self.bank.push(mean, count > 0)
            return
        for image_counts, image_sums in zip(gather_ranks(counts), gather_ranks(sums), strict=True):
            self.bank.push(image_sums / image_counts.clamp(min=1)[:, None], image_counts > 0)

    @torch.no_grad()
    def merge(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Pool with the moments of other pixels: int64 ``[C]`` and float ``[C, A]`` twice."""
        total = self.count + count
        share = (count / total.clamp(min=1))[:, None]
        between = share * (1 - share) * (self.mean - mean).square()
        self.variance.lerp_(variance, share).add_(between)
        self.mean.lerp_(mean, share)
        self.count.copy_(total)

    def _members(self, label: Tensor) -> Tensor:
        """One-hot labels ``[B, C, h * w]``; pixels to ignore are in no class."""
        C, flat = len(self.count), label.flatten(1)
        one_hot = torch.zeros(len(flat), C + 1, flat.shape[1], device=label.device)
        return one_hot.scatter_(1, flat.masked_fill(flat == self.ignore_index, C)[:, None], 1.0)[:, :C]


def _squared_deviations(pixels: Tensor, mean: Tensor, members: Tensor) -> Tensor:
    """Sums ``[C, A]`` of the squared deviations of pixels ``[B, A, P]`` from the mean ``[C, A]`` of their class."""
    deviation = torch.baddbmm(pixels, mean.mT.expand(len(pixels), -1, -1), members, alpha=-1)
    return torch.bmm(members, deviation.square_().mT).sum(0)
