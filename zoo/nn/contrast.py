"""Contrast of pixels with what is known of classes: the three losses of SePiCo and its regulariser.

Xie et al., "SePiCo: Semantic-Guided Pixel Contrast for Domain Adaptive Semantic Segmentation" (TPAMI 2023, arXiv
2204.08808), with the arithmetic of its release. All losses take embeddings ``[B, A, h, w]`` and labels
``[B, h, w]`` (classes or ``ignore_index``), and are means over the pixels that are not ignored: 0 with zero
gradient where all are. Gradient flows into the embeddings only.

They are matrix products on the map as it lies: nothing has pixels × classes × channels elements, and nothing
waits for the device. Each can add the regulariser, whose similarities it has anyway. They run in float32 even
under autocast: at the published temperature of 100 the scores of two classes differ by at most 0.01, which half
precision does not resolve.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.losses import pixel_cross_entropy

BLOCK = 128
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
    features: Tensor,
    label: Tensor,
    mean: Tensor,
    temperature: float = 100.0,
    ignore_index: int = 255,
    regulariser: float = 0.0,
) -> Tensor:
    """ProtoCL: cross-entropy of the similarities to one prototype per class, ``q . mean_c / temperature``.

    Args:
        features: embeddings q, ``[B, A, h, w]``.
        label: int64 ``[B, h, w]``.
        mean: prototypes ``[C, A]``.
        temperature: divides the similarities.
        ignore_index: label of pixels that do not count.
        regulariser: weight of :func:`contrast_regulariser`, which is added.
    """
    scores, classes = _products(features.flatten(2), mean / temperature), label.flatten(1)
    loss = pixel_cross_entropy(scores, classes, ignore_index=ignore_index, average="valid")
    return loss + regulariser * _regulariser(scores, classes, ignore_index) if regulariser else loss


@_in_float32
def distribution_contrast(
    features: Tensor,
    label: Tensor,
    mean: Tensor,
    variance: Tensor,
    temperature: float = 100.0,
    ignore_index: int = 255,
    regulariser: float = 0.0,
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
        regulariser: weight of :func:`contrast_regulariser`, which is added.
    """
    pixels, classes = features.flatten(2), label.flatten(1)
    ignored = classes == ignore_index
    similarity = _products(pixels, mean / temperature)
    spread = _SquareProducts.apply(pixels, variance / (2 * temperature**2))
    own = spread.gather(1, classes.masked_fill(ignored, 0)[:, None])[:, 0].masked_fill(ignored, 0)
    cross_entropy = pixel_cross_entropy(
        similarity + spread, classes, ignore_index=ignore_index, average="valid"
    )
    loss = cross_entropy + own.sum() / (~ignored).sum().clamp(min=1)
    return loss + regulariser * _regulariser(similarity, classes, ignore_index) if regulariser else loss


@_in_float32
def bank_contrast(
    features: Tensor,
    label: Tensor,
    entries: Tensor,
    size: Tensor,
    temperature: float = 100.0,
    ignore_index: int = 255,
    regulariser: float = 0.0,
    mean: Tensor | None = None,
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
        regulariser: weight of :func:`contrast_regulariser`, which is added.
        mean: the regulariser's prototypes ``[C, A]``.

    Raises:
        ValueError: a regulariser without prototypes.
    """
    if regulariser and mean is None:
        raise ValueError(f"bank_contrast(regulariser={regulariser:g}) needs mean: prototypes [C, A]")
    C, L, _ = entries.shape
    pixels, classes = features.flatten(2), label.flatten(1)
    ignored = classes == ignore_index
    own, count = classes.masked_fill(ignored, 0), (~ignored).sum().clamp(min=1)
    centres = [entries.sum(1) / size[:, None], *([mean] if regulariser and mean is not None else [])]
    similarity = _products(pixels, torch.cat(centres) / temperature)
    negative = similarity[:, :C].scatter(1, own[:, None], -torch.inf).logsumexp(1).flatten()
    columns = pixels.transpose(0, 1).flatten(1)
    positives = _own_class_products(columns, classes.masked_fill(ignored, C).flatten(), entries / temperature)
    places = size[own.flatten()]
    filled = torch.arange(L, device=size.device)[:, None] < places
    terms = (F.softplus(negative - positives) * filled).sum(0) / places
    loss = terms.masked_fill(ignored.flatten(), 0).sum() / count
    return (
        loss + regulariser * _regulariser(similarity[:, C:], classes, ignore_index) if regulariser else loss
    )


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
    return _regulariser(_products(features.flatten(2), mean / temperature), label.flatten(1), ignore_index)


def _regulariser(similarity: Tensor, classes: Tensor, ignore_index: int) -> Tensor:
    """The regulariser from similarities ``[B, C, P]``: their mean over pixels is that of the mean embedding."""
    kept = classes != ignore_index
    count = kept.sum()
    log_share = ((similarity * kept[:, None]).sum((0, 2)) / count.clamp(min=1)).log_softmax(0)
    return (count > 0) * log_share.mean() / math.log(similarity.shape[1])


def _products(pixels: Tensor, vectors: Tensor) -> Tensor:
    """Products ``[B, C, P]`` of all pixels ``[B, A, P]`` with all vectors ``[C, A]``."""
    return torch.bmm(vectors.expand(len(pixels), -1, -1), pixels)


class _SquareProducts(torch.autograd.Function):
    """Products of all squared pixels ``[B, A, P]`` with all vectors ``[C, A]``: keeps the pixels, not their squares."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(pixels, vectors)
        return _products(pixels.square(), vectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        pixels, vectors = ctx.saved_tensors
        return _products(grads[0], 2 * vectors.mT).mul_(pixels), None


class _Rearranged(torch.autograd.Function):
    """Columns ``source``; its gradient is gathered as well, from ``place``, where each column has gone."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return columns.index_select(1, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(1, *ctx.saved_tensors), None, None


def _own_class_products(columns: Tensor, group: Tensor, entries: Tensor) -> Tensor:
    """Products of every column with the entries of its own class only.

    Columns are sorted by class and laid into blocks of one class each, which are multiplied at once. A class
    fills its last block only in part, so that ``N // BLOCK + C + 1`` blocks hold any division of the N columns:
    sizes are known to the host.

    Args:
        columns: ``[A, N]``.
        group: int64 ``[N]``, classes; C for columns that are of no class, whose products mean nothing.
        entries: ``[C, L, A]``.

    Returns:
        ``[L, N]``.
    """
    (A, N), C = columns.shape, len(entries)
    count = torch.zeros(C + 1, dtype=torch.long, device=columns.device)
    count.scatter_add_(0, group, torch.ones_like(group))
    end = ((count + BLOCK - 1) // BLOCK).cumsum(0)  # of each class's blocks
    first_place = F.pad(end[:-1], (1, 0)) * BLOCK
    first_column = F.pad(count[:-1].cumsum(0), (1, 0))

    order = group.argsort()
    sorted_group = group[order]
    in_class = torch.arange(N, device=columns.device) - first_column[sorted_group]
    place = torch.empty_like(group).scatter_(0, order, first_place[sorted_group] + in_class)

    blocks = N // BLOCK + C + 1
    source = torch.zeros(blocks * BLOCK, dtype=torch.long, device=columns.device).scatter_(
        0, place, torch.arange(N, device=columns.device)
    )  # places that stay empty read column 0, and nobody reads them
    block_class = torch.searchsorted(end, torch.arange(blocks, device=columns.device), right=True)
    laid_out = _Rearranged.apply(columns, source, place).view(A, blocks, BLOCK).transpose(0, 1)
    products = torch.bmm(entries[block_class.clamp(max=C - 1)], laid_out)
    # Its gradient at places that stay empty is that of column 0 and goes no further.
    return _Rearranged.apply(products.transpose(0, 1).flatten(1), place, source)
