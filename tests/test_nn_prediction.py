"""Label and confidence of logits, from one search for the largest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.nn import BorderMask, ConfidenceShare, FixedThreshold, Prediction, weigh


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_label_and_confidence_are_those_of_the_softmax(layout: torch.memory_format) -> None:
    logits = 30 * torch.randn(2, 5, 6, 7)
    logits[0, :2] = -torch.inf
    logits = logits.contiguous(memory_format=layout)
    said = Prediction(logits)
    confidence, label = logits.softmax(1).max(1)
    assert torch.equal(said.score, logits.amax(1))
    assert torch.equal(said.label, label)
    torch.testing.assert_close(said.confidence, confidence)


def test_what_is_shared_is_computed_once() -> None:
    said = Prediction(torch.randn(1, 5, 6, 7))
    weigh(BorderMask(ConfidenceShare(0.3), 1), said)
    assert said.confidence is said.confidence
    assert said.label is said.label


def test_any_module_may_weigh() -> None:
    class Halves(nn.Module):
        def forward(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
            return torch.full_like(logits[:, 0], 0.5)

    weight = weigh(BorderMask(Halves(), 1), Prediction(torch.randn(1, 5, 3, 4)))
    assert weight.tolist() == [[[0.0] * 4, [0.5] * 4, [0.5] * 4]]


def test_a_threshold_of_0_trusts_everything() -> None:
    assert (
        FixedThreshold(0.0)(torch.randn(2, 5, 3, 4, dtype=torch.float64)).tolist()
        == torch.ones(2, 3, 4).tolist()
    )
