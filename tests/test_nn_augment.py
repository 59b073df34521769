"""Colour changes and blurs against references that go image by image and pixel by pixel."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn import DACSAugment, PhotometricJitter, blur_kernel_size, color_jitter, gaussian_blur
from zoo.nn.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, scale_saturation, turn_hue


def test_photometric_jitter_is_its_steps_one_after_another() -> None:
    torch.manual_seed(0)
    image = torch.rand(6, 3, 5, 7)
    torch.manual_seed(1)
    jittered = PhotometricJitter()(image)

    torch.manual_seed(1)
    brightness, contrast = (torch.empty(6).uniform_(0.6, 1.4) for _ in range(2))
    saturation, gain = torch.empty(6).uniform_(0.0, 1.4), torch.empty(6, 3).uniform_(0.85, 1.15)
    blurred = torch.rand(6) < 0.5
    assert blurred.any()
    assert not blurred.all()
    for i in range(6):
        x = image[i] * brightness[i]
        x = (x - x.mean()) * contrast[i] + x.mean()
        grey = x.mean(0)
        x = (x - grey) * saturation[i] + grey
        x = x * gain[i, :, None, None]
        if blurred[i]:
            padded = F.pad(x[None], (1, 1, 1, 1), mode="replicate")[0]
            rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
            x = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
        torch.testing.assert_close(jittered[i], x.clamp(0, 1))


def test_photometric_jitter_without_strength_changes_nothing() -> None:
    image = torch.rand(2, 3, 4, 4)
    neutral = PhotometricJitter(brightness=0, contrast=0, saturation=(1.0, 1.0), gain=0, blur=0)
    torch.testing.assert_close(neutral(image), image)
    assert not torch.allclose(PhotometricJitter()(image), image)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 3, 4)])
def test_photometric_jitter_takes_any_size_and_channels(shape) -> None:
    jittered = PhotometricJitter()(torch.rand(shape))
    assert jittered.shape == shape
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_hsv_operations_are_colorsyss() -> None:
    torch.manual_seed(0)
    edges = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 1], [0.3, 0.3, 0.2]])
    pixels = torch.cat((torch.rand(200, 3), edges))
    for amount in (0.0, 0.4, 1.0, 1.9):
        saturated, turned = [], []
        for h, s, v in (colorsys.rgb_to_hsv(*pixel) for pixel in pixels.tolist()):
            saturated.append(colorsys.hsv_to_rgb(h, min(s * amount, 1), v))
            turned.append(colorsys.hsv_to_rgb((h - amount) % 1, s, v))
        torch.testing.assert_close(scale_saturation(pixels.T, amount).T, torch.tensor(saturated))
        torch.testing.assert_close(turn_hue(pixels.T, -amount).T, torch.tensor(turned), rtol=0, atol=2e-6)


def written_out_jitter(pixel: list[float], factors: dict[int, float], order: tuple[int, ...]) -> list[float]:
    def clamp(value: float) -> float:
        return min(max(value, 0.0), 1.0)

    for operation in order:
        if operation == BRIGHTNESS:
            pixel = [clamp(v + factors[BRIGHTNESS] - 1) for v in pixel]
        elif operation == CONTRAST:
            pixel = [clamp(v * factors[CONTRAST]) for v in pixel]
        else:
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            if operation == SATURATION:
                s = clamp(s * factors[SATURATION])
            else:
                h = (h + factors[HUE]) % 1
            pixel = list(colorsys.hsv_to_rgb(h, s, v))
    return pixel


def test_color_jitter_gives_each_image_its_own_order_and_factors() -> None:
    torch.manual_seed(0)
    orders = list(itertools.permutations(range(4)))
    image = torch.rand(len(orders), 3, 2, 3)
    b, c, s = torch.empty(3, len(orders)).uniform_(0.6, 1.4).tolist()
    hue = torch.empty(len(orders)).uniform_(-0.5, 0.5).tolist()
    jittered = color_jitter(image, b, c, s, hue, orders)
    for i, order in enumerate(orders):
        factors = {BRIGHTNESS: b[i], CONTRAST: c[i], SATURATION: s[i], HUE: hue[i]}
        pixels = image[i].flatten(1).T.tolist()
        expected = [written_out_jitter(pixel, factors, order) for pixel in pixels]
        torch.testing.assert_close(jittered[i].flatten(1).T, torch.tensor(expected), rtol=0, atol=2e-5)


def test_blur_uses_each_images_sigma() -> None:
    torch.manual_seed(0)
    image, sigma = torch.rand(3, 2, 9, 12), torch.tensor([0.4, 1.0, 2.5])
    blurred = gaussian_blur(image, sigma, (5, 7))
    for i in range(3):
        y, x = torch.arange(5.0) - 2, torch.arange(7.0) - 3
        kernel = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma[i] ** 2))
        kernel = kernel / kernel.sum()
        padded = F.pad(image[i : i + 1], (3, 3, 2, 2), mode="reflect")[0]
        expected = torch.empty_like(image[i])
        for row in range(9):
            for column in range(12):
                window = padded[:, row : row + 5, column : column + 7]
                expected[:, row, column] = (window * kernel).sum((1, 2))
        torch.testing.assert_close(blurred[i], expected)


def test_blur_cuts_kernels_that_reach_beyond_the_reflection() -> None:
    image = torch.rand(1, 3, 2, 6)
    torch.testing.assert_close(gaussian_blur(image, 2.0, 9), gaussian_blur(image, 2.0, (3, 9)))
    torch.testing.assert_close(
        gaussian_blur(image[..., :1], 2.0, 9), gaussian_blur(image[..., :1], 2.0, (3, 1))
    )


@pytest.mark.parametrize("size", [4, 0, (3, 2)])
def test_blur_needs_odd_kernels(size) -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd and positive, got"):
        gaussian_blur(torch.rand(1, 3, 8, 8), 1.0, size)


class Coins(DACSAugment):
    """DACSAugment with chosen coins."""

    def __init__(self, jitter: float, blur: float) -> None:
        super().__init__()
        self.thrown = jitter, blur

    def coins(self) -> tuple[float, float]:
        return self.thrown


def test_dacs_coins_switch_jitter_and_blur_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 3, 64, 48)
    assert torch.equal(Coins(0.2, 0.5)(image), image)  # both comparisons are strict

    torch.manual_seed(1)
    jittered = Coins(0.21, 0.5)(image)
    torch.manual_seed(1)
    augment = Coins(0, 0)
    assert torch.equal(jittered, color_jitter(image, *augment.colours(3)))
    assert (jittered != image).flatten(1).any(1).all()

    torch.manual_seed(1)
    blurred = Coins(0.2, 0.51)(image)
    torch.manual_seed(1)
    sigma = torch.empty(3).uniform_(0.15, 1.15)
    expected = gaussian_blur(image, sigma, (blur_kernel_size(64), blur_kernel_size(48)))
    assert torch.equal(blurred, expected)


def test_dacs_draws() -> None:
    torch.manual_seed(0)
    augment = DACSAugment()
    coins = torch.tensor([augment.coins() for _ in range(2000)])
    assert (coins[:, 0] > augment.jitter_skip).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (coins[:, 1] > augment.blur_skip).float().mean().item() == pytest.approx(0.5, abs=0.04)

    *factors, hue, order = augment.colours(3000)
    for factor in factors:
        assert 0.8 - 1e-6 < min(factor) < 0.81
        assert 1.19 < max(factor) < 1.2 + 1e-6
    assert -0.2 - 1e-6 < min(hue) < -0.19
    assert 0.19 < max(hue) < 0.2 + 1e-6
    assert {tuple(row) for row in order} == set(itertools.permutations(range(4)))


def test_dacs_shortens_only_kernel_taps_that_weigh_nothing() -> None:
    image = torch.rand(2, 3, 32, 256)
    sigma = torch.tensor([0.15, 1.15])
    full, short = blur_kernel_size(256), DACSAugment().longest_kernel
    assert short < full
    torch.testing.assert_close(
        gaussian_blur(image, sigma, (1, short)), gaussian_blur(image, sigma, (1, full)), rtol=0, atol=2e-7
    )


def draws(augment: torch.nn.Module, image: Tensor) -> Tensor:
    torch.manual_seed(3)
    return augment(image)


@pytest.mark.parametrize("augment", [PhotometricJitter(), Coins(1, 1)])
def test_augmentation_is_reproducible_and_differs_between_images(augment) -> None:
    image = torch.rand(1, 3, 32, 32).repeat(2, 1, 1, 1)
    before = image.clone()
    augmented = draws(augment, image)
    assert torch.equal(augmented, draws(augment, image))
    assert not torch.allclose(augmented[0], augmented[1], atol=1e-3)
    assert torch.equal(image, before)
    assert augmented.min() >= 0
    assert augmented.max() <= 1
