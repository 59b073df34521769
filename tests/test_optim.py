"""Optimiser groups and schedules, against the released recipes' numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from tests.toy import ToyMethod, toy_loader, toy_trainer
from zoo.optim import Optim, ParameterRule, build_optimizer, clip_gradients, parameter_groups
from zoo.optim_schedule import lr_factor
from zoo.registry import UnknownNameError


def rates(optim: Optim, total: int, steps: list[int]) -> list[float]:
    factor = lr_factor(optim, total)
    return [optim.lr * factor(step) for step in steps]


def test_poly_with_warmup_is_the_released_uda_schedule() -> None:
    """Case lr.poly_warmup of the authors' numbers."""
    optim = Optim(lr=6e-5, schedule="poly", warmup_steps=1500)
    expected = {
        0: 6e-11, 1: 4.00589585e-08, 10: 3.999595851e-07, 750: 2.943752944e-05, 1499: 5.771299904e-05,
        1500: 5.775e-05, 20000: 3e-05, 39999: 1.5e-09,
    }  # fmt: skip
    assert rates(optim, 40000, list(expected)) == pytest.approx(list(expected.values()), rel=1e-4)


def test_poly_is_the_released_semi_supervised_schedule() -> None:
    """Case semi.lr_poly of the authors' numbers."""
    optim = Optim(lr=1e-3, schedule="poly", power=0.9)
    expected = {0: 1e-3, 1: 0.0009909954834, 10: 0.0009095325761, 50: 0.0005358867313, 99: 1.584893192e-05}
    assert rates(optim, 100, list(expected)) == pytest.approx(list(expected.values()), rel=1e-6)


def test_inverse_square_root_is_the_transformers_schedule() -> None:
    optim = Optim(lr=2e-3, schedule="inverse_sqrt", warmup_steps=25_000, warmup_ratio=0.0)
    expected = [2e-3 * min(step / 25_000, (25_000 / max(step, 1)) ** 0.5) for step in (0, 1, 25_000, 100_000)]
    assert rates(optim, 10, [0, 1, 25_000, 100_000]) == pytest.approx(expected)
    assert not optim.has_end


def test_cosine_and_constant() -> None:
    assert rates(Optim(lr=2.0, schedule="cosine"), 10, [0, 5, 10]) == pytest.approx([2.0, 1.0, 0.0])
    assert rates(Optim(lr=2.0, schedule="constant"), 10, [0, 5, 20]) == [2.0, 2.0, 2.0]
    assert rates(Optim(lr=2.0, schedule="poly", total_steps=4), 10, [2, 4, 8]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("peak", "rise"), [("last", [0, 1 / 3, 2 / 3, 1]), ("next", [0, 1 / 4, 2 / 4, 3 / 4])]
)
def test_where_a_warm_up_ends(peak: Any, rise: list[float]) -> None:
    optim = Optim(lr=1.0, schedule="warmup_cosine", warmup_steps=4, warmup_ratio=0.0, warmup_peak=peak)
    fall = [0.5 + 0.5 * math.cos(math.pi * (step - 4) / 16) for step in range(4, 20)]
    assert rates(optim, 20, range(20)) == pytest.approx([*rise, *fall])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "norm": nn.LayerNorm(4)})
        self.decode_head = nn.ModuleDict({"conv": nn.Conv2d(4, 2, 1), "norm": nn.LayerNorm(2)})
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied_again = self.tied


def test_longest_rule_wins_and_ties_go_alphabetically() -> None:
    rules = {"head": {"lr": 10.0}, "norm": {"weight_decay": 0.0}, "backbone.norm.bias": {"lr": 0.5}}
    net = Net()
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = parameter_groups([net], Optim(lr=1.0, weight_decay=0.1, rules=rules))
    found = {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.conv.weight": (1.0, 0.1),
        "backbone.conv.bias": (1.0, 0.1),
        "backbone.norm.weight": (1.0, 0.0),
        "backbone.norm.bias": (0.5, 0.1),  # the longest rule only
        "decode_head.conv.weight": (10.0, 0.1),
        "decode_head.conv.bias": (10.0, 0.1),
        "decode_head.norm.weight": (10.0, 0.1),  # head before norm, as in the released code
        "decode_head.norm.bias": (10.0, 0.1),
        "tied.weight": (1.0, 0.1),  # once
    }


def test_the_schedule_moves_every_group_in_a_run() -> None:
    class Two(ToyMethod):
        seen: list[list[float]]

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    method = Two(
        optim=Optim("sgd", lr=1.0, weight_decay=0.0, rules={"2.": ParameterRule(lr=10.0)}, schedule="poly")
    )
    method.seen = []
    toy_trainer(max_steps=4).fit(method, toy_loader(4))
    assert method.seen == [[0.75, 7.5], [0.5, 5.0], [0.25, 2.5], [0.0, 0.0]]


def test_options_reach_the_optimiser() -> None:
    optimizer = build_optimizer([nn.Linear(2, 2)], Optim("SGD", options={"momentum": 0.9, "nesterov": True}))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9


def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match=r"optim.name 'adam_w'.*adamw"):
        build_optimizer([nn.Linear(2, 2)], Optim("adam_w"))
    with pytest.raises(ValueError, match="nothing to optimise"):
        build_optimizer([nn.Linear(2, 2).requires_grad_(False)], Optim())
    with pytest.raises(ValueError, match=r"optim.schedule must be .*poly.*, not 'linear'"):
        Optim(schedule="linear")  # type: ignore[arg-type]
    endless, method = toy_trainer(max_epochs=-1), ToyMethod(optim=Optim("sgd", schedule="poly"))
    with pytest.raises(MisconfigurationException, match=r"needs an end: set trainer.max_steps"):
        endless.fit(method, toy_loader(2))


# -- schedules, freezing and clipping of self-distillation ------------------------------------------------


class Watched(ToyMethod):
    """Remembers rate, decay and weights of every group before each step."""

    def __init__(self, optim: Optim) -> None:
        super().__init__(optim=optim)
        self.seen: list[list[tuple[float, float]]] = []
        self.weights: list[list[torch.Tensor]] = []
        self.grads: list[list[torch.Tensor | None]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append([(g["lr"], g["weight_decay"]) for g in self.trainer.optimizers[0].param_groups])
        self.weights.append([p.detach().clone() for p in self.student.parameters()])

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)
        self.grads.append([None if p.grad is None else p.grad.clone() for p in self.student.parameters()])


FULL: dict[str, Any] = {
    "lr": 1.0, "final_lr": 0.1, "weight_decay": 0.04, "final_weight_decay": 0.4, "schedule": "warmup_cosine",
    "warmup_epochs": 1.5, "warmup_ratio": 0.0, "no_decay": ["*.bias"], "frozen": ["2.*"], "frozen_epochs": 1,
}  # fmt: skip


def test_rate_decay_and_freezing_step_by_step_through_a_resume(tmp_path: Path) -> None:
    total = 8

    def run(ckpt: str | None = None) -> Watched:
        torch.manual_seed(0)
        method = Watched(Optim("adamw", **FULL))
        save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        trainer = toy_trainer(max_steps=total, callbacks=[save], enable_checkpointing=True)
        trainer.fit(method, toy_loader(2), ckpt_path=ckpt)
        return method

    straight, resumed = run(), run(str(tmp_path / "step=4.ckpt"))
    for t, groups in enumerate(straight.seen):
        rate = t / 2 if t < 3 else 0.1 + 0.45 * (1 + math.cos(math.pi * (t - 3) / (total - 3)))
        decay = 0.4 - 0.18 * (1 + math.cos(math.pi * t / total))
        last = 0.0 if t < 2 else rate  # an epoch is two steps
        wanted = [(rate, decay), (rate, 0.0), (last, decay), (last, 0.0)]
        for found, expected in zip(groups, wanted, strict=True):
            assert found == pytest.approx(expected)
    assert resumed.seen == straight.seen[4:]
    for a, b in zip(straight.weights[4:], resumed.weights, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    before, after = straight.weights[1], straight.weights[2]
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])  # "2.weight" stands still


def test_freezing_by_gradient_starts_moments_afterwards() -> None:
    torch.manual_seed(0)
    options = {**FULL, "warmup_epochs": 0.0, "warmup_steps": 0, "freeze_by": "gradient"}
    method = Watched(Optim("adamw", **options))
    trainer = toy_trainer(max_steps=5)
    trainer.fit(method, toy_loader(2))
    assert [grads[2] is None for grads in method.grads] == [True, True, False, False, False]
    steps = [int(state["step"]) for state in trainer.optimizers[0].state.values()]
    assert sorted(steps) == [3, 3, 5, 5]


@pytest.mark.parametrize("clip_by", ["all", "module", "parameter"])
def test_clipping(clip_by: str) -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 2), "unused": nn.Linear(1, 1)})
    for scale, name in ((5.0, "backbone"), (0.01, "head")):
        for parameter in module[name].parameters():
            parameter.grad = scale * torch.randn_like(parameter)
    groups = {
        "all": [[*module["backbone"].parameters(), *module["head"].parameters()]],
        "module": [[*module["backbone"].parameters()], [*module["head"].parameters()]],
        "parameter": [[p] for name in ("backbone", "head") for p in module[name].parameters()],
    }[clip_by]
    expected = []
    for parameters in groups:
        norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
        expected += [p.grad * min(1.0, 1.5 / (norm.item() + 1e-6)) for p in parameters]
    clip_gradients([module], Optim(clip_norm=1.5, clip_by=clip_by))  # type: ignore[arg-type]
    for parameter, wanted in zip((p for group in groups for p in group), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)
    assert torch.equal(module["head"].weight.grad, expected[2]) or clip_by == "all"


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_sees_gradients_without_the_scale_of_fp16(fused: bool) -> None:
    """A step of rate 1 is as long as the clipped gradient; fused optimisers divide by the scale in their step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    options = {"lr": 1.0, "weight_decay": 0.0, "schedule": "constant", "options": {"fused": fused}}
    method = Watched(Optim("sgd", clip_norm=0.01, **options))
    toy_trainer(max_steps=2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(method, toy_loader(2))
    before, after = (torch.cat([weight.flatten() for weight in weights]) for weights in method.weights)
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_layer_decay_needs_blocks() -> None:
    with pytest.raises(TypeError, match=r"Net does not say which block"):
        parameter_groups([Net()], Optim(layer_decay=0.9))

    class Blocks(Net):
        num_blocks = 2

        def block_of(self, name: str) -> int:
            return 1 if name.startswith("backbone") else 3

    net = Blocks()
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = parameter_groups([net], Optim(lr=1.0, layer_decay=0.5))
    found = {names[p]: g["lr"] for g in groups for p in g["params"]}
    assert found["backbone.conv.weight"] == 0.25  # 0.5^(2 + 1 - 1)
    assert found["decode_head.conv.weight"] == 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"warmup_steps": 3, "warmup_epochs": 1.0}, "warmup_steps and optim.warmup_epochs"),
        ({"frozen_steps": 3, "frozen_epochs": 1.0}, "frozen_steps and optim.frozen_epochs"),
        ({"cosine_share": 0.0}, "cosine_share"),
        ({"clip_norm": -1.0}, "clip_norm must be positive"),
        ({"clip_by": "layer"}, "clip_by must be all, module or parameter"),
        ({"weight_decay": 0.0, "final_weight_decay": 0.1}, "final_weight_decay scales"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Optim(**options)


def test_patterns_that_match_nothing_are_told() -> None:
    with pytest.raises(ValueError, match=r"optim.frozen: no parameter matches '\*last\*'"):
        parameter_groups([Net()], Optim(frozen=["*last*"]))
