"""Token backbones from timm: its vision transformers, and pooled maps of anything else."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from zoo.backbones.timm import per_channel
from zoo.nn.stochastic_depth import Form, StochasticDepth
from zoo.nn.tokens import TokenBackbone, Tokens, probed_blocks
from zoo.pretrained import started_from
from zoo.registry import create_backbone, named_options


def create_token_backbone(
    name: str, pretrained: bool | str = False, in_chans: int = 3, mask_token: bool = False, **kwargs: Any
) -> TokenBackbone:
    """Build a backbone with ``forward_tokens``, see :class:`zoo.nn.tokens.TokenBackbone`.

    Vision transformers of timm become a :class:`TimmViT`; backbones of the zoo that give tokens by
    themselves are taken as they are; of every other backbone the coarsest map is pooled (:class:`PooledMaps`).

    Args:
        name: a registered backbone or a timm model.
        pretrained: load the weights that belong to the name, or those of a source, see
            :func:`zoo.registry.create_backbone`.
        in_chans: channels of the image.
        mask_token: whether masked patches will occur. Networks that cannot replace patches are refused; a
            :class:`TimmViT` without has no such parameter, so that distributed training waits for no gradient.
        **kwargs: handed to the backbone.

    Raises:
        UnknownNameError: there is no backbone of that name.
        ValueError: ``mask_token`` with a backbone that cannot mask.
    """
    if timm.is_model(name) and _is_vit(name):
        with named_options(f"backbone {name!r}", "backbone_args", kwargs):
            return started_from(
                pretrained, lambda known: TimmViT(name, known, in_chans, mask_token, **kwargs)
            )
    backbone = create_backbone(name, pretrained=pretrained, in_chans=in_chans, **kwargs)
    if isinstance(backbone, TokenBackbone):
        return backbone
    if mask_token:
        raise ValueError(
            f"backbone {name!r} has no mask token, which masked-patch losses need: take a vision transformer "
            "(vit_small_patch16_224) or an elastic backbone"
        )
    return PooledMaps(backbone)


def _is_vit(name: str) -> bool:
    """Whether timm builds a plain :class:`VisionTransformer` under this name (found without memory or weights)."""
    with torch.device("meta"):
        return type(timm.create_model(name, pretrained=False)) is VisionTransformer


class TimmViT(nn.Module):
    """A vision transformer of timm as token backbone, for images of any size that patches divide.

    Positions of another grid than the learned one are interpolated as in DINOv2: bicubic without antialias,
    scale factor (g + 0.1) / s, in float32. Outputs are taken after the final norm; without class token, ``cls`` is
    the mean of the patches. Parameter names are timm's, below ``model``.

    Args:
        name: timm's name.
        pretrained: load the weights of that name.
        in_chans: channels of the image.
        mask_token: add a mask token, learned, 0 at first; it replaces patch embeddings before positions are added.
        drop_path_rate: of stochastic depth.
        drop_path_uniform: the same rate in all blocks (DINOv2), or linear from 0 in the first (DINO).
        drop_path_form: see :class:`zoo.nn.stochastic_depth.StochasticDepth`; DINOv2 has ``batch``.
        **kwargs: handed to timm (``img_size``, ``patch_size``, ``embed_dim``, ``depth``, ``init_values``, ...).

    Raises:
        ValueError: stochastic depth with blocks that are not timm's plain ones.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_chans: int = 3,
        mask_token: bool = False,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = False,
        drop_path_form: Form = "sample",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.model: VisionTransformer = timm.create_model(
            name, pretrained=pretrained, in_chans=in_chans, num_classes=0, dynamic_img_size=True, **kwargs
        )
        #: What timm built the model with, but for the weights and the size of images that may change.
        self.name, self.arguments = name, {"in_chans": in_chans, "num_classes": 0, **kwargs}
        depth = len(self.model.blocks)
        if drop_path_rate and not all(type(block) is Block for block in self.model.blocks):
            raise ValueError(f"drop_path_rate={drop_path_rate}: {name!r} has blocks of its own, set it to 0")
        self.embed_dim: int = self.model.embed_dim
        self.num_blocks, self.in_chans = depth, in_chans
        self.mean = per_channel(self.model.default_cfg["mean"], in_chans)
        self.std = per_channel(self.model.default_cfg["std"], in_chans)
        self.mask_token = nn.Parameter(torch.zeros(1, self.embed_dim)) if mask_token else None
        rates = [drop_path_rate * (1 if drop_path_uniform else i / max(depth - 1, 1)) for i in range(depth)]
        self.drop_paths = nn.ModuleList(StochasticDepth(rate, drop_path_form) for rate in rates)

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Class and patch tokens of normalised images ``[B, in_chans, H, W]``.

        Args:
            image: normalised images.
            mask: bool ``[B, N]``, True patches are replaced by the mask token.

        Raises:
            ValueError: the image cannot be cut into patches, or a mask without a mask token.
        """
        x, prefix = self._embed(image, mask)
        drop_paths: Any = self.drop_paths
        for block, drop_path in zip(self.model.blocks, drop_paths, strict=True):
            x = _run_block(block, drop_path, x)
        return self._tokens(x, prefix)

    def intermediate_tokens(self, image: Tensor) -> list[Tokens]:
        """Tokens after four of the blocks (:func:`zoo.nn.tokens.probed_blocks`), each through the final norm."""
        x, prefix = self._embed(image, None)
        taken, found = probed_blocks(len(self.model.blocks)), {}
        for position, block in enumerate(self.model.blocks):
            x = block(x)
            if position in taken:
                found[position] = self._tokens(x, prefix)
        return [found[position] for position in taken]

    def _embed(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """The sequence before the first block, and how many of its tokens are no patches."""
        model = self.model
        self.grid(*image.shape[-2:])
        x = model.patch_embed(image)  # [B, rows, columns, D], since the size is dynamic
        grid, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("this backbone was built without a mask token: set mask_token=True")
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        extra = [token for token in (model.cls_token, model.reg_token) if token is not None]
        prefix = torch.cat(extra, 1) if extra else x.new_zeros(1, 0, x.shape[-1])
        of_prefix, of_patches = self._positions(grid)
        x = torch.cat(((prefix + of_prefix).expand(x.shape[0], -1, -1).to(x.dtype), x + of_patches), 1)
        return model.norm_pre(model.pos_drop(x)), prefix.shape[1]

    def _tokens(self, x: Tensor, prefix: int) -> Tokens:
        """The sequence behind a block, through the final norm."""
        x = self.model.norm(x)
        patches = x[:, prefix:]
        return Tokens(x[:, 0] if self.model.cls_token is not None else patches.mean(1), patches)

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Positions of the prefix tokens (0 where they have none) and of a grid of patches."""
        model, zero = self.model, self.model.patch_embed.proj.weight.new_zeros(1, 1, 1)
        if model.pos_embed is None:
            return zero, zero
        count = 0 if model.no_embed_class else model.num_prefix_tokens
        prefix, patches = model.pos_embed[:, :count], model.pos_embed[:, count:]
        learned = tuple(model.patch_embed.grid_size)
        if grid != learned:
            scale = [(now + 0.1) / before for now, before in zip(grid, learned, strict=True)]
            with torch.autocast(patches.device.type, enabled=False):
                maps = patches.float().transpose(1, 2).unflatten(2, learned)
                maps = F.interpolate(maps, scale_factor=scale, mode="bicubic")
            patches = maps.flatten(2).transpose(1, 2).to(prefix.dtype)
        return prefix if count else zero, patches

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        rows, columns = self.model.patch_embed.patch_size
        if height % rows or width % columns or not height or not width:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be cut into patches of {rows} x {columns}: choose crop "
                "sizes (data.views) or a patch_size that divide"
            )
        return height // rows, width // columns

    def block_of(self, parameter_name: str) -> int:
        """0 for embeddings and tokens, i+1 for block i, ``num_blocks + 1`` for the final norm."""
        if match := re.match(r"model\.blocks\.(\d+)\.", parameter_name):
            return int(match[1]) + 1
        return self.num_blocks + 1 if parameter_name.startswith("model.norm.") else 0


def _run_block(block: Any, drop_path: StochasticDepth, x: Tensor) -> Tensor:
    if type(block) is not Block:
        return block(x)
    x = drop_path(x, lambda t: block.ls1(block.attn(block.norm1(t))))
    return drop_path(x, lambda t: block.ls2(block.mlp(block.norm2(t))))


class PooledMaps(nn.Module):
    """Any backbone with feature maps as token backbone: patches are cells of the coarsest map, cls their mean.

    Depth, for layer-wise learning rates, is counted in stages, by the first number in a parameter's name.

    Args:
        backbone: gives ``forward_features(image) -> list of maps``, see ``docs/architecture.md``.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.embed_dim: int = backbone.channels[-1]
        self.in_chans: int = backbone.in_chans
        self.mean, self.std = backbone.mean, backbone.std
        self.stride: int = backbone.strides[-1]
        numbers = {_stage(name) for name, _ in self.named_parameters()} - {None}
        self.stages = sorted(number for number in numbers if number is not None)
        self.num_blocks = len(self.stages)

    def forward_tokens(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """The coarsest map's cells and their mean.

        Raises:
            ValueError: a mask, which these networks cannot apply.
        """
        if mask is not None:
            raise ValueError(f"{type(self.backbone).__name__} has no mask token and takes no mask")
        last = self.backbone.forward_features(image)[-1]
        return Tokens(last.mean((2, 3)), last.flatten(2).transpose(1, 2))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the coarsest map, rounded up where the stride does not divide."""
        return -(-height // self.stride), -(-width // self.stride)

    def block_of(self, parameter_name: str) -> int:
        """0 for the stem, i+1 for stage i, one more than the stages for the final norm."""
        stage = _stage(parameter_name)
        if stage is not None:
            return self.stages.index(stage) + 1
        return self.num_blocks + 1 if ".norm" in parameter_name else 0


def _stage(parameter_name: str) -> int | None:
    """Stage of a parameter of the usual names: ``layer1.0``, ``stages.2``, ``layers_3``; None for others."""
    match = re.search(r"(?:^|\.)(?:layer|stages?|layers)[._]?(\d+)(?:\.|$)", parameter_name)
    return int(match[1]) if match else None
