"""The folder of a run: what is kept there, resuming in it, and W&B."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from tests.cli_toy import TOY, checkpoint, config, only_run, zoo_run
from zoo import run_folder
from zoo.__main__ import main

# -- the run's folder ------------------------------------------------------------------------------------


def test_fit_keeps_config_metrics_and_checkpoints() -> None:
    assert (
        zoo_run("fit", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", steps=7) == 0
    )
    run = only_run()
    assert run.parts[:3] == ("runs", "climethod", "clidata")
    datetime.strptime(run.name, "%Y%m%d-%H%M%S-seed0")

    saved = config(run / "config.yaml")
    assert saved["model"]["init_args"] == {
        **{"backbone": "mlp", "decay": 0.9, "batch_norm": False, "dropout": 0.0},
        **{"mode": "train_no_dropout", "optim": None},
    }
    assert saved["trainer"]["max_steps"] == 7
    assert saved["seed_everything"] == 0
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [0, 1, 2, 3, 4, 5, 6]
    assert checkpoint(run / "checkpoints/best.ckpt")["global_step"] == 4
    assert checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 7  # between two validations
    assert [*Path().iterdir()] == [Path("runs")]


def test_saved_config_starts_an_equal_run_of_its_own() -> None:
    assert zoo_run("fit", "--model.decay", "0.5", "--trainer.check_val_every_n_epoch", "null", steps=3) == 0
    first = only_run()
    assert main(["fit", "--config", str(first / "config.yaml"), "--run_dir", "second"]) == 0
    assert config(first / "config.yaml") == config(Path("second/config.yaml"))
    one, two = (checkpoint(f / "checkpoints/last.ckpt")["state_dict"] for f in (first, Path("second")))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_runs_of_the_same_second_get_folders_of_their_own() -> None:
    folders = [run_folder.open_run_folder(None, "fst", "toys", 3, "fit") for _ in range(30)]
    assert len({*folders}) == 30
    assert all(folder.is_dir() and "-seed3" in folder.name for folder in folders)
    assert run_folder.open_run_folder(None, "fst", "toys", False, "test").name.endswith("-unseeded-test")


def test_resuming_in_the_same_folder_keeps_what_was_there() -> None:
    one_step = ["--trainer.log_every_n_steps", "1", "--run_dir", "here"]
    assert zoo_run("fit", *one_step, steps=4) == 0
    before = {name: Path("here", name).read_text() for name in ("config.yaml", "metrics.csv")}
    assert zoo_run("fit", *one_step, "--ckpt_path", "here/checkpoints/last.ckpt", steps=8) == 0
    assert Path("here/config-1.yaml").read_text() == before["config.yaml"]
    assert Path("here/metrics-1.csv").read_text() == before["metrics.csv"]
    assert config(Path("here/config.yaml"))["trainer"]["max_steps"] == 8
    with Path("here/metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]] == [4, 5, 6, 7]
    resumed = checkpoint(Path("here/checkpoints/last.ckpt"))
    assert resumed["global_step"] == 8
    assert resumed["state_dict"]["teacher.step"] == 8


@pytest.mark.parametrize(("stop", "interval"), [(3, "2"), (4, "2"), (6, "3"), (4, "none"), (6, "none")])
def test_last_checkpoint_resumes_as_if_unbroken(stop: int, interval: str) -> None:
    """Four batches an epoch: mid-epoch, at its end, with and without a validation at the same step."""
    validation = (
        ["--trainer.limit_val_batches", "0"]
        if interval == "none"
        else ["--trainer.val_check_interval", interval]
    )
    logged = [*validation, "--trainer.log_every_n_steps", "1", "--run_dir"]
    assert zoo_run("fit", *logged, "whole", steps=9) == 0
    assert zoo_run("fit", *logged, "part", steps=stop) == 0
    last = Path("part/checkpoints/last.ckpt")
    assert checkpoint(last)["global_step"] == stop
    assert zoo_run("fit", *logged, "rest", "--ckpt_path", last, steps=9) == 0
    counts = {}
    for name in ("whole", "rest"):
        with Path(name, "metrics.csv").open() as file:
            counts[name] = [(row["epoch"], row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert counts["rest"] == counts["whole"][stop:]


def test_epochs_are_kept_without_validation() -> None:
    assert (
        zoo_run("fit", "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0", "--run_dir", "a") == 0
    )
    assert checkpoint(Path("a/checkpoints/last.ckpt"))["global_step"] == 8


def test_trial_run_leaves_nothing_behind() -> None:
    assert zoo_run("fit", "--trainer.fast_dev_run", "true") == 0
    assert zoo_run("fit", "--trainer.barebones", "true", steps=1) == 0
    assert [*Path().iterdir()] == []


def zoo_process(*argv: str) -> str:
    """Train for two steps in a process of its own; return what it said."""
    toy = [f"tests.cli_toy.{word}" if word in ("CLIMethod", "CLIData") else word for word in TOY]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "zoo",
            "fit",
            "--allow-imports",
            "tests",
            *toy,
            "--trainer.max_steps",
            "2",
            *argv,
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_share_one_folder() -> None:
    said = zoo_process("--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert "distributed_backend=gloo" in said
    assert {p.name for p in only_run().iterdir()} >= {"config.yaml", "checkpoints"}


def test_checkpoint_without_a_monitor_keeps_the_last(tmp_path: Path) -> None:
    assert [type(c) for c in run_folder.run_checkpoints(tmp_path, None, "max")] == [run_folder.LastCheckpoint]
    best, _ = run_folder.run_checkpoints(tmp_path, "val/loss", "min")
    assert isinstance(best, ModelCheckpoint)
    assert (best.monitor, best.mode, best.filename) == ("val/loss", "min", "best")


# -- W&B -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, "online"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": "0" * 40}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"NETRC": "netrc"}, "online"),
        ({"NETRC": "netrc", "WANDB_BASE_URL": "https://elsewhere.example"}, "offline"),
        ({"NETRC": "netrc", "WANDB_CONFIG_DIR": "elsewhere"}, "offline"),
    ],
)
def test_wandb_auto(environment: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("netrc").write_text("machine api.wandb.ai login user password secret\n")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "nothing")
    Path("elsewhere").mkdir()
    Path("elsewhere", "settings").write_text("[default]\nbase_url = https://elsewhere.example\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_folder.wandb_mode() == mode


def test_wandb_run_is_grouped_and_tagged() -> None:
    _, logger = run_folder.run_loggers(Path("run"), "offline", "fst", "streetshift", ["resnet18", "seed3"])
    assert isinstance(logger, WandbLogger)
    assert (
        logger._wandb_init
        | {
            **{"project": "selfzoo", "group": "streetshift", "job_type": "fst", "mode": "offline"},
            **{"tags": ["resnet18", "seed3"], "dir": str(Path("run").absolute()), "name": "run"},
        }
        == logger._wandb_init
    )
    assert (
        len(run_folder.run_loggers(Path("run"), "auto", "fst", "streetshift", [])) == 1
    )  # WANDB_MODE=disabled


@pytest.mark.slow
def test_wandb_offline_run_receives_the_resolved_config() -> None:
    zoo_process("--wandb", "offline", "--model.decay", "0.125")
    (record,) = only_run().glob("wandb/offline-run-*/*.wandb")
    for text in (b"decay", b"0.125", b"max_steps", b"climethod", b"clidata", b"selfzoo", b"seed0"):
        assert text in record.read_bytes()
