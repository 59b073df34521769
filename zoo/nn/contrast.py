"""Contrast of pixels with what is known of classes: the three losses of SePiCo and its regulariser.

Xie et al., "SePiCo: Semantic-Guided Pixel Contrast for Domain Adaptive Semantic Segmentation" (TPAMI 2023, arXiv
2204.08808), with the arithmetic of its release. All losses take embeddings ``[B, A, h, w]`` and labels
``[B, h, w]`` (classes or ``ignore_index``), and are means over the pixels that are not ignored: 0 with zero
gradient where all are. Gradient flows into the embeddings only.

They are matrix products on the map as it lies: nothing has pixels × classes × channels elements, and nothing
waits for the device. They run in float32 even under autocast: at the published temperature of 100 the scores of
two classes differ by at most 0.01, which half precision does not resolve.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.losses import pixel_cross_entropy

BLOCK = 256
"""Pixels of one class that the bank's contrast multiplies together."""

P = ParamSpec("P")


def _in_float32(loss: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Give ``loss`` its embeddings in float32 and keep autocast away from its products."""

    @functools.wraps(loss)
    def run(features: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return loss(features.float(), *args, **kwargs)

    return run


@_in_float32
def proto_contrast(
    features: Tensor, label: Tensor, mean: Tensor, temperature: float = 100.0, ignore_index: int = 255
) -> Tensor:
    """ProtoCL: cross-entropy of the similarities to one prototype per class, ``q . mean_c / temperature``.

    Args:
        features: embeddings q, ``[B, A, h, w]``.
        label: int64 ``[B, h, w]``.
        mean: prototypes ``[C, A]``.
        temperature: divides the similarities.
        ignore_index: label of pixels that do not count.
    """
    scores = _products(features.flatten(2), mean / temperature)
    return pixel_cross_entropy(scores, label.flatten(1), ignore_index=ignore_index, average="valid")


@_in_float32
def distribution_contrast(
    features: Tensor,
    label: Tensor,
    mean: Tensor,
    variance: Tensor,
    temperature: float = 100.0,
    ignore_index: int = 255,
) -> Tensor:
    """DistCL: infinitely many positives and negatives, drawn from a diagonal Gaussian per class.

    The closed form of the upper bound: with ``s_c = q² . variance_c / (2 temperature²)`` and y the pixel's class,
    cross-entropy of the scores ``q . mean_c / temperature + s_c``, plus ``s_y``.

    Args:
        features: embeddings q, ``[B, A, h, w]``.
        label: int64 ``[B, h, w]``.
        mean: of the Gaussians, ``[C, A]``.
        variance: their diagonals, ``[C, A]``.
        temperature: divides the similarities.
        ignore_index: label of pixels that do not count.
    """
    pixels, classes = features.flatten(2), label.flatten(1)
    ignored = classes == ignore_index
    spread = _products(pixels.square(), variance / (2 * temperature**2))
    own = spread.gather(1, classes.masked_fill(ignored, 0)[:, None])[:, 0].masked_fill(ignored, 0)
    scores = _products(pixels, mean / temperature) + spread
    cross_entropy = pixel_cross_entropy(scores, classes, ignore_index=ignore_index, average="valid")
    return cross_entropy + own.sum() / (~ignored).sum().clamp(min=1)


@_in_float32
def bank_contrast(
    features: Tensor,
    label: Tensor,
    entries: Tensor,
    size: Tensor,
    temperature: float = 100.0,
    ignore_index: int = 255,
) -> Tensor:
    """BankCL: each banked vector of the pixel's class is a positive; every other class is one negative.

    The negative of a class is the mean similarity to its vectors, which is the similarity to their mean. The
    loss of a pixel is the mean over its positives of ``-log(exp(p) / (exp(p) + sum of exp(negatives)))``.

    Args:
        features: embeddings q, ``[B, A, h, w]``.
        label: int64 ``[B, h, w]``.
        entries: bank ``[C, L, A]``; what is not filled is zero.
        size: filled places per class, ``[C]``, at least 1; they come first.
        temperature: divides the similarities.
        ignore_index: label of pixels that do not count.
    """
    pixels, classes = features.flatten(2), label.flatten(1)
    ignored = classes == ignore_index
    own = classes.masked_fill(ignored, 0)
    negatives = _products(pixels, entries.sum(1) / size[:, None] / temperature)
    negative = negatives.scatter(1, own[:, None], -torch.inf).logsumexp(1)
    groups = classes.masked_fill(ignored, len(entries)).flatten()
    positives = _own_class_products(pixels.mT.flatten(0, 1), groups, entries / temperature)
    places = size[own.flatten()][:, None]
    filled = torch.arange(entries.shape[1], device=size.device) < places
    loss = (F.softplus(negative.flatten()[:, None] - positives) * filled / places).sum(1)
    return loss.masked_fill(ignored.flatten(), 0).sum() / (~ignored).sum().clamp(min=1)


@_in_float32
def contrast_regulariser(
    features: Tensor, label: Tensor, mean: Tensor, temperature: float = 100.0, ignore_index: int = 255
) -> Tensor:
    """Regularise the mean embedding: ``sum_c log softmax_c(mean q . mean_c / temperature) / (C log C)``.

    The sign is that of the release: minimising it drives the mean prediction away from uniform, where it is
    largest (-1); at temperature 100 it hardly moves. A term for diversity has the opposite sign.

    Args:
        features: embeddings q, ``[B, A, h, w]``; their mean is over all pixels of the call that count.
        label: int64 ``[B, h, w]``.
        mean: prototypes ``[C, A]``, two at least.
        temperature: divides the similarities.
        ignore_index: label of pixels that do not count.
    """
    kept = (label.flatten(1) != ignore_index).to(features.dtype)
    count = kept.sum()
    centre = torch.bmm(features.flatten(2), kept[:, :, None]).sum((0, 2)) / count.clamp(min=1)
    log_share = (mean @ centre / temperature).log_softmax(0)
    return (count > 0) * log_share.mean() / math.log(len(mean))


def _products(pixels: Tensor, vectors: Tensor) -> Tensor:
    """Products ``[B, C, P]`` of all pixels ``[B, A, P]`` with all vectors ``[C, A]``."""
    return torch.bmm(vectors.expand(len(pixels), -1, -1), pixels)


def _own_class_products(rows: Tensor, group: Tensor, entries: Tensor) -> Tensor:
    """Products of every row with the entries of its own class only.

    Rows are sorted by class and laid into blocks of one class each, which are multiplied at once. A class
    fills its last block only in part, so that ``N // BLOCK + C + 1`` blocks hold any division of the N rows:
    sizes are known to the host.

    Args:
        rows: ``[N, A]``.
        group: int64 ``[N]``, classes; C for rows that are of no class, whose products mean nothing.
        entries: ``[C, L, A]``.

    Returns:
        ``[N, L]``.
    """
    N, C = len(rows), len(entries)
    count = torch.zeros(C + 1, dtype=torch.long, device=rows.device)
    count.scatter_add_(0, group, torch.ones_like(group))
    end = ((count + BLOCK - 1) // BLOCK).cumsum(0)  # of each class's blocks
    first_place = F.pad(end[:-1], (1, 0)) * BLOCK
    first_row = F.pad(count[:-1].cumsum(0), (1, 0))

    order = group.argsort()
    sorted_group = group[order]
    in_class = torch.arange(N, device=rows.device) - first_row[sorted_group]
    place = torch.empty_like(group).scatter_(0, order, first_place[sorted_group] + in_class)

    blocks = N // BLOCK + C + 1
    source = torch.zeros(blocks * BLOCK, dtype=torch.long, device=rows.device).scatter_(
        0, place, torch.arange(N, device=rows.device)
    )  # places that stay empty read row 0, and nobody reads them
    block_class = torch.searchsorted(end, torch.arange(blocks, device=rows.device), right=True)
    products = torch.bmm(
        rows.index_select(0, source).view(blocks, BLOCK, -1), entries[block_class.clamp(max=C - 1)].mT
    )
    return products.flatten(0, 1).index_select(0, place)
