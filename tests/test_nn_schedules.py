"""Loss-weight schedules at their corners and in between."""

from __future__ import annotations

import math

import pytest

from zoo.nn import WeightSchedule, weight_schedule


def values(schedule: WeightSchedule, steps: list[int]) -> list[float]:
    return [schedule(step) for step in steps]


def test_constant_is_the_same_from_the_first_step() -> None:
    assert values(WeightSchedule(0.3), [0, 1, 10_000]) == [0.3, 0.3, 0.3]


def test_step_is_a_gate() -> None:
    assert values(WeightSchedule(2.0, "step", start=5), [0, 4, 5, 99]) == [0.0, 0.0, 2.0, 2.0]
    assert values(WeightSchedule(0.0, "step", start=5, initial=1.0), [4, 5]) == [1.0, 0.0]


def test_ramps_are_their_formulas() -> None:
    shapes = {
        "linear": lambda t: t,
        "sigmoid": lambda t: math.exp(-5 * (1 - t) ** 2),
        "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
    }
    for name, shape in shapes.items():
        up = WeightSchedule(3.0, name, start=10, steps=40)
        assert up(9) == 0.0
        for step in range(10, 50):
            assert up(step) == pytest.approx(3.0 * shape((step - 10) / 40))
        assert values(up, [50, 51, 10_000]) == [3.0] * 3
        down = WeightSchedule(0.5, name, steps=8, initial=2.0)
        for step in range(8):
            assert down(step) == pytest.approx(2.0 - 1.5 * shape(step / 8))
        assert down(8) == 0.5


def test_known_values() -> None:
    assert WeightSchedule(1.0, "sigmoid", steps=100)(0) == pytest.approx(0.006737947)
    assert WeightSchedule(1.0, "cosine", steps=100)(50) == pytest.approx(0.5)
    assert WeightSchedule(1.0, "linear", steps=4)(1) == 0.25


def test_plain_values_become_schedules() -> None:
    assert weight_schedule(0.5) == WeightSchedule(0.5)
    ramp = WeightSchedule(1.0, "linear", steps=3)
    assert weight_schedule(ramp) is ramp
    assert weight_schedule({"weight": 1.0, "schedule": "linear", "steps": 3}) == ramp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": "sigmoud"},
            "schedule must be constant, step, linear, sigmoid or cosine, not 'sigmoud'",
        ),
        ({"schedule": "linear"}, "schedule='linear' is a ramp: set steps"),
        ({"weight": -1.0}, "weight must not be negative, got -1.0"),
        ({"start": -2}, "start must not be negative, got -2"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSchedule(**arguments)
