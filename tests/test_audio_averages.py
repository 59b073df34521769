"""Averaged weights, plateaus and the scores of audio fine-tuning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import EpochAverage, ReduceOnPlateau
from tests.test_audio_methods import FAST, Tones, classifier, trainer
from zoo.methods.audio.scores import ClipScores
from zoo.optim_schedule import OptimSchedule

# -- averages, plateaus, metrics ----------------------------------------------------------------------------------


class Recorder(L.Callback):
    """Weights of one tensor at the ends of epochs, and what validation saw."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.is_last_batch:
            self.trained.append(pl_module.student.head[1].weight.detach().clone())

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if args[1] == 0:
            self.validated.append(pl_module.student.head[1].weight.detach().clone())


def test_weights_are_averaged_over_epochs(tmp_path: Path) -> None:
    recorder, method = Recorder(), classifier()
    run = trainer(tmp_path, max_epochs=4, callbacks=[recorder, EpochAverage(first=2, last=3)])
    run.fit(method, datamodule=Tones())
    trained, mean = recorder.trained, torch.stack(recorder.trained[1:3]).mean(0)
    assert torch.equal(recorder.validated[0], trained[0])
    torch.testing.assert_close(recorder.validated[1], trained[1])
    torch.testing.assert_close(recorder.validated[2], mean)
    torch.testing.assert_close(method.student.head[1].weight.detach(), mean)
    assert not torch.allclose(trained[3], mean)


def test_an_average_survives_a_stop(tmp_path: Path) -> None:
    whole, stopped, resumed = classifier(), classifier(), classifier()
    trainer(max_epochs=3, callbacks=[EpochAverage(first=1)]).fit(whole, datamodule=Tones())
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[EpochAverage(first=1)])
    run.fit(stopped, datamodule=Tones())
    path = next(tmp_path.rglob("*.ckpt"))
    trainer(tmp_path, max_epochs=3, callbacks=[EpochAverage(first=1)]).fit(
        resumed, datamodule=Tones(), ckpt_path=path
    )
    torch.testing.assert_close(
        resumed.student.head[1].weight, whole.student.head[1].weight, rtol=1e-4, atol=1e-6
    )


def test_an_average_of_nothing_is_said() -> None:
    with pytest.warns(UserWarning, match=r"EpochAverage\(first=6\) averaged nothing"):
        trainer(max_epochs=1, callbacks=[EpochAverage()]).fit(classifier(), datamodule=Tones())
    with pytest.raises(ValueError, match="no range of epochs"):
        EpochAverage(first=3, last=2)


@pytest.mark.parametrize(("mode", "offset"), [("max", 0.0), ("min", 0.0), ("max", -0.5), ("min", -1.5)])
def test_rates_fall_on_a_plateau_as_torchs_do(mode: Any, offset: float) -> None:
    """Of metrics below 0, too."""
    values = [0.1, 0.2, 0.2, 0.20001, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.31]
    values = [offset + (value if mode == "max" else 1 - value) for value in values]
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3) for _ in range(2))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, mode=mode, factor=0.5, patience=2)
    callback, schedule = ReduceOnPlateau("val/loss", mode), OptimSchedule(ours, FAST, 10)
    run: Any = SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={},
        lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)],
    )
    method: Any = None
    for value in values:
        run.callback_metrics["val/loss"] = torch.tensor(value)
        callback.on_validation_end(run, method)
        plateau.step(value)
        schedule.optimizer.step()
        schedule.step()
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
    assert (schedule.scale < 1) == (offset == 0)  # below 0 torch takes an equal value for a better one
    restored = ReduceOnPlateau("val/loss", mode)
    restored.load_state_dict(callback.state_dict())
    assert (restored.best, restored.waited) == (callback.best, callback.waited)
    again = OptimSchedule(ours, FAST, 10)
    again.load_state_dict(schedule.state_dict())
    assert again.scale == schedule.scale
    with pytest.raises(
        MisconfigurationException, match=r"ReduceOnPlateau\(monitor='val/x'\): validation logs val/loss"
    ):
        ReduceOnPlateau("val/x").on_validation_end(run, method)
    with pytest.raises(ValueError, match=r"factor=2 within \(0, 1\)"):
        ReduceOnPlateau("val/x", factor=2)


def test_classes_that_nobody_has_do_not_count() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.5], [0.3, 0.8, 0.1], [0.6, 0.7, 0.2], [0.2, 0.1, 0.3]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    metric = ClipScores()
    metric.update(scores, targets)
    result = metric.compute()
    assert result["mAP"] == 100
    assert result["EER"] == 0
    # the third clip has classes 0 and 1 and scores 1 highest: only the first counts, as released
    assert result["accuracy"] == 50
    with pytest.raises(
        ValueError, match=r"scores \[4, 3\] and labels \[4, 2\] differ: set model\.num_classes"
    ):
        metric.update(scores, targets[:, :2])
    empty = ClipScores()
    empty.update(scores, torch.zeros(4, 3))
    assert empty.compute()["mAP"].isnan()
