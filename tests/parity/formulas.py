"""Formula inputs and tensor fingerprints: how the parity files describe tensors without storing them.

Conventions of the files ("i" is the row-major linear index):

* ``det(shape, k)``: ``sin(0.7 i + k)`` in float64, cast to float32.
* ``lab(shape, k, C, ignore=(m, r))``: ``(7 i + k) mod C``; where ``i mod m == r`` the label is 255.
* ``blk(shape, k, C, b, ignore)``: square blocks of side ``b``, shifted from image to image.
* ``params_init(module, k0, scale)``: parameters from ``det`` in registration order.
* fingerprint: sum and L2 norm, and all values of a small tensor, or else the first eight, the last four and
  ``sum_i t_i cos(0.3 i)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"


def load_cases(file_name: str) -> dict[str, dict[str, Any]]:
    """Cases of a file under ``tests/parity/data`` by their id."""
    return json.loads((DATA / file_name).read_text())


def det(shape: tuple[int, ...] | list[int], k: float) -> Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * i + k).reshape(shape).float()


def lab(
    shape: tuple[int, ...] | list[int], k: int, C: int, ignore: tuple[int, int] | list[int] | None = None
) -> Tensor:
    i = torch.arange(torch.Size(shape).numel())
    return _ignored((7 * i + k) % C, ignore).reshape(shape)


def blk(
    shape: tuple[int, ...] | list[int],
    k: int,
    C: int,
    b: int,
    ignore: tuple[int, int] | list[int] | None = None,
) -> Tensor:
    N, H, W = shape[0], shape[-2], shape[-1]
    n, y, x = torch.meshgrid(torch.arange(N), torch.arange(H), torch.arange(W), indexing="ij")
    return _ignored((((y // b) * 5 + (x // b) * 3 + n * 2 + k) % C).flatten(), ignore).reshape(shape)


def _ignored(flat: Tensor, ignore: tuple[int, int] | list[int] | None) -> Tensor:
    if ignore is not None:
        m, r = ignore
        flat[torch.arange(flat.numel()) % m == r] = 255
    return flat


@torch.no_grad()
def params_init(module: nn.Module, k0: int, scale: float) -> None:
    for j, (name, parameter) in enumerate(module.named_parameters()):
        values = det(parameter.shape, k0 + j)
        is_norm_scale = parameter.dim() == 1 and name.rpartition(".")[2] == "weight"
        parameter.copy_(1 + 0.1 * values if is_norm_scale else scale * values)


def recipe(spec: Mapping[str, Any]) -> Tensor:
    """Input tensor of a ``{"recipe": ..., "shape": ..., ...}`` entry."""
    name, shape, k = spec["recipe"], spec["shape"], spec["k"]
    match name:
        case "det":
            return det(shape, k)
        case "gain*det":
            return spec["gain"] * det(shape, k)
        case "0.5+0.5*det":
            return 0.5 + 0.5 * det(shape, k)
        case "0.5+0.5*|det|":
            return 0.5 + 0.5 * det(shape, k).abs()
        case "lab":
            return lab(shape, k, spec["C"], spec.get("ignore"))
        case "blk":
            return blk(shape, k, spec["C"], spec["b"], spec.get("ignore"))
    raise ValueError(f"unknown recipe {name!r}")


def assert_fingerprint(
    actual: Tensor, expected: Mapping[str, Any], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Fail unless ``actual`` has the recorded shape, and every recorded number within the tolerance.

    Sums over n elements are compared with ``atol * sqrt(n)``: rounding errors add up.
    """
    assert list(actual.shape) == expected["shape"]
    flat = actual.detach().double().flatten()
    n = flat.numel()

    def close(what: str, got: Tensor, wanted: Any, atol: float) -> None:
        torch.testing.assert_close(
            got,
            torch.as_tensor(wanted, dtype=torch.float64),
            rtol=rtol,
            atol=atol,
            msg=lambda m: f"{what}: {m}",
        )

    if "values" in expected:
        close("values", flat, expected["values"], atol)
    else:
        close("first8", flat[:8], expected["first8"], atol)
        close("last4", flat[-4:], expected["last4"], atol)
        weighted = flat * torch.cos(0.3 * torch.arange(n, dtype=torch.float64))
        close("weighted_sum", weighted.sum(), expected["weighted_sum"], atol * n**0.5)
    close("sum", flat.sum(), expected["sum"], atol * n**0.5)
    close("l2", flat.norm(), expected["l2"], atol * n**0.5)
