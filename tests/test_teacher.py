"""The teacher's arithmetic against written-out loops."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from tests.toy import mlp
from zoo.teacher import Teacher


def noisy(network: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with every floating-point tensor changed."""
    torch.manual_seed(seed)
    network = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))
            else:
                tensor.add_(7)
    return network


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("rule", ["none", "copy", "average"])
def test_update_is_the_written_out_average(decay: float, rule: str) -> None:
    start = mlp(batch_norm=True)
    teacher, student = Teacher(start, buffers=rule), noisy(start)
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    teacher.update(student, decay)
    parameters = {name for name, _ in start.named_parameters()}
    for name, tensor in teacher.network.state_dict().items():
        target = student.state_dict()[name]
        if name in parameters or (rule == "average" and tensor.is_floating_point()):
            expected = decay * before[name] + (1 - decay) * target
        elif rule == "none":
            expected = before[name]
        else:
            expected = target  # integer buffers are copied, never averaged
        torch.testing.assert_close(tensor, expected)
    if rule == "average":
        assert teacher.network[1].num_batches_tracked.item() == 7


def test_equal_weights_stay_equal_bit_for_bit() -> None:
    student = mlp()
    student[0].requires_grad_(False)  # a frozen layer
    teacher = Teacher(student)
    with torch.no_grad():
        student[2].weight.add_(1.0)
    for _ in range(50):
        teacher.update(student, 0.99)
    assert torch.equal(teacher.network[0].weight, student[0].weight)
    assert not torch.equal(teacher.network[2].weight, student[2].weight)


def test_tied_weights_are_moved_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    start = Tied()
    teacher, student = Teacher(start), noisy(start)
    expected = 0.75 * start.first.weight + 0.25 * student.first.weight
    teacher.update(student, 0.75)
    assert teacher.network.second.weight is teacher.network.first.weight
    torch.testing.assert_close(teacher.network.first.weight, expected)


def test_compiled_students_keep_their_names() -> None:
    student = mlp()
    teacher = Teacher(student)
    student.compile()
    assert list(student.state_dict()) == list(teacher.network.state_dict())
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher.update(student, 0.5)
    torch.testing.assert_close(teacher.network[0].weight, student[0].weight - 0.5)
    wrapped = torch.compile(student)
    teacher.update(wrapped, 0.0)
    assert torch.equal(teacher.network[0].weight, student[0].weight)


def test_bfloat16_teacher_moves_in_its_own_type() -> None:
    student = mlp().to(torch.bfloat16)
    teacher = Teacher(student)
    with torch.no_grad():
        student[0].weight.add_(1.0)
    before = teacher.network[0].weight.clone()
    teacher.update(student, 0.5)
    assert teacher.network[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(teacher.network[0].weight, 0.5 * before + 0.5 * student[0].weight)


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.path = nn.BatchNorm1d(3), nn.Dropout(0.9), DropPath(0.9)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.9)  # functional dropout by its own flag
        self.register_buffer("flag", torch.zeros(()))


@pytest.mark.parametrize(
    ("mode", "norm", "drop"),
    [("eval", False, False), ("train_no_dropout", True, False), ("train", True, True)],
)
def test_modes_survive_the_owners_mode_changes(mode: str, norm: bool, drop: bool) -> None:
    owner = nn.Module()
    owner.teacher = Teacher(Stochastic(), mode=mode)
    for flag in (True, False, True):
        owner.train(flag)
        network = owner.teacher.network
        assert network.norm.training is norm
        assert (network.drop.training, network.path.training, network.attention.training) == (drop,) * 3
    with owner.teacher.using("eval"):
        assert not network.norm.training
    assert network.norm.training is norm


def test_batch_norm_statistics_by_mode() -> None:
    x = torch.randn(32, 3) * 5 + 2
    for mode, moves in [("eval", False), ("train_no_dropout", True)]:
        teacher = Teacher(nn.Sequential(nn.BatchNorm1d(3)), mode=mode)
        out = teacher(x)
        assert (teacher.network[0].running_mean.abs().sum() > 0).item() is moves
        assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-5) is moves
        assert not out.requires_grad


def test_no_gradient_and_no_optimiser() -> None:
    teacher = Teacher(mlp())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher(torch.randn(2, 3)).grad_fn is None


def test_weights_and_ramp_are_restored_together() -> None:
    teacher = Teacher(mlp())
    teacher.advance(41)
    teacher.advance()
    fresh = Teacher(mlp())
    fresh.load_state_dict(teacher.state_dict())
    assert fresh.steps == 42
    assert torch.equal(fresh.network[0].weight, teacher.network[0].weight)


def test_copies_do_not_drag_the_student_along() -> None:
    student = mlp()
    teacher = Teacher(student)
    teacher.update(student, 0.5)
    twin = copy.deepcopy(teacher)
    assert twin._pairs is None
    before = student[0].weight.clone()
    twin.update(noisy(student), 0.0)
    assert torch.equal(student[0].weight, before)
    assert not torch.equal(twin.network[0].weight, teacher.network[0].weight)


def test_moving_to_another_type_keeps_the_pairing_right() -> None:
    student = mlp(batch_norm=True)
    teacher = Teacher(student, buffers="average")
    teacher.update(student, 0.5)
    student.double()
    teacher.double()
    student[1].running_mean.add_(1.0)
    teacher.update(student, 0.5)
    torch.testing.assert_close(teacher.network[1].running_mean, torch.full((8,), 0.5, dtype=torch.double))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"only the student has \['1.weight', '1.bias'"):
        Teacher(mlp()).update(mlp(batch_norm=True), 0.5)
    with pytest.raises(ValueError, match="other shapes"):
        Teacher(nn.Linear(2, 2)).update(nn.Linear(3, 2), 0.5)
    student = mlp()
    with pytest.raises(ValueError, match=r"shares '0\.weight' with its student"):
        Teacher(student, init="independent").update(student, 0.5)
    with pytest.raises(ValueError, match="mode='training'"):
        Teacher(mlp(), mode="training")
    with pytest.raises(ValueError, match="buffers='average_all'"):
        Teacher(mlp(), buffers="average_all")
