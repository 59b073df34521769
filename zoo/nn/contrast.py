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
CHANNELS = 32
"""Channels that the distributions' contrast takes at a time on the CPU: what is read twice stays in its cache."""

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
    return loss + regulariser * _regulariser(scores, classes != ignore_index) if regulariser else loss


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
    similarity, spread = _GaussianProducts.apply(pixels, mean / temperature, variance / (2 * temperature**2))
    own = spread.gather(1, classes.masked_fill(ignored, 0)[:, None])[:, 0].masked_fill(ignored, 0)
    cross_entropy = pixel_cross_entropy(
        similarity + spread, classes, ignore_index=ignore_index, average="valid"
    )
    loss = cross_entropy + own.sum() / (~ignored).sum().clamp(min=1)
    return loss + regulariser * _regulariser(similarity, ~ignored) if regulariser else loss


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
    kept = (label != ignore_index).flatten()
    source, place, block_class = _in_blocks(label.flatten().masked_fill(~kept, C), C)
    centres = [entries.sum(1) / size[:, None], *([mean] if regulariser and mean is not None else [])]
    vectors = torch.cat([entries, torch.cat(centres).expand(C, -1, -1)], 1) / temperature
    columns = features.transpose(0, 1).flatten(1)
    products = _BlockProducts.apply(columns, vectors.index_select(0, block_class), source, place)
    positives, similarity, prototypes = products.split((L, C, vectors.shape[1] - L - C), 1)

    own = block_class[:, None] == torch.arange(C, device=size.device)
    negative = similarity.masked_fill(own[:, :, None], -torch.inf).logsumexp(1, keepdim=True)
    places = size.index_select(0, block_class)[:, None]
    share = (torch.arange(L, device=size.device) < places) / places
    terms = torch.bmm(share[:, None], _Softplus.apply(negative - positives))[:, 0]
    taken = torch.zeros_like(source, dtype=torch.bool).scatter_(0, place, kept).view_as(terms)
    loss = (terms * taken).sum() / kept.sum().clamp(min=1)
    return loss + regulariser * _regulariser(prototypes, taken) if regulariser else loss


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
    similarity = _products(features.flatten(2), mean / temperature)
    return _regulariser(similarity, label.flatten(1) != ignore_index)


def _regulariser(similarity: Tensor, kept: Tensor) -> Tensor:
    """The regulariser from similarities ``[B, C, P]``: their mean over pixels is that of the mean embedding.

    ``kept``, bool ``[B, P]``, are the pixels that count.
    """
    count = kept.sum()
    log_share = ((similarity * kept[:, None]).sum((0, 2)) / count.clamp(min=1)).log_softmax(0)
    return (count > 0) * log_share.mean() / math.log(similarity.shape[1])


def _products(pixels: Tensor, vectors: Tensor) -> Tensor:
    """Products ``[B, C, P]`` of all pixels ``[B, A, P]`` with all vectors ``[C, A]``."""
    return torch.bmm(vectors.expand(len(pixels), -1, -1), pixels)


def _batched(pixels: Tensor, *vectors: Tensor) -> list[Tensor]:
    """Vectors ``[C, A]`` as ``[B, A, C]``, for each image the same."""
    return [each.mT.expand(len(pixels), -1, -1) for each in vectors]


def _channels(x: Tensor) -> tuple[Tensor, ...]:
    """Parts of ``[B, A, *]`` of :data:`CHANNELS` each; on a GPU, which pays by the call, it is one part."""
    return x.split(CHANNELS if x.device.type == "cpu" else x.shape[1], 1)


class _GaussianProducts(torch.autograd.Function):
    """Products of all pixels ``[B, A, P]`` with all means ``[C, A]``, and of their squares with all variances.

    Keeps the pixels, not their squares, and writes one gradient instead of the sum of two; some channels at a time.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pixels, mean, variance)
        similarity = pixels.new_zeros(len(pixels), len(mean), pixels.shape[2])
        spread = torch.zeros_like(similarity)
        for q, m, v in zip(*map(_channels, (pixels, *_batched(pixels, mean, variance))), strict=True):
            similarity.baddbmm_(m.mT, q)
            spread.baddbmm_(v.mT, q.square())
        return similarity, spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        pixels, mean, variance = ctx.saved_tensors
        gradient = torch.empty_like(pixels)
        parts = (gradient, pixels, *_batched(pixels, mean, 2 * variance))
        for g, q, m, v in zip(*map(_channels, parts), strict=True):
            torch.bmm(v, grads[1], out=g)
            g.mul_(q).baddbmm_(m, grads[0])
        return gradient, None, None


class _Softplus(torch.autograd.Function):
    """``log(1 + exp(x))`` to 1e-7: torch's takes ``log1p``, which the CPU has no short code for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().neg_().exp_().add_(1).log_().add_(x.relu())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ctx.saved_tensors[0].sigmoid().mul_(grads[0])


class _BlockProducts(torch.autograd.Function):
    """Products ``[blocks, K, BLOCK]`` of columns ``[A, N]``, laid into blocks, with each block's vectors.

    ``vectors`` are ``[blocks, K, A]``, ``source`` and ``place`` those of :func:`_in_blocks`. What is laid out is not
    kept, and its gradient is gathered from where each column has gone: empty places are read by nobody.
    """

    @staticmethod
    def forward(ctx: Any, columns: Tensor, vectors: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, place)
        laid_out = _rearranged(columns, source).view(len(columns), len(vectors), BLOCK)
        return torch.bmm(vectors, laid_out.transpose(0, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, place = ctx.saved_tensors
        laid_out = vectors.new_empty(vectors.shape[2], len(vectors), BLOCK)
        torch.bmm(vectors.mT, grads[0], out=laid_out.transpose(0, 1))
        return _rearranged(laid_out.flatten(1), place), None, None, None


def _rearranged(columns: Tensor, source: Tensor) -> Tensor:
    """Columns ``source``, gathered row by row: ``index_select`` would go down each column, far apart in memory."""
    return columns.gather(1, source.expand(len(columns), -1))


def _in_blocks(group: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort columns by class and lay them into blocks of one class each, which can be multiplied at once.

    A class fills its last block only in part, so that ``N // BLOCK + C + 1`` blocks hold any division of the N
    columns: sizes are known to the host.

    Args:
        group: int64 ``[N]``, classes; C for columns that are of no class, in blocks that mean nothing.
        num_classes: C.

    Returns:
        The column of each place ``[blocks * BLOCK]`` (0 where none is), the place of each column ``[N]``, and the
        class of each block ``[blocks]``.
    """
    N, C = len(group), num_classes
    count = torch.zeros(C + 1, dtype=torch.long, device=group.device)
    count.scatter_add_(0, group, torch.ones_like(group))
    end = ((count + BLOCK - 1) // BLOCK).cumsum(0)  # of each class's blocks
    first_place = F.pad(end[:-1], (1, 0)) * BLOCK
    first_column = F.pad(count[:-1].cumsum(0), (1, 0))

    order = group.argsort()
    shift = (first_place - first_column).index_select(0, group.index_select(0, order))
    column = torch.arange(N, device=group.device)
    place = torch.empty_like(group).scatter_(0, order, column + shift)

    blocks = N // BLOCK + C + 1
    source = torch.zeros(blocks * BLOCK, dtype=torch.long, device=group.device).scatter_(0, place, column)
    block = torch.arange(blocks, device=group.device)
    return source, place, torch.searchsorted(end, block, right=True).clamp(max=C - 1)
