"""Elastic Swin transformer (POA, card section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.elastic import ElasticBackbone, no_weights
from zoo.nn.elastic import (
    ElasticAttention,
    ElasticConv2d,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticMlp,
    Size,
    leading,
    mask_tokens,
    scaled,
)
from zoo.nn.stochastic_depth import Form, StochasticDepth
from zoo.nn.tokens import Tokens
from zoo.registry import register_backbone


class ElasticSwin(ElasticBackbone):
    """Swin transformer of which every (width, depths) of the family is a working network.

    A sub-network carries its residual stream divided by alpha: then proj, fc2 and the patch merging need no alpha
    at all (their biases are divided by it), and the layer norms, which do not see the scale of their input, get
    ``eps / alpha²``. The alphas of qkv and fc1 are multiplied into the norm before them.

    What makes a sub-network differ from a plain Swin, all kept by :meth:`extract`:

    - the norm of the patch embedding runs over all channels of the intact network, then the first are taken;
    - a block keeps the shift of its place in the intact network;
    - windows are shifted even where one window is the whole map; maps are zero-padded after the first norm of a
      block to whole windows, then shifted;
    - heads have ``head_dim`` = 16 channels, twice as many heads as Swin's.

    The authors' norms of the first three stages never get a gradient, so here they have no parameters. The class
    token is the mean of the final tokens; the patch tokens are the final map, repeated 2 x 2.

    Args:
        in_chans: channels of the image.
        widths: channels of the first stage, doubled from stage to stage; multiples of ``head_dim``.
        depths: per stage, the numbers of blocks to choose from.
        head_dim: channels per attention head.
        window_size: side of a window, in tokens.
        patch_size: side of a patch.
        mlp_ratio: hidden over outer channels of the MLPs.
        drop_path_rate: of stochastic depth, linear from 0 in the first block of all to this in the last.
        drop_path_form: ``sample`` or ``batch``, see :class:`~zoo.nn.stochastic_depth.StochasticDepth`.
        embed_width: channels that the patch embedding normalises over (the largest width); of an extracted
            network, those of its intact one.
        shifts: per stage and block, whether windows are shifted (every odd block).
        norm_eps: epsilon of all norms but the patch embedding's.

    Raises:
        ValueError: a width is no multiple of ``head_dim``, or ``shifts`` does not match the blocks.
    """

    family = "swin"
    published: ClassVar[Mapping[str, Size]] = {
        "swin_tiny": Size(96, (2, 2, 6, 2)),
        "swin_small": Size(96, (2, 2, 18, 2)),
        "swin_base": Size(128, (2, 2, 18, 2)),
    }
    relative_position_index: Tensor

    def __init__(
        self,
        in_chans: int = 3,
        widths: Sequence[int] = (96, 112, 128),
        depths: Sequence[Sequence[int]] = ((2,), (2,), tuple(range(6, 19)), (2,)),
        head_dim: int = 16,
        window_size: int = 7,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_path_form: Form = "sample",
        embed_width: int | None = None,
        shifts: Sequence[Sequence[bool]] | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        dim, intact = max(widths), [max(choices) for choices in depths]
        paths = [[f"layers.{s}.blocks.{i}" for i in range(depth)] for s, depth in enumerate(intact)]
        choices = sorted(product(*(sorted(stage) for stage in depths)), key=sum)
        super().__init__(in_chans, sorted(widths), choices, paths)
        if wrong := [width for width in self.widths if width % head_dim]:
            raise ValueError(f"widths must be multiples of head_dim={head_dim}, got {wrong}")
        self.shifts = [list(stage) for stage in shifts or [[i % 2 == 1 for i in range(d)] for d in intact]]
        if [len(stage) for stage in self.shifts] != intact:
            raise ValueError(f"shifts must have one entry per block, {intact} per stage, got {self.shifts}")
        self.head_dim, self.window_size, self.patch_size = head_dim, window_size, patch_size
        self.mlp_ratio, self.norm_eps = mlp_ratio, norm_eps
        self.embed_width = embed_width or dim
        self.channels = tuple(dim << s for s in range(len(intact)))
        self.strides = tuple(patch_size << s for s in range(len(intact)))
        self.embed_dim = self.channels[-1]

        self.patch_embed = nn.ModuleDict(
            {
                "proj": ElasticConv2d(in_chans, self.embed_width, patch_size, patch_size),
                "norm": ElasticLayerNorm(self.embed_width),
            }
        )
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        rates = iter(torch.linspace(0, drop_path_rate, self.num_blocks, device="cpu").tolist())
        self.layers = nn.ModuleList(
            Stage(
                channels,
                [Block(channels, self, StochasticDepth(next(rates), drop_path_form)) for _ in stage],
                merges=s > 0,
            )
            for s, (channels, stage) in enumerate(zip(self.channels, self.shifts, strict=True))
        )
        self.norm = ElasticLayerNorm(self.embed_dim)
        index = relative_position_index(window_size)
        self.register_buffer("relative_position_index", index, persistent=False)

    @property
    def named_sizes(self) -> dict[str, Size]:
        """Names of the published sizes; none with another head dimension, where they would mislead."""
        return super().named_sizes if self.head_dim == 16 else {}

    @property
    def shifts_alternate(self) -> bool:
        """Whether every second block shifts its windows, as in a plain Swin."""
        return all(shift == (i % 2 == 1) for stage in self.shifts for i, shift in enumerate(stage))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens: twice those of the final map."""
        rows, columns = self._map_sizes(height, width)[-1]
        return 2 * rows, 2 * columns

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None, size: Size | None = None) -> Tokens:
        """Pooled and patch tokens after the final norm; see :class:`ElasticBackbone`."""
        size = self.resolve(size)
        last = self.norm(self._stages(image, mask, size)[-1], eps=self._eps(size))
        patches = last.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
        return Tokens(last.mean((1, 2)), patches)

    def forward_features(self, image: Tensor, size: Size | None = None) -> list[Tensor]:
        """Normalised maps of the stages, ``[B, width 2^s, h_s, w_s]``."""
        size = self.resolve(size)
        eps = self._eps(size)
        *maps, last = self._stages(image, None, size)
        maps = [F.layer_norm(x, x.shape[-1:], eps=eps) for x in maps]
        return [x.permute(0, 3, 1, 2) for x in (*maps, self.norm(last, eps=eps))]

    def _stages(self, image: Tensor, mask: Tensor | None, size: Size) -> list[Tensor]:
        """Outputs of the stages ``[B, h, w, c]``, divided by alpha."""
        alpha, eps = self.alpha(size), self._eps(size)
        side = self._map_sizes(*image.shape[-2:])[0]
        x = self.patch_embed["proj"](image).permute(0, 2, 3, 1)
        x = self.patch_embed["norm"](x, 1 / alpha)[..., : size.width]
        token = scaled(leading(self.mask_token, 1, size.width), 1 / alpha)
        x = mask_tokens(x, self.mask_map(mask, image, side), token)
        maps = []
        stages: list[Any] = list(self.layers)
        for stage, kept, shifts in zip(stages, self.kept(size), self.shifts, strict=True):
            if stage.downsample is not None:
                x = stage.downsample(x, eps)
            shift_mask = self._shift_mask(x)
            for i in kept:
                shift = self.window_size // 2 if shifts[i] else 0
                x = stage.blocks[i](
                    x, alpha, eps, shift, self.relative_position_index, shift_mask if shift else None
                )
            maps.append(x)
        return maps

    def _eps(self, size: Size) -> float:
        return self.norm_eps / self.alpha(size) ** 2

    def _map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be cut into patches: sides must be multiples of "
                f"patch_size={self.patch_size}"
            )
        sizes = [(height // self.patch_size, width // self.patch_size)]
        for _ in self.shifts[1:]:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return sizes

    def _shift_mask(self, x: Tensor) -> Tensor:
        """Logit bias ``[windows, 1, N, N]`` of shifted windows of the map ``[B, H, W, c]``: -100 between regions."""
        w, shift = self.window_size, self.window_size // 2

        def region(side: int) -> Tensor:
            place = torch.arange(side + -side % w, device=x.device)
            return (place >= len(place) - w).long() + (place >= len(place) - shift)

        regions = 3 * region(x.shape[1])[:, None] + region(x.shape[2])
        regions = partition(regions[None, ..., None], w).squeeze(-1)
        return -100.0 * (regions[:, None, :, None] != regions[:, None, None, :])

    def alone_arguments(self, size: Size) -> dict[str, Any]:
        """Arguments of a network of this size, with what its place in the intact network left behind."""
        kept = self.kept(size)
        return {
            "in_chans": self.in_chans,
            "widths": [size.width],
            "depths": [[len(blocks)] for blocks in kept],
            "head_dim": self.head_dim,
            "window_size": self.window_size,
            "patch_size": self.patch_size,
            "mlp_ratio": self.mlp_ratio,
            "embed_width": self.embed_width,
            "shifts": [[stage[i] for i in blocks] for stage, blocks in zip(self.shifts, kept, strict=True)],
            "norm_eps": self._eps(size),
        }

    def folds(self, size: Size) -> list[tuple[str, float]]:
        """Norms of blocks times alpha; what enters the residual stream as it is, over alpha."""
        alpha = self.alpha(size)
        return [
            (r"layers\.\d\.blocks\.\d+\.norm[12]\.", alpha),
            (r"layers\.\d\.blocks\.\d+\.(attn\.proj|mlp\.fc2)\.bias", 1 / alpha),
            (r"patch_embed\.norm\.|mask_token", 1 / alpha),
        ]

    def block_of(self, parameter_name: str) -> int:
        """As :meth:`ElasticBackbone.block_of`; a patch merging belongs to the first block behind it."""
        for s, stage in enumerate(self.block_paths):
            if parameter_name.startswith(f"layers.{s}.downsample."):
                return super().block_of(f"{stage[0]}.")
        return super().block_of(parameter_name)


class Stage(nn.Module):
    """Blocks of one width, behind a patch merging in all stages but the first."""

    def __init__(self, channels: int, blocks: Sequence[nn.Module], merges: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(channels // 2) if merges else None
        self.blocks = nn.ModuleList(blocks)


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours and project them to twice the channels.

    The four neighbours of a channel lie side by side, row by row, as in ``pixel_unshuffle``; ``merge`` is not called
    ``reduction``, as elsewhere, so that no weights in another order are loaded by accident.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(4 * dim)
        self.merge = ElasticLinear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, eps: float) -> Tensor:
        """``[B, H, W, c] → [B, ceil(H/2), ceil(W/2), 2c]``; odd maps are zero-padded below and on the right."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        B, H, W, c = x.shape
        x = x.view(B, H // 2, 2, W // 2, 2, c).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.merge(self.norm(x, eps=eps), 2 * c)


class WindowAttention(ElasticAttention):
    """Attention within windows of ``window_size``² tokens, with a learned bias per relative position and head."""

    def __init__(self, dim: int, head_dim: int, window_size: int) -> None:
        super().__init__(dim, head_dim)
        offsets = (2 * window_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, dim // head_dim))

    def position_bias(self, index: Tensor, width: int) -> Tensor:
        """Logit bias ``[heads, N, N]`` of the heads that ``width`` has; ``index [N, N]`` chooses the rows."""
        offsets = len(self.relative_position_bias_table)
        table = leading(self.relative_position_bias_table, offsets, width // self.head_dim)
        return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


class Block(nn.Module):
    """Window attention and MLP with their norms, at the width of their input."""

    def __init__(self, dim: int, network: ElasticSwin, drop_path: StochasticDepth) -> None:
        super().__init__()
        self.window_size = network.window_size
        self.norm1 = ElasticLayerNorm(dim)
        self.attn = WindowAttention(dim, network.head_dim, network.window_size)
        self.norm2 = ElasticLayerNorm(dim)
        self.mlp = ElasticMlp(dim, network.mlp_ratio)
        self.drop_path = drop_path

    def forward(
        self, x: Tensor, alpha: float, eps: float, shift: int, index: Tensor, shift_mask: Tensor | None
    ) -> Tensor:
        """``[B, H, W, c] → [B, H, W, c]``, both divided by alpha.

        Args:
            x: map.
            alpha: intact over present width.
            eps: of the norms, divided by alpha².
            shift: by how many tokens windows are shifted.
            index: of the relative positions.
            shift_mask: logit bias of shifted windows ``[windows, 1, N, N]``.
        """

        def attend(x: Tensor) -> Tensor:
            return self._attend(self.norm1(x, alpha, eps), 1 / alpha, shift, index, shift_mask)

        x = self.drop_path(x, attend)
        return self.drop_path(x, lambda t: self.mlp(self.norm2(t, alpha, eps), 1 / alpha))

    def _attend(
        self, x: Tensor, bias_factor: float, shift: int, index: Tensor, shift_mask: Tensor | None
    ) -> Tensor:
        B, H, W, c = x.shape
        w = self.window_size
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % w))
        padded = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        bias = self.attn.position_bias(index, c)[None]
        if shift_mask is not None:
            bias = (bias + shift_mask).repeat(B, 1, 1, 1)
        x = self.attn(partition(x, w), bias, bias_factor)
        x = x.view(B, padded[0] // w, padded[1] // w, w, w, c).transpose(2, 3).reshape(B, *padded, c)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :H, :W]


def partition(x: Tensor, window: int) -> Tensor:
    """Cut maps ``[B, H, W, c]`` into windows ``[B (H/w) (W/w), w², c]``."""
    B, H, W, c = x.shape
    x = x.view(B, H // window, window, W // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, ``[w², w²]``, always made on the CPU."""
    place = torch.cartesian_prod(*[torch.arange(window, device="cpu")] * 2)
    offset = place[:, None] - place[None] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


@register_backbone("elastic_swin_base")
def elastic_swin_base(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> ElasticSwin:
    """POA's family from Swin-T to Swin-B, 39 sizes; every argument of :class:`ElasticSwin` can be set."""
    no_weights("elastic_swin_base", pretrained)
    return ElasticSwin(in_chans, **kwargs)


@register_backbone("elastic_swin_tiny")
def elastic_swin_tiny(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> ElasticSwin:
    """A family for small images: windows of 4, patches of 2, widths 32 to 64, depths 1-1-2..4-1, all settable."""
    no_weights("elastic_swin_tiny", pretrained)
    depths = ((1,), (1,), (2, 3, 4), (1,))
    tiny = {"widths": (32, 48, 64), "depths": depths, "window_size": 4, "patch_size": 2}
    return ElasticSwin(in_chans, **{**tiny, **kwargs})
