"""Pseudo-label weighting against loops over pixels and samples, on one process and on two."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from zoo.nn import (
    BorderMask,
    ClassBalanced,
    ConfidenceShare,
    EntropyFilter,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
    create_weighting,
    pixel_cross_entropy,
    prediction_entropy,
)
from zoo.registry import UnknownNameError

B, C, H, W = 2, 4, 5, 6


def batches(count: int, shape: tuple[int, ...] = (B, C, H, W), seed: int = 0) -> list[Tensor]:
    """Logits whose classes differ in how often and how surely they are predicted."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.tensor([1.5, 0.5, 0.0, -0.5]).view(1, C, *[1] * (len(shape) - 2))
    return [2.5 * torch.randn(shape, generator=generator) + bias for _ in range(count)]


def pixels(logits: Tensor) -> tuple[list[float], list[int]]:
    """Confidence and class of every pixel, flattened."""
    confidence, label = logits.softmax(1).max(1)
    return confidence.flatten().tolist(), label.flatten().tolist()


def weights(confidence: list[float], label: list[int], thresholds: list[float]) -> Tensor:
    return torch.tensor([float(p >= thresholds[c]) for p, c in zip(confidence, label, strict=True)])


def assert_mixed(weight: Tensor) -> None:
    """A check of thresholds says little where all weights are the same."""
    assert 0 < weight.mean() < 1


def test_confidence_share_is_one_number_for_the_batch() -> None:
    (logits,) = batches(1)
    confidence, _ = pixels(logits)
    share = sum(p >= 0.8 for p in confidence) / len(confidence)
    assert 0 < share < 1
    expected = torch.full((B, H, W), share)
    torch.testing.assert_close(ConfidenceShare(0.8)(logits), expected)


def test_border_mask_empties_strips_of_any_weighting() -> None:
    (logits,) = batches(1)
    share, threshold = ConfidenceShare(0.8), FixedThreshold(0.6)
    for weighting, (top, bottom, left, right) in (
        (share, (1, 2, 0, 0)),
        (threshold, (0, 0, 2, 1)),
        (threshold, (1, 1, 1, 1)),
        (threshold, (0, 0, 0, 0)),
    ):
        weight, masked = weighting(logits), BorderMask(weighting, top, bottom, left, right)(logits)
        for y in range(H):
            for x in range(W):
                inside = top <= y < H - bottom and left <= x < W - right
                assert torch.equal(masked[:, y, x], weight[:, y, x] * inside)
        assert masked.any()
    assert not BorderMask(share, bottom=H + 3)(logits).any()
    assert not BorderMask(share, left=W, right=W)(logits).any()
    with pytest.raises(ValueError, match="the left border must not be negative, got -1 pixels"):
        BorderMask(share, left=-1)


def test_border_mask_keeps_the_state_of_what_it_wraps() -> None:
    masked = BorderMask(FreeMatch(C, 0.7), top=1)
    for logits in batches(2):
        masked(logits)
    restored = BorderMask(FreeMatch(C, 0.7), top=1)
    restored.load_state_dict(masked.state_dict())
    assert restored.weight.level != 1 / C
    assert torch.equal(restored.weight.level, masked.weight.level)


def test_weightings_by_name() -> None:
    kinds = {
        "share": ConfidenceShare, "threshold": FixedThreshold, "flexmatch": FlexMatch, "freematch": FreeMatch,
        "class_balanced": ClassBalanced, "entropy": EntropyFilter,
    }  # fmt: skip
    for name, kind in kinds.items():
        weighting = create_weighting(name, C, 0.6)
        assert type(weighting) is kind
        assert getattr(weighting, "threshold", 0.6) == 0.6
    balanced = create_weighting("class_balanced", C, 0.6, {"portion": 0.2, "threshold": 0.8})
    assert (balanced.portion, balanced.threshold, len(balanced.thresholds)) == (0.2, 0.8, C)
    with pytest.raises(UnknownNameError, match=r"unknown weighting 'flex': did you mean flexmatch"):
        create_weighting("flex", C, 0.6)
    with pytest.raises(TypeError, match="portion"):
        create_weighting("share", C, 0.6, {"portion": 0.2})


def test_thresholds_are_inclusive() -> None:
    logits = torch.zeros(1, 2, 1, 1)  # confidence exactly 0.5
    assert ConfidenceShare(0.5)(logits).item() == 1
    assert FixedThreshold(0.5)(logits).item() == 1
    assert FixedThreshold(0.51)(logits).item() == 0


def test_fixed_threshold() -> None:
    (logits,) = batches(1)
    weight = FixedThreshold(0.8)(logits)
    assert_mixed(weight)
    assert torch.equal(weight.flatten(), weights(*pixels(logits), [0.8] * C))


def flexmatch_thresholds(share: list[float], threshold: float) -> list[float]:
    beta = [s / max(*share, 1 - sum(share)) for s in share]
    return [threshold * b / (2 - b) for b in beta]


def test_flexmatch_remembers_samples() -> None:
    N, threshold = 12, 0.7
    module = FlexMatch(C, threshold, num_samples=N)
    memory = [C] * N
    generator = torch.Generator().manual_seed(3)
    for step, logits in enumerate(batches(12, (5, C))):
        index = torch.randperm(N, generator=generator)[:5]
        thresholds = flexmatch_thresholds([memory.count(c) / N for c in range(C)], threshold)
        confidence, label = pixels(logits)
        weight = module(logits, index)
        assert torch.equal(weight, weights(confidence, label, thresholds))
        if step == 0:
            assert weight.all()  # warm-up: thresholds start at 0
        for i, p, c in zip(index.tolist(), confidence, label, strict=True):
            if p >= threshold:
                memory[i] = c
        assert module.memory.tolist() == memory
    assert memory.count(C) < N / 2
    assert max(module.thresholds()) > 0.5


def test_flexmatch_without_memory_averages_batches() -> None:
    threshold, momentum = 0.6, 0.6
    module = FlexMatch(C, threshold, momentum=momentum)
    share = [0.0] * C
    for logits in (1.2 * batch for batch in batches(7)):
        confidence, label = pixels(logits)
        weight = module(logits)
        assert torch.equal(
            weight.flatten(), weights(confidence, label, flexmatch_thresholds(share, threshold))
        )
        for c in range(C):
            seen = sum(p >= threshold and k == c for p, k in zip(confidence, label, strict=True))
            share[c] = momentum * share[c] + (1 - momentum) * seen / len(label)
        torch.testing.assert_close(module.share, torch.tensor(share))
    assert_mixed(weight)


def test_flexmatch_with_memory_needs_one_prediction_and_an_index_per_sample() -> None:
    module = FlexMatch(C, num_samples=10)
    with pytest.raises(
        ValueError, match=r"needs one prediction per sample.*index None.*leave num_samples out"
    ):
        module(torch.zeros(2, C))
    with pytest.raises(ValueError, match=r"got predictions \[2, 5, 6\]"):
        module(torch.zeros(2, C, H, W), torch.tensor([0, 1]))


def test_freematch() -> None:
    momentum = 0.7
    module = FreeMatch(C, momentum)
    level, prediction = 1 / C, [1 / C] * C
    for logits in batches(6):
        confidence, label = pixels(logits)
        level = momentum * level + (1 - momentum) * sum(confidence) / len(confidence)
        for c in range(C):
            mean = logits.softmax(1)[:, c].mean().item()
            prediction[c] = momentum * prediction[c] + (1 - momentum) * mean
        weight = module(logits)
        thresholds = [level * p / max(prediction) for p in prediction]
        torch.testing.assert_close(module.thresholds(), torch.tensor(thresholds))
        assert torch.equal(weight.flatten(), weights(confidence, label, thresholds))
    assert_mixed(weight)


def balance(
    thresholds: list[float], ranks: list[Tensor], portion: float, cap: float, momentum: float
) -> None:
    """Move the thresholds by one batch, each rank's part of it ranked by itself."""
    found = [list(zip(*pixels(logits), strict=True)) for logits in ranks]
    for c in range(C):
        total, count = 0.0, 0
        for part in found:
            ranked = sorted((p for p, k in part if k == c), reverse=True)
            if ranked:
                total += len(ranked) * min(ranked[max(round(portion * len(ranked)), 1) - 1], cap)
                count += len(ranked)
        if count:
            thresholds[c] = momentum * thresholds[c] + (1 - momentum) * total / count


@pytest.mark.parametrize("portion", [0.3, 1.0])
def test_class_balanced(portion) -> None:
    cap, momentum = 0.9, 0.5
    module = ClassBalanced(C, portion, cap, momentum)
    thresholds = [cap] * C
    for step, logits in enumerate(batches(6)):
        if step == 3:
            logits[:, 2] = -50  # a batch without class 2
        confidence, label = pixels(logits)
        assert (2 in label) == (step != 3)
        balance(thresholds, [logits], portion, cap, momentum)
        weight = module(logits)
        torch.testing.assert_close(module.thresholds, torch.tensor(thresholds))
        assert torch.equal(weight.flatten(), weights(confidence, label, module.thresholds.tolist()))
        assert_mixed(weight)
    assert len({round(t, 3) for t in thresholds}) == C


def test_class_balanced_needs_a_portion() -> None:
    with pytest.raises(ValueError, match=r"portion must be within \(0, 1\], got 0"):
        ClassBalanced(C, portion=0)


@pytest.mark.parametrize("percent", [40, 100])
def test_entropy_filter(percent) -> None:
    (logits,) = batches(1)
    entropy = prediction_entropy(logits)
    kept = entropy < np.percentile(entropy.numpy(), percent)
    weight = EntropyFilter(percent)(logits)
    assert torch.equal(weight > 0, kept)
    assert weight.mean().item() == pytest.approx(1)
    label = logits.argmax(1)
    mean_over_kept = pixel_cross_entropy(logits, label.masked_fill(~kept, 255), average="valid")
    torch.testing.assert_close(pixel_cross_entropy(logits, label, weight), mean_over_kept)
    assert not EntropyFilter(percent)(torch.zeros_like(logits)).any()  # all equal: none is below


STATEFUL: list[Callable[[], nn.Module]] = [
    lambda: FlexMatch(C, 0.7, momentum=0.6),
    lambda: FlexMatch(C, 0.7, num_samples=8),
    lambda: FreeMatch(C, 0.7),
    lambda: ClassBalanced(C, 0.5, momentum=0.5),
]


def step(module: nn.Module, logits: Tensor, index: Tensor) -> Tensor:
    if getattr(module, "num_samples", None) is not None:
        logits = logits[:, :, 0, 0]
    return module(logits, index)


@pytest.mark.parametrize("build", STATEFUL)
def test_state_changes_in_training_only_and_is_in_the_checkpoint(build) -> None:
    module = build()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert before
    index = torch.tensor([1, 4])
    module.eval()
    for logits in batches(2):
        step(module, logits, index)
    assert all(torch.equal(module.state_dict()[key], before[key]) for key in before)
    module.train()
    for logits in batches(4):
        step(module, logits, index)
    assert not all(torch.equal(module.state_dict()[key], before[key]) for key in before)

    restored = build()
    restored.load_state_dict(module.state_dict())
    (logits,) = batches(1, seed=9)
    assert torch.equal(step(restored, logits, index), step(module, logits, index))


@pytest.mark.parametrize("build", [*STATEFUL, ConfidenceShare, FixedThreshold, EntropyFilter])
def test_weights_carry_no_gradient(build) -> None:
    (logits,) = batches(1)
    weight = step(build(), logits.requires_grad_(), torch.tensor([0, 1]))
    assert weight.dtype == torch.float32
    assert not weight.requires_grad


def _rank(rank: int, rendezvous: str, folder: str) -> None:
    """What each process runs: its own half of every batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    modules = [build() for build in STATEFUL]
    for i, logits in enumerate(batches(4)):
        for module in modules:
            step(module, logits[rank : rank + 1], torch.tensor([(2 * i + rank) % 8]))
    torch.save([module.state_dict() for module in modules], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_state_is_the_same_on_all_ranks(tmp_path) -> None:
    mp.spawn(_rank, (f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    *averages, balanced = [build() for build in STATEFUL]
    thresholds = balanced.thresholds.tolist()
    for i, logits in enumerate(batches(4)):
        balance(thresholds, [logits[:1], logits[1:]], balanced.portion, balanced.threshold, balanced.momentum)
        for module in averages:
            step(module, logits, torch.tensor([(2 * i) % 8, (2 * i + 1) % 8]))
    expected = [*(module.state_dict() for module in averages), {"thresholds": torch.tensor(thresholds)}]
    for one, other, reference in zip(first, second, expected, strict=True):
        for key, value in reference.items():
            assert torch.equal(one[key], other[key])
            torch.testing.assert_close(one[key], value)


def test_class_balanced_starts_at_the_cap_and_leaves_absent_classes_alone() -> None:
    module = ClassBalanced(2, portion=1.0, threshold=0.99, momentum=0.0)
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(9.0), 0.0]]).reshape(2, 2, 1, 1)
    module(logits)
    torch.testing.assert_close(module.thresholds, torch.tensor([0.75, 0.99]))
