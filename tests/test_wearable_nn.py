"""Signal networks, contrast and augmentation: shapes, chance, precision and bad input. Values: tests/parity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.backbones import EfficientNet1d
from zoo.nn import SignalAugment, participant_info_nce
from zoo.nn.signal_augment import PPG, cut_out, permute_channels, spline_basis, time_warp, zscore
from zoo.registry import create_backbone

OFF: dict[str, Any] = dict.fromkeys(PPG, 0.0)


def test_the_backbone_by_its_name() -> None:
    network = create_backbone("efficientnet1d", in_chans=1, embed_dim=36, expansion=2)
    signal = torch.randn(2, 1, 128)
    maps = network.forward_features(signal)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 128 // stride) for channels, stride in zip(network.channels, network.strides, strict=True)
    ]
    assert network.embed(signal).shape == (2, network.embed_dim)
    with pytest.raises(ValueError, match=r"shape \[2, 4, 128\]: expected \[B, 1, T\]"):
        network(torch.randn(2, 4, 128))
    for arguments in ({"embed_dim": 35}, {"kernel_size": 4}, {"expansion": 0}, {"se_ratio": 0.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            EfficientNet1d(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no published weights"):
        create_backbone("efficientnet1d", pretrained=True)


def test_contrast_in_half_precision_and_by_hand() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    whole = participant_info_nce(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(participant_info_nce(a, b), whole)
    # Identical rows: exp(25) in the numerator would overflow float16.
    assert participant_info_nce(a.half(), a.half()).isfinite()

    unit = [torch.nn.functional.normalize(x.double(), dim=1) for x in (a, b)]
    scores = unit[0] @ unit[1].T / 0.04
    target = torch.arange(4)
    cross = torch.nn.functional.cross_entropy
    by_hand = 0.5 * (cross(scores, target) + cross(scores.T, target))
    assert participant_info_nce(a, b, negatives="cross").item() == pytest.approx(by_hand.item(), rel=1e-5)
    # One person twice: two terms fewer within each view, all across.
    assert participant_info_nce(a, b, torch.tensor([0, 0, 1, 2])) < whole
    everybody_the_same = participant_info_nce(a, b, torch.zeros(4))
    assert everybody_the_same.item() == pytest.approx(by_hand.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"first \[4, 8\] and second \[3, 8\]"):
        participant_info_nce(a, b[:3])
    with pytest.raises(ValueError, match="negatives='none'"):
        participant_info_nce(a, b, negatives="none")  # type: ignore[arg-type]


def test_a_constant_channel_standardises_to_zero() -> None:
    signal = torch.stack([torch.full((8,), 3.0), torch.arange(8.0)])[None]
    standard = zscore(signal)
    assert torch.equal(standard[0, 0], torch.zeros(8))
    assert standard[0, 1].std(correction=0).item() == pytest.approx(1.0)


def test_spline_of_a_cubic_is_that_cubic() -> None:
    knots, fine = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (7, 50))
    torch.testing.assert_close(spline_basis(50) @ (knots**3 - knots), fine**3 - fine)


def test_warping_time_by_nothing_changes_nothing() -> None:
    signal = torch.randn(2, 3, 64)
    torch.testing.assert_close(time_warp(signal, torch.ones(2, 3, 7)), signal, atol=1e-4, rtol=0)
    warped = time_warp(signal, 1 + 0.1 * torch.randn(2, 3, 7))
    torch.testing.assert_close(warped[..., -1], signal[..., -1])  # the end stays
    assert warped.abs().amax() <= signal.abs().amax()  # interpolated, never invented


def test_pieces_and_channels_by_hand() -> None:
    signal = torch.arange(1.0, 13).view(2, 2, 3)
    cut = cut_out(signal, torch.tensor([0, 1]), torch.tensor([2, 1]))
    assert cut.tolist() == [[[0, 0, 3], [0, 0, 6]], [[7, 0, 9], [10, 0, 12]]]
    swapped = permute_channels(signal, torch.tensor([[1, 0], [0, 1]]))
    assert swapped[0].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert torch.equal(swapped[1], signal[1])


@pytest.mark.parametrize("name", PPG)
def test_each_augmentation_takes_its_share(name: str) -> None:
    """Some segments are changed and some are not; nothing else of the batch decides about one."""
    torch.manual_seed(1)
    signal = zscore(torch.randn(64, 4, 60).cumsum(-1))
    changed = SignalAugment(**{**OFF, name: 0.5}, standardise=False)(signal)
    share = (changed != signal).flatten(1).any(1).float().mean()
    assert 0.25 < share < 0.75
    assert torch.equal(SignalAugment(**OFF)(signal * 3 + 1), zscore(signal * 3 + 1))
    if name == "cut_out":
        zeros = (changed == 0).all(1).sum(1)
        assert set(zeros.tolist()) - {0} <= set(range(18, 30))
    if name == "noise":
        spread = (changed - signal).flatten(1).std(1)
        assert spread[spread > 0].min() > 0.04
        assert spread.max() < 0.12


def test_draws_come_from_the_global_generator() -> None:
    signal, augment = torch.randn(4, 4, 60), SignalAugment(1.0, 1.0, 1.0, 1.0, 1.0)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(augment(signal))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cut_out": 1.5}, "cut_out is a probability"),
        ({"order": ("noise",)}, "order must name each"),
        ({"cut_range": (0.5, 0.3)}, "cut_range must be two rising shares"),
        ({"noise_range": (0.2, 0.1)}, "noise_range"),
        ({"time_sigma": -1.0}, "time_sigma"),
    ],
)
def test_options_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignalAugment(**arguments)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: participant_info_nce(x[:, 0], x[:, 1], torch.arange(8)),
        lambda x: time_warp(x, torch.rand(8, 4, 7)),
    ],
)
def test_nothing_waits_for_the_device(work: Callable[[Tensor], Tensor]) -> None:
    spline_basis(64)  # kept from here on
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert work(torch.rand(8, 4, 64)) is not None
