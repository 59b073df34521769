"""What a step of self-distillation asks of the host, in exact numbers: calls into ATen, and never a value back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import DINO, IBOT, POA, DINOv2
from zoo.methods.image.base import SelfDistillation
from zoo.nn.masking import BlockMasking, Masks
from zoo.nn.targets import Centre
from zoo.optim import build_optimizer, clip_gradients
from zoo.teacher import Teacher

B, V = 2, 6
HEAD = {"hidden_dim": 16, "bottleneck_dim": 8}
VIT_S: dict[str, Any] = {  # its depth and heads; the number of calls does not depend on widths
    "backbone": "vit_small_patch16_224",
    "backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 6},
    "prototypes": 16,
    "head_args": HEAD,
}
ELASTIC: dict[str, dict[str, Any]] = {
    "elastic_vit_large": {
        "img_size": 32,
        "patch_size": 8,
        "widths": [16, 32],
        "depths": [2, 3],
        "head_dim": 16,
    },
    "elastic_swin_tiny": {"widths": [32, 48]},
    "elastic_resnet_tiny": {},
}
BUILDS: dict[str, Callable[[], SelfDistillation]] = {
    "dino": lambda: DINO(**VIT_S),
    "dino, sinkhorn": lambda: DINO(**VIT_S, targets="sinkhorn"),
    "ibot": lambda: IBOT(**VIT_S, patch_temp_epochs=0),
    "dinov2": lambda: DINOv2(**VIT_S, teacher_temp_epochs=0, patch_temp_epochs=0),
    **{f"poa, {backbone}": lambda backbone=backbone: poa(backbone) for backbone in ELASTIC},
    "poa, one backward": lambda: poa("elastic_vit_large", separate_backward=False),
}


class Dispatches(TorchDispatchMode):
    """Counts calls of ATen operators."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def poa(backbone: str, **options: Any) -> POA:
    return POA(
        backbone=backbone,
        backbone_args=ELASTIC[backbone],
        prototypes=[16, 24],
        head_args=HEAD,
        teacher_temp_epochs=0,
        mask_start_epochs=0,
        **options,
    )


class Step:
    """All that a Trainer has done in a step that writes no logs; masks are drawn on the host, as always."""

    def __init__(self, method: SelfDistillation, masks: Masks, views: int = V) -> None:
        self.method = method
        method.writes_logs = lambda: False  # type: ignore[method-assign]
        self.optimizer = build_optimizer(method.trained_modules(), method.optim)
        self.batch: dict[str, Any] = {
            "views": {"global": torch.rand(2 * B, 3, 32, 32), "local": torch.rand(views * B, 3, 16, 16)},
            "index": torch.arange(B),
            "masks": masks if method.masks_patches else None,
        }

    def __call__(self) -> None:
        method = self.method
        method.training_step(self.batch, 0).backward()
        clip_gradients(method.trained_modules(), method.optim)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.move()

    def move(self) -> None:
        self.method.teacher.update(self.method.student, 0.99)
        self.method.teacher.advance()


def drawn_masks(method: SelfDistillation) -> Masks:
    return BlockMasking(min_tokens=1)(2 * B, method.student.backbone.grid(32, 32), Random(0))


def dispatches(build: Callable[[], SelfDistillation], views: int = V) -> tuple[int, int]:
    """ATen calls of one whole step, and of the teacher's part of it, once optimiser and teacher have warmed up."""
    method = build()
    step = Step(method, drawn_masks(method), views)
    step()
    with Dispatches() as whole:
        step()
    with Dispatches() as move:
        step.move()
    return whole.calls, move.calls


def vit_s_dino(**options: Any) -> DINO:
    optim = dataclasses.replace(DINO(**VIT_S).optim, options={"fused": True})
    return DINO(**VIT_S, optim=optim, **options)


def test_calls_of_a_dino_step() -> None:
    whole, move = dispatches(vit_s_dino)
    assert 1000 < whole <= 3000
    assert move <= 3
    assert dispatches(vit_s_dino, views=2 * V)[0] == whole  # crops of one size are one batch


@pytest.mark.parametrize(("buffers", "calls"), [("none", 1), ("copy", 3), ("average", 3)])
def test_calls_of_a_teachers_update(buffers: Any, calls: int) -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    teacher = Teacher(student, buffers=buffers)
    teacher.update(student, 0.9)
    with Dispatches() as update:
        teacher.update(student, 0.9)
    assert update.calls == calls


def test_calls_of_a_poa_step() -> None:
    """What two heads' terms and targets add to the calls of the networks is bounded, and the same for any views."""
    extra = []
    for views in (V, 2 * V):
        method = poa("elastic_vit_large")
        size = method.student.backbone.sizes()[0]
        method.draw_size = lambda size=size: size  # type: ignore[method-assign]
        step = Step(method, drawn_masks(method), views)
        step()
        with Dispatches() as whole:
            step()
        ready = method.prepared(step.batch)
        with Dispatches() as networks:
            method.teach(ready["views"]["global"], ready["masks"])
            for of in (None, size):
                said = method.says(ready, of)
                outputs = [said.cls, *said.views, *said.patches]
                torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
            step.optimizer.step()
        extra.append(whole.calls - networks.calls)
    assert 0 < extra[0] == extra[1] <= 1000


def fake_step(build: Callable[[], SelfDistillation], mode: FakeTensorMode) -> Step:
    """Built of real tensors, since timm reads values to build; without data from then on."""
    method = build()
    with FakeCopyMode(mode):
        method = copy.deepcopy(method)
    masks = Masks(*map(mode.from_tensor, drawn_masks(method)))
    with mode:
        return Step(method, masks)


@pytest.mark.parametrize("name", BUILDS)
def test_the_host_never_waits(name: str) -> None:
    """Fake tensors have no data: whatever needs a value on the host fails on them."""
    mode = FakeTensorMode()
    step = fake_step(BUILDS[name], mode)
    with mode:
        step()
        step()
    assert all(isinstance(p, FakeTensor) for p in step.method.parameters())


def test_the_check_sees_a_value_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Centre, "update", lambda self, logits: logits.mean().item())
    mode = FakeTensorMode()
    step = fake_step(BUILDS["dino"], mode)
    with mode, pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
        step()
