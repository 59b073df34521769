"""Class statistics, the bank and the contrastive losses, against written-out computations."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.nn import (
    ClassStatistics,
    FeatureBank,
    ProjectionHead,
    bank_contrast,
    contrast_regulariser,
    distribution_contrast,
    proto_contrast,
)
from zoo.nn import contrast as contrast_module

C, A, L_BANK = 5, 6, 4


def embeddings(seed: int, size: tuple[int, ...] = (2, A, 9, 7)) -> tuple[Tensor, Tensor]:
    """Unit vectors and labels, of which some are ignored and class 4 is absent."""
    rng = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(size, generator=rng), dim=1)
    label = torch.randint(0, C, (size[0], *size[2:]), generator=rng)
    return features, label.masked_fill(label == C - 1, 255)


def rows(features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """One row per pixel that is not ignored."""
    kept = label != 255
    return features.permute(0, 2, 3, 1)[kept], label[kept]


# -- statistics ------------------------------------------------------------------------------------------


def test_statistics_are_the_pooled_moments_whatever_the_order() -> None:
    # Far from the origin, where a mean of squares minus a squared mean would have lost everything.
    batches = [(features + 100 * seed, label) for seed in range(4) for features, label in [embeddings(seed)]]
    pixels, classes = (torch.cat(parts) for parts in zip(*(rows(*b) for b in batches), strict=True))
    for order in itertools.permutations(batches):
        statistics = ClassStatistics(C, A)
        for features, label in order:
            statistics.update(features, label)
        for c in range(C - 1):
            own = pixels[classes == c].double()
            assert statistics.count[c] == len(own)
            for got, expected in (
                (statistics.mean, own.mean(0)),
                (statistics.variance, own.var(0, correction=0)),
            ):
                torch.testing.assert_close(got[c].double(), expected, rtol=1e-5, atol=0)
        assert not statistics.mean[C - 1].any()
        assert not statistics.variance[C - 1].any()


def test_two_sets_of_statistics_merge_into_one() -> None:
    parts, whole = [ClassStatistics(C, A), ClassStatistics(C, A)], ClassStatistics(C, A)
    for seed in range(4):
        parts[seed % 2].update(*embeddings(seed))
        whole.update(*embeddings(seed))
    parts[0].merge(parts[1].count, parts[1].mean, parts[1].variance)
    for got, expected in zip(parts[0].buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_statistics_keep_float32_under_autocast_and_any_layout() -> None:
    features, label = embeddings(0)
    plain, cast = ClassStatistics(C, A), ClassStatistics(C, A)
    plain.update(features, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast.update(features.contiguous(memory_format=torch.channels_last), label)
    for got, expected in zip(cast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"features \(2, 6, 9, 7\) and label \(2, 9, 6\) do not fit"):
        plain.update(features, label[..., 1:])


def test_the_bank_is_first_in_first_out_and_starts_with_zero() -> None:
    bank, present = FeatureBank(2, 1, 3), torch.tensor([True, False])
    history = [0.0]
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        bank.push(torch.full((2, 1), value), present)
        history = [*history, value][-3:]
        assert sorted(bank.entries[0, : bank.size[0], 0].tolist()) == history
        assert bank.size.tolist() == [len(history), 1]
        assert not bank.entries[1].any()


@pytest.mark.parametrize("centroids", ["batch", "image"])
def test_a_centroid_is_of_the_batch_or_of_each_image(centroids: Any) -> None:
    features, label = embeddings(0)
    statistics = ClassStatistics(C, A, bank_length=L_BANK, centroids=centroids)
    statistics.update(features, label)
    groups = [slice(0, 2)] if centroids == "batch" else [slice(0, 1), slice(1, 2)]
    assert statistics.bank is not None
    assert statistics.bank.size.tolist() == [1 + len(groups)] * (C - 1) + [1]
    for place, group in enumerate(groups, start=1):
        pixels, classes = rows(features[group], label[group])
        for c in range(C - 1):
            torch.testing.assert_close(statistics.bank.entries[c, place], pixels[classes == c].mean(0))


def update_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    statistics = ClassStatistics(C, A, bank_length=L_BANK, centroids="image")
    features, label = embeddings(0)
    statistics.update(features[rank : rank + 1], label[rank : rank + 1])
    torch.save(statistics.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_hold_the_statistics_of_the_joint_batch(tmp_path: Path) -> None:
    mp.spawn(update_on_rank, args=(str(tmp_path),), nprocs=2)
    whole = ClassStatistics(C, A, bank_length=L_BANK, centroids="image")
    whole.update(*embeddings(0))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for key, expected in whole.state_dict().items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], expected, rtol=1e-6, atol=1e-7)


# -- contrast --------------------------------------------------------------------------------------------


def written_out(variant: str, q: Tensor, label: Tensor, known: ClassStatistics, tau: float) -> Tensor:
    """The losses pixel by pixel, in float64, as the card writes them."""
    mean, variance = known.mean.double(), known.variance.double()
    bank = known.bank
    assert bank is not None
    banks = [bank.entries[c, : bank.size[c]].double() for c in range(C)]
    pixels, classes = rows(q, label)
    losses = []
    for x, y in zip(pixels, classes.tolist(), strict=True):
        z = torch.stack([x @ mean[c] / tau for c in range(C)])
        if variant == "dist":
            spread = torch.stack([x.square() @ variance[c] / (2 * tau**2) for c in range(C)])
            losses.append(-(z + spread).log_softmax(0)[y] + spread[y])
        elif variant == "proto":
            losses.append(-z.log_softmax(0)[y])
        elif variant == "bank":
            others = sum(((banks[c] @ x).mean() / tau).exp() for c in range(C) if c != y)
            positives = (banks[y] @ x / tau).exp()
            losses.append(-(positives / (positives + others)).log().mean())
    if variant == "regulariser":
        scores = mean @ pixels.mean(0) / tau
        return scores.log_softmax(0).sum() / (C * torch.tensor(float(C)).double().log())
    return torch.stack(losses).mean()


def ours(variant: str, q: Tensor, label: Tensor, known: ClassStatistics, tau: float) -> Tensor:
    bank = known.bank
    assert bank is not None
    return {
        "dist": lambda: distribution_contrast(q, label, known.mean, known.variance, tau),
        "proto": lambda: proto_contrast(q, label, known.mean, tau),
        "bank": lambda: bank_contrast(q, label, bank.entries, bank.size, tau),
        "regulariser": lambda: contrast_regulariser(q, label, known.mean, tau),
    }[variant]()


def learned(updates: int = 5) -> ClassStatistics:
    """Statistics after some batches: a bank that has turned over, and a class that was never seen."""
    known = ClassStatistics(C, A, bank_length=L_BANK)
    for seed in range(updates):
        known.update(*embeddings(10 + seed))
    return known


VARIANTS = ["proto", "dist", "bank", "regulariser"]


@pytest.mark.parametrize("block", [4, 256])  # many blocks of a class, and one that holds it all
@pytest.mark.parametrize("tau", [100.0, 1.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contrast_is_the_written_out_loss(
    variant: str, tau: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast_module, "BLOCK", block)
    known, (features, label) = learned(), embeddings(0)
    q, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    loss, expected = ours(variant, q, label, known, tau), written_out(variant, exact, label, known, tau)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    (gradient,), (truth,) = torch.autograd.grad(loss, q), torch.autograd.grad(expected, exact)
    assert truth.norm() > 0
    # float32 knows a softmax to about 1e-7, of which a gradient far below the others' scale keeps less.
    scale = max(truth.norm().item(), 1e-2 / tau)
    assert (gradient.double() - truth).norm() <= 1e-6 * scale


def test_the_regulariser_rides_along() -> None:
    known, (features, label) = learned(), embeddings(0)
    bank = known.bank
    assert bank is not None
    alone = contrast_regulariser(features, label, known.mean)
    losses: dict[str, Any] = {
        "proto": lambda **r: proto_contrast(features, label, known.mean, **r),
        "dist": lambda **r: distribution_contrast(features, label, known.mean, known.variance, **r),
        "bank": lambda **r: bank_contrast(features, label, bank.entries, bank.size, mean=known.mean, **r),
    }
    for loss in losses.values():
        torch.testing.assert_close(loss(regulariser=0.5), loss() + 0.5 * alone)
    with pytest.raises(ValueError, match=r"regulariser=0\.5\) needs mean"):
        bank_contrast(features, label, bank.entries, bank.size, regulariser=0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_contrast_of_nothing_is_a_differentiable_zero(variant: str) -> None:
    features, label = embeddings(0)
    q = features.requires_grad_()
    loss = ours(variant, q, torch.full_like(label, 255), learned(), 100.0)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, q)
    assert not gradient.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_contrast_is_float32_under_autocast(variant: str) -> None:
    known, (features, label) = learned(), embeddings(0)
    expected = ours(variant, features, label, known, 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(variant, features, label, known, 100.0)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_waits_for_the_device_or_is_pixels_by_classes_by_channels(variant: str) -> None:
    """Fake tensors have no data to wait for; and they tell the size of everything that is made."""
    made: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            made.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor))
            return out

    # A pixel meets fewer vectors (16 of the bank, 19 centres) than it has channels, so that the map is the largest.
    B, dim, side, classes = 2, 64, 64, 19
    pixels = B * side * side
    with FakeTensorMode(), Sizes():
        known = ClassStatistics(classes, dim, bank_length=16)
        q = torch.rand(B, dim, side, side, requires_grad=True)
        label = torch.zeros(B, side, side, dtype=torch.long)
        known.update(q, label)
        ours(variant, q, label, known, 100.0).backward()
    # Rows of the bank's contrast are padded to whole blocks; everything else is the map at most.
    assert max(made) <= (pixels + (classes + 1) * contrast_module.BLOCK) * dim
    assert max(made) < pixels * classes * dim / 5


# -- projection ------------------------------------------------------------------------------------------


def test_projection_sizes_are_the_published_ones() -> None:
    def parameters(head: ProjectionHead) -> int:
        return sum(p.numel() for p in head.parameters())

    assert parameters(ProjectionHead([2048])) == 5_248_000
    assert parameters(ProjectionHead([64, 128, 320, 512])) == 394_752
    with pytest.raises(ValueError, match="at least one map and one layer"):
        ProjectionHead([])
    with pytest.raises(ValueError, match="at least one place per class, got length=-1"):
        FeatureBank(2, 3, -1)
