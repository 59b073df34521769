"""Uni4Eye against the released two-decoder model, loaded as its authors wrote it, and against OpenCV's gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.formulas import det, load_cases
from zoo.backbones import UnifiedViT
from zoo.checkpoints import WeightFile
from zoo.checkpoints.load import best_plan, carry_out
from zoo.nn.gradient_map import gradient_map, grey_levels
from zoo.nn.masking_clusters import gathered, masks_of_noise, seen_and_hidden
from zoo.nn.unified_autoencoder import UnifiedAutoencoder, image_values, patch_values

CASES: dict[str, Any] = load_cases("uni4eye.json")
SIZES: dict[str, Any] = CASES["config"]


def released_state() -> dict[str, Tensor]:
    """All tensors of the release, filled by the file's formula, under its names."""
    state = {}
    for i, (name, shape) in enumerate(CASES["state_dict_sorted"]):
        n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        state[name] = (0.05 * torch.sin(0.7 * n + i)).reshape(shape).float()
    return state


@pytest.fixture(scope="module")
def network() -> UnifiedAutoencoder:
    side = SIZES["img"]
    backbone = UnifiedViT(
        SIZES["d"], SIZES["depth"], SIZES["h"], side, (side, side // 2, side), standardise=False
    )
    built = UnifiedAutoencoder(backbone, SIZES["dd"], SIZES["ddepth"], SIZES["dh"])
    plan = best_plan(WeightFile("uni4eye.pth", released_state(), {}), built)
    assert plan.report.importer == "uni4eye"
    assert plan.report.complete
    assert not plan.report.unexpected
    carry_out(plan)
    return built.eval()


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input, gradient target, and masking noise."""
    side, k = SIZES["img"], SIZES["k"]
    if kind == "2d":
        x, gradient = det((2, 3, side, side), k), det((2, 1, side, side), k + 1)
    else:
        x, gradient = (det((1, 1, side, side // 2, side), k + more) for more in (2, 3))
    tokens = x[0, 0].numel() // 16 ** (x.ndim - 2)
    return x, gradient, det((len(x), tokens), k + 4)


def count(noise: Tensor) -> int:
    return noise.shape[1] - int(noise.shape[1] * (1 - SIZES["ratio"]))


def assert_summary(actual: Tensor, expected: dict[str, Any]) -> None:
    assert list(actual.shape) == expected["shape"]
    flat = actual.detach().double().flatten()
    assert flat[expected["flat_index"]].tolist() == pytest.approx(expected["values"], rel=1e-5, abs=1e-7)
    found = {"std_population": flat.std(correction=0), "abs_sum": flat.abs().sum(), "l2": flat.norm()}
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-5), name
    assert flat.mean().item() == pytest.approx(expected["mean"], rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", ["2d", "3d"])
@torch.no_grad()
def test_masks_predictions_and_loss(kind: str, network: UnifiedAutoencoder) -> None:
    (x, gradient, noise), expected = inputs(kind), CASES[kind]
    masks = masks_of_noise(noise, count(noise))
    assert len(masks.positions) == expected["n_masked"]
    if kind == "2d":
        assert masks.mask[0].int().tolist() == expected["mask_row0"]
    else:
        assert masks.mask.shape[1] == expected["num_tokens"]
        # the release keeps the order of the noise, here seen tokens are in their own order
        seen = seen_and_hidden(masks)[0]
        tokens = network.backbone.encode(x, seen)
        order = noise.argsort(1)[:, : seen.shape[1]]
        place = (order[..., None] == seen[:, None]).int().argmax(2)
        assert_summary(
            torch.cat((tokens[:, :1], gathered(tokens[:, 1:], place)), 1), expected["encoder_tokens"]
        )

    predicted = network(x, masks, everywhere=True)
    assert_summary(predicted["intensity"], expected["pred_intensity"])
    assert_summary(predicted["gradient"], expected["pred_gradient"])

    masked, total = network(x, masks), 0.0
    for name, target in (("intensity", x), ("gradient", gradient)):
        torch.testing.assert_close(masked[name], masks.gather(predicted[name]), rtol=1e-5, atol=1e-6)
        values = patch_values(target, network.backbone.patches[x.ndim - 2])
        total += F.mse_loss(masked[name], masks.gather(values)).item()
    assert total == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_order_of_patches_and_of_their_values(kind: str) -> None:
    case = CASES[f"patchify_{kind}_of_arange"]
    x = torch.arange(torch.Size(case["input_shape"]).numel()).float().view(case["input_shape"])
    patches = patch_values(x, (16,) * (x.ndim - 2))
    assert list(patches.shape) == case["shape"]
    assert patches[0, 0, :8].tolist() == case["first8_patch0"]
    assert patches[0, 1, :4].tolist() == case["first4_patch1"]
    assert patches.flatten()[-4:].tolist() == case["last4"]
    assert torch.equal(image_values(patches, x.shape[1]).flatten().sort().values, x.flatten())


@pytest.mark.parametrize("case", CASES["gradient_map"]["cases"], ids=lambda case: case["image"])
def test_gradient_maps_are_those_of_opencv(case: dict[str, Any]) -> None:
    height, width = case["size"]
    i = torch.arange(height * width * 3)
    levels = (
        7 * i * i + 13 * i if case["image"] == "steep" else 4 * (i // 3 % 12) + (i // 36) ** 2 + 5 * (i % 3)
    )
    image = (levels % 256).view(1, height, width, 3).permute(0, 3, 1, 2) / 255
    assert grey_levels(image)[0, 0].int().tolist() == case["grey"]
    assert (gradient_map(image)[0, 0] * 255).round().int().tolist() == case["map"]
