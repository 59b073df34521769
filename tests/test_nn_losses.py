"""Losses and percentiles against references written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.nn import (
    downscale_label,
    entropy_filtered_cross_entropy,
    feature_distance,
    masked_percentile,
    ohem_cross_entropy,
    pixel_cross_entropy,
    prediction_entropy,
)

B, C, H, W = 2, 5, 6, 7


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, C, H, W, generator=generator)
    label = torch.randint(0, C, (B, H, W), generator=generator)
    label[torch.rand(B, H, W, generator=generator) < 0.2] = 255
    return logits, label, torch.rand(B, H, W, generator=generator)


def pixel_losses(logits: Tensor, label: Tensor) -> dict[tuple[int, int, int], float]:
    """-log p of the true class, for every pixel that is not ignored."""
    losses = {}
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != 255:
            scores = [math.exp(v) for v in logits[b, :, y, x].tolist()]
            losses[b, y, x] = -math.log(scores[int(label[b, y, x])] / sum(scores))
    return losses


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("average", ["all", "valid"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy_is_the_written_out_mean(batch, weighted, average, layout) -> None:
    logits, label, weight = batch
    losses = pixel_losses(logits, label)
    total = sum(loss * (float(weight[at]) if weighted else 1) for at, loss in losses.items())
    expected = total / (label.numel() if average == "all" else len(losses))
    loss = pixel_cross_entropy(
        logits.contiguous(memory_format=layout), label, weight if weighted else None, average=average
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_takes_image_level_logits() -> None:
    logits, label = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 255])
    assert pixel_cross_entropy(logits, label).item() == pytest.approx(math.log(2) / 2)
    assert pixel_cross_entropy(logits, label, average="valid").item() == pytest.approx(math.log(2))


def test_cross_entropy_computes_in_float32(batch) -> None:
    logits, label, _ = batch
    loss = pixel_cross_entropy(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(pixel_cross_entropy(logits.bfloat16().float(), label).item())


@pytest.mark.parametrize(
    "loss",
    [
        pixel_cross_entropy,
        lambda logits, label: pixel_cross_entropy(logits, label, average="valid"),
        ohem_cross_entropy,
        lambda logits, label: entropy_filtered_cross_entropy(logits, logits, label),
    ],
)
def test_nothing_valid_gives_zero_and_finite_gradients(batch, loss) -> None:
    logits = batch[0].requires_grad_()
    value = loss(logits, torch.full((B, H, W), 255))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_cross_entropy_errors_name_the_argument(batch) -> None:
    logits, label, _ = batch
    with pytest.raises(ValueError, match=r"logits \(2, 5, 6, 7\) and label \(2, 3, 7\) do not fit"):
        pixel_cross_entropy(logits, label[:, :3])
    with pytest.raises(ValueError, match="average must be 'all' or 'valid', got 'mean'"):
        pixel_cross_entropy(logits, label, average="mean")
    with pytest.raises(ValueError, match="min_kept must be at least 1, got 0"):
        ohem_cross_entropy(logits, label, min_kept=0)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.3, 30), (0.05, 30), (0.9, 1), (0.3, 10**6)])
def test_ohem_keeps_the_hard_pixels(batch, threshold, min_kept) -> None:
    logits, label, _ = batch
    losses = pixel_losses(logits, label)
    if min_kept <= len(losses):
        ordered = sorted(math.exp(-loss) for loss in losses.values())
        limit = max(threshold, ordered[min_kept - 1])
        losses = {at: loss for at, loss in losses.items() if math.exp(-loss) <= limit * (1 + 1e-6)}
    expected = sum(losses.values()) / len(losses)
    assert ohem_cross_entropy(logits, label, threshold, min_kept).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("percent", [0, 12.5, 50, 80, 100])
@pytest.mark.parametrize("chosen", [1, 2, 9, 500])
def test_masked_percentile_is_numpys(percent, chosen) -> None:
    generator = torch.Generator().manual_seed(chosen)
    values, mask = torch.randn(20, 25, generator=generator), torch.zeros(500, dtype=torch.bool)
    mask[torch.randperm(500, generator=generator)[:chosen]] = True
    mask = mask.view(20, 25)
    expected = np.percentile(values[mask].numpy(), percent)
    assert masked_percentile(values, mask, percent).item() == pytest.approx(expected, rel=1e-6)


def test_masked_percentile_of_nothing_is_nan() -> None:
    assert masked_percentile(torch.ones(3), torch.zeros(3, dtype=torch.bool), 50).isnan()
    with pytest.raises(ValueError, match=r"percent must be within \[0, 100\], got 101"):
        masked_percentile(torch.ones(3), torch.ones(3, dtype=torch.bool), 101)


@pytest.mark.parametrize("percent", [20, 80, 100])
def test_entropy_filter_drops_the_uncertain_pixels(batch, percent) -> None:
    logits, label, _ = batch
    teacher = logits.roll(1, 0)
    probability = teacher.softmax(1).numpy().astype(np.float64)
    entropy = -(probability * np.log(probability + 1e-10)).sum(1)
    np.testing.assert_allclose(prediction_entropy(teacher).numpy(), entropy, rtol=1e-4, atol=1e-6)
    losses = pixel_losses(logits, label)
    limit = np.percentile([entropy[at] for at in losses], percent)
    kept = [loss for at, loss in losses.items() if entropy[at] < limit * (1 - 1e-9)]
    assert 0 < len(kept) < len(losses)
    expected = label.numel() / len(kept) * np.mean(kept)
    assert entropy_filtered_cross_entropy(logits, teacher, label, percent).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_entropy_filter_with_equal_entropies_keeps_nothing(batch) -> None:
    logits = batch[0].requires_grad_()
    loss = entropy_filtered_cross_entropy(logits, torch.zeros_like(logits), batch[1], 100)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_teacher_logits_get_no_gradient(batch) -> None:
    logits, label, _ = batch
    student, teacher = logits.clone().requires_grad_(), logits.roll(1, 0).requires_grad_()
    entropy_filtered_cross_entropy(student, teacher, label).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("ratio", [0.3, 0.6, 1.0])
def test_downscale_label_is_the_majority_of_each_cell(ratio) -> None:
    generator = torch.Generator().manual_seed(1)
    label = (
        torch.randint(0, 4, (2, 3, 4), generator=generator).repeat_interleave(3, 1).repeat_interleave(3, 2)
    )
    noise = torch.rand(label.shape, generator=generator)
    label[noise < 0.25] = 255
    label[noise > 0.8] = 1
    label[0, :3, :3], label[1, 3:6, 6:9] = 255, 2
    label = torch.nn.functional.pad(label, (0, 2, 0, 1), value=3)  # a margin that fills no cell
    cells = downscale_label(label, 3, 4, ratio)
    expected = torch.empty(2, 3, 4, dtype=torch.long)
    for b, y, x in np.ndindex(*expected.shape):
        cell = label[b, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].flatten().tolist()
        counts = [cell.count(c) for c in (0, 1, 2, 3, 255)]
        best = counts.index(max(counts))
        expected[b, y, x] = best if best < 4 and max(counts) >= ratio * 9 else 255
    assert torch.equal(cells, expected)
    assert (cells == 255).any()
    assert (cells != 255).any()


def test_downscale_label_rejects_a_factor_beyond_the_image() -> None:
    with pytest.raises(ValueError, match=r"factor must be within .* got 9 for a label of 8x16"):
        downscale_label(torch.zeros(1, 8, 16, dtype=torch.long), 9, 4)


def test_feature_distance_is_the_mean_over_selected_cells() -> None:
    generator = torch.Generator().manual_seed(2)
    features, reference = torch.randn(2, 2, 3, 4, 4, generator=generator)
    label = (
        torch.randint(0, 3, (2, 4, 4), generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
    )
    expected = [
        (features[b, :, y, x] - reference[b, :, y, x]).norm().item()
        for b, y, x in np.ndindex(2, 4, 4)
        if label[b, 2 * y, 2 * x] in (0, 2)
    ]
    distance = feature_distance(features, reference, label, (0, 2), num_classes=3)
    assert distance.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_feature_distance_without_a_cell_is_zero() -> None:
    features = torch.randn(1, 3, 2, 2).requires_grad_()
    distance = feature_distance(
        features, torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long), (7,)
    )
    distance.backward()
    assert distance.item() == 0
    assert not features.grad.any()


def test_feature_distance_of_equal_features_has_a_finite_gradient() -> None:
    features = torch.randn(1, 3, 2, 2).requires_grad_()
    feature_distance(features, features.detach(), torch.zeros(1, 4, 4, dtype=torch.long), (0,)).backward()
    assert features.grad.isfinite().all()


def test_feature_distance_errors() -> None:
    label = torch.zeros(1, 9, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="differ in shape"):
        feature_distance(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2), label, (0,))
    with pytest.raises(ValueError, match=r"divides into \(4, 4\) cells, but features have \(5, 4\)"):
        feature_distance(torch.zeros(1, 3, 5, 4), torch.zeros(1, 3, 5, 4), label, (0,))
