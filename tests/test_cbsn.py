"""C-BSN: blindness, parts, options, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.methods.image.cbsn import CBSN
from zoo.nn.blind_spot import MaskedConv2d, draw_cells, image_statistics, reflect_pad, subsample
from zoo.optim import Optim
from zoo.optim_schedule import lr_factor

SMALL: dict[str, Any] = {"backbone_args": {"width": 8, "modules": 2}}


def cbsn(**options: Any) -> CBSN:
    torch.manual_seed(0)
    return CBSN(**{**SMALL, **options})


@torch.no_grad()
def test_the_blind_output_ignores_every_pixel_of_its_own() -> None:
    """All 225 pixels of a 15 x 15 image, one changed in each copy; the open mode looks at all of them."""
    network, side = cbsn().student, 15
    image = torch.randn(1, 3, side, side).expand(side**2, -1, -1, -1)
    changed = image.clone()
    own = torch.arange(side**2)
    changed[own, :, own // side, own % side] += 3.0

    def change(blind: bool) -> torch.Tensor:
        found = network(changed, blind) - network(image, blind)
        return found.abs().amax(1)

    blind, opened = change(True), change(False)
    assert (blind[own, own // side, own % side] == 0).all()
    assert (opened[own, own // side, own % side] > 0).all()
    assert (blind.flatten(1).amax(1) > 0).all()  # the neighbours see it


def test_masks_share_one_kernel() -> None:
    conv = MaskedConv2d(1, 1, 3)
    x = torch.randn(1, 1, 5, 5)
    centre = conv.weight[..., 1:2, 1:2] * x
    torch.testing.assert_close(conv(x) - conv(x, blind=True), centre)
    assert set(conv.state_dict()) == {"weight", "bias"}
    with pytest.raises(ValueError, match="kernel_size=4: a kernel with a centre to mask is odd"):
        MaskedConv2d(1, 1, 4)


def test_sub_samples_take_one_pixel_of_each_cell() -> None:
    image = torch.arange(36.0).view(1, 1, 6, 6).expand(2, 3, 6, 6).contiguous()
    cells = draw_cells(image, 2, torch.Generator().manual_seed(0))
    small = subsample(image, cells, 2)
    rows, columns = 2 * torch.arange(3)[:, None] + cells // 2, 2 * torch.arange(3) + cells % 2
    assert torch.equal(small, (6 * rows + columns)[:, None].expand(-1, 3, -1, -1).float())
    assert not torch.equal(small[0], small[1])


def test_a_flat_image_is_normalised_by_the_floor() -> None:
    mean, std = image_statistics(torch.full((1, 3, 10, 10), 0.5))
    assert mean.unique().item() == 0.5
    assert std.unique().item() == pytest.approx(0.1)


def test_small_images_are_padded_by_what_they_have() -> None:
    assert reflect_pad(torch.rand(1, 3, 5, 40), 32).shape == (1, 3, 13, 104)
    assert reflect_pad(torch.rand(1, 3, 1, 1), 32).shape == (1, 3, 1, 1)


def test_terms_and_their_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"image": torch.rand(2, 3, 20, 20)}
    method = cbsn(ramp_steps=100)
    assert [loss.item() > 0 for loss in method.losses(batch).values()] == [True, False, False]
    batch = method.prepared(batch)
    found = {}
    for step in (50, 100, 500):
        monkeypatch.setattr(CBSN, "global_step", step)
        found[step] = method.losses(batch)
    for term in ("self", "invariance"):
        assert found[50][term].item() == pytest.approx(found[500][term].item() / 2)
        assert torch.equal(found[100][term], found[500][term])
    alone = cbsn(blind_only=True)
    assert set(alone.losses(batch)) == {"blind"}
    assert "cells" not in alone.prepared({"image": batch["image"]})


def test_the_guide_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes: blind on phases, open on images, blind on sub-samples without a gradient."""
    monkeypatch.setattr(CBSN, "global_step", 10**6)
    method, calls = cbsn(), []
    network = method.student.forward

    def watched(image: torch.Tensor, blind: bool = False) -> torch.Tensor:
        found = network(image, blind)
        calls.append((tuple(image.shape), blind, found.requires_grad))
        return found

    monkeypatch.setattr(method.student, "forward", watched)
    method.losses({"image": torch.rand(2, 3, 20, 20)})
    assert calls == [
        ((50, 3, 4, 4), True, True),
        ((2, 3, 20, 20), False, True),
        ((2, 3, 10, 10), True, False),
    ]


def test_learning_rate_halves_in_steps() -> None:
    optim = cbsn().optim
    factor = lr_factor(optim, 500_000)
    assert not optim.in_epochs
    assert [factor(step) for step in (0, 99_999, 100_000, 199_999, 200_000, 499_999)] == [
        *(1.0, 1.0, 0.5, 0.5, 0.25, 0.5**4),
    ]
    with pytest.raises(ValueError, match="drop_in must be epochs or steps"):
        Optim(drop_in="hours")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blind_stride": 0}, "blind_stride must be at least 1, got 0"),
        ({"invariance": -1.0}, "invariance must be at least 0"),
        ({"ramp_steps": 0}, "ramp_steps must be at least 1"),
        ({"backbone": "street_cnn", "backbone_args": {}}, "backbone='street_cnn' has no blind mode"),
        ({"pretrained": True}, "blind_spot has no pretrained weights"),
        ({"backbone_args": {"width": 0}}, "width=0 must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cbsn(**options)


def test_images_without_whole_phases_or_cells() -> None:
    with pytest.raises(ValueError, match="24 x 24 pixels have no 5 x 5 phases"):
        cbsn().losses({"image": torch.rand(1, 3, 24, 24)})
    with pytest.raises(ValueError, match="25 x 25 pixels have no whole cells of 2 x 2"):
        cbsn().losses({"image": torch.rand(1, 3, 25, 25)})


def test_predict_refuses_nan() -> None:
    image = torch.rand(3, 16, 16)
    assert cbsn().predict(image).shape == (3, 16, 16)
    image[0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="image holds floats from nan to nan"):
        cbsn().predict(image)
