"""The page "Compare three methods on your own data", from top to bottom, in miniature."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.test_docs import ROOT, blocks
from zoo import series
from zoo.__main__ import main

PAGE = ROOT / "docs" / "compare.md"
SMALL = {
    **{"data.num_source": 2, "data.num_target": 2, "data.num_val": 2, "data.num_test": 2},
    **{"data.height": 32, "data.width": 64, "data.batch_size": 2},
    **{"trainer.max_steps": 2, "trainer.val_check_interval": 1, "trainer.accelerator": "cpu"},
    **{"trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false"},
}
OPTIONS = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]


@pytest.mark.slow
def test_commands_of_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(series, "start", main)  # in this process
    (mine,) = blocks(PAGE, "yaml")
    Path("mine.yaml").write_text(mine)
    fits, tables, sweep = [], [], ""
    for line in "".join(blocks(PAGE, "bash")).splitlines():
        tool, verb, *options = shlex.split(line)
        assert tool == "zoo"
        if verb == "fit":
            fits.append([verb, *options, *OPTIONS])
            assert main(fits[-1]) == 0, line
        else:
            capsys.readouterr()
            assert main([verb, *options]) == 0, line
            shown = capsys.readouterr().out
            tables += [shown] if verb == "compare" else []
            sweep = shown if verb == "sweep" else sweep

    assert len(fits) == len(tables) == 3
    cards = [json.loads(path.read_text()) for path in Path("runs").rglob("run_card.json")]
    assert len(cards) == 9
    assert {card["status"] for card in cards} == {"finished"}
    assert {(card["method"], card["seed"]) for card in cards} == {
        (method, seed) for method in ("source_only", "self_training", "fst") for seed in (0, 1, 2)
    }
    assert all(split["files"] == 2 for card in cards for split in card["data"]["splits"].values())
    assert "streetshift, val/mIoU" in tables[0]
    assert "model.class_path" in tables[1].partition("setting ")[2]
    with Path("comparison/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"source_only", "self_training", "fst"}
    assert {row["seeds"] for row in rows} == {"0 1 2"}
    means = [float(row["mean"]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert "Predictions" in Path("comparison/compare.html").read_text()  # prediction panels are in it
    assert yaml.safe_load(sweep)["metric"] == {"name": "val/mIoU", "goal": "maximize"}

    assert main(fits[0]) == 0  # the same command again does nothing
    assert capsys.readouterr().err.count("skipped, finished in") == 3
    assert len([*Path("runs").rglob("run_card.json")]) == 9
