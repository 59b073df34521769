"""Cross-validation by one command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli_toy import CLIData, CLIMethod, started_here, zoo_run
from zoo import series
from zoo.config_files import UsageError
from zoo.folds import best_step

#: Fold → score at each step. Each fold is best at another step; the mean is best at step 4.
CURVES = {1: [0.0, 70.0, 60.0], 2: [0.0, 20.0, 40.0], 3: [0.0, 30.0, 50.0]}


class FoldData(CLIData):
    """Three folds."""

    def __init__(self, fold: int = 1, held_out: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.fold, self.held_out = fold, held_out

    @property
    def validates_on_test(self) -> bool:
        return not self.held_out


class FoldMethod(CLIMethod):
    """Scores of a table, by fold and step; those of a test tell which checkpoint was tested."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        score = CURVES[self.trainer.datamodule.fold][self.global_step // 2]
        step, endless = float(self.global_step), math.inf if self.trainer.datamodule.fold == 2 else 1.0
        self.log_dict({"val/score": score, "val/step": step, "val/endless": endless}, batch_size=1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.loaded_step = checkpoint["global_step"]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        score = 100.0 * self.trainer.datamodule.fold + self.loaded_step
        self.log("test/score", score, batch_size=1)


class BlindMethod(FoldMethod):
    """Monitors nothing."""

    monitor = None


FOLDS = ["--model", "FoldMethod", "--data", "FoldData", "--trainer.val_check_interval", "2"]


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    return started_here(monkeypatch)


def summaries() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path("runs").rglob("folds-*.json"))]


def test_a_tested_fold_that_validates_is_read_where_the_mean_is_best(
    started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", *FOLDS, "--folds", "1", "2", "3", steps=4) == 0
    (found,) = summaries()
    assert (found["metric"], found["steps"]) == ("val/score", 4)
    assert {name: scores["val/score"] for name, scores in found["scores"].items()} == {
        "1": 60,
        "2": 40,
        "3": 50,
    }
    assert found["summary"]["val/score"] == {"mean": 50.0, "std": 10.0}
    assert found["summary"]["val/step"]["mean"] == 4.0
    assert "val/endless" not in found["summary"]  # infinite in a fold
    assert "| val/score | 50.00 ± 10.00 | 60.00 | 40.00 | 50.00 |" in capsys.readouterr().out
    assert [call[0] for call in started] == ["fit"] * 3  # nothing needs a test

    # Again: everything is there.
    assert zoo_run("fit", *FOLDS, "--folds", "1", "2", "3", steps=4) == 0
    assert len(started) == 3
    assert "50.00 ± 10.00" in capsys.readouterr().out


@pytest.mark.slow
def test_folds_with_validation_clips_of_their_own_are_tested_at_their_best(
    started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FOLDS, "--data.held_out", "true", "--folds", "1", "2", "--seeds", "0", "5"]
    assert zoo_run("fit", *command, steps=4) == 0
    first, second = summaries()  # one a seed
    assert first["steps"] is None
    # Fold 1 is best at step 2, fold 2 at step 4.
    assert {name: scores["test/score"] for name, scores in first["scores"].items()} == {
        "1": 102.0,
        "2": 204.0,
    }
    assert first["summary"]["test/score"]["mean"] == second["summary"]["test/score"]["mean"] == 153.0
    assert first["folders"]["1"].endswith("seed0")
    assert second["folders"]["1"].endswith("seed5")
    assert [call[0] for call in started].count("test") == 4
    assert zoo_run("fit", *command, steps=4) == 0
    assert len(started) == 8  # tests are not run again either


def test_no_mean_while_a_fold_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = series.start
    monkeypatch.setattr(
        series, "start", lambda argv: 1 if "2" in argv[argv.index("--data.fold") + 1] else run(argv)
    )
    assert zoo_run("fit", *FOLDS, "--folds", "1", "2", steps=2) == 1
    assert "no mean over folds: not finished: 2" in capsys.readouterr().err
    assert not summaries()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--folds"], "--folds needs one or more values, as in --folds 1 2 3 4 5"),
        (["--folds", "1"], "name two at least"),
        (["--folds", "1", "2", "--data.fold", "1"], "--data.fold and"),
        (["--folds", "1", "2", "--data", "CLIData"], "fold"),
    ],
)
def test_wrong_folds_are_one_line(
    options: list[str], complaint: str, started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", *FOLDS, *options, steps=1) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert "Traceback" not in told
    assert not started


def test_a_method_without_a_metric_has_no_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", *FOLDS, "--model", "BlindMethod", "--folds", "1", "2", steps=2) == 2
    assert "monitors no metric" in capsys.readouterr().err


def test_best_step() -> None:
    assert best_step([{2: 1.0, 4: 5.0, 6: 9.0}, {2: 6.0, 4: 4.0}], "max") == 4
    assert best_step([{2: 1.0, 4: 5.0}, {2: 6.0, 4: 4.0}], "min") == 2
    with pytest.raises(UsageError, match="validated at different steps"):
        best_step([{2: 1.0}, {3: 1.0}], "max")
