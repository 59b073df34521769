"""Losses, encoder, momentum step and augmentations against numbers of the authors' released code."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity.formulas import load_cases
from tests.parity.networks import rename
from zoo.backbones import EfficientNet1d
from zoo.methods.signal.wearable_biosignals import BiosignalNetwork
from zoo.nn import signal_augment as augment
from zoo.nn.distillation import koleo_loss
from zoo.nn.participant_contrast import participant_info_nce
from zoo.teacher import Teacher

CASES: dict[str, Any] = load_cases("wearable_biosignals.json")
PRIME = 2147483647
#: Names of our encoder → those of the release; their order decides about the values of a filled network.
RULES = [
    (r"^stem", "layers.Conv1D_Initial"),
    (r"^head", "layers.Conv1D_Final_Expansion"),
    (r"^blocks\.(\d+)", lambda found: f"layers.MBConv1d_{int(found[1]) + 1}"),
    (r"expand\.conv", "filter_expansion"),
    (r"expand\.norm", "bn0"),
    (r"depthwise\.conv", "depthwise_conv"),
    (r"depthwise\.norm", "bn1"),
    (r"reduce\.conv", "final_reduction"),
    (r"reduce\.norm", "bn2"),
    (r"squeeze", "se_reduce"),
    (r"excite", "se_expand"),
    (r"(Initial|Expansion)\.conv", r"\1.conv1d"),
    (r"(Initial|Expansion)\.norm", r"\1.batch_norm"),
]


def q(shape: list[int] | tuple[int, ...], k: int) -> Tensor:
    """The file's formula, float64."""
    n = torch.arange(math.prod(shape))
    key = k * 1000003 % PRIME
    factor = (16807 + 7919 * key) % PRIME
    value = ((n * n % PRIME) * 48271 + n * factor + key) % PRIME
    return (2 * value.double() / PRIME - 1).view(*shape)


@torch.no_grad()
def fill(tensors: dict[str, Tensor], offset: int) -> None:
    """Values by formula, in the order of the released names; counters only count."""
    for k, name in enumerate(sorted(tensors), offset):
        tensor = tensors[name]
        if not tensor.is_floating_point():
            continue
        values = q(tensor.shape, k)
        if name.endswith("running_var"):
            values = 1 + 0.3 * values
        elif name.endswith(("running_mean", "bias")):
            values = 0.1 * values
        elif tensor.ndim == 1:
            values = 1 + 0.1 * values
        else:
            values *= math.sqrt(3 * tensor.shape[0] / tensor.numel())
        tensor.copy_(values)


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {rename(name, RULES): tensor for name, tensor in state.items()}  # type: ignore[arg-type]


def check(found: Tensor | np.ndarray, wanted: dict[str, Any]) -> None:
    values = torch.as_tensor(found).detach().double()
    assert list(values.shape) == wanted["shape"]
    flat = values.flatten()
    near = {"abs": 1e-5 * wanted["abs_sum"], "rel": 0.0}
    assert float(flat.sum()) == pytest.approx(wanted["sum"], **near)
    assert float(flat.abs().sum()) == pytest.approx(wanted["abs_sum"], **near)
    place = torch.arange(len(flat), dtype=torch.float64)
    assert float((flat * torch.cos(0.37 * place + 0.2)).sum()) == pytest.approx(wanted["cos_dot"], **near)
    assert flat[:4].tolist() == pytest.approx(wanted["first4"], rel=1e-4, abs=1e-5)
    assert flat[-4:].tolist() == pytest.approx(wanted["last4"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", CASES["losses"], ids=lambda case: f"k{case['k']}")
def test_losses(case: dict[str, Any]) -> None:
    shape, k = (case["B"], case["H"]), case["k"]
    share = 0.4 if case["B"] == 12 else 0.7
    one, two = q(shape, k), q(shape, k + 1)
    first, second = one.float(), (share * one + (1 - share) * two).float()
    for view in (first, second):
        view.requires_grad_()
    labels = None if case["labels"] is None else torch.tensor(case["labels"])
    contrast = participant_info_nce(first, second, labels, case["temperature"])
    spread = [koleo_loss(view) for view in (first, second)]
    total = contrast + 0.1 * 0.5 * (spread[0] + spread[1])
    total.backward()
    assert first.grad is not None
    assert second.grad is not None
    found = {
        "contrastive": contrast,
        "koleo_view1": spread[0],
        "koleo_view2": spread[1],
        "total_gamma0p1": total,
        "grad_norm_view1": first.grad.norm(),
        "grad_norm_view2": second.grad.norm(),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(case[name], rel=1e-5), name


@pytest.mark.parametrize("case", CASES["encoder"], ids=lambda case: f"{case['embedding']}")
def test_encoder(case: dict[str, Any]) -> None:
    encoder = EfficientNet1d(
        case["in_channels"], case["embedding"], case["expansion"], case["kernel_size"], case["se_ratio"]
    )
    assert sum(p.numel() for p in encoder.parameters()) == case["params"]
    state = released(encoder.state_dict())
    assert len(state) == case["num_state_entries"]
    fill(state, CASES["encoder_fill_offset"])
    shapes: list[list[int]] = []
    for module in (encoder.stem, *encoder.blocks, encoder.head):
        module.register_forward_hook(lambda *call: shapes.append(list(call[2].shape[1:])))
    signal = q((case["B"], case["in_channels"], case["T"]), case["input_k"]).float()
    with torch.no_grad():
        check(encoder.eval().embed(signal), case["eval_output"])
        assert shapes == [shape for _, shape in case["stage_shapes"]]
        check(encoder.train().embed(signal), case["train_output_batch_stats"])


def test_momentum_step() -> None:
    """Student of one view, teacher of the other, one direction of the loss; then the teacher moves."""
    case = CASES["momentum_wrapper"]
    embedding, hidden, projection = case["mlp"]
    backbone = EfficientNet1d(4, embedding, case["expansion"])
    student = BiosignalNetwork(backbone, hidden, projection, dropout=0.0)
    teacher = Teacher(copy.deepcopy(student), init="independent")
    state = {}
    for ending, network in (("", student), ("_momentum", teacher.network)):
        state |= {f"backbone{ending}.{k}": v for k, v in released(network.backbone.state_dict()).items()}  # type: ignore[union-attr,operator]
        state |= {f"mlp_head{ending}.mlp.{k}": v for k, v in network.head.state_dict().items()}  # type: ignore[union-attr,operator]
    assert len(state) == case["num_state_entries"]
    assert sorted(state)[:6] == case["state_names"][:6]
    fill(state, case["fill_k_offset"])
    views = q((3, 4, case["T"], 2), 11).float().unbind(-1)
    with torch.no_grad():
        found = student.eval()(views[0]), teacher(views[1])
        check(found[0], case["student"])
        check(found[1], case["teacher"])
        spread = 0.5 * (koleo_loss(found[0]) + koleo_loss(found[1]))
        loss = participant_info_nce(*found) + 0.1 * spread
        # The filled network maps all rows to nearly one point, and KoLeo takes the logarithm of what rounding leaves.
        assert float(loss) == pytest.approx(case["loss"], abs=0.005)
        teacher.update(student, 0.9)
        check(teacher(views[1]), case["teacher_after_ema_0.9"])


class Released:
    """The draws of the release, in its order, from NumPy's legacy generator."""

    def __init__(self, seed: int, time: int, channels: int) -> None:
        self.rng = np.random.RandomState(seed)
        self.time, self.channels = time, channels

    def tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.float64))[None]

    def cut_out(self, x: Tensor) -> Tensor:
        length = self.rng.randint(int(0.3 * self.time), int(0.5 * self.time))
        start = self.rng.randint(0, self.time - length)
        return augment.cut_out(x, torch.tensor([start]), torch.tensor([length]))

    def add_gaussian_noise(self, x: Tensor) -> Tensor:
        sigma = self.rng.uniform(0.05, 0.1)
        return x + sigma * self.tensor(self.rng.randn(self.time, self.channels).T)

    def magnitude_warp(self, x: Tensor) -> Tensor:
        return augment.magnitude_warp(x, self.tensor(self.rng.normal(1, 0.2, augment.KNOTS)))

    def time_warp(self, x: Tensor) -> Tensor:
        factors = self.rng.normal(1.0, 0.1, (augment.KNOTS, self.channels))
        return augment.time_warp(x, self.tensor(factors.T))

    def channel_permute(self, x: Tensor) -> Tensor:
        return augment.permute_channels(x, torch.from_numpy(self.rng.permutation(self.channels))[None])

    def stochastic_cascade(self, x: Tensor) -> Tensor:
        for name, probability in augment.PPG.items():
            if self.rng.binomial(1, probability, 1)[0]:
                x = getattr(self, {"noise": "add_gaussian_noise"}.get(name, name))(x)
        return x


@pytest.mark.parametrize("case", CASES["augmentations"], ids=lambda case: f"seed{case['numpy_seed']}")
def test_augmentations(case: dict[str, Any]) -> None:
    T, D = case["T"], case["D"]
    signal = q((T, D), case["k"]).T[None]
    for name in (
        "cut_out",
        "add_gaussian_noise",
        "magnitude_warp",
        "time_warp",
        "channel_permute",
        "stochastic_cascade",
    ):
        changed = getattr(Released(case["numpy_seed"], T, D), name)(signal)
        check(changed[0].T, case[name])
    standard = augment.zscore(signal)[0]
    check(standard, case["zscore"])
