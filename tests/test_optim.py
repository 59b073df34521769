"""Optimiser groups and schedules, against the released recipes' numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from tests.toy import ToyMethod, toy_loader, toy_trainer
from zoo.optim import Optim, ParameterRule, build_optimizer, lr_factor, parameter_groups
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


def test_cosine_and_constant() -> None:
    assert rates(Optim(lr=2.0, schedule="cosine"), 10, [0, 5, 10]) == pytest.approx([2.0, 1.0, 0.0])
    assert rates(Optim(lr=2.0, schedule="constant"), 10, [0, 5, 20]) == [2.0, 2.0, 2.0]
    assert rates(Optim(lr=2.0, schedule="poly", total_steps=4), 10, [2, 4, 8]) == [1.0, 0.0, 0.0]


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
    with pytest.raises(ValueError, match="constant, poly or cosine, not 'linear'"):
        Optim(schedule="linear")  # type: ignore[arg-type]
    endless, method = toy_trainer(max_epochs=-1), ToyMethod(optim=Optim("sgd", schedule="poly"))
    with pytest.raises(MisconfigurationException, match=r"needs an end: set trainer.max_steps"):
        endless.fit(method, toy_loader(2))
