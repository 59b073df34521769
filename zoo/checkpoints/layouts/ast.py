"""Released files of AST and SSAST, and timm's vision transformers, for :class:`zoo.backbones.AST`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from zoo.checkpoints.files import CheckpointError, Tensors
from zoo.checkpoints.layouts.facts import describe_vit
from zoo.checkpoints.rules import AsBackbone, Drop, Importer, Join, Rename

MELS = 128
#: (stride, frames) that 16 x 16 patches were released with; a number of positions belongs to the first that makes it.
RELEASED_GRIDS = [
    (stride, frames) for frames in (1024, 512, 128, 100, 600, 1000) for stride in (10, 16, 12, 14)
]
Grid = Callable[[Tensors, int], tuple[int, int] | None]


@dataclasses.dataclass(frozen=True)
class GridPositions:
    """Lay positions of patches out as a map, ``pos_grid`` ``[1, D, rows, columns]``; other tokens' are ``pos_prefix``.

    Args:
        grid: rows and columns, from the tensors and the number of patches; ``None`` leaves everything as it is.

    Raises:
        CheckpointError: there are more or fewer positions than the grid has.
    """

    grid: Grid

    def apply(self, state: Tensors) -> Tensors:
        """See the class."""
        positions = state["backbone.pos_embed"]
        prefix = sum(f"backbone.{token}_token" in state for token in ("cls", "dist"))
        grid = self.grid(state, positions.shape[1] - prefix) if positions.ndim == 3 else None
        if grid is None:
            return state
        laid_out = positions[:, prefix:].transpose(1, 2)
        if math.prod(grid) != laid_out.shape[2]:
            raise CheckpointError(
                f"{laid_out.shape[2]} positions of patches are no grid of {grid[0]} x {grid[1]}: the file is damaged"
            )
        kept = {name: tensor for name, tensor in state.items() if name != "backbone.pos_embed"}
        return kept | {
            "backbone.pos_prefix": positions[:, :prefix],
            "backbone.pos_grid": laid_out.unflatten(2, grid),
        }


def square(state: Tensors, patches: int) -> tuple[int, int] | None:
    """Square images; ``None`` for others, which are no start of an AST."""
    side = math.isqrt(patches)
    return (side, side) if side**2 == patches > 0 else None


def pretrained_grid(state: Tensors, patches: int) -> tuple[int, int]:
    """Of a pre-training file of SSAST, which says how large its spectrograms were; patches do not overlap there."""
    height, width = state["backbone.patch_embed.proj.weight"].shape[2:]
    sides = [int(state[f"backbone.p_input_{axis}dim"]) for axis in "ft"]
    return sides[0] // height, sides[1] // width


def finetuned_grid(state: Tensors, patches: int) -> tuple[int, int]:
    """Of a fine-tuned file of AST or SSAST, by the number of patches.

    Raises:
        CheckpointError: none of :data:`RELEASED_GRIDS` has so many.
    """
    height, width = state["backbone.patch_embed.proj.weight"].shape[2:]
    if height == MELS:
        return 1, patches
    for stride, frames in RELEASED_GRIDS:
        rows, columns = (MELS - height) // stride + 1, (frames - width) // stride + 1
        if rows * columns == patches:
            return rows, columns
    raise CheckpointError(
        f"{patches} positions of patches belong to no spectrogram that AST or SSAST were released for, so "
        "their grid is unknown"
    )


_TRUNK = Rename(r"^v\.", "backbone.")
_HEADS = Drop(r"^backbone\.head(?:_dist)?\.")  # ImageNet's classifiers, which nothing uses

SSAST = Importer(
    "ssast",
    "SSAST as released after pre-training (patch or frame)",
    (
        *(r"^mask_embed$", r"^p_input_tdim$", r"^[cg]predlayer\.2\.weight$"),
        *(r"^v\.patch_embed\.proj\.weight$", r"^v\.pos_embed$"),
    ),
    (
        _TRUNK,
        _HEADS,
        Rename(r"^mask_embed$", "backbone.mask_token"),
        Rename(r"^p_input_", "backbone.p_input_"),
        Rename(r"^cpredlayer\.", "matching."),
        Rename(r"^gpredlayer\.", "reconstruction."),
        GridPositions(pretrained_grid),
        Drop(r"^backbone\.p_input_"),
    ),
    describe=describe_vit,
)

AST = Importer(
    "ast",
    "AST or SSAST as released after fine-tuning",
    (r"^mlp_head\.1\.weight$", r"^v\.patch_embed\.proj\.weight$", r"^v\.pos_embed$"),
    (_TRUNK, _HEADS, Rename(r"^mlp_head\.", "head."), GridPositions(finetuned_grid)),
    describe=describe_vit,
)

_FROM_TRANSFORMERS = (
    Rename(r"^audio_spectrogram_transformer\.", ""),
    Rename(r"^embeddings\.distillation_token$", "dist_token"),
    Rename(r"^embeddings\.position_embeddings$", "pos_embed"),
    Rename(r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    Rename(r"^embeddings\.", ""),
    Rename(r"^encoder\.layer\.", "blocks."),
    Join(r"attention\.attention\.(query|key|value)\.", ("query", "key", "value"), "attn.qkv."),
    Rename(r"attention\.output\.dense\.", "attn.proj."),
    Rename(r"intermediate\.dense\.", "mlp.fc1."),
    Rename(r"(?<=\d\.)output\.dense\.", "mlp.fc2."),
    Rename(r"layernorm_before\.", "norm1."),
    Rename(r"layernorm_after\.", "norm2."),
    Rename(r"^layernorm\.", "norm."),
    Rename(r"^(?!classifier\.)", "backbone."),
    Rename(r"^classifier\.layernorm\.", "head.0."),
    Rename(r"^classifier\.dense\.", "head.1."),
    GridPositions(finetuned_grid),
)

AST_TRANSFORMERS = Importer(
    "ast_transformers",
    "AST as Hugging Face's transformers keeps it",
    (
        r"(?:^|\.)embeddings\.distillation_token$",
        r"(?:^|\.)embeddings\.position_embeddings$",
        r"(?:^|\.)encoder\.layer\.0\.attention\.attention\.query\.weight$",
        r"(?:^|\.)layernorm\.weight$",
    ),
    _FROM_TRANSFORMERS,
    describe=describe_vit,
    note="norms have eps 1e-6, and 1e-5 in the head, as released by the authors; transformers has 1e-12 in all",
)

VIT_AS_AST = Importer(
    "vit_as_ast",
    "ViT or DeiT of timm, whose square grid of positions an AST starts from",
    (r"^(?:backbone\.)?pos_embed$", r"^(?:backbone\.)?blocks\.0\.attn\.qkv\.weight$"),
    (AsBackbone(), _HEADS, Rename(r"^backbone\.(?:model\.)+", "backbone."), GridPositions(square)),
    describe=describe_vit,
    note="its authors start AST from images: spectrograms are normalised to mean 0 and standard deviation 0.5",
)
