"""Sliding-window inference against numbers recorded from the released code (case ``infer.slide``)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.parity.formulas import assert_fingerprint, det
from zoo.nn import Inference

# mmseg/models/segmentors/encoder_decoder.py::EncoderDecoder.slide_inference
EXPECTED = {
    "shape": [1, 3, 40, 60],
    "first8": [-0.54535127, -0.57225764, -0.62607038, -0.70500851, -0.80907208, -0.89811254, -0.97212994, -0.99804115],
    "last4": [-0.035631076, -0.29811287, -0.43148184, -0.49816632],
    "weighted_sum": -13.59693177,
    "sum": -74.80467415,
    "l2": 58.51117745,
}  # fmt: skip


def recorded_network(crop: Tensor) -> Tensor:
    """``crop[c, y, x] * linspace(0.5, 1.5, h)[y] + linspace(-1, 1, w)[x]``, which depends on the window."""
    height, width = crop.shape[-2:]
    return crop * torch.linspace(0.5, 1.5, height)[:, None] + torch.linspace(-1, 1, width)


@pytest.mark.parametrize("window_batch", [1, 4, 100])
def test_sliding_windows(window_batch: int) -> None:
    inference = Inference(window=(16, 16), stride=(10, 10), window_batch=window_batch)
    assert_fingerprint(inference(recorded_network, det((1, 3, 20, 30), 2), (40, 60)), EXPECTED, 1e-4, 1e-5)
