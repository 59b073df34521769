"""What W&B and TensorBoard get, read back from the files of offline runs."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from callbacks.visualize import wandb_masks
from tests.cli_toy import only_run, zoo_run
from zoo import run_folder
from zoo.__main__ import main

OFFLINE = ["--wandb", "offline", "--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "2"]
SMALLEST = {
    "num_source": 2,
    "num_target": 2,
    "num_val": 2,
    "num_test": 2,
    "height": 32,
    "width": 64,
    "batch_size": 2,
}


def records(run: Path, number: int = -1) -> list[Any]:
    """All records of an offline run; W&B's own process may still be writing when a run has ended."""
    file = sorted(run.glob("wandb/offline-run-*/*.wandb"))[number]
    deadline = time.monotonic() + 60
    while True:
        found = list(parsed(file.read_bytes()))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.1)


def parsed(data: bytes) -> Iterator[Any]:
    """W&B writes protocol buffers into blocks of 32 KiB, as LevelDB's log does."""
    position, part = 7, b""  # behind the file's own header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for a header: the rest of the block is empty
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + size > len(data):
            return  # half-written
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


class Logged:
    """Everything an offline run holds."""

    def __init__(self, run: Path, number: int = -1) -> None:
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None
        for record in records(run, number):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self._set(self.config, record.run.config.update)
            elif kind == "config":
                self._set(self.config, record.config.update)
            elif kind == "summary":
                self._set(self.summary, record.summary.update)
            elif kind == "history":
                row: dict[str, Any] = {}
                self._set(row, record.history.item)
                self.history.append(row)
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @staticmethod
    def _set(target: dict[str, Any], items: Any) -> None:
        for item in items:
            *parents, last = item.nested_key or [item.key]
            inner = target
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[last] = json.loads(item.value_json)

    def curve(self, key: str) -> list[tuple[int, float]]:
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]


def test_run_holds_config_curves_summary_and_card() -> None:
    assert zoo_run("fit", *OFFLINE, "--model.backbone", "wide", "--seed_everything", "3", steps=6) == 0
    (run,) = Path("runs/climethod/clidata").iterdir()
    logged = Logged(run)
    assert (logged.run.run_group, logged.run.job_type) == ("clidata", "climethod")
    assert [*logged.run.tags] == ["wide", "seed3"]
    assert logged.run.project == "selfzoo"
    assert logged.config["model"]["init_args"]["backbone"] == "wide"
    assert logged.config["trainer"]["max_steps"] == 6
    assert logged.config["seed_everything"] == 3

    assert logged.curve("val/score") == [(1, -2.0), (3, 0.0), (5, -2.0)]
    assert [step for step, _ in logged.curve("train/loss")] == [0, 1, 2, 3, 4, 5]
    assert logged.curve("teacher/decay")  # the teacher's curves go the way of all metrics
    assert logged.summary["val/score"] == {"max": 0, "last": -2}

    written = json.loads((run / "run_card.json").read_text())
    card = {**logged.config["card"], **logged.summary["card"]}
    assert card["best"] == written["best"] == {"step": 4, "epoch": 0, "metrics": {"val/score": 0.0}}
    for key in ("status", "seed", "steps", "config_hash", "method", "benchmark", "git", "versions"):
        assert card[key] == written[key], key
    assert written["wandb"]["id"] == logged.run.run_id
    assert logged.exit_code == 0
    assert logged.artifacts == []


def test_resumed_run_is_the_same_run() -> None:
    assert zoo_run("fit", *OFFLINE, "--run_dir", "here", steps=2) == 0
    time.sleep(1)  # W&B names folders by the second and the id, which is the same
    assert zoo_run("fit", *OFFLINE, "--run_dir", "here", "--ckpt_path", "last", steps=4) == 0
    first, second = (Logged(Path("here"), number) for number in (0, 1))
    assert first.run.run_id == second.run.run_id
    assert [step for step, _ in second.curve("train/loss")] == [2, 3]
    assert zoo_run("fit", *OFFLINE, "--run_dir", "here", steps=1) == 0  # not resumed: another run
    # Folders are named by the second: which of the three is the last is not certain.
    assert len({Logged(Path("here"), number).run.run_id for number in range(3)}) == 2


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], None),
        (["run-20250101_000000-aaa"], "aaa"),
        (["offline-run-20250102_000000-bbb", "run-20250103_000000-ccc", "latest-run"], "ccc"),
        (["offline-run-20250104_000000-ddd", "run-20250103_000000-ccc"], "ddd"),
    ],
)
def test_id_of_the_newest_run_of_a_folder(names: list[str], found: str | None) -> None:
    for name in names:
        Path("wandb", name).mkdir(parents=True)
    assert run_folder.last_wandb_id(Path()) == found


def test_checkpoint_becomes_an_artifact_on_request() -> None:
    assert zoo_run("fit", *OFFLINE, "--wandb_checkpoint", "true", steps=6) == 0
    run = only_run()
    (artifact,) = Logged(run).artifacts
    assert (artifact.type, artifact.name) == ("model", "climethod-clidata")
    assert {*artifact.aliases} == {"latest", "seed0"}
    assert json.loads(artifact.metadata) == {"monitor": "val/score", "score": 0.0, "steps": 6}
    (content,) = artifact.manifest.contents
    assert content.path == "best.ckpt"
    assert content.size == (run / "checkpoints/best.ckpt").stat().st_size


def test_artifact_without_wandb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--wandb", "disabled", "--wandb_checkpoint", "true", steps=1) == 1
    assert "W&B is not among the loggers: set --wandb online or offline" in capsys.readouterr().err


def test_disabled_run_leaves_no_files_of_wandb() -> None:
    assert zoo_run("fit", "--wandb", "disabled", steps=1) == 0
    assert not (only_run() / "wandb").exists()
    assert (only_run() / "run_card.json").exists()


def test_failed_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*OFFLINE, "--model", "BrokenMethod"]
    assert zoo_run("fit", *options, "--run_dir", "here", steps=2) == 1
    logged = Logged(Path("here"))
    assert logged.exit_code == 1
    assert logged.summary["card"]["status"] == "failed"
    assert "became nan" in logged.summary["card"]["reason"]


@pytest.mark.slow
def test_predictions_have_masks_and_tensorboard_gets_the_same_run() -> None:
    sizes = [word for key, value in SMALLEST.items() for word in (f"--data.{key}", str(value))]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--run_dir", "here"]
    options = [*quiet, *sizes, *OFFLINE, "--tensorboard", "true", "--trainer.max_steps", "2"]
    assert main(["fit", "--config", "source_only/embedded", *options]) == 0
    logged = Logged(Path("here"))
    (row,) = [row for row in logged.history if "val/predictions" in row]
    shown = row["val/predictions"]
    assert shown["count"] == 2
    assert (shown["width"], shown["height"]) == (64, 32)
    assert [{*masks} for masks in shown["all_masks"]] == [{"truth", "prediction"}] * 2
    (files,) = Path("here/wandb").glob("offline-run-*/files")
    truth = np.asarray(Image.open(files / shown["all_masks"][0]["truth"]["path"]))
    assert truth.shape[:2] == (32, 64)
    assert {*np.unique(truth)} <= {*range(19), 255}
    labels = logged.config["_wandb"]["mask/class_labels"].values()
    assert all((label["value"]["0"], label["value"]["255"]) == ("road", "ignore") for label in labels)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("here/tensorboard")
    events.Reload()
    ((step, value),) = [(event.step, event.value) for event in events.Scalars("val/mIoU")]
    assert [(step, pytest.approx(value))] == logged.curve("val/mIoU")
    assert [image.step for image in events.Images("val/panel")] == [2]
    assert list(Path("here/pictures").glob("*.png"))
    assert (Path("here/metrics.csv")).is_file()


def test_masks_name_the_classes() -> None:
    label = np.zeros((2, 2), np.uint8)
    masks = wandb_masks({"truth": label}, ("road", "sky"))
    assert masks["truth"]["class_labels"] == {0: "road", 1: "sky", 255: "ignore"}
    assert masks["truth"]["mask_data"] is label
