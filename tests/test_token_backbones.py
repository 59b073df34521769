"""Token backbones from timm: equal to timm where it has the same, and the contract everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.backbones.tokens import PooledMaps, TimmViT, create_token_backbone
from zoo.nn import TokenBackbone, TokenNetwork

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}


def vit(**options: Any) -> TimmViT:
    torch.manual_seed(0)
    backbone = create_token_backbone("vit_tiny_patch16_224", **{**VIT, **options})
    assert isinstance(backbone, TimmViT)
    return backbone


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "no_embed_class": True}, {"init_values": 0.1}])
def test_tokens_are_those_of_timm_at_the_learned_size(options: dict[str, Any]) -> None:
    backbone, image = vit(**options).eval(), torch.randn(2, 3, 16, 16)
    tokens, expected = backbone.forward_tokens(image), backbone.model.forward_features(image)
    torch.testing.assert_close(tokens.cls, expected[:, 0])
    torch.testing.assert_close(tokens.patches, expected[:, -16:])


def test_positions_of_other_sizes_follow_the_released_interpolation() -> None:
    backbone = vit().eval()
    learned = backbone.model.pos_embed[:, 1:].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(learned, scale_factor=(2.1 / 4, 3.1 / 4), mode="bicubic")
    prefix, patches = backbone._positions((2, 3))
    torch.testing.assert_close(patches, expected.flatten(2).transpose(1, 2))
    assert torch.equal(prefix, backbone.model.pos_embed[:, :1])
    assert backbone.forward_tokens(torch.randn(2, 3, 8, 12)).patches.shape == (2, 6, 32)


def test_a_mask_replaces_embeddings_before_positions() -> None:
    backbone = vit(mask_token=True).eval()
    nn.init.normal_(backbone.mask_token)
    image, mask = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, dtype=torch.bool)
    mask[1, 5] = True
    model = backbone.model
    x = model.patch_embed(image).flatten(1, 2)
    x[1, 5] = backbone.mask_token[0]
    x = torch.cat((model.cls_token.expand(2, -1, -1), x), 1) + model.pos_embed
    expected = model.norm(model.blocks(x))
    torch.testing.assert_close(backbone.forward_tokens(image, mask).patches, expected[:, 1:])
    with pytest.raises(ValueError, match="built without a mask token"):
        vit().forward_tokens(image, mask)


def test_stochastic_depth_is_the_zoos() -> None:
    backbone = vit(drop_path_rate=0.4, drop_path_uniform=True, drop_path_form="batch")
    assert [path.rate for path in backbone.drop_paths] == [0.4] * 3
    assert [round(path.rate, 2) for path in vit(drop_path_rate=0.1).drop_paths] == [0.0, 0.05, 0.1]
    image = torch.randn(4, 3, 16, 16)
    torch.manual_seed(1)
    dropped = backbone.train().forward_tokens(image).cls
    whole = backbone.eval().forward_tokens(image).cls
    assert not torch.allclose(dropped, whole)


def test_depth_of_parameters() -> None:
    network = TokenNetwork(vit(mask_token=True), nn.Linear(32, 4))
    depth = {name: network.block_of(name) for name, _ in network.named_parameters()}
    assert depth["backbone.model.cls_token"] == depth["backbone.mask_token"] == 0
    assert depth["backbone.model.patch_embed.proj.weight"] == depth["backbone.model.pos_embed"] == 0
    assert [depth[f"backbone.model.blocks.{i}.norm1.weight"] for i in range(3)] == [1, 2, 3]
    assert depth["backbone.model.norm.weight"] == depth["head.weight"] == 4


@pytest.mark.parametrize("name", ["resnet10t", "street_cnn"])
def test_pooled_maps(name: str) -> None:
    backbone = create_token_backbone(name)
    assert isinstance(backbone, PooledMaps)
    assert isinstance(backbone, TokenBackbone)
    backbone.eval()
    image = torch.randn(2, 3, 64, 32)
    tokens, last = backbone.forward_tokens(image), backbone.backbone.forward_features(image)[-1]
    assert backbone.grid(64, 32) == tuple(last.shape[-2:])
    torch.testing.assert_close(tokens.cls, last.mean((2, 3)))
    torch.testing.assert_close(tokens.patches[:, 1], last.flatten(2)[:, :, 1])
    depths = {backbone.block_of(parameter) for parameter, _ in backbone.named_parameters()}
    assert depths <= set(range(backbone.num_blocks + 2))
    assert set(range(1, backbone.num_blocks + 1)) <= depths
    with pytest.raises(ValueError, match="takes no mask"):
        backbone.forward_tokens(image, torch.zeros(2, 2, dtype=torch.bool))


def test_images_are_normalised_inside() -> None:
    network = TokenNetwork(vit().eval(), nn.Linear(32, 4))
    image = torch.rand(2, 3, 16, 16)
    expected = network.backbone.forward_tokens((image - network.mean) / network.std)
    torch.testing.assert_close(network(image).cls, expected.cls)
    assert network.mean.flatten().tolist() == pytest.approx(list(network.backbone.mean))
    with pytest.raises(TypeError, match=r"image.float\(\) / 255"):
        network((image * 255).to(torch.uint8))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"images of 15 x 16 pixels cannot be cut into patches of 4 x 4"):
        vit().forward_tokens(torch.randn(1, 3, 15, 16))
    with pytest.raises(ValueError, match=r"'resnet10t' has no mask token"):
        create_token_backbone("resnet10t", mask_token=True)
    with pytest.raises(TypeError, match="gives no tokens"):
        TokenNetwork(nn.Linear(2, 2), nn.Linear(2, 2))  # type: ignore[arg-type]
