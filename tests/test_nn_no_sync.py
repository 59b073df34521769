"""Nothing on the training hot path makes the host wait for the device.

Fake tensors have a shape and no data. Whatever needs a value on the host (``.item()``, a branch on a tensor,
boolean indexing, ``bincount``, ``nonzero``) cannot run on them, and on a GPU is a synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.nn import (
    BorderMask,
    ClassBalanced,
    ClassMix,
    ConfidenceShare,
    CowMix,
    CutMix,
    CutOut,
    DACSAugment,
    EntropyFilter,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
    NoMix,
    PhotometricJitter,
    UnlabelledClassMix,
    entropy_filtered_cross_entropy,
    feature_distance,
    ohem_cross_entropy,
    pixel_cross_entropy,
)

B, C, H, W = 2, 19, 32, 64


class AlwaysDACS(DACSAugment):
    """With set numbers where the host draws for itself, on the CPU."""

    def coins(self) -> tuple[float, float]:
        return 1.0, 1.0

    def colours(
        self, count: int
    ) -> tuple[list[float], list[float], list[float], list[float], list[list[int]]]:
        return [0.9] * count, [0.9] * count, [0.9] * count, [0.1] * count, [[3, 2, 1, 0]] * count


def always(mixer: type[nn.Module]) -> nn.Module:
    return type(f"Always{mixer.__name__}", (mixer,), {"coin": lambda self: True})()


def assert_never_waits(build: Callable[[], Callable[..., object]], *shapes: tuple[int, ...]) -> None:
    with FakeTensorMode():
        function = build()
        assert function(*(torch.rand(shape) for shape in shapes)) is not None


def test_the_check_sees_synchronisations() -> None:
    for waits in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0.5],
        lambda x: torch.bincount(x.flatten().long()),
        lambda x: 1 if x.max() > 0 else 0,
    ):
        with pytest.raises(
            Exception, match=r"_local_scalar_dense|nonzero|bincount|aten\.index|[Dd]ata.dependent"
        ):
            assert_never_waits(lambda waits=waits: waits, (3, 4))


def losses(logits: torch.Tensor, features: torch.Tensor) -> list[torch.Tensor]:
    label = torch.zeros(B, H, W, dtype=torch.long)
    weight = torch.rand(B, H, W)
    return [
        pixel_cross_entropy(logits, label),
        pixel_cross_entropy(logits, label, weight, average="valid"),
        ohem_cross_entropy(logits, label),
        entropy_filtered_cross_entropy(logits, logits, label),
        feature_distance(features, features, label, (6, 7, 11)),
    ]


def test_losses() -> None:
    assert_never_waits(lambda: losses, (B, C, H, W), (B, 8, H // 4, W // 4))


@pytest.mark.parametrize(
    "build",
    [
        NoMix,
        ClassMix,
        lambda: ClassMix("image", paste_ignored=False),
        lambda: always(CutMix),
        lambda: always(CowMix),
        lambda: always(CutOut),
        lambda: always(UnlabelledClassMix),
    ],
)
def test_mixing(build) -> None:
    def mix(image: torch.Tensor, weight: torch.Tensor) -> object:
        label = torch.zeros(B, H, W, dtype=torch.long)
        unlabelled = {"image": image, "pseudo_label": label, "pseudo_weight": weight}
        return build()({"image": image, "label": label}, unlabelled)["image"]

    assert_never_waits(lambda: mix, (B, 3, H, W), (B, H, W))


@pytest.mark.parametrize("build", [PhotometricJitter, AlwaysDACS])
def test_augmentation(build) -> None:
    assert_never_waits(build, (B, 3, H, W))


@pytest.mark.parametrize(
    "build",
    [
        lambda: BorderMask(ConfidenceShare(0.9), 2, 3, 1, 1),
        FixedThreshold,
        EntropyFilter,
        lambda: FlexMatch(C),
        lambda: FreeMatch(C),
        lambda: ClassBalanced(C),
    ],
)
def test_weighting(build) -> None:
    assert_never_waits(build, (B, C, H, W))


def test_weighting_with_a_memory() -> None:
    def weigh(logits: torch.Tensor) -> object:
        return FlexMatch(C, num_samples=50)(logits, torch.tensor([3, 4]))

    assert_never_waits(lambda: weigh, (B, C))
