"""The look-ahead against written-out loops, and what it must leave untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import EMATeacher, FutureTeacher
from tests.test_ema_teacher import assert_same
from tests.toy import Record, ToyMethod, toy_batch, toy_loader, toy_trainer, weights
from zoo.optim import Optim

ADAMW = Optim("adamw", lr=0.05, weight_decay=0.1, schedule="constant")


class Reference:
    """Section 3 of the card, line by line, on the toy method."""

    def __init__(self, optim: Optim, alpha: float, **method: Any) -> None:
        torch.manual_seed(0)
        self.method = ToyMethod(optim=optim, **method)
        self.method.train()
        cls = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optim.name]
        self.optimizer = cls(
            self.method.student.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, **optim.options
        )
        self.alpha, self.c = alpha, 0
        self.log: list[tuple[list[Tensor], list[Tensor]]] = []

    def run(self, batch: dict[str, Any], lr_scale: float = 1.0) -> None:
        self.optimizer.zero_grad()
        sum(self.method.losses(batch).values()).backward()
        self.c += 1
        group = self.optimizer.param_groups[0]
        rate = group["lr"]
        group["lr"] = rate * lr_scale
        self.optimizer.step()
        group["lr"] = rate

    def ema(self, source: list[Tensor]) -> None:
        a = min(1 - 1 / (self.c + 1), self.alpha)
        with torch.no_grad():
            for phi, w in zip(self.method.teacher.parameters(), source, strict=True):
                phi.copy_(a * phi + (1 - a) * w)

    def put(self, kept: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.method.student.parameters(), kept, strict=True):
                parameter.copy_(value)

    def theta(self) -> list[Tensor]:
        return weights(self.method.student)

    def note(self) -> None:
        self.log.append((self.theta(), weights(self.method.teacher)))

    def deep(self, batches: list, depth: int, lr_scale: float = 1.0) -> None:
        for i, batch in enumerate(batches):
            if i == 0:
                self.run(batch)
                self.ema(self.theta())
            else:
                kept = self.theta()
                for _ in range(depth):
                    self.ema(self.theta())
                    self.run(batch, lr_scale)
                self.ema(self.theta())
                self.put(kept)
                self.run(batch)
            self.note()

    def wide(self, batches: list, width: int) -> None:
        for i, batch in enumerate(batches):
            if i == 0:
                self.run(batch)
                self.ema(self.theta())
            else:
                kept, total = self.theta(), None
                for j, future in enumerate(batch["future"]):
                    if j:
                        self.put(kept)
                    self.run(future)
                    total = (
                        self.theta()
                        if total is None
                        else [s + w for s, w in zip(total, self.theta(), strict=True)]
                    )
                self.ema([s / width for s in total])
                self.put(kept)
                self.run(batch)
                self.ema(self.theta())
            self.note()


def fit(
    callback: Callback, optim: Optim, loader: Any, steps: int = 4, **kwargs: Any
) -> tuple[ToyMethod, Record, Any]:
    torch.manual_seed(0)
    method, record = ToyMethod(optim=optim, **kwargs.pop("method", {})), Record()
    trainer = toy_trainer(max_steps=steps, callbacks=[callback, record], **kwargs)
    trainer.fit(method, loader)
    return method, record, trainer


def assert_follows(record: Record, reference: Reference, **tolerance: Any) -> None:
    assert len(record.student) == len(reference.log)
    for step, (student, teacher) in enumerate(reference.log):
        assert_same(record.student[step], student, **tolerance)
        assert_same(record.teacher[step], teacher, **tolerance)


OPTIMS = [Optim("sgd", lr=0.1, weight_decay=0.01, options={"momentum": 0.9}, schedule="constant"), ADAMW]


@pytest.mark.parametrize("optim", OPTIMS, ids=["sgd", "adamw"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_deep(optim: Optim, depth: int, batch_norm: bool) -> None:
    reference = Reference(optim, 0.9, batch_norm=batch_norm)
    reference.deep([toy_batch(i) for i in range(4)], depth)
    method, record, trainer = fit(
        FutureTeacher(depth=depth, decay=0.9), optim, toy_loader(4), method={"batch_norm": batch_norm}
    )
    assert_follows(record, reference)
    assert method.teacher.steps == reference.c == 1 + 3 * (depth + 1)
    assert trainer.global_step == 4
    if batch_norm:  # statistics keep what the virtual forwards did to them, in both networks
        ours, theirs = method.student[1], reference.method.student[1]
        assert ours.num_batches_tracked == theirs.num_batches_tracked == 2 * (1 + 3 * (depth + 1))
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)


@pytest.mark.parametrize("optim", OPTIMS, ids=["sgd", "adamw"])
@pytest.mark.parametrize("width", [1, 3])
def test_wide(optim: Optim, width: int) -> None:
    reference = Reference(optim, 0.9)
    reference.wide(list(toy_loader(4, future=width).dataset), width)
    method, record, _ = fit(
        FutureTeacher(depth=0, width=width, decay=0.9), optim, toy_loader(4, future=width)
    )
    assert_follows(record, reference)
    assert method.teacher.steps == reference.c == 1 + 3 * (width + 1)


def test_look_ahead_rate() -> None:
    reference = Reference(ADAMW, 0.9)
    reference.deep([toy_batch(i) for i in range(4)], 2, lr_scale=0.3)
    _, record, _ = fit(FutureTeacher(depth=2, decay=0.9, lr_scale=0.3), ADAMW, toy_loader(4))
    assert_follows(record, reference)


@pytest.mark.parametrize("order", ["uda", "semi"])
def test_depth_zero_is_the_mean_teacher_bit_for_bit(order: str) -> None:
    timing = {"uda": "before_step", "semi": "after_step"}[order]
    _, plain, _ = fit(EMATeacher(timing=timing, decay=0.9), ADAMW, toy_loader(5), 5)
    _, zero, _ = fit(FutureTeacher(depth=0, order=order, decay=0.9), ADAMW, toy_loader(5), 5)
    for step in range(5):
        assert_same(zero.student[step], plain.student[step], rtol=0, atol=0)
        assert_same(zero.teacher[step], plain.teacher[step], rtol=0, atol=0)


class Snapshot(Callback):
    """What the student, its buffers and the optimiser were before and after the look-ahead of each step."""

    def __init__(self, order: int) -> None:
        self.step_order, self.seen = order, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        state = trainer.optimizers[0].state
        self.seen.append(
            copy.deepcopy(
                {
                    "parameters": [p.detach() for p in pl_module.student.parameters()],
                    "buffers": list(pl_module.student.buffers()) + list(pl_module.teacher.network.buffers()),
                    "moments": [state[p]["exp_avg"] for p in pl_module.student.parameters() if p in state],
                    "moment_steps": [state[p]["step"] for p in pl_module.student.parameters() if p in state],
                    "teacher": [p.detach() for p in pl_module.teacher.parameters()],
                    "counter": [torch.tensor(pl_module.teacher.steps)],
                    "gradients": [torch.tensor(p.grad is None) for p in pl_module.student.parameters()],
                }
            )
        )


@pytest.mark.parametrize("rewind", ["parameters", "everything"])
@pytest.mark.parametrize("look", [{"depth": 2}, {"depth": 0, "width": 2}])
def test_what_is_rewound(rewind: str, look: dict) -> None:
    before, after = Snapshot(5), Snapshot(15)
    callback = FutureTeacher(rewind=rewind, decay=0.9, **look)
    trainer = toy_trainer(max_steps=3, callbacks=[callback, before, after])
    torch.manual_seed(0)
    trainer.fit(ToyMethod(batch_norm=True, optim=ADAMW), toy_loader(3, future=2))
    for step in (1, 2):
        old, new = before.seen[step], after.seen[step]

        def same(key: str, old: dict = old, new: dict = new) -> bool:
            assert len(old[key]) == len(new[key]) > 0
            return all(torch.equal(a, b) for a, b in zip(old[key], new[key], strict=True))

        assert same("parameters")  # bit for bit, always
        assert not same("teacher")  # the look-ahead is there to move it
        for key in ("buffers", "moments", "moment_steps", "counter"):
            assert same(key) is (rewind == "everything"), key
        assert all(new["gradients"])  # nothing of the virtual gradients is left


def test_every_trained_module_is_put_back() -> None:
    class WithHead(ToyMethod):
        def __init__(self) -> None:
            super().__init__(optim=ADAMW)
            self.head = nn.Linear(4, 4)

        def trained_modules(self) -> list[nn.Module]:
            return [self.student, self.head]

        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            losses = super().losses(batch)
            return {**losses, "head": self.head(self.student(batch["source"]["image"])).square().mean()}

    heads: list[Tensor] = []

    class Watch(Callback):
        def __init__(self, order: int) -> None:
            self.step_order = order

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            heads.append(pl_module.head.weight.detach().clone())

    toy_trainer(max_steps=3, callbacks=[FutureTeacher(depth=2), Watch(5), Watch(15)]).fit(
        WithHead(), toy_loader(3)
    )
    assert all(torch.equal(before, after) for before, after in zip(heads[::2], heads[1::2], strict=True))
    assert not torch.equal(heads[0], heads[-1])


def test_an_interrupted_look_ahead_leaves_the_real_student() -> None:
    class Fails(ToyMethod):
        runs = 0

        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            self.runs += 1
            if self.runs == 4:  # the second virtual run of the second iteration
                raise RuntimeError("out of memory")
            return super().losses(batch)

    method, record = Fails(optim=ADAMW), Record()
    places = [parameter.data_ptr() for parameter in method.student.parameters()]
    with pytest.raises(RuntimeError, match="out of memory"):
        toy_trainer(max_steps=3, callbacks=[FutureTeacher(depth=3), record]).fit(method, toy_loader(3))
    assert_same(weights(method.student), record.student[-1], rtol=0, atol=0)
    assert [parameter.data_ptr() for parameter in method.student.parameters()] == places


def test_everything_rewound_leaves_only_a_better_teacher() -> None:
    """A method whose loss ignores the teacher trains exactly as without look-ahead."""

    class Deaf(ToyMethod):
        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            return {"source": super().losses(batch)["source"]}

    def run(callback: Callback) -> list[Tensor]:
        torch.manual_seed(0)
        method = Deaf(batch_norm=True, optim=ADAMW)
        toy_trainer(max_steps=4, callbacks=[callback]).fit(method, toy_loader(4))
        return [*weights(method.student), *(buffer.clone() for buffer in method.student.buffers())]

    plain = run(EMATeacher(decay=0.9))
    assert_same(run(FutureTeacher(depth=2, decay=0.9, rewind="everything")), plain, rtol=0, atol=0)
    released = run(FutureTeacher(depth=2, decay=0.9))
    assert not torch.equal(released[0], plain[0])


def test_virtual_steps_never_count() -> None:
    class Logged(ToyMethod):
        def configure_optimizers(self) -> Any:
            self.rates: list[float] = []
            return super().configure_optimizers()

        def on_train_batch_end(self, *_: Any) -> None:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def run(callback: Callback) -> Logged:
        method = Logged(optim=Optim("sgd", lr=1.0, schedule="poly", weight_decay=0.0))
        trainer = toy_trainer(max_steps=4, callbacks=[callback])
        trainer.fit(method, toy_loader(4))
        assert trainer.global_step == 4
        assert trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer_steps == 4
        return method

    assert run(FutureTeacher(depth=3)).rates == run(EMATeacher()).rates == [0.75, 0.5, 0.25, 0.0]


def test_start_step_and_accumulation() -> None:
    method, _, trainer = fit(
        FutureTeacher(depth=2, start_step=2, decay=0.9), ADAMW, toy_loader(8), 4, accumulate_grad_batches=2
    )
    assert trainer.global_step == 4
    assert method.teacher.steps == 2 + 2 * 3  # two plain steps, then two with two virtual ones each


def test_accumulation_looks_ahead_once_on_the_first_micro_batch() -> None:
    reference = Reference(ADAMW, 0.9)
    for step in range(3):
        first, second = toy_batch(2 * step), toy_batch(2 * step + 1)
        if step:
            kept = reference.theta()
            reference.ema(reference.theta())
            reference.run(first)
            reference.ema(reference.theta())
            reference.put(kept)
        reference.optimizer.zero_grad()
        for batch in (first, second):
            (sum(reference.method.losses(batch).values()) / 2).backward()
        reference.optimizer.step()
        reference.c += 1
        if step == 0:
            reference.ema(reference.theta())
        reference.note()
    _, record, _ = fit(FutureTeacher(depth=1, decay=0.9), ADAMW, toy_loader(6), 3, accumulate_grad_batches=2)
    record.student, record.teacher = record.student[1::2], record.teacher[1::2]
    assert_follows(record, reference)


def test_clipping_applies_to_virtual_steps() -> None:
    norms: list[float] = []

    class Watched(ToyMethod):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
            norms.append(float(nn.utils.get_total_norm([p.grad for p in self.student.parameters()])))

    trainer = toy_trainer(max_steps=3, callbacks=[FutureTeacher(depth=2)], gradient_clip_val=1e-3)
    trainer.fit(Watched(), toy_loader(3))
    assert len(norms) == 1 + 2 * 3
    assert max(norms) == pytest.approx(1e-3, rel=1e-2)


def test_bfloat16() -> None:
    seen: list[torch.dtype] = []

    class Watched(ToyMethod):
        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            seen.append(self.student(batch["source"]["image"]).dtype)
            return super().losses(batch)

    trainer = toy_trainer(max_steps=3, callbacks=[FutureTeacher(depth=2)], precision="bf16-mixed")
    trainer.fit(Watched(), toy_loader(3))
    assert seen == [torch.bfloat16] * 7  # virtual forwards run in the trainer's precision too


def test_memory_is_one_copy_for_depth_and_two_for_width() -> None:
    for look, copies in [({"depth": 3}, 1), ({"depth": 0, "width": 1}, 1), ({"depth": 0, "width": 3}, 2)]:
        callback = FutureTeacher(**look)
        method, _, _ = fit(callback, ADAMW, toy_loader(3, future=look.get("width", 0)), 3)
        own = sum(p.numel() for p in method.student.parameters())
        assert sum(t.numel() for t in [*callback._virtual, *callback._soup]) == copies * own


def test_one_optimiser_step_costs_depth_plus_one_runs() -> None:
    calls = 0

    class Counted(ToyMethod):
        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            return super().losses(batch)

    toy_trainer(max_steps=5, callbacks=[FutureTeacher(depth=1)]).fit(Counted(), toy_loader(5))
    assert calls == 1 + 4 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1, "width": 1}, "not both"),
        ({"depth": -1}, "not both"),
        ({"order": "dual"}, "order is uda or semi"),
        ({"rewind": "nothing"}, "rewind parameters or everything"),
        ({"depth": 0, "width": 2, "order": "semi"}, "never released"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        FutureTeacher(**options)


def test_missing_future_batches() -> None:
    with pytest.raises(MisconfigurationException, match=r"needs 2 further batches.*found 0"):
        fit(FutureTeacher(depth=0, width=2), ADAMW, toy_loader(3), 3)
