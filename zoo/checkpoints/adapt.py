"""Tensors of another size than the network's, where there is a sound way to make them fit."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from torch import Tensor

from zoo.backbones.ast import fit_positions
from zoo.checkpoints.files import Tensors


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """One tensor that was made to fit, or left out on purpose.

    Args:
        name: of the network's tensor.
        what: ``input channels``, ``modalities``, ``position grid``, ``position embedding``, ``relative positions``,
            or ``classes`` (left as initialised).
        before: shape in the file.
        after: shape in the network.
    """

    name: str
    what: str
    before: tuple[int, ...]
    after: tuple[int, ...]


Fit = Callable[[str, Tensor, Tensor, Tensors], Tensor | None]
"""(our name, tensor of the file, tensor of the network, all of the network) → what fits, or ``None``."""


def input_channels(name: str, given: Tensor, wanted: Tensor, network: Tensors) -> Tensor | None:
    """The first convolution of the backbone, from RGB to another number of channels, as timm does it."""
    convolutions = (n for n, t in network.items() if t.ndim == 4 and n.endswith(".weight"))
    first = next((n for n in convolutions if n.startswith("backbone.")), None)
    same = given.ndim == 4 and (given.shape[0], given.shape[2:]) == (wanted.shape[0], wanted.shape[2:])
    if name != first or not same or given.shape[1] != 3:
        return None
    return adapt_input_conv(wanted.shape[1], given)


def modalities(name: str, given: Tensor, wanted: Tensor, network: Tensors) -> Tensor | None:
    """Volume convolutions of one channel (CT) for several (MRI sequences): the weights, shared equally."""
    if given.ndim != 5 or given.shape[1] != 1 or wanted.shape[1:2] == given.shape[1:2]:
        return None
    return given.expand(-1, wanted.shape[1], -1, -1, -1) / wanted.shape[1] if wanted.ndim == 5 else None


def position_embedding(name: str, given: Tensor, wanted: Tensor, network: Tensors) -> Tensor | None:
    """Learnt positions ``[1, tokens, D]`` on square grids, resampled bicubically; other tokens' stay."""
    if (
        not name.endswith(("pos_embed", "pos_embed2"))
        or given.ndim != 3
        or given.shape[::2] != wanted.shape[::2]
    ):
        return None
    tokens = [n for n in ("cls_token", "dist_token") if f"backbone.{n}" in network]
    for prefix in dict.fromkeys((len(tokens), 0)):
        sides = [math.isqrt(t.shape[1] - prefix) for t in (given, wanted)]
        if all(side**2 == t.shape[1] - prefix for side, t in zip(sides, (given, wanted), strict=True)):
            old, new = ([side, side] for side in sides)
            return resample_abs_pos_embed(given, new, old, num_prefix_tokens=prefix)
    return None


def relative_positions(name: str, given: Tensor, wanted: Tensor, network: Tensors) -> Tensor | None:
    """Swin's tables of attention biases ``[(2w-1)², heads]`` for another window."""
    if not name.endswith("relative_position_bias_table") or given.ndim != 2:
        return None
    sides = [math.isqrt(len(t)) for t in (given, wanted)]
    if given.shape[1] != wanted.shape[1] or any(
        s**2 != len(t) for s, t in zip(sides, (given, wanted), strict=True)
    ):
        return None
    window = (sides[1] + 1) // 2
    return resize_rel_pos_bias_table(given, (window, window), tuple(wanted.shape))


def position_grid(name: str, given: Tensor, wanted: Tensor, network: Tensors) -> Tensor | None:
    """Learnt positions of an AST, ``[1, D, rows, columns]``, cut or interpolated as released."""
    if not name.endswith("pos_grid") or given.ndim != 4 or given.shape[:2] != wanted.shape[:2]:
        return None
    return fit_positions(given, (wanted.shape[2], wanted.shape[3]))


FITS: dict[str, Fit] = {
    "input channels": input_channels,
    "modalities": modalities,
    "position grid": position_grid,
    "position embedding": position_embedding,
    "relative positions": relative_positions,
}


_CLASSIFIER = re.compile(
    r"(?:^backbone\.(?:fc|head(?:\.fc)?|classifier)|conv_seg|classifier|aspp_modules\.\d+\.conv|decode_head\.out\.conv\.conv)\.(?:weight|bias)$"
)


def is_classifier(name: str, given: Tensor, wanted: Tensor) -> bool:
    """Whether the two are classifiers that differ in the number of classes alone."""
    same = given.ndim == wanted.ndim > 0 and given.shape[1:] == wanted.shape[1:]
    return same and bool(_CLASSIFIER.search(name))
