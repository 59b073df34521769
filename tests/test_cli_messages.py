"""Nothing is done silently, and wrong usage is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli_toy import CLIMethod, config, notes, only_run, zoo_run
from zoo import notices
from zoo.__main__ import main
from zoo.cli import ZooCLI
from zoo.cli_errors import explain
from zoo.config_files import Source, UsageError, replaced_lists

# -- nothing silently ------------------------------------------------------------------------------------


def test_replaced_lists_are_told() -> None:
    ema = {"class_path": "EMATeacher"}
    first, second = (
        Source("a.yaml", {"trainer.callbacks": [ema, ema]}),
        Source("b.yaml", {"trainer.callbacks": [ema]}),
    )
    note = "trainer.callbacks of b.yaml replaces the list of a.yaml (2 entries); write callbacks+ to append instead"
    assert replaced_lists([first, second]) == [note]
    assert replaced_lists([first, first]) == []
    assert replaced_lists([first, Source("b.yaml", {"trainer.callbacks+": [ema]})]) == []
    assert replaced_lists([first, Source("the command line", {"trainer.callbacks": "EMATeacher"})]) != []
    crops = (
        Source(name, {"data.views.crop": [side, side]}) for name, side in (("a.yaml", 32), ("b.yaml", 64))
    )
    assert replaced_lists([*crops]) == []
    by_name = (Source(name, {"trainer.callbacks": [name]}) for name in ("EMATeacher", "LearningRateMonitor"))
    assert len(replaced_lists([*by_name])) == 1


def test_notes_reach_the_user_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("trainer: {callbacks: [{class_path: LearningRateMonitor}], max_epochs: 1}")
    Path("b.yaml").write_text("trainer: {callbacks: [{class_path: EMATeacher, init_args: {decay: 0.5}}]}")
    assert zoo_run("fit", "--config", "a.yaml", "--config", "b.yaml") == 0
    assert notes(capsys) == [
        "trainer.callbacks of b.yaml replaces the list of a.yaml (1 entries); write callbacks+ to append instead",
        "your EMATeacher takes the place of the method's EMATeacher",
    ]
    Path("c.yaml").write_text(
        "trainer: {callbacks+: [{class_path: ModelSummary, init_args: {max_depth: 2}}]}"
    )
    assert zoo_run("fit", "--config", "a.yaml", "--config", "c.yaml") == 0
    assert notes(capsys) == []
    kept = config(sorted(Path("runs").glob("*/*/*"))[-1] / "config.yaml")["trainer"]["callbacks"]
    assert [item["class_path"].rpartition(".")[2] for item in kept] == ["LearningRateMonitor", "ModelSummary"]


def test_training_without_an_end_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = "neither trainer.max_steps nor trainer.max_epochs is set: Lightning stops after 1000 epochs"
    assert zoo_run("fit", "--trainer.fast_dev_run", "true") == 0
    assert notes(capsys) == [said]
    unset = {"max_steps": -1, "max_epochs": None, "max_time": None}
    assert notices.endless_training(unset) == [said]
    for key, value in (("max_steps", 1), ("max_epochs", -1), ("max_time", "00:01:00:00")):
        assert notices.endless_training({**unset, key: value}) == []


def test_callback_that_lightning_drops_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path("mine.yaml")
    mine.write_text("trainer: {callbacks: [{class_path: LearningRateMonitor}]}")
    from lightning.pytorch.callbacks import LearningRateMonitor

    monkeypatch.setattr(
        CLIMethod, "configure_callbacks", lambda self: [*self.default_callbacks(), LearningRateMonitor()]
    )
    assert zoo_run("fit", "--config", mine, steps=1) == 0
    assert notes(capsys) == ["the LearningRateMonitor of your config was replaced by one of the method"]


def test_own_checkpoint_callback_is_respected(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {filename: mine, every_n_train_steps: 1}}]}"
    )
    assert zoo_run("fit", "--config", "mine.yaml", steps=2) == 0
    assert notes(capsys) == ["your checkpoint callback takes the place of best.ckpt and last.ckpt"]
    assert [p.name for p in (only_run() / "checkpoints").iterdir()] == ["mine.ckpt"]


def test_own_logger_is_respected() -> None:
    Path("mine.yaml").write_text(
        "trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: elsewhere}}, log_every_n_steps: 1}"
    )
    assert zoo_run("fit", "--config", "mine.yaml", steps=1) == 0
    assert [p.name for p in Path("elsewhere").rglob("metrics.csv")] == ["metrics.csv"]
    assert {p.name for p in only_run().iterdir()} == {"config.yaml", "checkpoints", "run_card.json"}
    assert zoo_run("fit", "--trainer.logger", "false", "--run_dir", "none", steps=1) == 0
    assert {p.name for p in Path("none").iterdir()} == {"config.yaml", "checkpoints", "run_card.json"}


def test_no_option_overrides_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """`link_arguments` would override what the user typed without a word; there are none."""
    parsers: list[Any] = []
    monkeypatch.setattr(
        ZooCLI, "parse_arguments", lambda self, *_: parsers.append(self._parser("fit")) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        zoo_run("fit")

    def links() -> list[str]:
        return [action.dest for action in parsers[0]._actions if type(action).__name__ == "ActionLink"]

    assert links() == []
    parsers[0].link_arguments("run_dir", "trainer.default_root_dir")
    assert len(links()) == 1


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["--model.backbon", "x"], "model.backbon: CLIMethod has no such option; did you mean backbone?"),
        (["--model.qqq", "x"], "model.qqq: CLIMethod has no such option; it has backbone, decay,"),
        (
            ["--trainer.max_stps", "3"],
            "there is no option 'trainer.max_stps'; did you mean trainer.max_steps",
        ),
        (
            ["--ckpt", "x.ckpt"],
            "there is no option 'ckpt'; did you mean ckpt_path?",
        ),  # not a shorter name for it
        (["--modl.decay", "3"], "there is no option 'modl.decay'; did you mean model?"),
        (["--model.optim.lrr", "1"], "model.optim.lrr: Optim has no such option; did you mean lr?"),
        (["--trainer.max_steps", "abc"], "trainer.max_steps: expected int, found abc"),
        (["--model.decay", "abc"], "model.decay: expected float, found abc"),
        (["--wandb", "on"], "wandb: expected one of 'auto', 'online', 'offline', 'disabled', found on"),
        (["--model", "CLIMethd"], "model: there is no class 'CLIMethd'; did you mean CLIMethod"),
        (["--model", "nowhere.Net"], "nowhere.Net may not be named: importing nowhere runs its code"),
        (
            ["--model", "tests.cli_toy.Net"],
            "model: tests.cli_toy.Net: module 'tests.cli_toy' has no attribute",
        ),
        (
            ["--model", "tests.cli_toy.CLIData"],
            "model: tests.cli_toy.CLIData: Import path does not correspond",
        ),
        (
            ["--trainer.callbacks", "EMATeachr"],
            "trainer.callbacks: there is no class 'EMATeachr'; did you mean EMATeacher",
        ),
        (
            ["--trainer.callbacks", "EMATeacher", "--trainer.callbacks.deca", "1"],
            "trainer.callbacks.deca: EMATeacher has no such option; did you mean decay?",
        ),
        (
            ["--config", "fst/embeddd"],
            "--config fst/embeddd: no such file here and no such config in the package",
        ),
        (["--config"], "argument -c/--config: expected one argument"),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    typed: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", *typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zoo fit: error: {complaint}")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("trainr: {max_steps: 1}", "there is no option 'trainr.max_steps'; did you mean trainer.max_steps"),
        ("trainer: {max_stps: 1}", "there is no option 'trainer.max_stps'; did you mean trainer.max_steps"),
        (
            "model: {class_path: CLIMethod, init_args: {backbon: x}}",
            "model.backbon: CLIMethod has no such option; did you mean backbone?",
        ),
        ("trainer: {precision: 33}", "trainer.precision: expected one of 64, 32, 16 or one of"),
        ("trainer: [1", "--config mine.yaml is no YAML: while parsing a flow sequence in"),
    ],
)
def test_wrong_config_is_one_line_and_2(
    content: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(content)
    assert zoo_run("fit", "--config", "mine.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zoo fit: error: {complaint}")


def test_nothing_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "no data and no model was chosen: give --config NAME" in capsys.readouterr().err


def test_message_of_another_version_still_is_one_line() -> None:
    assert explain("Something new\n  happened  here", []) == "Something new happened here"


def test_own_check_is_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--data.batch_size", "0", steps=1) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "zoo fit: error: batch_size must be at least 1, got 0."
    assert zoo_run("fit", "--model", "BrokenMethod", "--trainer.log_every_n_steps", "1", steps=1) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("zoo fit: error: loss 'source' became nan or inf")
    assert zoo_run("fit", "--trainer.val_check_interval", "9", steps=1) == 1  # Lightning's own check
    assert "zoo fit: error: `val_check_interval` (9) must be less" in capsys.readouterr().err


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="nothing"):
        zoo_run("fit", "--model", "BrokenMethod", "--model.bug", "true", steps=1)


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as error:
        zoo_run("fit", "--trainer.max_steps", "abc", "--traceback")
    assert error.value.__cause__ is not None
    monkeypatch.setenv("SELFZOO_DEBUG", "1")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        zoo_run("fit", "--data.batch_size", "0", steps=1)
