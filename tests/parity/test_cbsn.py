"""C-BSN against the numbers of its released code: network in both modes, sub-samplers, losses, gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.formulas import DATA, det
from zoo.methods.image.cbsn import CBSN
from zoo.nn.blind_spot import batch_to_space, normalised, space_to_batch, subsample

CASE: dict[str, Any] = json.loads((DATA / "cbsn.json").read_text())
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def released_name(name: str) -> str:
    """``student.backbone.branch1.blocks.0.conv1.weight`` as the released graph calls it."""
    *place, kind = name.removeprefix("backbone.").split(".")
    match place:
        case ["stem"]:
            scope = "conv0"
        case ["head", layer]:
            scope = f"conv{int(layer) // 2 + 1}"
        case [branch, "blocks", block, conv]:
            scope = f"{branch.replace('branch', 'B')}/DCM{block}/{conv}"
        case [branch, "conv1"]:  # the masked one
            return f"DBSN/{branch.replace('branch', 'B')}/conv1/{'W1' if kind == 'weight' else 'b1'}:0"
        case [branch, conv]:
            scope = f"{branch.replace('branch', 'B')}/{conv}"
    return f"DBSN/{scope}/{'kernel' if kind == 'weight' else 'bias'}:0"


@torch.no_grad()
def filled(method: CBSN) -> CBSN:
    """All weights by formula, in the order of the released names and in TensorFlow's layout."""
    ours = {released_name(name): parameter for name, parameter in method.student.named_parameters()}
    assert sorted(ours) == [name for name, _ in CASE["variables_sorted"]]
    for i, (name, shape) in enumerate(CASE["variables_sorted"]):
        n = torch.arange(ours[name].numel(), dtype=torch.float64)
        values = (CASE["weight_scale"] * torch.sin(0.7 * n + i)).float().reshape(shape)
        ours[name].copy_(values.permute(3, 2, 0, 1) if values.ndim == 4 else values)
    return method


@pytest.fixture
def method() -> CBSN:
    return filled(CBSN(backbone_args={"width": 8, "modules": 2}))


@pytest.fixture
def image() -> Tensor:
    return det(CASE["input_shape"], CASE["input_k"]).permute(0, 3, 1, 2).contiguous()


def cells() -> Tensor:
    return ((torch.arange(200) * 7 + 1) % 4).view(2, 10, 10)


def assert_summary(actual: Tensor, name: str) -> None:
    expected = CASE[name]
    flat = actual.detach().double().permute(0, 2, 3, 1)
    assert list(flat.shape[-len(expected["shape"]) :]) == expected["shape"]
    flat = flat.flatten()
    torch.testing.assert_close(
        flat[expected["flat_index"]], torch.tensor(expected["values"]).double(), **CLOSE
    )
    assert flat.mean().item() == pytest.approx(expected["mean"], rel=1e-5, abs=1e-7)
    assert flat.std(unbiased=False).item() == pytest.approx(expected["std_population"], rel=1e-5)
    assert flat.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-5)


@torch.no_grad()
def test_both_modes(method: CBSN, image: Tensor) -> None:
    assert_summary(method.student(image, blind=True), "output_blind")
    assert_summary(method.student(image), "output_nonblind")


@torch.no_grad()
def test_phases_and_sub_samples(method: CBSN, image: Tensor) -> None:
    phases = space_to_batch(image, 5)
    assert_summary(phases, "s2b")
    assert_summary(batch_to_space(method.student(phases, blind=True), 5), "b2s_blind_output")
    assert torch.equal(batch_to_space(phases, 5), image)
    small = subsample(image, cells(), 2)
    assert_summary(small, "random_subsample")
    assert_summary(method.student(small, blind=True), "blind_output_of_subsample")


@torch.no_grad()
def test_normalisation(image: Tensor) -> None:
    assert_summary(normalised(image[:1]), "normalized_first_image")


@torch.no_grad()
def test_a_perturbed_pixel(method: CBSN, image: Tensor) -> None:
    """One more in all channels of the first image."""
    expected = CASE["blindness"]
    row, column = expected["perturbed_pixel_hw"]
    other = image.clone()
    other[0, :, row, column] += 1
    blind, opened = (
        (method.student(other, mode) - method.student(image, mode)).abs() for mode in (True, False)
    )
    assert blind[..., row, column].max() == expected["blind_output_change_at_pixel"] == 0
    assert blind.max().item() == pytest.approx(expected["blind_output_change_elsewhere_max"], rel=1e-5)
    assert opened[..., row, column].max().item() == pytest.approx(
        expected["nonblind_change_at_pixel"], rel=2e-5
    )


def test_losses_and_gradients(method: CBSN, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are of the input as it is, so normalisation is left out."""
    monkeypatch.setattr("zoo.methods.image.cbsn.normalised", lambda image: image)
    for step, total in CASE["total_loss_by_step"].items():
        monkeypatch.setattr(CBSN, "global_step", int(step))
        losses = method.losses({"image": image, "cells": cells()})
        assert sum(loss.item() for loss in losses.values()) == pytest.approx(total, rel=1e-5)
    assert losses["blind"].item() == pytest.approx(CASE["loss_blind"], rel=1e-5)
    assert losses["self"].item() == pytest.approx(CASE["loss_self"], rel=1e-5)
    assert losses["invariance"].item() == pytest.approx(2 * CASE["loss_inv"], rel=1e-5)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in method.student.named_parameters():
        assert parameter.grad is not None
        wanted = CASE["grad_l2_of_last_total"][released_name(name)]
        assert parameter.grad.norm().item() == pytest.approx(wanted, rel=2e-5), name


def test_the_published_size() -> None:
    network: nn.Module = CBSN().student
    parameters = list(network.parameters())
    assert (sum(p.numel() for p in parameters), len(parameters)) == (3_656_131, 98)
