"""The self-distillation core against the numbers of the released POA code (which carries DINOv2's functions)."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.formulas import det, load_cases
from zoo.backbones.tokens import TimmViT
from zoo.methods.image.base import NO_DECAY
from zoo.nn import (
    BlockMasking,
    Centre,
    DINOHead,
    Masks,
    MultiHead,
    Sinkhorn,
    TokenNetwork,
    cross_view_loss,
    koleo_loss,
    masked_patch_loss,
    soft_cross_entropy,
)
from zoo.optim import Optim, ParameterRule, parameter_groups
from zoo.optim_schedule import OptimSchedule
from zoo.schedules import cosine, linear

CASES: dict[str, Any] = load_cases("dino.json")


def assert_sums(actual: Tensor, expected: dict[str, Any], rel: float = 1e-5) -> None:
    """Shape, sum, sum of squares, and values where they were recorded."""
    assert list(actual.shape) == expected["shape"]
    values = actual.detach().double()
    assert values.sum().item() == pytest.approx(expected["sum"], rel=rel, abs=1e-5)
    assert values.square().sum().item() == pytest.approx(expected["sumsq"], rel=rel)
    if "values" in expected:
        torch.testing.assert_close(values, torch.tensor(expected["values"]).double(), rtol=1e-4, atol=1e-6)


def students() -> list[Tensor]:
    return [det((3, 8), 1 + i).requires_grad_() for i in range(3)]


def test_sinkhorn_and_the_sum_of_all_pairs() -> None:
    case, rows = CASES["sinkhorn"], students()
    target = Sinkhorn()(det((6, 8), 11), 0.05)
    assert_sums(target, case["sinkhorn"])
    torch.testing.assert_close(target.sum(0), torch.tensor(case["sinkhorn_col_sums"]), rtol=1e-5, atol=1e-6)
    first, second = target.chunk(2)
    loss = soft_cross_entropy(torch.stack(rows), first + second, 0.1, targets=2).mean(1).sum()
    assert loss.item() == pytest.approx(case["loss_sum_over_all_pairs_sinkhorn_targets"], rel=1e-6)
    loss.backward()
    assert_sums(rows[0].grad, case["grad_wrt_student0"])


def test_plain_softmax_targets() -> None:
    case = CASES["sinkhorn"]
    target = Centre(8)(det((6, 8), 11), 0.1)
    assert_sums(target, case["vanilla_softmax_tau0.1"])
    loss = sum(soft_cross_entropy(s, q, 0.1).mean() for s in students() for q in target.chunk(2))
    assert loss.item() == pytest.approx(case["loss_sum_over_all_pairs_vanilla_targets"], rel=1e-6)


def test_centring_applies_what_was_learned_before() -> None:
    case, centre, logits = CASES["centring"], Centre(8, momentum=0.9), det((6, 8), 11)
    assert_sums(centre(logits, 0.05), case["first"])
    centre.update(logits)
    assert_sums(centre.centre, case["center_after"])
    assert_sums(centre(logits, 0.05), case["second"])


def test_masked_patch_loss() -> None:
    case = CASES["ibot"]
    mask = det((4, 16), 5) > 0.4
    mask[1::2] = False
    masks = Masks.of(mask)
    assert masks.mask.sum(1).tolist() == case["n_masked_per_image"]
    assert masks.weight.tolist() == pytest.approx(case["masks_weight"])
    target = Sinkhorn()(det((10, 8), 31), 0.05)
    assert_sums(target, case["sinkhorn"])
    torch.testing.assert_close(target[0], torch.tensor(case["sinkhorn_row0"]), rtol=1e-4, atol=1e-9)
    student = det((10, 8), 21).requires_grad_()
    loss = masked_patch_loss(target, student, masks.weight, views=4)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    loss.backward()
    assert_sums(student.grad, case["grad_wrt_student"])


def test_koleo() -> None:
    case, features = CASES["koleo"], det((6, 8), 3).requires_grad_()
    loss = koleo_loss(features)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    loss.backward()
    torch.testing.assert_close(features.grad, torch.tensor(case["grad_values"]), rtol=1e-4, atol=1e-6)


def chirp(shape: list[int] | tuple[int, ...], k: int) -> Tensor:
    """``detc`` of the parity file, in float64."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * i + 0.013 * i * i + k).reshape(shape)


def fill(name: str, shape: list[int], k: int, mode: str) -> Tensor:
    """Modes A and C of the parity file."""
    if mode == "A":
        return det(shape, k) * 0.05
    d = chirp(shape, k)
    if name.endswith((".weight", ".weight_v")) and len(shape) >= 2:
        return (d * 1.2 / (d.numel() / shape[0]) ** 0.5).float()
    return (1 + 0.3 * d if name.endswith("weight_g") else 0.1 * d).float()


@pytest.mark.parametrize("mode", ["A", "C"])
@pytest.mark.parametrize("width", [64, 32])
def test_heads_at_full_and_narrow_width(mode: str, width: int) -> None:
    case = CASES["heads"]
    heads = MultiHead(64, (8, 12, 16), hidden_dim=32, bottleneck_dim=16)
    state = {
        name.replace(".linear.", "."): fill(name, shape, k, mode)
        for k, (name, shape) in enumerate(case["state"])
    }
    heads.load_state_dict(state)
    tokens = det((3, width), 7) if mode == "A" else chirp((3, width), 7).float()
    expected = case["out"][f"mode{mode}_width{width}"]
    for logits, numbers in zip(heads(tokens), expected, strict=True):
        assert_sums(logits, numbers, rel=1e-4)

    alone = DINOHead(64, 12, hidden_dim=32, bottleneck_dim=16)
    of_second = re.compile(r"(mlp|last_layer)1\.")
    alone.load_state_dict({of_second.sub(r"\1.", k): v for k, v in state.items() if of_second.match(k)})
    torch.testing.assert_close(alone(tokens), heads(tokens)[1])


def test_masks_are_those_of_the_release() -> None:
    case = CASES["masking"]
    mask = BlockMasking().draw(60, (14, 14), Random(0))
    assert mask.flatten().nonzero().flatten().tolist() == case["mask_indices"]
    masks = BlockMasking((0.1, 0.5), 0.5)(8, (14, 14), Random(1))
    assert masks.mask.sum(1).tolist() == case["masks_per_image"]
    assert len(masks.positions) == len(masks.weight) == case["n_masked"]
    assert masks.positions[:20].tolist() == case["mask_index_first20"]
    assert masks.positions.sum().item() == case["mask_index_sum"]
    assert masks.weight.sum().item() == pytest.approx(case["masks_weight_sum"])


@pytest.mark.parametrize("name", CASES["schedules"])
def test_schedules(name: str) -> None:
    case = CASES["schedules"][name]
    recipe = case["recipe"]
    per_epoch, share = recipe["iters_per_epoch"], recipe["iter_num_scale"]
    total = per_epoch * recipe["epochs"]
    optim = Optim(
        lr=case["peak_lr"], final_lr=2e-5, weight_decay=0.04, final_weight_decay=0.4, schedule="warmup_cosine",
        warmup_epochs=recipe["warmup_epochs"], warmup_ratio=0.0, cosine_share=share, frozen=["last*"],
        frozen_epochs=1,
    )  # fmt: skip
    net = nn.ModuleDict({"first": nn.Linear(1, 1, bias=False), "last": nn.Linear(1, 1, bias=False)})
    optimizer = torch.optim.AdamW(parameter_groups([net], optim))
    schedule = OptimSchedule(optimizer, optim, total, per_epoch)
    for row, step in enumerate(case["iter"]):
        if step:
            schedule.last_epoch = step - 1
            schedule._step_count = 10  # no warning about optimisers that did not step
            schedule.step()
        first, last = optimizer.param_groups
        assert first["lr"] == pytest.approx(case["lr"][row], rel=1e-8, abs=1e-15)
        assert last["lr"] == pytest.approx(case["last_layer_lr"][row], rel=1e-8, abs=1e-15)
        assert first["weight_decay"] == last["weight_decay"] == pytest.approx(case["wd"][row], rel=1e-8)
        momentum = cosine(step, total, 0.992, 0.9999, share=share)
        assert momentum == pytest.approx(case["momentum"][row], rel=1e-9)
        temperature = linear(step, 30 * per_epoch, 0.04, 0.07)
        assert temperature == pytest.approx(case["teacher_temp"][row], rel=1e-8)


def test_factors_of_a_vit_large() -> None:
    with torch.device("meta"):
        backbone = TimmViT("vit_large_patch16_224", mask_token=True, init_values=1e-5)
        student = TokenNetwork(backbone, DINOHead(1024, 64))
    optim = Optim(
        lr=1.0, weight_decay=1.0, no_decay=NO_DECAY, layer_decay=0.9,
        rules={"patch_embed": ParameterRule(lr=0.2)},
    )  # fmt: skip
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = parameter_groups([student], optim)
    found = {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, factors in CASES["multipliers"].items():
        ours = re.sub(r"\.(linear|norm)\.(weight|bias)$", r".\2", name) if name.count(".") > 1 else name
        key = f"backbone.{ours}" if ours == "mask_token" else f"backbone.model.{ours}"
        assert found[key] == pytest.approx(factors, rel=1e-7), name
    assert found["head.mlp.0.weight"] == (1.0, 1.0)
    assert found["head.mlp.0.bias"] == (1.0, 0.0)
    assert found["head.last_layer.weight_g"] == (1.0, 1.0)


def test_the_cross_view_loss_is_the_average_over_pairs_of_other_views() -> None:
    target = Sinkhorn()(det((6, 8), 11), 0.05)
    global_logits, local = det((6, 8), 4), det((9, 8), 5)
    q, s = target.chunk(2), [*global_logits.chunk(2), *local.chunk(3)]
    pairs = [(q[g], s[v]) for g in range(2) for v in range(5) if v != g]
    written_out = sum(-(a * (b / 0.1).log_softmax(1)).sum(1).mean() for a, b in pairs) / len(pairs)
    assert len(pairs) == 8
    assert cross_view_loss(target, global_logits, local).item() == pytest.approx(written_out.item(), rel=1e-6)
