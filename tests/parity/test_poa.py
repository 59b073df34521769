"""POA's training step against the numbers of the authors' released code, for its three families."""

from __future__ import annotations

import math
import re
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import EMATeacher
from tests.parity.formulas import load_cases
from zoo.backbones.elastic_layouts import poa_state_dict
from zoo.methods.image.poa import NO_DECAY, POA
from zoo.nn.elastic import Size
from zoo.nn.masking import Masks
from zoo.nn.size_cycle import SizeCycle, size_copies
from zoo.optim import Optim, ParameterRule
from zoo.registry import create_backbone

CASES: dict[str, Any] = load_cases("poa.json")
STEPS = ["vit_with_ibot", "vit_without_ibot", "swin_with_ibot", "resnet_with_ibot"]
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (
        "elastic_vit_tiny",
        {"img_size": 32, "patch_size": 8, "widths": [32, 48, 64], "depths": [3, 4, 5, 6], "head_dim": 16},
    ),
    "swin": (
        "elastic_swin_tiny",
        {
            "widths": [32, 48, 64],
            "depths": [[2], [2], [3, 4, 5, 6], [2]],
            "head_dim": 16,
            "window_size": 4,
            "patch_size": 4,
        },
    ),
    "resnet": (
        "elastic_resnet_tiny",
        {
            "widths": [16, 24, 32],
            "depths": [[2], [2, 3, 4], [3, 4, 5, 6], [2]],
            "stem_width": 16,
            "groups": 8,
        },
    ),
}
SIZES = {"vit": Size(48, 4), "swin": Size(48, (2, 2, 4, 2)), "resnet": Size(24, (2, 3, 4, 2))}


def chirp(shape: list[int], k: float) -> Tensor:
    """``sin(0.7 i + 0.013 i² + k)``, float32 as the inputs were."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.7 * i + 0.013 * i * i + k).sin().float().view(shape)


def filled(name: str, shape: list[int], k: int) -> Tensor:
    """A parameter of the authors' network, by formula."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    d = (0.7 * i + 0.013 * i * i + k).sin().view(shape)
    if re.search(r"\.weight(_v)?$", name) and len(shape) >= 2:
        value = d * 1.2 / math.sqrt(math.prod(shape) / shape[0])
    elif re.search(r"\.(weight|gamma|weight_g)$", name):
        value = 1 + 0.3 * d
    else:
        value = 0.1 * d if name.endswith(".bias") else 0.5 * d
    return value.float()


def released(case: dict[str, Any], offset: int = 0) -> dict[str, Tensor]:
    return {name: filled(name, shape, k + offset) for k, (name, shape) in enumerate(case["state"])}


def ours(method: POA, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state in the authors' layout as one of our student's."""
    backbone = poa_state_dict(method.student.backbone, state)
    heads = {
        name.replace("dino_head.", "head.").replace(".linear.", "."): tensor
        for name, tensor in state.items()
        if name.startswith("dino_head.")
    }
    return {**{f"backbone.{name}": tensor for name, tensor in backbone.items()}, **heads}


def build(name: str, **options: Any) -> tuple[POA, dict[str, Any]]:
    case, family = CASES[name], name.split("_")[0]
    backbone, arguments = BACKBONES[family]
    method = POA(
        backbone,
        backbone_args=arguments,
        prototypes=case["recipe"]["prototypes"],
        head_args={"hidden_dim": 32, "bottleneck_dim": 16},
        teacher_temp=0.055,
        teacher_temp_epochs=0,
        mask_start_epochs=0,
        **options,
    )
    method.draw_size = lambda: SIZES[family]  # type: ignore[method-assign]
    method.student.load_state_dict(ours(method, released(case)))
    method.teacher.network.load_state_dict(ours(method, released(case, 500)))
    method.teacher.init = "independent"  # keeps what it was filled with
    return method, case


def make_batch(name: str, method: POA) -> dict[str, Any]:
    family = name.split("_")[0]
    images, side, local, k, first = {
        "vit": (6, 32, 16, 9, 51), "swin": (4, 64, 40, 10, 53), "resnet": (4, 64, 32, 11, 55)
    }[family]  # fmt: skip
    views = {
        "global": chirp([images, 3, side, side], first),
        "local": chirp([2 * images, 3, local, local], first + 1),
    }
    # The authors' inputs are normalised; ours are so after the network's own normalisation.
    for key, view in views.items():
        views[key] = view * method.student.std + method.student.mean
    i = torch.arange(images * 16, dtype=torch.float64)
    mask = (0.7 * i + k).sin().float().view(images, 16) > 0.3
    mask[1::2] = False
    masks = Masks.of(mask)
    assert len(masks.positions) == CASES[name]["recipe"]["n_masked"]
    used = masks if CASES[name]["recipe"]["ibot_active"] else None
    batch = {"views": views, "masks": used, "index": torch.arange(images // 2)}
    return {**batch, "teacher": method.teach(views["global"], used)}


def by_released_name(
    method: POA, case: dict[str, Any], tensors: dict[str, Tensor | None]
) -> dict[str, Tensor | None]:
    """Tensors of our student in the order of rows and columns, and by the names, of the authors' layout."""
    # Where every element went is found by sending its position through the translation.
    positions = {
        name: torch.arange(math.prod(shape), dtype=torch.float64).view(shape) for name, shape in case["state"]
    }
    found: dict[str, Tensor | None] = {}
    for name, shape in case["state"]:
        # Of Swin's stages, only the last has a norm here; the authors' other three are never used.
        for ours_name, place in ours(method, {name: positions[name]}).items():
            tensor = tensors[ours_name]
            flat = torch.empty(math.prod(shape), dtype=torch.float32)
            if tensor is not None:
                flat[place.flatten().long()] = tensor.detach().flatten()
            found[name] = None if tensor is None else flat.view(shape)
    return found


def assert_stats(actual: Tensor, expected: dict[str, Any], rel: float) -> None:
    assert list(actual.shape) == expected["shape"]
    values = actual.double()
    size = math.sqrt(expected["sumsq"])
    assert values.sum().item() == pytest.approx(expected["sum"], abs=rel * size * math.sqrt(values.numel()))
    assert values.square().sum().item() == pytest.approx(expected["sumsq"], rel=2 * rel)
    if "first4" in expected:
        first = torch.tensor(expected["first4"]).double()
        scale = max(1e-3 * size, first.abs().max().item())
        torch.testing.assert_close(values.flatten()[:4], first, rtol=rel, atol=rel * scale)


@pytest.mark.parametrize("separate_backward", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_losses_and_gradients(name: str, separate_backward: bool) -> None:
    method, case = build(name, separate_backward=separate_backward)
    batch = make_batch(name, method)
    losses = method.losses(batch)
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(case["result"]["f64"]["total_loss"], rel=1e-5)
    total.backward()

    modules = {"backbone": method.student.backbone, "dino_head": method.student.head}
    for module, norm in case["result"]["f64"]["grad_norm_per_module"].items():
        gradients = [p.grad for p in modules[module].parameters() if p.grad is not None]
        assert torch.stack([g.double().norm() for g in gradients]).norm().item() == pytest.approx(
            norm, rel=1e-4
        )
    gradients = by_released_name(method, case, {n: p.grad for n, p in method.student.named_parameters()})
    for parameter, expected in case["grads_f64"].items():
        if expected is None:
            assert gradients[parameter] is None
        else:
            assert_stats(gradients[parameter], expected, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in STEPS if "optimizer_step" in CASES[name]])
def test_a_step_of_training(name: str) -> None:
    """Groups, clipping by module, AdamW, the frozen last layer and the teacher, through a real Trainer."""
    family, step = name.split("_")[0], CASES[name]["optimizer_step"]
    recipe = step["recipe"]
    optim = Optim(
        "adamw",
        lr=recipe["lr"],
        weight_decay=recipe["wd"],
        no_decay=NO_DECAY,
        rules={} if family == "resnet" else {"patch_embed": ParameterRule(lr=0.2)},
        layer_decay=0.95 if family == "resnet" else 0.9,
        schedule="constant",
        frozen=["*last_layer*"],
        frozen_steps=1,
        clip_norm=recipe["clip"],
        clip_by="module",
    )
    method, case = build(name, optim=optim)
    batch = make_batch(name, method)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EMATeacher(timing="after_step", decay=recipe["m"], schedule="constant")],
    )  # fmt: skip
    trainer.fit(method, train_dataloaders=DataLoader([batch], batch_size=None))

    by_parameter = {
        parameter: (
            group["initial_lr"] / recipe["lr"],
            group["weight_decay"] / recipe["wd"],
            group.get("frozen", False),
        )
        for group in trainer.optimizers[0].param_groups
        for parameter in group["params"]
    }
    moved = by_released_name(method, case, dict(method.student.named_parameters()))
    named = dict(method.student.named_parameters())
    for parameter, rate, decay, frozen in step["param_groups"]:
        for ours_name in ours(method, {parameter: torch.zeros(dict(case["state"])[parameter])}):
            assert by_parameter[named[ours_name]] == (
                pytest.approx(rate, rel=1e-6), pytest.approx(decay), frozen
            ), parameter  # fmt: skip
    teacher = by_released_name(method, case, dict(method.teacher.network.named_parameters()))
    for parameter, expected in step["student_after"].items():
        assert_stats(moved[parameter], expected, rel=2e-5)
    for parameter, expected in step["teacher_after"].items():
        assert_stats(teacher[parameter], expected, rel=2e-5)
    heads = method.student.head, method.teacher.network.head
    for head, total in zip(heads, (step["student_after_total"], step["teacher_after_total"]), strict=True):
        values = torch.cat([parameter.detach().flatten() for parameter in head.parameters()])
        assert_stats(values, total["dino_head"], rel=2e-5)


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_how_often_sizes_are_drawn(family: str) -> None:
    names = {"vit": "elastic_vit_large", "swin": "elastic_swin_base", "resnet": "elastic_resnet152"}
    emphasis = {"vit": (3.0, 3.0), "swin": (2.0, 2.0), "resnet": (1.0, 2.0)}[family]
    case = CASES["sampling_real_models"][family]
    with torch.device("meta"):
        sizes = create_backbone(names[family]).sizes()
    copies = size_copies(sizes, *emphasis)
    assert sum(count for _, count in copies) == case["n_entries"]
    assert len(SizeCycle(copies).deck) == case["n_entries"] - 1
    tables = [table for key, table in case.items() if key.startswith("copies")]
    for width, expected in (row for table in tables for row in table.items()):
        assert [count for size, count in copies if size.width == int(width)] == expected
    if family == "resnet":
        for width in (64, 96, 128):
            assert [count for size, count in copies if size.width == width] == [2] * 78 + [1] * 77
