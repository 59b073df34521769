"""When the teacher moves: every timing and schedule against a written-out loop, through a real Trainer."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks import EMATeacher, FutureTeacher, PseudoLabeler
from tests.toy import SGD, Record, ToyMethod, mlp, toy_batch, toy_loader, toy_trainer, weights
from zoo.nn import NoMix
from zoo.optim import Optim
from zoo.teacher import Teacher


def lerp(teacher: list[Tensor], student: list[Tensor], decay: float) -> list[Tensor]:
    return [decay * t + (1 - decay) * s for t, s in zip(teacher, student, strict=True)]


def assert_same(got: list[Tensor], expected: list[Tensor], **tolerance: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def reference(timing: str, decay_at: Any, steps: int, accumulate: int = 1) -> tuple[list, list]:
    """Plain training loop: returns student and teacher weights after each optimiser step."""
    torch.manual_seed(0)
    method = ToyMethod()
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    students, teachers = [], []
    for t in range(steps):
        if timing == "before_step" and t > 0:
            moved = lerp(weights(method.teacher), weights(method.student), decay_at(t))
            with torch.no_grad():
                for parameter, value in zip(method.teacher.parameters(), moved, strict=True):
                    parameter.copy_(value)
        optimizer.zero_grad()
        for micro in range(accumulate):
            losses = method.losses(toy_batch(t * accumulate + micro))
            (sum(losses.values()) / accumulate).backward()
        optimizer.step()
        if timing == "after_step":
            moved = lerp(weights(method.teacher), weights(method.student), decay_at(t))
            with torch.no_grad():
                for parameter, value in zip(method.teacher.parameters(), moved, strict=True):
                    parameter.copy_(value)
        students.append(weights(method.student))
        teachers.append(weights(method.teacher))
    return students, teachers


SCHEDULES = {
    "constant": ({"decay": 0.7, "schedule": "constant"}, lambda t: 0.7),
    "warmup": ({"decay": 0.7, "schedule": "warmup"}, lambda t: min(1 - 1 / (t + 1), 0.7)),
    "cosine": (
        {"decay": 0.5, "schedule": "cosine", "final_decay": 1.0},
        lambda t: 1.0 - 0.5 * (1.0 - 0.5) * (1 + math.cos(math.pi * t / 6)),
    ),
    "epochs": (
        {"schedule": "epochs", "epoch_decays": {0: 0.2, 1: 0.8}},
        lambda t: 0.2 if t < 3 else 0.8,
    ),
}


@pytest.mark.parametrize("timing", ["before_step", "after_step"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timing_and_schedule(timing: str, schedule: str) -> None:
    options, decay_at = SCHEDULES[schedule]
    torch.manual_seed(0)
    method, record = ToyMethod(), Record()
    ema = EMATeacher(timing=timing, **options)
    trainer = toy_trainer(max_epochs=2, limit_train_batches=3, callbacks=[ema, record])
    batches = [toy_loader(3), toy_loader(3, offset=3)]
    method.train_dataloader = lambda: batches[trainer.current_epoch]
    trainer.reload_dataloaders_every_n_epochs = 1
    trainer.fit_loop.epoch_loop.trainer.reload_dataloaders_every_n_epochs = 1
    trainer.fit(method)
    students, teachers = reference(timing, decay_at, 6)
    for step in range(6):
        assert_same(record.student[step], students[step])
        assert_same(record.teacher[step], teachers[step])
    assert method.teacher.steps == 6


def test_the_cosine_ends_where_the_rates_do() -> None:
    record = Record()
    ema = EMATeacher(timing="after_step", decay=0.5, schedule="cosine")
    trainer = toy_trainer(max_steps=3, callbacks=[ema, record])
    trainer.fit(ToyMethod(optim=Optim(**SGD, total_steps=6)), toy_loader())
    assert [ema.decay_at(t, trainer) for t in range(4)] == pytest.approx(
        [SCHEDULES["cosine"][1](t) for t in range(4)]
    )
    endless = toy_trainer(max_epochs=-1, callbacks=[EMATeacher(schedule="cosine", timing="after_step")])
    with pytest.raises(
        MisconfigurationException, match=r"EMATeacher\(schedule='cosine'\) needs an end: set trainer"
    ):
        endless.fit(ToyMethod(), toy_loader())


@pytest.mark.parametrize("timing", ["before_step", "after_step"])
def test_accumulation_counts_optimiser_steps(timing: str) -> None:
    torch.manual_seed(0)
    method, record = ToyMethod(), Record()
    ema = EMATeacher(timing=timing, decay=0.7)
    toy_trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[ema, record]).fit(method, toy_loader(12))
    students, teachers = reference(timing, SCHEDULES["warmup"][1], 4, accumulate=3)
    for step in range(4):
        last = 3 * step + 2
        assert_same(record.student[last], students[step])
        assert_same(record.teacher[last], teachers[step])
        first = record.teacher[3 * step]
        if timing == "before_step":  # moved before the first micro-batch, still until the step is done
            assert_same(first, teachers[step])
        elif step:
            assert_same(first, teachers[step - 1])
    assert method.teacher.steps == 4


MOVERS = {
    "before": lambda: EMATeacher(timing="before_step", decay=0.99),
    "after": lambda: EMATeacher(timing="after_step", decay=0.99),
    "deep": lambda: FutureTeacher(depth=2, decay=0.99),
    "wide": lambda: FutureTeacher(depth=0, width=2, decay=0.99),
    "strict": lambda: FutureTeacher(depth=2, rewind="everything", decay=0.99),
    "semi": lambda: FutureTeacher(depth=2, order="semi", decay=0.99, copy_epochs=1),
}


@pytest.mark.parametrize("mover", MOVERS)
def test_resume_continues_teacher_and_ramp(mover: str, tmp_path: Path) -> None:
    def run(ckpt: str | None = None) -> ToyMethod:
        torch.manual_seed(0)
        method = ToyMethod(optim={**SGD, "options": {"momentum": 0.9}})
        save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        trainer = toy_trainer(max_steps=6, callbacks=[MOVERS[mover](), save], enable_checkpointing=True)
        trainer.fit(method, toy_loader(2, future=2), ckpt_path=ckpt)
        return method

    straight = run()
    resumed = run(str(tmp_path / "step=4.ckpt"))
    assert resumed.teacher.steps == straight.teacher.steps >= 6
    assert_same(weights(resumed.teacher), weights(straight.teacher), rtol=0, atol=0)
    assert_same(weights(resumed.student), weights(straight.student), rtol=0, atol=0)


def test_a_fresh_copy_teacher_starts_where_the_student_stands() -> None:
    method = ToyMethod()
    with torch.no_grad():
        method.student[0].weight.add_(1.0)  # as a checkpoint loaded after construction does
    expected = weights(method.student)
    record = Record()
    toy_trainer(max_steps=1, callbacks=[record]).fit(method, toy_loader(1))
    assert_same(record.teacher[0], expected, rtol=0, atol=0)


def test_independent_teachers_keep_their_start() -> None:
    method = ToyMethod()
    method.teacher = Teacher(mlp(), init="independent")
    expected = weights(method.teacher)
    record = Record()
    toy_trainer(max_steps=1, callbacks=[record]).fit(method, toy_loader(1))
    assert_same(record.teacher[0], expected, rtol=0, atol=0)


def test_bfloat16_mixed_precision_keeps_a_float32_teacher() -> None:
    torch.manual_seed(0)
    method, record = ToyMethod(), Record()
    toy_trainer(max_steps=3, precision="bf16-mixed", callbacks=[EMATeacher(decay=0.9), record]).fit(
        method, toy_loader(3)
    )
    expected = lerp(record.teacher[1], record.student[1], min(1 - 1 / 3, 0.9))
    assert_same(record.teacher[2], expected)
    assert method.teacher.network[0].weight.dtype == torch.float32


class TwoTeachers(ToyMethod):
    def __init__(self) -> None:
        super().__init__()
        self.slow = Teacher(self.student)

    def default_callbacks(self) -> list:
        return [EMATeacher(decay=0.5), EMATeacher("slow", decay=0.9, schedule="constant")]


def test_two_teachers_move_each_by_its_own_rule() -> None:
    torch.manual_seed(0)
    method = TwoTeachers()
    start = weights(method.student)
    trainer = toy_trainer(max_steps=2)
    record = Record()
    trainer.callbacks.append(record)
    trainer.fit(method, toy_loader(2))
    after_first = record.student[0]
    assert_same(weights(method.teacher), lerp(start, after_first, 0.5))
    assert_same(weights(method.slow), lerp(start, after_first, 0.9))


def test_defaults_are_added_only_where_the_user_gave_none() -> None:
    method, mine = TwoTeachers(), EMATeacher("slow", decay=0.123)
    trainer = toy_trainer(max_steps=1, callbacks=[mine])
    trainer.fit(method, toy_loader(1))
    moved = {
        callback.teacher: callback.decay for callback in trainer.callbacks if isinstance(callback, EMATeacher)
    }
    assert moved == {"teacher": 0.5, "slow": 0.123}
    assert mine in trainer.callbacks
    # a look-ahead of the same teacher replaces the plain EMA, one of another teacher does not
    trainer = toy_trainer(max_steps=1, callbacks=[FutureTeacher(depth=1)])
    trainer.fit(TwoTeachers(), toy_loader(1))
    kinds = sorted((type(c).__name__, c.teacher) for c in trainer.callbacks if isinstance(c, EMATeacher))
    assert kinds == [("EMATeacher", "slow"), ("FutureTeacher", "teacher")]


def test_teachers_run_before_labellers_whatever_the_order() -> None:
    trainer = toy_trainer(max_steps=1, callbacks=[PseudoLabeler(mix=NoMix()), EMATeacher()])
    trainer.fit(ToyMethod(), toy_loader(1))
    order = [type(c).__name__ for c in trainer.callbacks if isinstance(c, PseudoLabeler | EMATeacher)]
    assert order == ["EMATeacher", "PseudoLabeler"]


def test_a_teacher_nobody_moves_is_refused() -> None:
    class Forgotten(ToyMethod):
        def default_callbacks(self) -> list:
            return []

    with pytest.raises(
        MisconfigurationException, match=r"declares the teacher 'teacher' but no callback moves it"
    ):
        toy_trainer(max_steps=1).fit(Forgotten(), toy_loader(1))


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"decay": 1.0, "schedule": "constant"}, "lower its decay"),
        ({"timing": "manual"}, r"call teacher.update\(student, decay\)"),
    ],
)
def test_a_teacher_that_never_moved_is_an_error(options: dict, remedy: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"did not move in 3 optimiser steps.*{remedy}"):
        toy_trainer(max_steps=3, callbacks=[EMATeacher(**options)]).fit(ToyMethod(), toy_loader(3))


def test_a_manual_teacher_is_moved_by_its_method() -> None:
    class Manual(ToyMethod):
        def default_callbacks(self) -> list:
            return [EMATeacher(timing="manual")]

        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            self.teacher.update(self.student, 0.9)
            return super().losses(batch)

    torch.manual_seed(0)
    method, record = Manual(), Record()
    toy_trainer(max_steps=3, callbacks=[record]).fit(method, toy_loader(3))
    assert_same(record.teacher[2], lerp(record.teacher[1], record.student[1], 0.9))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (1, "teacher 'teacher' became nan or inf in step 1 "),
        (2, "teacher 'teacher' holds nan or inf at step 2.*lower optim.lr"),  # nobody looks at it any more
    ],
)
def test_a_teacher_that_went_non_finite_is_an_error(after: int, message: str) -> None:
    class Poison(Record):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == after:
                with torch.no_grad():
                    pl_module.teacher.network[0].bias[0] = float("nan")

    with pytest.raises(FloatingPointError, match=message):
        toy_trainer(max_steps=2, callbacks=[EMATeacher(decay=1.0), Poison()]).fit(ToyMethod(), toy_loader(4))


def test_a_loss_that_is_nan_names_its_term() -> None:
    class Broken(ToyMethod):
        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            losses = super().losses(batch)
            return {**losses, "target": losses["target"] * (float("nan") if self.global_step == 2 else 1.0)}

    with pytest.raises(FloatingPointError, match=r"loss 'target' became nan or inf in step 2 "):
        toy_trainer(max_steps=20, log_every_n_steps=5).fit(Broken(), toy_loader(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing": "sometimes"}, "timing='sometimes'"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"decay": 1.5}, "decay 1.5 is not within"),
        ({"schedule": "epochs"}, "belong together"),
        ({"schedule": "epochs", "epoch_decays": {3: 0.9}}, "from epoch 0 on"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        EMATeacher(**options)


def test_unknown_parts_are_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"teacher='tutor'.*has no such part"):
        toy_trainer(max_steps=1, callbacks=[EMATeacher(), EMATeacher("tutor")]).fit(
            ToyMethod(), toy_loader(1)
        )
    with pytest.raises(MisconfigurationException, match="that is a Sequential, not a Teacher"):
        toy_trainer(max_steps=1, callbacks=[EMATeacher(), EMATeacher("student")]).fit(
            ToyMethod(), toy_loader(1)
        )


def test_hyper_parameters_are_plain_and_restore_the_method(tmp_path: Path) -> None:
    from zoo.optim import Optim

    method = ToyMethod(batch_norm=True, optim=Optim(**{**SGD, "lr": 0.25}))
    trainer = toy_trainer(max_steps=2)
    trainer.fit(method, toy_loader(2))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    torch.load(tmp_path / "run.ckpt", weights_only=True)
    restored = ToyMethod.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu")
    assert restored.optim.lr == 0.25
    assert restored.teacher.steps == 2
    before = copy.deepcopy(method.state_dict())
    for name, tensor in restored.state_dict().items():
        assert torch.equal(tensor, before[name]), name
