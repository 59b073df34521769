"""Mesa's quantiser and layers against numbers of the authors' layers (kernels by their formula, u = 1/2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.formulas import det
from zoo.nn.quantise import RunningRange, channel_dim, decode, encode, grouped
from zoo.nn.saved_activations import SavedActivations

K = 1
SHAPE = (2, 5, 12)


def close(tensor: Tensor, l2: float, values: dict[int, float]) -> None:
    flat = tensor.detach().flatten().double()
    assert flat.norm().item() == pytest.approx(l2, rel=1e-5)
    for index, value in values.items():
        assert flat[index].item() == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "groups", "first", "last"),
    [
        ((2, 3, 8), 2, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], [44, 45, 46, 47]),
        ((2, 6), 3, [0, 1, 6, 7], [4, 5, 10, 11]),
        ((2, 4, 3, 2), 4, [0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29], [44, 45, 46, 47]),
    ],
)
def test_groups_hold_the_same_elements(
    shape: tuple[int, ...], groups: int, first: list[int], last: list[int]
) -> None:
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    view = grouped(x, groups)
    rows = view.movedim(1 if channel_dim(x.shape) == 1 else -2, 0).flatten(1)
    assert rows[0, : len(first)].tolist() == first
    assert rows[-1, -len(last) :].tolist() == last


def test_running_ranges() -> None:
    running = RunningRange(0.9)
    expected = [
        ([1.989801407, 1.986715555, 1.988982201], [-0.9981366396, -0.9999436736, -0.9996238947]),
        ([2.089452028, 2.08667922, 2.088778496], [-1.047505856, -1.049373984, -1.048560381]),
        ([2.278650522, 2.276177883, 2.278091669], [-1.141533017, -1.142814994, -1.142825127]),
    ]
    for step, (extent, low) in enumerate(expected):
        running.observe(grouped((1.0, 1.5, 2.0)[step] * det(SHAPE, K + step), 3))
        torch.testing.assert_close(running.extent, torch.tensor(extent), rtol=1e-5, atol=0)
        torch.testing.assert_close(running.low, torch.tensor(low), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("u", "first", "total", "l2", "error"),
    [
        (0.5, [236, 255, 214, 133, 131, 48, 2, 16, 17, 84, 172, 239], 15706, 7.778081136, 0.003855347633),
        (0.25, [236, 255, 214, 133, 131, 48, 2, 15, 17, 84, 172, 239], 15683, 7.774719947, 0.005833685398),
        (1.0, [236, 255, 215, 134, 132, 48, 3, 16, 17, 85, 172, 240], 15516, 7.783910499, 1.986715555),
    ],
)
def test_codes(u: float, first: list[int], total: int, l2: float, error: float) -> None:
    """u = 1 rounds up: the largest value of a group leaves the codes, and wraps in the released kernel."""
    noise = torch.tensor(int((u - 0.5) * 65_536))
    packed = encode(det(SHAPE, K), 3, RunningRange(), overflow="wrap", noise=noise)
    row = grouped(packed.codes.view(SHAPE), 3).movedim(-2, 0).flatten(1)[0, :12]
    assert row.tolist() == first
    assert int(packed.codes.sum()) == total
    close(decode(packed), l2, {})
    assert (decode(packed) - det(SHAPE, K)).abs().max().item() == pytest.approx(error, rel=1e-4)


def test_values_above_the_running_range_wrap_as_released_or_are_clipped() -> None:
    found = {}
    for overflow in ("wrap", "clip"):
        running = RunningRange(0.9)
        encode(det(SHAPE, K), 3, running)
        found[overflow] = decode(encode(2 * det(SHAPE, K + 1), 3, running, overflow=overflow))  # type: ignore[arg-type]
    values = {
        0: -0.3761526942,
        1: 0.8514016867,
        40: -1.099182248,
        60: 0.03589355946,
        118: 0.4465194941,
        119: -0.9179769158,
    }
    close(found["wrap"], 8.66646771, values)
    wrapped = found["wrap"] != found["clip"]
    assert int(wrapped.sum()) == 40
    x = 2 * det(SHAPE, K + 1)
    assert bool((found["clip"][wrapped] < x[wrapped]).all())  # cut off at the top of the range


class Product(nn.Module):
    """Queries and keys, or attention and values: both operands are quantised by heads."""

    num_heads = 3

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class Softmax(nn.Module):
    num_heads = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def gradients(layer: nn.Module, inputs: list[Tensor], upstream: Tensor, groups: Any = 3) -> list[Tensor]:
    saved = SavedActivations({"layer": layer}, groups=groups, rounding="nearest")
    with saved.compress():
        output = layer(*inputs)
    assert torch.equal(output, layer(*inputs))
    output.backward(upstream)
    assert saved.kept_bytes < saved.exact_bytes / 2
    return [x.grad for x in (*inputs, *layer.parameters()) if x.grad is not None]


def leaf(x: Tensor) -> Tensor:
    return x.requires_grad_()


def test_linear() -> None:
    layer = nn.Linear(12, 6)
    layer.weight.data, layer.bias.data = 0.3 * det((6, 12), K + 4), 0.3 * det((6,), K + 5)
    x, weight, bias = gradients(layer, [leaf(det((2, 4, 12), K + 3))], det((2, 4, 6), K + 6))
    close(x, 1.666637644, {0: -0.1293659657, 1: 0.04945347458, 32: -0.05656317621, 95: -0.1690329462})
    close(weight, 25.11521936, {0: -0.8183605671, 1: -3.430867195, 24: -3.651568413, 71: 4.281139851})
    close(bias, 1.573012491, {0: -0.2951524258, 3: 0.999220252, 5: -0.06910455227})


def test_gelu() -> None:
    (x,) = gradients(nn.GELU(), [leaf(2 * det((2, 4, 12), K + 3))], det((2, 4, 12), K + 7))
    close(x, 5.112761881, {0: -0.1254608035, 1: -0.05651709437, 48: -0.2363692373, 95: -0.851797998})


def test_layer_norm() -> None:
    layer = nn.LayerNorm(12)
    layer.weight.data, layer.bias.data = 1 + 0.3 * det((12,), K + 8), 0.3 * det((12,), K + 9)
    x, weight, bias = gradients(layer, [leaf(det((2, 4, 12), K + 3))], det((2, 4, 12), K + 10))
    close(x, 6.732620751, {})
    close(weight, 14.97797002, {0: 2.940908909, 4: 4.995955467, 11: 4.35936451})
    close(bias, 2.186277766, {0: -0.4002407193, 11: 0.7771850824})


def test_softmax() -> None:
    (x,) = gradients(Softmax(), [leaf(3 * det((2, 3, 4, 4), K + 11))], det((2, 3, 4, 4), K + 12), "heads")
    close(x, 0.90222132, {0: -0.002283752663, 1: 0.009648297913, 48: 0.173982054, 95: -0.03412487358})


def test_product_of_heads() -> None:
    a, b = gradients(
        Product(),
        [leaf(det((2, 3, 4, 4), K + 13)), leaf(det((2, 3, 4, 5), K + 14))],
        det((2, 3, 4, 5), K + 15),
        "heads",
    )
    close(a, 15.49455601, {0: 1.159158945, 1: -1.752956152, 48: 1.354756951, 95: 1.626535535})
    close(b, 19.39097473, {0: -1.788551331, 1: -2.722054243, 60: -0.1156141758, 119: 2.175821781})
