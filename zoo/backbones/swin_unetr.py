"""The encoder of Swin UNETR: a 3-D Swin transformer with residual convolutions, through MONAI."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.extras import require
from zoo.registry import register_backbone

Merging = Literal["legacy", "corrected"]

#: Which octant of 2×2×2 voxels each eighth of the merged channels comes from, numbered ``i + 2j + 4k`` by its place
#: along the three axes. MONAI concatenated two octants twice and left two out until 1.4 ("legacy", what released
#: weights were trained with); from 1.5 on it has all eight under the same names and shapes.
OCTANTS: dict[str, tuple[int, ...]] = {
    "legacy": (0, 1, 2, 4, 5, 2, 4, 7),
    "corrected": (0, 1, 2, 4, 3, 5, 6, 7),
}
FEATURE_SIZES = {"swin_unetr_b": 48, "swin_unetr_l": 96, "swin_unetr_h": 192}


class OctantMerging(nn.Module):
    """Halve a map: eight neighbours become one, with twice the channels.

    Which neighbours, and in which order, is the buffer ``order``: it belongs to the weights, is stored and loaded
    with them, and the importer of released files sets it.

    Args:
        dim: channels C.
        norm_layer: over the 8 C merged channels.
        spatial_dims: 3; MONAI hands it over.
        merging: key of :data:`OCTANTS`.

    Raises:
        ValueError: another number of dimensions.
    """

    order: Tensor

    def __init__(
        self,
        dim: int,
        norm_layer: type[nn.LayerNorm] = nn.LayerNorm,
        spatial_dims: int = 3,
        merging: Merging = "legacy",
    ) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ValueError(f"OctantMerging is for three dimensions, not {spatial_dims}")
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)
        self.register_buffer("order", torch.tensor(OCTANTS[merging]))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, X, Y, Z, C]`` → ``[B, X/2, Y/2, Z/2, 2C]``; odd sides are padded with zeros."""
        X, Y, Z = x.shape[1:4]
        if X % 2 or Y % 2 or Z % 2:
            x = F.pad(x, (0, 0, 0, Z % 2, 0, Y % 2, 0, X % 2))
        octants = [x[:, i::2, j::2, k::2] for k in (0, 1) for j in (0, 1) for i in (0, 1)]
        merged = torch.stack(octants, -2).index_select(-2, self.order).flatten(-2)
        return self.reduction(self.norm(merged))


class SwinUNETREncoder(nn.Module):
    """Encoder of Swin UNETR, second version, as pre-trained by VoCo: six maps from stride 1 to 32.

    Parameter names are those of MONAI and of the released VoCo files. Maps, fine to coarse: the convolved volume
    (F channels), the convolved hidden states at strides 2, 4, 8 (F, 2F, 4F), the hidden state at 16 (8F), and the
    convolved one at 32 (16F). Attention in windows of 7³ shifted in every second block (Hatamizadeh et al., 2022),
    a residual convolution before every stage.

    Args:
        in_chans: channels of the volume: 1 for CT, the number of sequences for MRI.
        feature_size: F, a multiple of 12; 48, 96 and 192 are VoCo's B, L and H.
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages.
        window_size: side of the attention windows in patches of 2³ voxels.
        drop_path_rate: of stochastic depth, rising linearly from 0.
        merging: which voxels the down-sampling merges when nothing was loaded: ``legacy`` as published, or
            ``corrected``; see :data:`OCTANTS`. Loaded weights bring their own.
        checkpointing: compute activations of the Swin blocks again in the backward pass, to save memory.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: an unknown merging, or F is no multiple of 12.
    """

    #: Maps whose averages are VoCo's embedding: all but the bare hidden state.
    pooled = (0, 1, 2, 3, 5)

    def __init__(
        self,
        in_chans: int = 1,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        merging: Merging = "legacy",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if merging not in OCTANTS:
            raise ValueError(f"merging must be 'legacy' or 'corrected', got {merging!r}")
        if feature_size % 12:
            raise ValueError(f"feature_size must be a multiple of 12, got {feature_size}")
        require("einops", "medical", "swin_unetr")  # MONAI asks for it only in the first forward
        swin = require("monai.networks.nets.swin_unetr", "medical", "swin_unetr")
        self.in_chans = in_chans
        self.channels = tuple(feature_size * factor for factor in (1, 1, 2, 4, 8, 16))
        self.strides = (1, 2, 4, 8, 16, 32)
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans
        self.swinViT = swin.SwinTransformer(
            in_chans=in_chans,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=depths,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
            use_checkpoint=checkpointing,
            downsample=partial(OctantMerging, merging=merging),
            use_v2=True,
        )

        def convolved(inputs: int, outputs: int) -> nn.Module:
            return swin.UnetrBasicBlock(3, inputs, outputs, 3, 1, norm_name="instance", res_block=True)

        self.encoder1 = convolved(in_chans, feature_size)
        self.encoder2 = convolved(feature_size, feature_size)
        self.encoder3 = convolved(2 * feature_size, 2 * feature_size)
        self.encoder4 = convolved(4 * feature_size, 4 * feature_size)
        self.encoder10 = convolved(16 * feature_size, 16 * feature_size)

    def forward_features(self, volume: Tensor) -> list[Tensor]:
        """Volumes ``[B, in_chans, X, Y, Z]`` → six maps, fine to coarse.

        Raises:
            ValueError: another number of channels or axes, or a side that is no multiple of 32 of at least 64.
        """
        if volume.dim() != 5 or volume.shape[1] != self.in_chans:
            raise ValueError(
                f"volume has shape {list(volume.shape)}: expected [B, {self.in_chans}, X, Y, Z]; a network for "
                "several channels is built with in_chans"
            )
        if any(side % 32 or side < 64 for side in volume.shape[2:]):
            raise ValueError(
                f"volumes of {list(volume.shape[2:])} voxels do not fit: sides must be multiples of 32 and at least "
                "64; choose crops and windows so, whole volumes are predicted in windows"
            )
        hidden = self.swinViT(volume)
        return [
            self.encoder1(volume),
            self.encoder2(hidden[0]),
            self.encoder3(hidden[1]),
            self.encoder4(hidden[2]),
            hidden[3],
            self.encoder10(hidden[4]),
        ]

    forward = forward_features


def _create(name: str, pretrained: bool = False, in_chans: int = 1, **kwargs: Any) -> SwinUNETREncoder:
    if pretrained:
        raise ValueError(f"no weights come with {name}: set pretrained to a file of VoCo's, or to false")
    return SwinUNETREncoder(in_chans, **{"feature_size": FEATURE_SIZES[name], **kwargs})


for _name in FEATURE_SIZES:
    register_backbone(_name)(partial(_create, _name))
