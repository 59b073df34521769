"""Monitors: right numbers, on the steps that the logger writes, at no cost on others, and without touching training."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.classification import multiclass_calibration_error

from callbacks import NoMonitors, PseudoLabeler, PseudoLabelMonitor, TeacherDistance, Throughput
from callbacks.collapse import CollapseMonitor
from callbacks.pseudo_labels import label_sums
from callbacks.teacher_distance import TeacherDistance as Distance
from datamodules import Optdigits, StreetShift, StreetShiftSemi
from tests import tiny
from tests.toy import ToyMethod, mlp, toy_loader, toy_trainer
from zoo import DINO, FST, SelfTraining, SemiMeanTeacher
from zoo.nn import MultiCrop
from zoo.nn.calibration import calibration_error, calibration_sums, counts
from zoo.optim import Optim
from zoo.teacher import Teacher

SMALL: dict[str, Any] = {"backbone": "street_cnn", "optim": Optim(lr=1e-3, schedule="constant")}
STREET_FST = {**SMALL, "ignore_top": 0, "ignore_bottom": 0, "feature_distance": 0.0}


def dino() -> DINO:
    return DINO(
        "vit_tiny_patch16_224",
        backbone_args={"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
        prototypes=16,
        head_args={"hidden_dim": 16, "bottleneck_dim": 8},
        optim=Optim(lr=1e-3, schedule="constant"),
    )


def digits() -> Optdigits:
    views = MultiCrop(global_size=16, local_size=8, num_local=2)
    return Optdigits(batch_size=8, image_size=16, views=views, num_train=64)


RUNS: dict[str, tuple[Any, Any]] = {
    "self-training": (lambda: SelfTraining(**SMALL), lambda: StreetShift(**tiny.STREETSHIFT)),
    "fst": (lambda: FST(depth=2, **STREET_FST), lambda: StreetShift(**tiny.STREETSHIFT)),
    "semi": (lambda: SemiMeanTeacher(**SMALL), lambda: StreetShiftSemi(**tiny.STREETSHIFT_SEMI)),
    "dino": (dino, digits),
}


def fit(name: str, *callbacks: Callback, steps: int = 4, every: int = 1, **options: Any) -> Any:
    L.seed_everything(0, verbose=False)
    build, data = RUNS[name]
    method = build()
    trainer = toy_trainer(
        max_steps=steps, limit_val_batches=0, log_every_n_steps=every, callbacks=list(callbacks), **options
    )
    trainer.fit(method, datamodule=data())
    return method


def measured(method: Any) -> dict[str, float]:
    return {key: float(value) for key, value in method.trainer.callback_metrics.items()}


# -- what they measure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_defaults_watch_what_there_is_and_change_no_bit(name: str) -> None:
    each_step = [CollapseMonitor(every_n_steps=1)] if name == "dino" else []
    watched, plain = fit(name, *each_step), fit(name, NoMonitors())
    for key, value in watched.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
    found, without = measured(watched), measured(plain)
    expected = {"perf/samples_per_s", "perf/step_ms", "perf/data_wait", "teacher/distance"}
    if name == "dino":
        expected |= {"train/feature_spread", "train/feature_rank"}
    else:
        expected |= {"pseudo/coverage", "pseudo/confidence", "pseudo/share_road", "pseudo/accuracy"}
        expected |= {"pseudo/accuracy_trusted", "pseudo/calibration_error"}
    assert not expected - set(found)
    assert not expected & set(without)
    assert all(np.isfinite(found[key]) for key in expected - {"pseudo/accuracy_trusted"})


def test_numbers_of_pseudo_labels() -> None:
    rng = torch.Generator().manual_seed(0)
    probability = torch.randn(2, 4, 8, 8, generator=rng).mul(2).softmax(1)
    confidence, label = probability.max(1)
    truth = torch.randint(0, 4, label.shape, generator=rng)
    truth[:, 0] = 255
    part = {"pseudo_label": label, "pseudo_weight": (confidence > 0.7).float(), "confidence": confidence}
    sums = label_sums(part, 4, truth)
    assert sums[:3].tolist() == pytest.approx(
        [128, (confidence > 0.7).sum().item(), confidence.sum().item()], rel=1e-6
    )
    assert sums[3:7].tolist() == label.flatten().bincount(minlength=4).tolist()
    valid, right = truth != 255, truth == label
    trusted = confidence > 0.7
    assert sums[7:11].tolist() == [
        112, right.sum().item(), (trusted & valid).sum().item(), (trusted & right).sum().item()
    ]  # fmt: skip
    flat = probability.permute(0, 2, 3, 1)[valid]
    expected = multiclass_calibration_error(flat, truth[valid], 4, n_bins=15, norm="l1")
    assert calibration_error(sums[11:].view(3, 15)).item() == pytest.approx(expected.item(), rel=1e-5)
    halves = [label_sums({k: v[i : i + 1] for k, v in part.items()}, 4, truth[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(halves[0] + halves[1], sums)  # what ranks add up
    assert len(label_sums(part, 4, None)) == len(label_sums(part, 4, truth[:, 1:])) == 7  # no truth, no claim


def test_bins_of_confidence() -> None:
    sums = calibration_sums(
        torch.tensor([0.0, 0.5, 0.51, 1.0]), torch.ones(4).bool(), torch.ones(4).bool(), 2
    )
    assert sums[0].tolist() == [2, 2]
    assert counts(torch.tensor([-1, 0, 3, 255]), 4).tolist() == [1, 0, 0, 1]


def test_distance_of_a_teacher() -> None:
    student = mlp()
    teacher = Teacher(student)
    assert teacher.distance(student).item() == 0
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(2)
    assert teacher.distance(student).item() == pytest.approx(0.5)


def test_accuracy_is_that_of_the_labels_and_windows_which_are_trained_on() -> None:
    """A labeller that knows the answer is right everywhere: truth and images are cropped and mirrored alike."""
    data = StreetShift(**{**tiny.STREETSHIFT, "crop": (24, 40)})

    class Omniscient(torch.nn.Module):
        def forward(self, method: Any, image: Tensor) -> Tensor:
            truth = method.trainer.datamodule.truth
            return 9.0 * torch.nn.functional.one_hot(truth, 19).movedim(-1, 1)

    class Seen(Callback):
        step_order = 1000
        same: list[bool] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            for image, truth, index in zip(*(batch["target"][k] for k in ("image",)), data.truth,
                                           batch["target"]["index"].tolist(), strict=True):  # fmt: skip
                whole, label = data.datasets["train"].domains["target"].load(index)
                windows = [
                    (w[:, y : y + 24, x : x + 40], m[y : y + 24, x : x + 40])
                    for w, m in ((whole, label), (whole.flip(-1), label.flip(-1)))
                    for y in range(9) for x in range(25)
                ]  # fmt: skip
                pixels = (image * 255).round().byte()
                hits = [m for w, m in windows if torch.equal(w, pixels)]
                self.same.append(any(torch.equal(m.long(), truth) for m in hits))

    L.seed_everything(0, verbose=False)
    method = SelfTraining(**SMALL)
    labeler = PseudoLabeler(predict=Omniscient())
    trainer = toy_trainer(max_steps=2, limit_val_batches=0, log_every_n_steps=1, callbacks=[labeler, Seen()])
    trainer.fit(method, datamodule=data)
    assert Seen.same == [True] * 4
    assert measured(method)["pseudo/accuracy"] == 1.0
    assert measured(method)["pseudo/calibration_error"] < 0.01


# -- nobody sees the truth ------------------------------------------------------------------------------


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("name", "options"), [("self-training", {}), ("fst", {"depth": 0, "width": 2}), ("semi", {})]
)
def test_truth_never_reaches_a_batch(
    name: str, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, data = RUNS[name]
    if options:
        build = lambda: FST(**STREET_FST, **options)  # noqa: E731
        monkeypatch.setitem(RUNS, name, (build, data))
    seen: list[set[str]] = []
    kind = type(build())
    losses, label = kind.losses, PseudoLabeler.label

    def recorded(self: Any, batch: Any) -> Any:
        seen.append(keys_of(batch))
        return losses(self, batch)

    def labelled(self: Any, method: Any, batch: Any) -> Any:
        seen.append(keys_of(batch))
        return label(self, method, batch)

    monkeypatch.setattr(kind, "losses", recorded)
    monkeypatch.setattr(PseudoLabeler, "label", labelled)
    method = fit(name, steps=3)
    assert len(seen) >= 6
    assert not any("truth" in keys for keys in seen)
    assert method.trainer.datamodule.truth.shape == (2, 32, 64)
    part = "unlabelled" if name == "semi" else "target"
    draw = method.trainer.datamodule.datasets["train"][0]
    assert "label" not in draw[part]


def test_truth_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws() -> list[Tensor]:
        data = StreetShift(**{**tiny.STREETSHIFT, "crop": (16, 16), "seed": 3})
        data.prepare_data()
        data.setup("fit")
        return [data.datasets["train"][k]["target"]["image"] for k in range(6)]

    known = draws()
    monkeypatch.setattr(StreetShift, "keeps_truth", False)
    assert all(torch.equal(a, b) for a, b in zip(known, draws(), strict=True))


# -- when they look -------------------------------------------------------------------------------------


class Counts(Callback):
    """ATen calls between the first and the last callback of each step."""

    def __init__(self, order: int, other: Counts | None = None) -> None:
        self.step_order, self.other = order, other
        self.calls: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if self.other is None:
            self.mode = Dispatches()
            self.mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.other is not None:
            self.other.mode.__exit__(None, None, None)
            self.calls.append(self.other.mode.calls)


class Dispatches(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RUNS)
def test_steps_without_logs_have_the_very_calls_of_a_run_without_monitors(name: str) -> None:
    """So they neither compute nor wait for the device there."""
    calls = []
    for off in ([], [NoMonitors()]):
        first = Counts(-10)
        last = Counts(10_000, first)
        fit(name, first, last, *off, steps=6, every=3)
        calls.append(last.calls)
    watched, plain = calls
    assert len(watched) == len(plain) == 6
    quiet = [0, 1, 3, 4]
    # what depends on the draws of a step (jitter, blur) is drawn alike in both
    assert [watched[i] for i in quiet] == [plain[i] for i in quiet]
    assert all(watched[i] > plain[i] for i in (2, 5))


def test_sums_are_made_without_waiting_for_the_device() -> None:
    with FakeTensorMode():
        label = torch.zeros(2, 8, 8, dtype=torch.long)
        part = {
            "pseudo_label": label,
            "pseudo_weight": torch.rand(2, 8, 8),
            "confidence": torch.rand(2, 8, 8),
        }
        assert label_sums(part, 4, label).shape == (11 + 45,)
        assert Teacher(mlp(), init="independent").distance(mlp()).shape == ()


def test_look_aheads_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    annotate = PseudoLabeler.annotate

    def recorded(self: Any, method: Any, batch: Any) -> Any:
        part = annotate(self, method, batch)
        kept.append("confidence" in part)
        return part

    monkeypatch.setattr(PseudoLabeler, "annotate", recorded)
    fit("fst", steps=3)
    assert kept == [True, False, False, True, False, False, True]  # depth 2 from the second step on


def test_monitors_look_once_per_optimiser_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(
        Distance, "look", lambda self, trainer, method, batch: steps.append(trainer.global_step)
    )
    trainer = toy_trainer(
        max_steps=4, callbacks=[TeacherDistance()], accumulate_grad_batches=3, log_every_n_steps=2
    )
    trainer.fit(ToyMethod(), toy_loader(12))
    assert steps == [2, 4]


def test_collapse_is_looked_for_once_in_so_many_steps_wherever_a_run_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    monkeypatch.setattr("callbacks.collapse.features_of", lambda method, image: looks.append(len(image)) or {
        "features": torch.randn(len(image), 4)
    })  # fmt: skip
    monitor = CollapseMonitor(every_n_steps=10, max_samples=5)
    method = ToyMethod()
    monkeypatch.setattr(method, "log_dict", lambda *_: None)
    trainer: Any = type("At", (), {"log_every_n_steps": 4, "global_step": 0})()
    seen = []
    for trainer.global_step in range(4, 44, 4):
        before = len(looks)
        monitor.look(trainer, method, {"image": torch.rand(8, 3)})
        seen += [trainer.global_step] * (len(looks) - before)
    assert seen == [12, 20, 32, 40]
    assert set(looks) == {5}


def test_throughput_counts_waiting_apart_from_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def tick(seconds: float) -> None:
        clock["now"] += seconds

    monkeypatch.setattr("callbacks.throughput.perf_counter", lambda: clock["now"])
    method = ToyMethod()
    values: dict[str, float] = {}
    monkeypatch.setattr(method, "log_dict", values.update)
    monkeypatch.setattr(method, "writes_logs", lambda: trainer.global_step % 2 == 0)
    trainer: Any = type(
        "T", (), {"global_step": 0, "world_size": 1, "datamodule": StreetShift(batch_size=4)}
    )()
    monitor = Throughput()
    monitor.on_train_start(trainer, method)
    for step in range(2):
        tick(1.0)  # the loader
        method.batch_arrived = clock["now"]
        tick(0.5)  # transfer and augmentation
        monitor.on_train_batch_start(trainer, method, None, step)
        tick(2.5)
        trainer.global_step += 1
        monitor.on_train_batch_end(trainer, method, None, None, step)
        if step == 0:
            monitor.on_validation_start(trainer, method)
            tick(100.0)
            monitor.on_validation_end(trainer, method)
    assert values == {"perf/step_ms": 4000.0, "perf/data_wait": 0.25, "perf/samples_per_s": 1.0}


# -- what they say --------------------------------------------------------------------------------------


def test_labels_of_one_class_are_told_once_they_last() -> None:
    monitor = PseudoLabelMonitor(patience=2)
    share, names = torch.tensor([0.995, 0.005]), ["road", "car"]
    monitor._warn(1, share, names)
    monitor._warn(2, torch.tensor([0.5, 0.5]), names)
    monitor._warn(3, share, names)
    with pytest.warns(
        UserWarning, match=r"Step 4: 99\.5 % of the pseudo-labels are 'road'.*start labelling later"
    ):
        monitor._warn(4, share, names)
    with pytest.raises(ValueError, match="max_share must be within"):
        PseudoLabelMonitor(max_share=0)


def test_single_monitors_can_be_switched_off() -> None:
    found = measured(fit("self-training", NoMonitors(["pseudo_labels", "batch_preview"]), steps=2))
    assert "teacher/distance" in found
    assert not any(key.startswith("pseudo/") for key in found)
    with pytest.raises(ValueError, match="no monitor 'speed', only throughput"):
        NoMonitors(["speed"])
