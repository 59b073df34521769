"""One transformer for images and volumes: positions, sizes, standardised volumes, released files; masks and targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.backbones import TimmViT, UnifiedViT
from zoo.backbones.unified_vit import standardised
from zoo.checkpoints import WeightFile
from zoo.checkpoints.load import best_plan, carry_out
from zoo.nn.entropy import patch_entropy
from zoo.nn.gradient_map import gradient_map
from zoo.nn.masking_clusters import masks_of_noise, seen_and_hidden
from zoo.nn.sincos import sincos_positions
from zoo.nn.unified_autoencoder import normalised_patches
from zoo.registry import create_backbone

TINY: dict[str, Any] = {
    "embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16, "volume_size": (8, 4, 12), "patch": 4,
    "volume_patch": 4,
}  # fmt: skip


def test_tokens_of_both_dimensions() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("unified_vit_small", **TINY).eval()
    for sides, channels, grid in (((16, 16), 3, (4, 4)), ((8, 4, 12), 1, (2, 1, 3))):
        x = torch.rand(2, channels, *sides)
        tokens = backbone.forward_tokens(x)
        assert tokens.cls.shape == (2, 24)
        assert tokens.patches.shape == (2, torch.Size(grid).numel(), 24)
        assert backbone(x)[0].shape == (2, 24, *grid)
    assert backbone.block_of("blocks.1.norm1.weight") == 2
    assert [backbone.block_of(name) for name in ("cls_token", "norm.weight")] == [0, 3]
    assert not dict(backbone.named_parameters()).keys() & {"pos_embed2", "pos_embed3"}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 24, 24), r"sides \[24, 24\].*images of 16x16 and volumes of 8x4x12.*img_size"),
        ((1, 1, 8, 12, 4), r"sides \[8, 12, 4\].*volume_size"),
        ((1, 3, 8, 4, 12), r"shape \[1, 3, 8, 4, 12\]: expected images .* or volumes of one channel"),
        ((1, 1, 16, 16), r"expected images \[B, 3, H, W\]"),
        ((3, 16, 16), "expected images"),
    ],
    ids=["other size", "axes in another order", "three channels", "grey image", "no batch"],
)
def test_inputs_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnifiedViT(**TINY).forward_tokens(torch.rand(shape))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="patches must divide"):
        UnifiedViT(**{**TINY, "img_size": 18})
    with pytest.raises(ValueError, match="img_size and volume_size are both None"):
        UnifiedViT(**{**TINY, "img_size": None, "volume_size": None})
    with pytest.raises(ValueError, match="positions='learned': expected sincos or zero"):
        UnifiedViT(**TINY, positions="learned")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch.uint8: divide uint8 by 255"):
        UnifiedViT(**TINY).forward_tokens(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    alone = UnifiedViT(**{**TINY, "volume_size": None})
    assert not any("3" in name for name, _ in alone.named_parameters() if name.startswith("patch_embed"))
    with pytest.raises(ValueError, match=r"takes images of 16x16: set volume_size"):
        alone.forward_tokens(torch.rand(1, 1, 8, 4, 12))


def test_positions() -> None:
    table = sincos_positions((2, 3), 8)[0]
    assert table.shape == (7, 8)
    assert not table[0].any()
    row, column = 1.0, 2.0  # the last token
    wanted = [torch.tensor(axis * rate) for axis in (column, row) for rate in (1.0, 0.01)]
    found = table[-1].view(2, 2, 2)  # axis, sine or cosine, rate
    expected = torch.stack([torch.stack(wanted).view(2, 2).sin(), torch.stack(wanted).view(2, 2).cos()], 1)
    torch.testing.assert_close(found, expected)
    places = sincos_positions((3, 2, 4), 26, prefix=0)[0]
    assert len(places.unique(dim=0)) == 24
    assert not places[:, 24:].any()  # 26 channels: four for each axis and kind, two over
    with pytest.raises(ValueError, match="5 channels are too few for sine and cosine of 3 axes"):
        sincos_positions((2, 2, 2), 5)
    assert not UnifiedViT(**TINY, positions="zero").pos_embed3.any()


def test_volumes_are_standardised_by_what_was_recorded() -> None:
    volume = torch.rand(2, 1, 4, 4, 4) * (torch.rand(2, 1, 4, 4, 4) > 0.3)
    volume[1] *= 0.01
    done = standardised(volume)
    for raw, values in zip(volume, done, strict=True):
        assert not values[raw == 0].any()
        assert values[raw > 0].mean().item() == pytest.approx(0, abs=1e-5)
        assert values[raw > 0].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert not standardised(torch.zeros(1, 1, 2, 2, 2)).any()


# -- masks and targets ---------------------------------------------------------------------------------------------


def test_masks_hide_the_largest_noise() -> None:
    noise = torch.tensor([[0.3, 0.9, 0.1, 0.5], [0.2, 0.1, 0.4, 0.3]])
    masks = masks_of_noise(noise, 2)
    assert masks.mask.tolist() == [[False, True, False, True], [False, False, True, True]]
    assert [part.tolist() for part in seen_and_hidden(masks)] == [[[0, 2], [0, 1]], [[1, 3], [2, 3]]]
    with pytest.raises(ValueError, match="of 4 tokens 1 to 3 can be masked, got 4"):
        masks_of_noise(noise, 4)


def test_entropy_of_patches() -> None:
    flat, two, many = torch.full((64,), 0.5), torch.arange(64) % 2 / 1.0, torch.arange(64) / 255
    entropy = patch_entropy(torch.stack([flat, two, many])[None])
    assert entropy[0].tolist() == pytest.approx([0, 1 / 6, 1])  # 0, 1 and 6 bits
    colour = torch.tensor([0.8, 0.4, 0.1]).repeat(64)
    coloured = patch_entropy(
        torch.stack([colour, *(part.repeat_interleave(3) for part in (two, many))])[None], 3
    )
    assert coloured[0].tolist() == pytest.approx([0, 1 / 6, 1])  # a flat colour says nothing
    assert patch_entropy(torch.rand(1, 1, 64).expand(1, 3, 64)).tolist() == [[1, 1, 1]]


def test_gradient_maps_of_volumes() -> None:
    """A volume that is constant along its middle axis has the gradients of its slices, whatever is asked for."""
    image = (torch.arange(12)[:, None] * 2 + (torch.arange(10)[None] > 4) * 9).float()[None, None] / 255
    volume = image[:, :, :, None].expand(1, 1, 12, 6, 10)
    wanted = gradient_map(image)
    assert torch.equal(gradient_map(volume), wanted[:, :, :, None].expand_as(volume))
    in_all = gradient_map(volume, "volume")
    assert (in_all[:, :, :, 3] * 3 - wanted * 2).abs().max() <= 2.51 / 255  # both are rounded
    along = gradient_map(volume.transpose(2, 3).contiguous(), "volume")
    assert torch.equal(along, in_all.transpose(2, 3))
    for bad in (torch.rand(1, 3, 8, 8, 8), torch.rand(1, 2, 8, 8), torch.rand(3, 8, 8)):
        with pytest.raises(ValueError, match="takes images"):
            gradient_map(bad)
    with pytest.raises(ValueError, match="sides of at least 3"):
        gradient_map(torch.rand(1, 1, 2, 8))


def test_normalised_patches() -> None:
    values = normalised_patches(torch.rand(2, 3, 16) * 5 + 1)
    torch.testing.assert_close(values.mean(2), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.var(2), torch.ones(2, 3), atol=1e-4, rtol=0)


# -- released files ------------------------------------------------------------------------------------------------


def mae_file(embedding: str) -> WeightFile:
    """A file as Uni4Eye++ was released: MAE's names below ``model``; embeddings as ``proj``, or ``proj2`` and 3."""
    torch.manual_seed(1)
    donor = TimmViT(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2
    ).model
    state: dict[str, Tensor] = {
        f"model.{name}": torch.randn_like(t) for name, t in donor.state_dict().items()
    }
    state["model.mask_token"] = torch.randn(1, 1, 8)
    state["model.decoder_embed.weight"] = torch.randn(8, 24)
    if embedding == "proj2":
        for part in ("weight", "bias"):
            state[f"model.patch_embed.proj2.{part}"] = state.pop(f"model.patch_embed.proj.{part}")
        state["model.patch_embed.proj3.weight"] = torch.randn(24, 1, 4, 4, 4)
        state["model.patch_embed.proj3.bias"] = torch.randn(24)
    return WeightFile("Uni4Eye_pp.pth", state, {})


@pytest.mark.parametrize("embedding", ["proj", "proj2"])
@torch.no_grad()
def test_uni4eye_plus_plus_as_unified_and_as_plain_vit(embedding: str) -> None:
    file, image = mae_file(embedding), torch.rand(2, 3, 16, 16)
    unified = UnifiedViT(**TINY).eval()
    plan = best_plan(file, unified)
    assert plan.report.importer == ("uni4eye" if embedding == "proj2" else "vit_as_unified")
    carry_out(plan)
    assert torch.equal(unified.pos_embed2, file.tensors["model.pos_embed"])
    if embedding == "proj2":
        weight = file.tensors["model.patch_embed.proj3.weight"]
        assert torch.equal(unified.patch_embed["proj3"].weight, weight)
        assert "unified ViT (width 24, depth 2; patches of 4x4 and 4x4x4)" in plan.report.architecture

    plain = TimmViT(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2
    ).eval()
    plan = best_plan(file, plain)
    assert plan.report.complete
    carry_out(plan)
    for ours, other in zip(unified.forward_tokens(image), plain.forward_tokens(image), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
