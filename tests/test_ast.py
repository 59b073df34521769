"""The spectrogram transformer: what it computes, which files it starts from, and how positions are fitted."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from zoo import create_backbone, list_backbones
from zoo.backbones.ast import AST, fit_positions
from zoo.checkpoints import CheckpointError, WeightFile, load_pretrained
from zoo.methods.audio.classifier import AudioClassifierNetwork
from zoo.nn.tokens import TokenBackbone

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def tiny(**options: Any) -> AST:
    torch.manual_seed(0)
    return AST(**{**TINY, "frames": 128, **options}).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def clones(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def released(network: AudioClassifierNetwork, prefix: str = "module.") -> dict[str, Tensor]:
    """A fine-tuned network under the names of AST's authors, ImageNet's heads included."""
    state = clones(network)
    prefix_positions, grid = state.pop("backbone.pos_prefix"), state.pop("backbone.pos_grid")
    state["v.pos_embed"] = torch.cat((prefix_positions, grid.flatten(2).transpose(1, 2)), 1)
    named = {re.sub("^backbone", "v", re.sub("^head", "mlp_head", name)): t for name, t in state.items()}
    named |= {"v.head.weight": torch.ones(1000, 24), "v.head_dist.bias": torch.ones(1000)}
    return {prefix + name: tensor for name, tensor in named.items()}


def test_sizes_are_registered() -> None:
    assert list_backbones("ast_*") == ["ast_base", "ast_base_nokd", "ast_small", "ast_tiny"]
    backbone = create_backbone("ast_tiny", in_chans=1, depth=1)
    assert isinstance(backbone, TokenBackbone)
    assert (backbone.embed_dim, backbone.channels, backbone.in_chans) == (192, (192,), 1)
    assert create_backbone("ast_base_nokd", in_chans=1, depth=1).dist_token is None
    with pytest.raises(ValueError, match="ast_small has no weights of its own"):
        create_backbone("ast_small", pretrained=True)


def test_tokens_and_maps() -> None:
    image = torch.randn(2, 1, 128, 128)
    for patch, stride, grid in (
        ((16, 16), None, (8, 8)),
        ((16, 16), (10, 10), (12, 12)),
        ((128, 2), (128, 1), (1, 127)),
    ):
        backbone = tiny(patch=patch, stride=stride)
        tokens = backbone.forward_tokens(image)
        assert tokens.cls.shape == (2, 24)
        (features,) = backbone(image)
        assert features.shape == (2, 24, *grid)
        assert torch.equal(features.flatten(2).transpose(1, 2), tokens.patches)
        outputs = backbone.norm(backbone.forward_blocks(image)[-1])
        assert torch.equal(outputs[:, 2:], tokens.patches)
        assert torch.equal(outputs[:, :2].mean(1), tokens.cls)


def test_masked_patches_are_replaced_before_positions() -> None:
    backbone, mask = tiny(mask_token=True), torch.rand(2, 64) < 0.5
    one, two = torch.randn(2, 2, 1, 128, 128)
    holes = F.interpolate(mask.view(2, 1, 8, 8).float(), scale_factor=16) > 0
    other = torch.where(holes, two, one)  # differs in masked patches alone
    assert torch.equal(
        backbone.forward_tokens(one, mask).patches, backbone.forward_tokens(other, mask).patches
    )
    embedded = backbone.embed(one, mask)[:, 2:] - backbone.pos_grid.flatten(2).transpose(1, 2)
    expected = backbone.mask_token.expand(2, 64, 24)[mask]
    torch.testing.assert_close(embedded[mask], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="without a mask token: set mask_token=True"):
        tiny().forward_tokens(one, mask)


def test_initial_values() -> None:
    backbone = AST(192, 2, 3, mask_token=True)
    for tensor in (backbone.pos_grid, backbone.blocks[0].attn.qkv.weight, backbone.blocks[1].mlp.fc2.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.03)
    assert backbone.mask_token.std().item() == pytest.approx(192**-0.5, rel=0.2)
    assert backbone.blocks[0].attn.qkv.bias.abs().max() == 0
    assert {m.eps for m in backbone.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_positions_follow_the_spectrograms_length() -> None:
    long = tiny(frames=256)
    for frames in (96, 128, 512):
        built = tiny(frames=frames)
        load_pretrained(built, WeightFile("own", clones(long)), show=False)
        image = torch.randn(1, 1, 128, frames)
        assert torch.equal(built.forward_tokens(image).patches, long.forward_tokens(image).patches)


def test_fitting_cuts_the_middle_or_interpolates() -> None:
    positions = torch.arange(40.0).view(1, 1, 4, 10)
    assert torch.equal(fit_positions(positions, (4, 10)), positions)
    assert torch.equal(fit_positions(positions, (4, 5)), positions[..., 3:8])  # 10 // 2 - 5 // 2
    assert torch.equal(fit_positions(positions, (2, 10)), positions[:, :, 1:3])
    wider = F.interpolate(positions, size=(4, 20), mode="bilinear")
    assert torch.equal(fit_positions(positions, (4, 20)), wider)
    assert torch.equal(fit_positions(positions, (3, 20)), wider[:, :, 1:4])  # 4 // 2 - 3 // 2
    frame = torch.randn(1, 3, 1, 10)
    through_eight = F.interpolate(F.interpolate(frame, (8, 25), mode="bilinear"), (1, 25), mode="bilinear")
    torch.testing.assert_close(fit_positions(frame, (1, 25)), through_eight)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("stride", "frames", "grid"),
    [((10, 10), 1024, (12, 101)), ((16, 16), 512, (8, 32)), ((10, 10), 128, (12, 12))],
)
def test_finetuned_files_of_the_authors(prefix: str, stride: Any, frames: int, grid: tuple[int, int]) -> None:
    source = AudioClassifierNetwork(tiny(stride=stride, frames=frames), 5).eval()
    file = WeightFile("audioset_10_10.pth", released(source, prefix))
    network = AudioClassifierNetwork(tiny(stride=stride, frames=frames), 5).eval()
    network.head[1].weight.zero_()
    report = load_pretrained(network, file, show=False)
    assert (report.importer, report.complete) == ("ast", True)
    image = torch.randn(1, 1, 128, frames)
    assert torch.equal(network(image), source(image))
    assert source.backbone.pos_grid.shape[2:] == grid
    other = AudioClassifierNetwork(tiny(stride=(10, 10), frames=200), 7)
    report = load_pretrained(other, file, show=False)
    assert torch.equal(other.backbone.pos_grid, fit_positions(source.backbone.pos_grid, (12, 19)))
    assert {name for name, *_ in report.mismatched} == {"head.1.weight", "head.1.bias"}


def test_frame_files_and_unknown_grids() -> None:
    options: dict[str, Any] = {"patch": (128, 2), "stride": (128, 1)}
    source = AudioClassifierNetwork(tiny(**options), 5)
    network = AudioClassifierNetwork(tiny(**options, frames=100), 5)
    file = WeightFile("frame.pth", released(source))
    assert [a.what for a in load_pretrained(network, file, show=False).resized] == ["position grid"]
    assert torch.equal(network.backbone.pos_grid, source.backbone.pos_grid[..., 14:113])
    strange = AudioClassifierNetwork(tiny(stride=(11, 11), frames=777), 5)
    with pytest.raises(CheckpointError, match=r"770 positions of patches belong to no spectrogram that AST"):
        load_pretrained(network, WeightFile("strange.pth", released(strange)), show=False)


def as_transformers(network: AudioClassifierNetwork) -> dict[str, Tensor]:
    """The same network under the names of Hugging Face's ASTForAudioClassification."""
    state, outer = clones(network), "audio_spectrogram_transformer."
    prefix, grid = state.pop("backbone.pos_prefix"), state.pop("backbone.pos_grid")
    pairs = (
        ("backbone.blocks", f"{outer}encoder.layer"), ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
        ("attn.proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
        ("backbone.norm", f"{outer}layernorm"), ("backbone.cls_token", f"{outer}embeddings.cls_token"),
        ("backbone.dist_token", f"{outer}embeddings.distillation_token"),
        ("backbone.patch_embed.proj", f"{outer}embeddings.patch_embeddings.projection"),
        ("head.0", "classifier.layernorm"), ("head.1", "classifier.dense"),
    )  # fmt: skip
    named = {
        f"{outer}embeddings.position_embeddings": torch.cat((prefix, grid.flatten(2).transpose(1, 2)), 1)
    }
    for name, tensor in state.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            named[name] = tensor
    return named


def test_files_of_transformers() -> None:
    source = AudioClassifierNetwork(tiny(stride=(10, 10)), 5, "cls").eval()
    state = as_transformers(source)
    assert "audio_spectrogram_transformer.encoder.layer.1.attention.output.dense.weight" in state
    network = AudioClassifierNetwork(tiny(stride=(10, 10)), 5, "cls").eval()
    network.head[1].weight.zero_()
    report = load_pretrained(network, WeightFile("model.safetensors", state), show=False)
    assert (report.importer, report.complete) == ("ast_transformers", True)
    image = torch.randn(1, 1, 128, 128)
    assert torch.equal(network(image), source(image))
    trunk = {name.removeprefix("audio_spectrogram_transformer."): t for name, t in state.items()}
    alone = {name: tensor for name, tensor in trunk.items() if not name.startswith("classifier")}
    assert load_pretrained(tiny(stride=(10, 10)), WeightFile("trunk", alone), show=False).complete
    del state["audio_spectrogram_transformer.encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.bias needs the parts .* no key"):
        load_pretrained(network, WeightFile("damaged", state), show=False)


def test_a_deit_of_timm_computes_the_same_on_grey_images() -> None:
    torch.manual_seed(0)
    deit = VisionTransformerDistilled(img_size=128, embed_dim=24, depth=2, num_heads=3, num_classes=10).eval()
    backbone = tiny()
    report = load_pretrained(backbone, WeightFile("deit", clones(deit)), show=False)
    assert report.importer == "vit_as_ast"
    assert {a.what for a in report.adapted} == {"input channels"}
    assert not report.missing
    grey = torch.randn(2, 1, 128, 128)
    tokens = deit.forward_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(backbone.forward_tokens(grey).patches, tokens[:, 2:], rtol=1e-4, atol=1e-5)
    longer = tiny(stride=(10, 10), frames=400)
    report = load_pretrained(longer, WeightFile("deit", clones(deit)), show=False)
    assert {a.what for a in report.adapted} == {"input channels", "position grid"}


def test_depth_of_parameters() -> None:
    backbone = tiny(mask_token=True)
    depths = {name: backbone.block_of(name) for name, _ in backbone.named_parameters()}
    assert {name for name, depth in depths.items() if depth == 0} == {
        "cls_token", "dist_token", "mask_token", "pos_prefix", "pos_grid", "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }  # fmt: skip
    assert depths["blocks.1.norm1.weight"] == 2
    assert depths["norm.weight"] == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"frames": 10}, "128 triangles x 10 frames is smaller than a patch of 16 x 16: pad it"),
        ({"mels": 64, "patch": (128, 2)}, "64 triangles x 128 frames is smaller"),
        ({"stride": (0, 10)}, r"stride must be at least \(1, 1\)"),
    ],
)
def test_impossible_grids(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tiny(**options)
