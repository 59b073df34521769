"""Mesa: exact forward, few bits for backward, in any method; ranges resume; nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import FutureTeacher, Mesa
from tests.test_configs import QUIET, miniature
from tests.toy import ToyMethod, toy_loader, toy_trainer
from zoo.__main__ import main
from zoo.nn.quantise import RunningRange, decode, encode, grouped, rounding_noise
from zoo.nn.saved_activations import SavedActivations


def vit() -> nn.Module:
    """Small, and as if trained: a fresh class token is so short that the codes of a norm's inputs lose it."""
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_small_patch16_224", img_size=32, patch_size=8, embed_dim=48, num_heads=6, depth=2, num_classes=10
    )
    nn.init.normal_(network.cls_token)
    return network


def backward(network: nn.Module, saved: SavedActivations | None, image: Tensor, seed: int = 0) -> Tensor:
    network.zero_grad()
    label = torch.arange(len(image)) % 10
    if saved is None:
        loss = F.cross_entropy(network(image), label)
    else:
        with saved.compress(seed):
            loss = F.cross_entropy(network(image), label)
    loss.backward()
    return torch.cat([loss.detach()[None], *[p.grad.flatten() for p in network.parameters()]])  # type: ignore[union-attr]


@pytest.mark.parametrize(("bits", "saving", "cosine"), [(8, 3.8, 0.9999), (4, 7.3, 0.98), (32, 1.0, 1.0)])
def test_forward_is_exact_and_gradients_nearly(bits: Any, saving: float, cosine: float) -> None:
    network, image = vit(), torch.randn(8, 3, 32, 32)
    plain = backward(network, None, image)
    saved = SavedActivations({"student": network}, bits=bits)
    found = backward(network, saved, image)
    assert found[0] == plain[0]
    assert saved.exact_bytes / saved.kept_bytes == pytest.approx(saving, rel=0.03)
    assert F.cosine_similarity(found[1:], plain[1:], 0) >= cosine - 1e-6
    assert torch.equal(found, plain) == (bits == 32)


def test_gradients_of_linear_layers_are_unbiased() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 4), torch.randn(8, 5, 16)
    upstream = torch.randn(8, 5, 4)
    layer(x).backward(upstream)
    exact = layer.weight.grad.clone()  # type: ignore[union-attr]
    saved = SavedActivations({"layer": layer})
    draws = []
    for seed in range(400):
        layer.zero_grad()
        with saved.compress(seed):
            out = layer(x)
        out.backward(upstream)
        draws.append(layer.weight.grad.clone())  # type: ignore[union-attr]
    mean, std = torch.stack(draws).mean(0), torch.stack(draws).std(0)
    assert bool(std.min() > 0)
    assert bool(((mean - exact).abs() < 4.5 * std / 400**0.5 + 1e-6).all())


def test_decoding_stays_within_a_bin_and_is_unbiased() -> None:
    x = torch.randn(3, 7, 12)
    generator = torch.Generator().manual_seed(0)
    for bits in (8, 4):
        step = RunningRange()
        extent, _ = step.observe(grouped(x, 3))
        bin_width = (extent / (2**bits - 1)).expand_as(grouped(x, 3)).reshape(x.shape)
        nearest = decode(encode(x, 3, RunningRange(), bits))
        assert bool(((nearest - x).abs() <= bin_width * 0.5001).all())
        draws = torch.stack(
            [
                decode(encode(x, 3, RunningRange(), bits, noise=rounding_noise(x, generator)))
                for _ in range(2000)
            ]
        )
        assert bool(((draws.mean(0) - x).abs() < 5 * draws.std(0) / 2000**0.5 + bin_width * 1e-3).all())


def test_masks_of_rectifiers_are_exact() -> None:
    x = torch.cat([torch.zeros(64), torch.linspace(1e-6, 1, 64)]).view(2, 64)
    assert torch.equal(decode(encode(x, 1, RunningRange())) > 0, x > 0)


def test_short_tokens_need_ranges_of_their_own() -> None:
    x = torch.randn(2, 5, 16)
    x[:, 0] *= 1e-3
    for ranges_of, close in (("groups", False), ("tokens", True)):
        norm = nn.LayerNorm(16)
        exact, found = x.clone().requires_grad_(), x.clone().requires_grad_()
        upstream = torch.randn(2, 5, 16)
        norm(exact).backward(upstream)
        with SavedActivations({"norm": norm}, ranges_of=ranges_of).compress():  # type: ignore[arg-type]
            output = norm(found)
        output.backward(upstream)
        error = (found.grad - exact.grad)[:, 0].norm() / exact.grad[:, 0].norm()  # type: ignore[operator, index]
        assert (error < 0.05) == close


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8), nn.GELU())])
def test_maps_with_channels_last_have_groups_of_channels(layer: nn.Module) -> None:
    """As Swin has them; the same tokens in a row get the same gradients."""
    block = nn.Module()
    block.attention, block.layer = nn.Identity(), layer
    block.attention.num_heads = 2  # type: ignore[assignment]
    block.forward = lambda x: layer(x)  # type: ignore[method-assign]
    maps, gradients = torch.randn(2, 4, 6, 8) * torch.tensor([1.0, 100.0]).repeat_interleave(4), []
    for x in (maps, maps.flatten(1, 2)):
        saved = SavedActivations({"block": block}, rounding="nearest")
        x = x.clone().requires_grad_()
        with saved.compress():
            output = block(x)
        output.square().sum().backward()
        saved.detach()
        assert saved.ranges
        assert all(len(running.state()[0]) == 2 for running in saved.ranges.values())
        gradients.append(x.grad.flatten())  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients)


def test_a_constant_group_comes_back() -> None:
    x = torch.full((2, 3, 4), 2.5)
    assert torch.equal(decode(encode(x, 2, RunningRange())), x)


def test_dropout_draws_what_it_would_without() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    x = torch.randn(4, 8)
    torch.manual_seed(1)
    plain = network(x)
    torch.manual_seed(1)
    with SavedActivations({"n": network}).compress():
        assert torch.equal(network(x), plain)


def test_parts_left_alone_and_statistics_are_exact() -> None:
    network, image = vit(), torch.randn(4, 3, 32, 32)
    saved = SavedActivations({"student": network}, exact=["*.attn*", "*.mlp*"])
    backward(network, saved, image)
    assert saved.ranges
    assert not [place for place in saved.ranges if ".attn" in place or ".mlp" in place]
    everything = SavedActivations({"student": network})
    backward(network, everything, image)
    sizes = {place.split(":")[0] for place in everything.ranges}
    assert {"student.blocks.0.norm1", "student.blocks.0.attn.qkv", "student.blocks.1.mlp.act"} <= sizes
    # mean and deviation of a norm, and attention's log-sum-exp: one number per token is kept as it is
    assert len([place for place in everything.ranges if place.startswith("student.blocks.0.norm1")]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    network, image = vit(), torch.randn(8, 3, 32, 32)
    with torch.autocast("cpu", dtype):
        plain = backward(network, None, image)
        saved = SavedActivations({"student": network})
        found = backward(network, saved, image)
    assert found[0] == plain[0]
    assert F.cosine_similarity(found[1:], plain[1:], 0) > 0.99
    assert 1.7 < saved.exact_bytes / saved.kept_bytes < 3


def run(
    folder: Path, *callbacks: Any, batches: int = 6, steps: int = 4, ckpt_path: str | None = None
) -> tuple[Any, L.Trainer]:
    torch.manual_seed(0)
    method = ToyMethod()
    trainer = toy_trainer(max_steps=steps, callbacks=[*callbacks], default_root_dir=folder)
    trainer.fit(method, toy_loader(batches), ckpt_path=ckpt_path)
    return method, trainer


def test_in_training_the_method_is_left_as_it_was(tmp_path: Path) -> None:
    exact, _ = run(tmp_path)
    measured, _ = run(tmp_path, Mesa(bits=32))
    for a, b in zip(exact.parameters(), measured.parameters(), strict=True):
        assert torch.equal(a, b)
    compressed, _ = run(tmp_path, Mesa(exact=[]))
    assert "losses" not in vars(compressed)
    assert not any(module._forward_pre_hooks for module in compressed.modules())
    assert any(
        not torch.equal(a, b) for a, b in zip(exact.parameters(), compressed.parameters(), strict=True)
    )
    for a, b in zip(exact.parameters(), compressed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)


class SaveAt(Callback):
    """Save at the end of the first epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    half = tmp_path / "half.ckpt"
    straight, _ = run(tmp_path, Mesa(exact=[]), SaveAt(half), batches=3, steps=6)
    assert torch.load(half, weights_only=True)["callbacks"]["Mesa"]
    resumed, trainer = run(tmp_path, Mesa(exact=[]), batches=3, steps=6, ckpt_path=str(half))
    assert trainer.global_step == 6
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_virtual_steps_are_compressed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting(SavedActivations):
        def compress(self, seed: int = 0) -> Any:
            calls.append(seed)
            return super().compress(seed)

    monkeypatch.setattr("callbacks.mesa.SavedActivations", Counting)
    run(tmp_path, Mesa(exact=[]), FutureTeacher(depth=2), steps=2)
    assert len(calls) == len(set(calls)) == 1 + 3  # the released order starts with a plain step


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ssast/embedded", "poa/embedded", "fst/embedded"])
def test_with_the_zoo_by_one_option(config: str, tmp_path: Path) -> None:
    mesa = ["--trainer.callbacks+", "Mesa", "--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1"]
    every = ["--trainer.val_check_interval", "2", "--trainer.num_sanity_val_steps", "0"]
    base = ["--config", config, *miniature(config, tmp_path), *QUIET, *every]
    assert main(["fit", *base, *mesa, "--run_dir", str(tmp_path / "run")]) == 0
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), next(row for row in rows if "mesa" in header).split(","), strict=True))
    assert float(row["mesa/kept_mb"]) < float(row["mesa/exact_mb"]) / 2


def test_wrong_arguments() -> None:
    for wrong in (
        {"bits": 7},
        {"decay": 1.0},
        {"groups": 0},
        {"rounding": "up"},
        {"overflow": "saturate"},
        {"ranges_of": "rows"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Mesa(**wrong)  # type: ignore[arg-type]


def test_nothing_left_to_compress(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="exact"):
        run(tmp_path, Mesa(exact=["*"]))
