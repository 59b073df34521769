"""Stochastic depth: what is kept, how it is scaled, and when it is off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.nn.stochastic_depth import StochasticDepth


def test_evaluation_and_rate_zero_keep_everything() -> None:
    x = torch.randn(6, 3)
    for layer in (
        StochasticDepth(0.5, "batch").eval(),
        StochasticDepth(0.5).eval(),
        StochasticDepth(0.0, "batch"),
    ):
        assert torch.equal(layer(x, torch.sin), x + torch.sin(x))


def test_a_share_of_the_batch_runs_the_branch() -> None:
    seen: list[int] = []

    def branch(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.ones_like(x)

    x = torch.zeros(10, 2, 3, requires_grad=True)
    out = StochasticDepth(0.25, "batch")(x, branch)
    assert seen == [7]
    changed = out[:, 0, 0] != 0
    assert int(changed.sum()) == 7
    torch.testing.assert_close(out[changed], torch.full((7, 2, 3), 10 / 7))
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_one_image_is_never_dropped_from_its_batch() -> None:
    out = StochasticDepth(0.9, "batch")(torch.zeros(1, 4), torch.ones_like)
    assert torch.equal(out, torch.ones(1, 4))


@pytest.mark.parametrize("layer", [StochasticDepth(0.3), StochasticDepth(0.1, "batch")])
def test_each_sample_is_dropped_by_itself(layer: StochasticDepth) -> None:
    """Also for ``batch`` at rates up to 0.1, as released; the mean over many samples is that of the branch."""
    torch.manual_seed(0)
    out = layer(torch.zeros(20_000, 2), torch.ones_like)
    values = out[:, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - layer.rate)]))
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="drop_path_rate must be at least 0 and less than 1, got 1"):
        StochasticDepth(1.0)
    with pytest.raises(ValueError, match="drop_path_form must be sample or batch, got 'batches'"):
        StochasticDepth(0.1, "batches")  # type: ignore[arg-type]
