"""The progress bar: what it says, how seldom it reads, and that it is quiet where nobody watches."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
import pytest

from callbacks.progress import RunProgress
from tests.cli_toy import CLIData, CLIMethod, zoo_run


def trained(progress: RunProgress, steps: int = 6) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, log_every_n_steps=1,
        enable_model_summary=False, val_check_interval=2, check_val_every_n_epoch=None, callbacks=[progress],
    )  # fmt: skip
    trainer.fit(CLIMethod(), datamodule=CLIData(4))
    return trainer


def test_a_line_a_validation_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    trained(RunProgress())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]
    told = r"step 6/6: loss [\d.e-]+, score -2 \(best 0\), [\d.e+]+ samples/s, 0:00:00 left"
    assert re.fullmatch(told, lines[-1]), lines[-1]


def test_bar_tells_loss_metric_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    trained(RunProgress(refresh=1e-9, interactive=True))
    said = capsys.readouterr().err
    assert not [line for line in said.splitlines() if line.startswith("step ")]
    last = said.rstrip().rpartition("\r")[2]
    for part in ("100%", "6/6", "loss ", "score -2 (best 0)", "left"):
        assert part in last
    assert "samples/s" in said


def test_nothing_is_read_between_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    facts = RunProgress.facts

    def counted(self: RunProgress, *args: Any) -> list[str]:
        calls.append(1)
        return facts(self, *args)

    monkeypatch.setattr(RunProgress, "facts", counted)
    trained(RunProgress(refresh=1e6, interactive=True))
    assert len(calls) == 3 + 1  # validations and the end, no step


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunProgress(interactive=True)
    progress.disable()
    trained(progress)
    assert "loss" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="refresh must be positive"):
        RunProgress(refresh=0)


def test_command_line_uses_it_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--trainer.enable_progress_bar", "true", steps=4) == 0
    assert "step 4/4: " in capsys.readouterr().err
    assert zoo_run("fit", steps=4) == 0  # the toy's options switch it off
    assert "step 4/4" not in capsys.readouterr().err
