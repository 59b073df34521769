"""What the roofline benchmark counts: operations, bytes, and where the host waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.paired import ROOT
from benchmarks.speed.roofline_count import SYNCHRONISES, Operators, warned


def counted(piece: Callable[[], Any], device: str = "cpu") -> Operators:
    with Operators(device) as operators:
        piece()
    return operators


def test_operations_are_those_of_torchs_counter() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5))
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as torchs:
        net(image).square().sum().backward()
    assert counted(lambda: net(image).square().sum().backward()).flops == torchs.get_total_flops() > 0


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4),
    ],
)
def test_each_gradient_of_a_convolution_costs_what_its_forward_does(net: nn.Module) -> None:
    image = torch.rand(2, net.in_channels, 5, 5, requires_grad=True)
    forward = counted(lambda: net(image)).flops
    groups, kernel = net.groups, net.kernel_size[0]
    assert forward == 2 * 2 * 25 * net.in_channels * net.out_channels // groups * kernel**2
    assert counted(lambda: net(image).sum().backward()).flops == 3 * forward
    fixed = image.detach()
    assert counted(lambda: net(fixed).sum().backward()).flops == 2 * forward


def test_a_cpus_attention_counts() -> None:
    query, key, value = (torch.rand(1, 2, length, 16, requires_grad=True) for length in (5, 7, 7))
    forward = 2 * 2 * (2 * 5 * 7 * 16)
    assert counted(lambda: F.scaled_dot_product_attention(query, key, value)).flops == forward
    both = counted(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert both.flops == forward + 5 * forward // 2  # the backward makes five products, one of them again


def test_bytes_are_those_of_operands_and_results() -> None:
    row, grid = torch.rand(100), torch.rand(50, 100)
    assert counted(lambda: row + row).bytes == 3 * 400
    assert counted(lambda: grid + row.expand(50, 100)).bytes == 2 * 20_000 + 400
    assert counted(lambda: torch._foreach_mul_([row, row], 2.0)).bytes == 2 * 400
    assert counted(lambda: (grid.view(100, 50), grid.t(), torch.empty(9), grid[3:])).bytes == 0


def test_the_limit_is_the_tighter_one_of_every_operator() -> None:
    x = torch.rand(10, 10)
    both = counted(lambda: (x @ x, x + x))
    assert [(call.flops, call.bytes) for call in both.calls] == [(2000, 1200), (0, 1200)]
    assert both.bound(rate=100.0, bandwidth=600.0) == pytest.approx(20 + 2)
    assert both.bound(rate=2000.0, bandwidth=600.0) == pytest.approx(2 + 2)


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x[0]) + float(x[1]), 2),
        (lambda x: x[x > 0.5], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.clone().index_put_((x > 0.5,), torch.tensor(0.0)), 1),
        (lambda x: x[torch.tensor([0, 2])], 0),
        (lambda x: x.clone().masked_fill_(x > 0.5, 0.0).softmax(0), 0),
    ],
)
def test_values_that_the_host_reads(piece: Callable[[Tensor], object], count: int) -> None:
    x = torch.rand(5)
    assert counted(lambda: piece(x)).waits.total() == count
    assert not counted(lambda: piece(x), "cuda").waits  # what is on the host already is no wait


def test_the_optimisers_counters_are_on_the_host() -> None:
    step = torch.zeros(())
    with Operators("cpu", hosted=[step]) as operators:
        step += 1
        step.item()
    assert not operators.waits


def test_waits_are_told_by_the_zoos_line() -> None:
    scope: dict[str, Any] = {}
    exec(compile("\ndef read(x):\n    return x.item()", f"{ROOT}/zoo/some.py", "exec"), scope)
    assert dict(counted(lambda: scope["read"](torch.ones(1))).waits) == {
        "zoo/some.py:3: aten._local_scalar_dense": 1
    }


def test_warnings_of_synchronisations_count_each_time() -> None:
    with warned() as found:
        for message in (SYNCHRONISES, f"{SYNCHRONISES} (Triggered internally)", "of something else"):
            warnings.warn(message, stacklevel=1)
    assert dict(found) == {"outside of the zoo": 2}
