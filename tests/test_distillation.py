"""Losses and targets of self-distillation: bounds, precision, ranks, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distillation_ddp_script import HEADS, rank_logits
from tests.test_nn_no_sync import assert_never_waits
from zoo.nn import (
    Centre,
    DINOHead,
    MultiHead,
    Sinkhorn,
    cross_view_loss,
    koleo_loss,
    masked_patch_loss,
    sinkhorn_knopp,
    soft_cross_entropy,
)

ROOT = Path(__file__).parents[1]


def textbook_sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    q = (logits.double() / temperature).exp()
    q /= q.sum()
    M, K = q.shape
    for _ in range(iterations):
        q /= K * q.sum(0, keepdim=True)
        q /= M * q.sum(1, keepdim=True)
    return (M * q).float()


@pytest.mark.parametrize("chunk", [1, 40, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_cross_entropy_in_pieces(chunk: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 16).to(dtype).requires_grad_()
    target = 2.0 * torch.randn(5, 16).softmax(1)
    weight = torch.rand(3, 5)
    loss = soft_cross_entropy(logits, target, 0.1, targets=2, chunk=chunk)
    (loss * weight).sum().backward()
    same = logits.detach().clone().requires_grad_()
    expected = -(target * (same.float() / 0.1).log_softmax(-1)).sum(-1)
    (expected * weight).sum().backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad, same.grad)
    assert loss.dtype == torch.float32


def test_sinkhorn_is_the_textbook_form_and_never_breaks() -> None:
    torch.manual_seed(0)
    logits = 0.3 * torch.randn(12, 7)
    torch.testing.assert_close(Sinkhorn()(logits, 0.05), textbook_sinkhorn(logits, 0.05))
    large = torch.randn(12, 7) * 50  # exp(o / 0.04) overflows, whole rows and columns underflow
    large[0] -= 400
    large[:, 1] -= 400
    found = Sinkhorn()(large, 0.04)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(12))
    assert Sinkhorn()(torch.zeros(0, 7), 0.04).shape == (0, 7)
    both = sinkhorn_knopp([logits, 2 * logits[:5]], 0.05)
    torch.testing.assert_close(both[0], Sinkhorn()(logits, 0.05))
    torch.testing.assert_close(both[1], Sinkhorn()(2 * logits[:5], 0.05))


def test_a_centre_of_nothing_stays() -> None:
    centre = Centre(4)
    centre.update(torch.ones(3, 4))
    torch.testing.assert_close(centre.centre, torch.full((1, 4), 0.1))
    centre.update(torch.zeros(0, 4))
    torch.testing.assert_close(centre.centre, torch.full((1, 4), 0.1))


def test_masked_patch_loss_of_no_patch_is_zero_and_has_a_gradient() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = masked_patch_loss(torch.zeros(0, 4), logits, torch.zeros(0), views=4)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None


def test_heads() -> None:
    head = DINOHead(8, 5, hidden_dim=16, bottleneck_dim=4, train_gain=False)
    assert [name for name, p in head.named_parameters() if not p.requires_grad] == ["last_layer.weight_g"]
    x = torch.randn(3, 8)
    torch.testing.assert_close(head.embed(x).norm(dim=1), torch.ones(3))
    assert head(x).abs().max() <= 1.0  # cosines, as gains are 1
    heads = MultiHead(8, (5, 6), hidden_dim=16, bottleneck_dim=4)
    assert [logits.shape for logits in heads(x)] == [(3, 5), (3, 6)]
    assert {name.split(".")[0] for name in heads.state_dict()} == {
        "mlp0",
        "mlp1",
        "last_layer0",
        "last_layer1",
    }


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"KoLeo .* got 1: raise data.batch_size"):
        koleo_loss(torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"4 targets and 6 rows of global views"):
        cross_view_loss(torch.rand(4, 3), torch.rand(6, 3))
    with pytest.raises(ValueError, match=r"5 rows of local views are no multiple of 2"):
        cross_view_loss(torch.rand(4, 3), torch.rand(4, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"must agree in their last two"):
        soft_cross_entropy(torch.rand(4, 3), torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"at least one layer and one prototype"):
        DINOHead(8, 0)


def test_nothing_waits_for_the_device() -> None:
    def step(logits: Tensor, local: Tensor, features: Tensor) -> Tensor:
        centre = Centre(16)
        target = centre(logits, 0.05)
        centre.update(logits)
        patch = sinkhorn_knopp([logits, local], 0.05)[1]
        loss = cross_view_loss(target, logits, local) + koleo_loss(features)
        return loss + masked_patch_loss(patch, local, torch.ones(6), 4)

    assert_never_waits(lambda: step, (4, 16), (6, 16), (4, 8))


@pytest.mark.slow
def test_two_ranks_with_ragged_rows_equal_one(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.distillation_ddp_script", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    joint = [torch.cat(parts) for parts in zip(rank_logits(0), rank_logits(1), strict=True)]
    assert [len(part) for part in rank_logits(1)] == [
        2,
        0,
        5,
    ]  # other counts than on rank 0, none in one head
    for index, logits in enumerate(joint):
        found = torch.cat([rank["sinkhorn"][index] for rank in ranks])
        torch.testing.assert_close(found, textbook_sinkhorn(logits, 0.05), rtol=1e-4, atol=1e-6)
        centre = Centre(HEADS[index])
        centre.update(logits)
        for rank in ranks:
            torch.testing.assert_close(rank["centre"][index], centre.centre)
