"""Where the runs of `zoo compare` come from."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_toy import zoo_run
from tests.test_compare import GTA, three_runs, write_run
from zoo.__main__ import main
from zoo.comparison.runs import find_runs, read_curve, wandb_filters
from zoo.config_files import UsageError


@pytest.fixture
def three() -> str:
    return three_runs()


# -- where runs come from --------------------------------------------------------------------------------


def test_folders_patterns_and_folders_above(three: str) -> None:
    assert len(find_runs([three])) == 9
    assert len(find_runs(["runs/*/1"])) == 3
    assert len(find_runs(["runs/fst/0", "runs/fst", "runs/f*/0"])) == 3  # each once
    with pytest.raises(UsageError, match=r"elsewhere: no run there: expected a folder with run_card\.json"):
        find_runs([three, "elsewhere"])


def test_wrong_use_is_one_line(three: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", three, "--metric", "val/acc"]) == 2
    assert f"{GTA}: no run to compare by val/acc; there are test/mIoU, val/mIoU" in capsys.readouterr().err
    Path("broken").mkdir()
    Path("broken/run_card.json").write_text("{")
    assert main(["compare", "broken"]) == 2
    assert "broken/run_card.json cannot be read" in capsys.readouterr().err
    write_run("blind", monitor=None, best=None, last=None)
    assert main(["compare", "blind"]) == 2
    assert "its runs logged no metric" in capsys.readouterr().err
    write_run("other", monitor="val/loss")
    assert main(["compare", three, "other"]) == 2
    assert "the runs monitor val/loss, val/mIoU: choose one with --metric" in capsys.readouterr().err
    (write_run("scored") / "sample_scores.csv").write_text("a,b\n1,2\n")
    assert main(["compare", "scored"]) == 2
    assert "expected the column name and one for every metric" in capsys.readouterr().err


def test_curve_of_a_resumed_run_is_whole() -> None:
    Path("metrics-1.csv").write_text("step,a,b\n1,1.0,\n2,,5\n3,3.0,\n")
    Path("metrics-2.csv").write_text("step,a\n3,3.5\n")
    Path("metrics.csv").write_text("step,a\n4,4.0\n")
    assert read_curve(Path(), "a") == [(1, 1.0), (3, 3.5), (4, 4.0)]
    assert read_curve(Path(), "c") == []


class FakeRuns:
    """Stands for ``wandb.Api().runs``: two runs of the zoo, and one of something else."""

    asked: tuple[str, Any]

    def runs(self, path: str, filters: Any) -> Iterator[Any]:
        FakeRuns.asked = (path, filters)
        for name, seed, value in (("one", 0, 60.0), ("two", 1, 62.0)):
            card = json.loads(
                (write_run(f"cards/{name}", values=(value,), seed=seed) / "run_card.json").read_text()
            )
            outcome = {key: card.pop(key) for key in ("status", "reason", "best", "last", "steps", "seconds")}
            config = {**card.pop("config"), "card": card, "_wandb": {}}
            rows = [
                {"trainer/global_step": 100, "val/mIoU": 50.0},
                {"trainer/global_step": 200, "val/mIoU": value},
            ]
            yield types.SimpleNamespace(
                name=name,
                id=f"id{seed}",
                config=config,
                summary={"card": outcome, "val/mIoU": {"max": value}},
                scan_history=lambda keys, rows=rows: [{key: row[key] for key in keys} for row in rows],
            )
        yield types.SimpleNamespace(name="x", id="y", config={"lr": 1}, summary={}, scan_history=None)


def test_runs_of_a_wandb_project(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import wandb

    monkeypatch.setattr(wandb, "Api", FakeRuns)
    assert main(["compare", "wandb:team/selfzoo?group=gta5_cityscapes&tag=seed0", "--out", "out"]) == 0
    assert FakeRuns.asked == ("team/selfzoo", {"group": "gta5_cityscapes", "tags": "seed0"})
    assert "61.00 ± 1.41 *" in capsys.readouterr().out
    assert Path(f"out/{GTA}-curves.png").is_file()


def test_filters_of_wandb() -> None:
    assert wandb_filters("") == {}
    assert wandb_filters("job_type=fst&state=finished") == {"jobType": "fst", "state": "finished"}
    assert wandb_filters('{"config.seed": 1}') == {"config.seed": 1}
    for query, complaint in (("colour=red", "unknown filter 'colour'"), ("{", "no JSON"), ("fst", "unknown")):
        with pytest.raises(UsageError, match=complaint):
            wandb_filters(query)
    with pytest.raises(UsageError, match="expected wandb:entity/project, found 'selfzoo'"):
        find_runs(["wandb:selfzoo"])


# -- together --------------------------------------------------------------------------------------------


def test_runs_of_the_command_line_compare(capsys: pytest.CaptureFixture[str]) -> None:
    every = ["--trainer.val_check_interval", "2"]
    for seed in ("0", "1"):
        assert zoo_run("fit", *every, "--seed_everything", seed, steps=4) == 0
        assert zoo_run("fit", *every, "--model", "OtherMethod", "--seed_everything", seed, steps=2) == 0
    assert main(["compare", "runs", "--diff", "climethod mlp", "othermethod mlp"]) == 0
    table, _, rest = capsys.readouterr().out.partition("* best")
    rows = [line.split() for line in table.splitlines() if line.endswith("-") and not line.startswith("-")]
    # The score is -|step - 4|.
    assert [(row[0], row[2]) for row in rows] == [("climethod", "0.00"), ("othermethod", "-2.00")]
    assert "trainer.max_steps" in rest
    assert "model.class_path" in rest
