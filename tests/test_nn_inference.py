"""Inference against references written out view by view and window by window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn import Inference
from zoo.nn.inference import window_starts


def network(image: Tensor) -> Tensor:
    """Four classes; what a pixel gets depends on where in the window it lies."""
    height, width = image.shape[-2:]
    place = torch.linspace(0.5, 1.5, height)[:, None] * torch.linspace(-1, 1, width)
    per_class = torch.tensor([1.0, -1.0, 2.0, 0.0]).view(4, 1, 1)
    return torch.cat([image, image.mean(1, keepdim=True)], 1) * 3 + place * per_class


class Counting:
    """The same, with a note of what it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.shapes.append(tuple(image.shape))
        return network(image)


def picture(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def slide(image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The released loop: one window after another, counts per pixel."""
    B, _, H, W = image.shape
    total, count = torch.zeros(B, 4, H, W), torch.zeros(H, W)
    rows = max(H - window[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(W - window[1] + stride[1] - 1, 0) // stride[1] + 1
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + window[0], H)
            right = min(column * stride[1] + window[1], W)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            total[..., top:bottom, left:right] += network(image[..., top:bottom, left:right])
            count[top:bottom, left:right] += 1
    assert count.min() > 0
    return total / count


def test_whole_images_are_the_network_alone() -> None:
    image = picture(12, 18)
    assert torch.equal(Inference()(network, image), network(image))
    for align_corners in (False, True):
        expected = F.interpolate(network(image), (30, 40), mode="bilinear", align_corners=align_corners)
        assert torch.equal(Inference()(network, image, (30, 40), align_corners), expected)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((20, 30), (16, 16), (10, 10)),  # does not divide
        ((16, 32), (8, 8), (8, 8)),  # no overlap
        ((9, 33), (16, 16), (10, 10)),  # lower than the window
        ((9, 7), (16, 16), (10, 10)),  # smaller than the window
        ((16, 16), (16, 16), (5, 5)),  # just the window
        ((17, 16), (16, 16), (16, 16)),  # one row more
        ((21, 40), (8, 20), (3, 13)),
    ],
)
@pytest.mark.parametrize("window_batch", [1, 3, 64])
def test_windows_are_the_released_loop(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], window_batch: int
) -> None:
    image = picture(*size)
    got = Inference(window, stride, window_batch)(network, image)
    torch.testing.assert_close(got, slide(image, window, stride))


def test_windows_go_through_the_network_together() -> None:
    counting = Counting()
    Inference((8, 8), (6, 6), window_batch=4)(counting, picture(20, 14))
    assert counting.shapes == [(8, 3, 8, 8), (4, 3, 8, 8)]  # six windows of two images
    assert window_starts(20, 8, 6) == [0, 6, 12]
    assert window_starts(21, 8, 6) == [0, 6, 12, 13]


def test_the_default_stride_is_two_thirds_of_the_window() -> None:
    assert Inference(window=(769, 769)).stride == (513, 513)  # as in the semi-supervised release
    assert Inference(window=(9, 12)).stride == (6, 8)


def test_flip_averages_both_views() -> None:
    image = picture(12, 18)
    mirrored = network(image.flip(-1)).flip(-1)
    expected = (network(image).softmax(1) + mirrored.softmax(1)) / 2
    torch.testing.assert_close(Inference(flip=True)(network, image).softmax(1), expected)
    logits = Inference(flip=True, average="logits")(network, image)
    torch.testing.assert_close(logits, (network(image) + mirrored) / 2)
    assert not torch.allclose(logits.softmax(1), expected)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_scales_windows_and_flip_compose(average: Any) -> None:
    image, size = picture(18, 25), (40, 50)
    expected = []
    for height, width in ((9, 13), (18, 25), (27, 38)):  # half, whole, one and a half, halves rounded up
        view = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
        for mirrored in (False, True):
            logits = slide(view.flip(-1) if mirrored else view, (10, 16), (7, 11))
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            score = logits.softmax(1) if average == "probabilities" else logits
            expected.append(score.flip(-1) if mirrored else score)
    mean = torch.stack(expected).mean(0)
    inference = Inference((10, 16), (7, 11), scales=(0.5, 1.0, 1.5), flip=True, average=average)
    got = inference(network, image, size)
    torch.testing.assert_close(got.softmax(1) if average == "probabilities" else got, mean)


def test_certain_predictions_stay_finite() -> None:
    result = Inference(flip=True)(lambda image: network(image) * 1e4, picture(6, 6))
    assert result.isfinite().all()


def test_half_precision_is_averaged_in_float32() -> None:
    image = picture(20, 30)
    got = Inference((16, 16), (10, 10))(lambda crop: network(crop).half(), image)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, slide(image, (16, 16), (10, 10)), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": (4, 4)}, r"inference.stride=\(4, 4\) needs inference.window"),
        ({"window": (8, 8), "stride": (9, 4)}, r"stride=\(9, 4\) must be within \[1, window\].* \(8, 8\)"),
        ({"window": (8, 8), "stride": (0, 4)}, r"must be within \[1, window\]"),
        ({"window_batch": 0}, "window_batch must be at least 1, got 0"),
        ({"scales": ()}, r"scales must name positive factors, got \[\]"),
        ({"scales": (1.0, -0.5)}, r"scales must name positive factors, got \[1.0, -0.5\]"),
        ({"average": "votes"}, "average must be 'probabilities' or 'logits', got 'votes'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inference(**arguments)
