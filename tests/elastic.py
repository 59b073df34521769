"""Miniature elastic backbones with weights that matter everywhere, and timm's networks beside them."""

from __future__ import annotations

from functools import partial

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from zoo.backbones import ElasticBackbone, ElasticResNet, ElasticSwin, ElasticViT
from zoo.backbones.elastic_layouts import timm_state_dict
from zoo.extraction import timm_recipe

FAMILIES = ("vit", "swin", "resnet")
SIDE = {"vit": 32, "swin": 64, "resnet": 64}  # of the images to use; 16, 40 and 32 are the local crops
LOCAL_SIDE = {"vit": 16, "swin": 40, "resnet": 32}


def tiny_elastic(family: str, seed: int = 0) -> ElasticBackbone:
    """All kinds of layers, widths whose alpha is no power of two, small enough for every size to be tried."""
    networks = {
        "vit": lambda: ElasticViT(32, 8, widths=(16, 24, 32, 40), depths=(2, 3, 4, 5), head_dim=8),
        "swin": lambda: ElasticSwin(
            widths=(16, 24, 40), depths=((1, 2), (2,), (2, 5), (2,)), head_dim=8, window_size=4
        ),
        "resnet": lambda: ElasticResNet(widths=(32, 64, 96), depths=((1,), (1, 2), (1, 3), (1,))),
    }
    torch.manual_seed(seed)
    network: ElasticBackbone = networks[family]()
    randomize(network)
    return network.eval()


@torch.no_grad()
def randomize(network: nn.Module) -> None:
    """Every parameter away from 0 and 1, so that none can be forgotten; matrices keep their size of output."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and "token" not in name and "table" not in name:
            parameter.normal_(std=(2 * parameter.shape[0] / parameter.numel()) ** 0.5)
        else:
            parameter.normal_(float(name.endswith(("weight", "gamma"))), 0.3)


def images(family: str, local: bool = False) -> Tensor:
    side = (LOCAL_SIDE if local else SIDE)[family]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def masks() -> Tensor:
    """For a 4 x 4 grid, some tokens of each image."""
    return torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) > 0.6


def in_timm(alone: ElasticBackbone) -> nn.Module:
    """timm's network with the weights of an extracted one; a narrowed Swin after four rules (card, section 9)."""
    if (recipe := timm_recipe(alone)) is not None:
        network = timm.create_model(recipe[0], **recipe[1])
    else:
        assert isinstance(alone, ElasticSwin)
        network = swin_in_timm(alone)
    network.load_state_dict(timm_state_dict(alone))
    return network.eval()


def swin_in_timm(alone: ElasticSwin) -> SwinTransformer:
    width, depths = alone.intact
    network = SwinTransformer(
        img_size=alone.strides[-1] * alone.window_size,
        patch_size=alone.patch_size,
        embed_dim=width,
        depths=depths,
        num_heads=[channels // alone.head_dim for channels in alone.channels],  # (c) fixed head dimension
        window_size=alone.window_size,
        always_partition=True,  # (d) shift even where one window is the map
        norm_layer=partial(nn.LayerNorm, eps=alone.norm_eps),
        num_classes=0,
    )
    network.patch_embed = WidePatchEmbed(  # (a) the patch norm runs over the intact width
        img_size=alone.strides[-1] * alone.window_size,
        patch_size=alone.patch_size,
        embed_dim=alone.embed_width,
        norm_layer=nn.LayerNorm,
        output_fmt="NHWC",
    )
    network.patch_embed.kept = width
    for layer, shifts in zip(network.layers, alone.shifts, strict=True):  # (b) shifts of the original places
        for block, shift in zip(layer.blocks, shifts, strict=True):
            block.shift_size = (alone.window_size // 2,) * 2 if shift else (0, 0)
            block.reset_parameters()  # makes the mask of the shift
    return network


class WidePatchEmbed(PatchEmbed):
    kept: int

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : self.kept]
