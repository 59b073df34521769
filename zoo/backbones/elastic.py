"""The elastic family: one intact network whose smaller members are leading parts of its weights (POA)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar, Self

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from zoo.backbones.timm import per_channel
from zoo.nn.elastic import Size, kept_blocks, leading, scaled
from zoo.nn.tokens import Tokens

Depth = int | tuple[int, ...]


class ElasticBackbone(nn.Module, ABC):
    """What the elastic ViT, Swin and ResNet share: which sizes there are, and how one of them is taken out.

    A size is an argument of the forward, never a state: branches of different sizes may interleave, and
    activation checkpointing recomputes the right one. ``forward_tokens(image, mask, size)`` of a size equals
    ``extract(size).forward_tokens(image, mask)`` bit for bit in float32.

    Args:
        in_chans: channels of the image; with other than three the normalisation is the mean over ImageNet's.
        widths: widths of the family.
        depths: depths of the family; the last is the intact one.
        block_paths: per stage, the module path of each block.

    Attributes:
        family: short name, first part of the name of a size.
        widths, depths: ascending; depths of stages are ordered by their total.
        img_size: side of the images of pre-training, that costs are counted for.
        embed_dim: channels of the intact network's tokens.
        channels, strides: of the maps of ``forward_features`` of the intact network.
        num_blocks: blocks of the intact network.
    """

    family: ClassVar[str]
    published: ClassVar[Mapping[str, Size]]
    img_size: int = 224
    embed_dim: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        in_chans: int,
        widths: Sequence[int],
        depths: Sequence[Depth],
        block_paths: Sequence[Sequence[str]],
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.mean = per_channel(IMAGENET_DEFAULT_MEAN, in_chans)
        self.std = per_channel(IMAGENET_DEFAULT_STD, in_chans)
        self.widths, self.depths = tuple(widths), tuple(depths)
        self.block_paths = tuple(tuple(paths) for paths in block_paths)
        self.num_blocks = sum(map(len, self.block_paths))

    # -- the family -------------------------------------------------------------------------------------

    @property
    def intact(self) -> Size:
        """The size of the whole network."""
        return Size(self.widths[-1], self.depths[-1])

    def sizes(self) -> list[Size]:
        """Every size, by width and within a width by depth; the last is the intact one."""
        return [Size(width, depth) for width, depth in product(self.widths, self.depths)]

    @property
    def named_sizes(self) -> dict[str, Size]:
        """The sizes of this family that the field has names for."""
        sizes = set(self.sizes())
        return {name: size for name, size in self.published.items() if size in sizes}

    def size_name(self, size: Size) -> str:
        """Name of a size for files and tables: ``vit_small``, or ``vit_w448_d13`` where it has none."""
        for name, named in self.named_sizes.items():
            if named == size:
                return name
        depth = size.depth if isinstance(size.depth, int) else "-".join(map(str, size.depth))
        return f"{self.family}_w{size.width}_d{depth}"

    def find_size(self, name: str) -> Size:
        """Look up a size by its name.

        Raises:
            ValueError: the family has none of that name.
        """
        by_name = {self.size_name(size): size for size in self.sizes()}
        if name not in by_name:
            examples = [*self.named_sizes, self.size_name(self.sizes()[0]), self.size_name(self.intact)]
            raise ValueError(
                f"size {name!r} is none of the {len(by_name)} of this backbone; names are like "
                f"{', '.join(dict.fromkeys(examples))} (widths {list(self.widths)}, depths "
                f"{self.depths[0]} to {self.depths[-1]})"
            )
        return by_name[name]

    def resolve(self, size: Size | None) -> Size:
        """The size itself, or the intact one for ``None``.

        Raises:
            ValueError: the family has no such size.
        """
        if size is None:
            return self.intact
        if size[0] not in self.widths or size[1] not in self.depths:
            raise ValueError(
                f"{type(self).__name__} has no size {tuple(size)}: widths are {list(self.widths)}, depths "
                f"{list(self.depths) if len(self.depths) < 20 else f'{self.depths[0]} to {self.depths[-1]}'}"
            )
        return Size(*size)

    def kept(self, size: Size) -> tuple[tuple[int, ...], ...]:
        """Per stage, the indices of the intact network's blocks that ``size`` uses."""
        depths = (size.depth,) if isinstance(size.depth, int) else size.depth
        return tuple(
            kept_blocks(depth, len(paths)) for depth, paths in zip(depths, self.block_paths, strict=True)
        )

    def alpha(self, size: Size) -> float:
        """Intact width over the width of ``size``: the factor on the input of every elastic layer."""
        return self.widths[-1] / size.width

    # -- forward ----------------------------------------------------------------------------------------

    @abstractmethod
    def forward_tokens(self, image: Tensor, mask: Tensor | None = None, size: Size | None = None) -> Tokens:
        """Tokens of normalised images ``[B, in_chans, H, W]``.

        Args:
            image: normalised images.
            mask: bool ``[B, N]``; the tokens where it is True are replaced by the mask token before the blocks.
            size: which member of the family runs; the intact network by default.

        Raises:
            ValueError: the family has no such size, or the image or mask does not fit it.
        """

    @abstractmethod
    def forward_features(self, image: Tensor, size: Size | None = None) -> list[Tensor]:
        """Maps ``[B, channels[i], h_i, w_i]`` of normalised images, for dense tasks and probes."""

    def forward(self, image: Tensor, size: Size | None = None) -> list[Tensor]:
        """The same as :meth:`forward_features`."""
        return self.forward_features(image, size)

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens for an image of that size."""

    def mask_grid(self, mask: Tensor | None, image: Tensor) -> Tensor | None:
        """Reshape a mask ``[B, N]`` to the grid ``[B, rows, columns]``.

        Raises:
            ValueError: it does not have one entry per patch token.
        """
        if mask is None:
            return None
        rows, columns = self.grid(*image.shape[-2:])
        if mask.shape != (image.shape[0], rows * columns):
            raise ValueError(
                f"mask must be [{image.shape[0]}, {rows * columns}], one entry per token of the {rows} x "
                f"{columns} grid of images {list(image.shape)}, got {list(mask.shape)}"
            )
        return mask.view(-1, rows, columns)

    def mask_map(self, mask: Tensor | None, image: Tensor, side: tuple[int, int]) -> Tensor | None:
        """Repeat a mask ``[B, N]`` to a finer map, ``[B, *side]``.

        Raises:
            ValueError: it has another number of entries, or its cells do not tile the map.
        """
        if (cells := self.mask_grid(mask, image)) is None:
            return None
        repeats = side[0] // cells.shape[1]
        cells = cells.repeat_interleave(repeats, 1).repeat_interleave(repeats, 2)
        if cells.shape[1:] != side:
            raise ValueError(
                f"images of {list(image.shape[-2:])} pixels cannot be masked: sides must be multiples of "
                f"{self.strides[-1]}"
            )
        return cells

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter in the intact network, for layer-wise learning rates.

        0 for embeddings and tokens, i+1 for block i, ``num_blocks + 1`` for the final norm. The learning rate is
        multiplied by ``decay ** (num_blocks + 1 - block_of(name))`` (card, section 8).
        """
        paths = [path for stage in self.block_paths for path in stage]
        for number, path in enumerate(paths, 1):
            if parameter_name.startswith(f"{path}."):
                return number
        return self.num_blocks + 1 if parameter_name.startswith("norm.") else 0

    # -- extraction -------------------------------------------------------------------------------------

    @abstractmethod
    def alone_arguments(self, size: Size) -> dict[str, Any]:
        """Constructor arguments, as plain values, of a network that is ``size`` and nothing else."""

    @abstractmethod
    def folds(self, size: Size) -> list[tuple[str, float]]:
        """Regular expressions of the vectors that carry a factor at ``size``, and the factor.

        The forward of a sub-network multiplies them on the fly; an extracted network has it done for good.
        """

    @torch.no_grad()
    def extract(self, size: Size) -> Self:
        """A network of its own that is this size: small tensors, nothing shared, no elastic factor left.

        Raises:
            ValueError: the family has no such size.
        """
        size = self.resolve(size)
        with torch.device("meta"):
            alone = type(self)(**self.alone_arguments(size))
        intact_path = {
            f"{new[j]}.": f"{old[i]}."
            for new, old, kept in zip(alone.block_paths, self.block_paths, self.kept(size), strict=True)
            for j, i in enumerate(kept)
        }
        block = re.compile("^(?:" + "|".join(map(re.escape, intact_path)) + ")")
        source = self.state_dict()
        state = {}
        for name, tensor in alone.state_dict().items():
            intact_name = block.sub(lambda found: intact_path[found[0]], name, count=1)
            factor = next((f for pattern, f in self.folds(size) if re.match(pattern, name)), 1.0)
            state[name] = scaled(leading(source[intact_name], *tensor.shape), factor).clone(
                memory_format=torch.contiguous_format
            )
        alone.load_state_dict(state, assign=True)
        return alone.train(self.training)


def no_weights(name: str, pretrained: bool) -> None:
    """Refuse ``pretrained``: no weights of elastic networks are published.

    Raises:
        ValueError: ``pretrained`` is set.
    """
    if pretrained:
        raise ValueError(f"{name} has no pretrained weights: set pretrained to false")
