"""`zoo doctor` from the command line: what it finds, what it advises, and when it says stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli_toy import TOY, CLIMethod
from tests.toy import ToyMethod
from zoo import SourceOnly
from zoo.__main__ import main
from zoo.doctor import environment, examination, weights
from zoo.doctor.checks import Check

STREETS = ["--config", "fst/embedded", "--trainer.accelerator", "cpu", "--data.batch_size", "2"]
STREETS += ["--data.num_source", "4", "--data.num_target", "4", "--data.num_val", "2", "--data.num_test", "2"]
STREETS += ["--data.height", "32", "--data.width", "64", "--trainer.max_steps", "40"]
QUICK = ["--steps", "1", "--warm_up", "1"]


def doctor(
    capsys: pytest.CaptureFixture[str], *argv: str | Path
) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and the checks by name."""
    code = main(["doctor", "--json", *QUICK, *map(str, argv)])
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == ("stop" if code else "go")
    checks: dict[str, list[dict[str, Any]]] = {}
    for check in said["checks"]:
        checks.setdefault(check["name"], []).append(check)
    print([check for check in said["checks"] if check["status"] == "stop"], file=sys.stderr)
    assert code == int(any(check["status"] == "stop" for check in said["checks"]))
    return code, checks


def test_environment_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [
        *("versions", "imports", "devices", "memory", "disk", "disk")
    ]
    assert lines[-1] == "go"
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[0]
    assert not Path("runs").exists()


def test_whole_examination_of_a_segmentation_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = doctor(capsys, *STREETS)
    assert code == 0
    assert "fst on streetshift" in checks["config"][0]["found"]
    assert [check["status"] for check in checks["layout"]] == ["ok", "ok"]
    assert "train 4, val 2 images" in checks["layout"][1]["found"]
    labels = {check["found"].partition(":")[0]: check for check in checks["labels"]}
    source, val = labels["train/source"], labels["val"]
    assert sum(source["details"].values()) == 4 * 32 * 64  # every pixel of every label
    assert sum(val["details"].values()) == 2 * 32 * 64
    assert source["details"]["road"] > source["details"]["person"]
    time = checks["time"][0]["details"]
    assert time["steps"] == 40
    assert time["seconds"] >= 40 * time["step_seconds"]
    kept = checks["checkpoints"][0]["details"]
    assert kept["kept"] == 2
    # Student, teacher and two moments, in 32 bits each.
    assert kept["bytes"] > 4 * 4 * checks["network"][0]["details"]["parameters"] * 0.9
    pictures = Path("runs/fst/streetshift/doctor")
    assert sorted(p.name for p in pictures.iterdir()) == ["labels.png", "samples.png", "training.png"]
    samples, training = (Image.open(pictures / f"{name}.png") for name in ("samples", "training"))
    assert training.width > samples.width  # pseudo-labels and mixed images come on top
    # Nothing of a run is left: no card, no checkpoint, no metrics.
    assert [p.name for p in Path("runs").rglob("*") if p.is_file() and p.suffix != ".png"] == []


def test_roots_that_are_not_set(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = doctor(capsys, "--config", "source_only/embedded", "--data", "GTA5Cityscapes")
    assert code == 1
    source, target = checks["layout"]
    assert "source_root is not set" in source["found"]
    assert "set data.source_root to the folder that holds images, labels" in source["remedy"]
    assert "leftImg8bit" in target["remedy"]
    assert "time" not in checks


def test_files_that_are_damaged(capsys: pytest.CaptureFixture[str], roots: dict[str, Any]) -> None:
    argv = ["--config", "source_only/embedded", "--data", "GTA5Cityscapes", "--data.allow_partial", "true"]
    argv += ["--data.source_root", roots["source_root"], "--data.target_root", roots["target_root"]]
    argv += ["--data.num_workers", "0", "--data.crop", "null", "--data.source_resize", "null"]
    label = sorted(Path(roots["source_root"], "labels").glob("*.png"))[0]
    whole = label.read_bytes()
    label.write_bytes(whole[:40])
    code, checks = doctor(capsys, *argv)
    assert code == 1
    assert label.name in checks["labels"][0]["found"]
    label.write_bytes(whole)
    for image in Path(roots["source_root"], "images").glob("*.png"):
        image.write_bytes(b"no picture")
    code, checks = doctor(capsys, *argv)
    assert code == 1
    assert checks["labels"][0]["status"] != "stop"
    assert ".png" in checks["samples"][0]["found"]
    assert "skip_broken" in checks["samples"][0]["remedy"]


def test_config_that_does_not_parse(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = doctor(capsys, *TOY, "--model.backbon", "x")
    assert code == 1
    assert "did you mean backbone?" in checks["config"][0]["found"]
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--steps", "0"])


def test_notes_about_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TOY, "--trainer.max_steps", "1"]) == 0
    capsys.readouterr()
    _, checks = doctor(capsys, *TOY, "--trainer.max_steps", "1")
    assert (
        "a run of equal config and seed exists: finished in runs/climethod/clidata"
        in checks["config"][1]["found"]
    )
    _, checks = doctor(capsys, *TOY)
    assert "Lightning stops after 1000 epochs" in checks["config"][1]["found"]
    assert checks["time"][0]["details"]["steps"] == 1000 * 4


def test_weights_to_start_from() -> None:
    method = SourceOnly(backbone="street_cnn", decode_head="fpn")
    torch.save({"state_dict": method.state_dict(), "pytorch-lightning_version": "2.6.0"}, "own.ckpt")
    check = weights.start(method, "own.ckpt")
    assert check.status == "ok"
    assert "recognised as lightning" in check.found
    assert "fills 100.0 % of the backbone" in check.found
    torch.save({"something.weight": torch.zeros(3, 3)}, "other.pth")
    for source in ("other.pth", "nowhere.pth"):
        check = weights.start(method, source)
        assert check.status == "stop"
        assert source in check.found
        assert check.remedy


def test_checkpoint_to_go_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TOY, "--trainer.max_steps", "1", "--run_dir", "run"]) == 0
    capsys.readouterr()
    last = Path("run/checkpoints/last.ckpt")
    code, checks = doctor(capsys, *TOY, "--trainer.max_steps", "2", "--ckpt_path", last)
    assert code == 0
    assert "tensors fit" in checks["weights"][0]["found"]

    checkpoint = torch.load(last, weights_only=True)
    lost = next(iter(checkpoint["state_dict"]))
    del checkpoint["state_dict"][lost]
    torch.save(checkpoint, "cut.ckpt")
    code, checks = doctor(capsys, *TOY, "--trainer.max_steps", "2", "--ckpt_path", "cut.ckpt")
    assert code == 1
    assert f"lacks 1, e.g. {lost}" in checks["weights"][0]["found"]


def test_run_that_would_fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, checks = doctor(
        capsys,
        *TOY,
        "--model",
        "BrokenMethod",
        "--trainer.max_steps",
        "3",
        "--trainer.log_every_n_steps",
        "1",
    )
    assert code == 1
    assert "became nan or inf in step 0" in checks["trial"][0]["found"]
    with pytest.raises(KeyError, match="nothing"):
        main(
            [
                "doctor",
                *QUICK,
                "--traceback",
                *TOY,
                "--model",
                "BrokenMethod",
                "--model.bug",
                "true",
                "--trainer.max_steps",
                "3",
            ]
        )
    capsys.readouterr()

    def exhausted(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(examination, "try_out", exhausted)
    code, checks = doctor(capsys, *TOY, "--trainer.max_steps", "3")
    assert code == 1
    assert "lower data.batch_size" in checks["trial"][0]["remedy"]


def test_trial_trains_like_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedules see the length of the run; recorders, loggers and validations in between are left out."""
    seen: list[tuple[float, int, list[str]]] = []

    def looked(self: ToyMethod, batch: Any) -> dict[str, torch.Tensor]:
        names = [type(callback).__name__ for callback in self.trainer.callbacks]
        seen.append((self.total_steps, self.trainer.limit_val_batches, names))
        return ToyMethod.losses(self, batch)

    monkeypatch.setattr(CLIMethod, "losses", looked)
    code, _ = doctor(capsys, *TOY, "--trainer.max_steps", "1000")
    assert code == 0
    assert len(seen) == 2  # one to warm up, one timed
    total, validated, names = seen[0]
    assert (total, validated) == (1000, 0)
    assert "EMATeacher" in names
    assert not {"RunCard", "LastCheckpoint", "ModelCheckpoint"} & {*names}


@pytest.mark.slow
def test_statistics_of_an_audio_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", "audio_classifier/embedded", "--trainer.accelerator", "cpu", "--data.batch_size", "4"]
    argv += ["--data.synthesiser", "formant", "--data.labelled_fraction", "1", "--data.num_train", "20"]
    argv += ["--data.per_voice", "2", "--trainer.max_steps", "3"]
    _, checks = doctor(capsys, *argv, "--data.features.mean", "-4", "--data.features.std", "4")
    (found,) = checks["statistics"]
    assert found["status"] == "note"
    _, again = doctor(
        capsys, *argv, *(f"--data.features.{key}={found['details'][key]}" for key in ("mean", "std"))
    )
    assert again["statistics"][0]["status"] == "ok"
    assert again["statistics"][0]["details"] == found["details"]
    assert sum(again["labels"][0]["details"].values()) == 20


@pytest.mark.slow
@pytest.mark.slow
def test_volumes_are_not_all_processed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--config",
        "volume_segmenter/embedded",
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "8",
    ]
    argv += ["--data.cache_folder", "processed", "--data.labelled_fraction", "1", "--data.num_crops", "1"]
    argv += ["--data.num_train", "5", "--data.num_val", "3", "--data.num_test", "1"]
    code, checks = doctor(capsys, *argv)
    assert code == 0
    assert len([*Path("processed").rglob("volume.npy")]) == 4  # two to train on, two to validate
    assert "train 5" in checks["layout"][0]["found"]
    train, val = checks["labels"]
    assert "2 of 5 labels read" in train["found"]
    assert "2 of 3 labels read" in val["found"]
    assert train["details"]["background"] > train["details"]["aorta"] > 0
    assert checks["time"][0]["details"]["steps"] == 8


def test_image_labels_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", "dino/embedded", "--trainer.accelerator", "cpu", "--data.batch_size", "2"]
    code, checks = doctor(capsys, *argv, "--trainer.max_steps", "3", "--data.num_train", "50")
    assert code == 0
    assert sum(checks["labels"][0]["details"].values()) == 50
    assert len(checks["labels"][0]["details"]) == 10


def test_check_is_one_line() -> None:
    assert str(Check("disk", "stop", "no\nroom", "make  some")) == "stop  disk        no room -> make some"


def test_labels_without_any_class_stop(roots: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for label in Path(roots["source_root"], "labels").glob("*.png"):
        size = Image.open(label).size
        Image.fromarray(np.full(size[::-1], 255 if "TrainIds" in label.name else 0, np.uint8)).save(label)
    argv = ["--config", "source_only/embedded", "--data", "GTA5Cityscapes", "--data.allow_partial", "true"]
    argv += ["--data.source_root", roots["source_root"], "--data.target_root", roots["target_root"]]
    code, checks = doctor(capsys, *argv)
    assert code == 1
    assert "0 of 19 classes" in checks["labels"][0]["found"]


def test_environment_names_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.versions("no-such-package").status == "note"
    needed = {
        "selfzoo": ["torch>=2", "absent>=1", 'extra-only; extra == "audio"'],
        "torch": ["numpy<1"],
        "numpy": [],
    }
    installed = {"torch": "2.1", "numpy": "2.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise environment.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(environment, "requires", needed.get)
    monkeypatch.setattr(environment, "version", version)
    check = environment.versions()
    assert check.status == "stop"
    assert "torch needs numpy<1, found 2.0" in check.found
    assert "selfzoo needs absent, which is not installed" in check.found
    assert "'numpy<1'" in check.remedy
    assert [*environment.missing_extras("selfzoo")] == ["audio"]


def test_environment_refuses_places_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.devices("gpu").status == ("ok" if torch.cuda.is_available() else "stop")
    (tmp_path / "file").write_text("")
    assert environment.disk("runs", tmp_path / "file" / "runs", "elsewhere").status == "stop"
    assert environment.disk("runs", tmp_path / "new" / "runs", "elsewhere").status == "ok"
    monkeypatch.setattr(environment, "LITTLE_DISK", 2**80)
    assert environment.disk("runs", tmp_path, "elsewhere").remedy == "elsewhere"
    assert environment.imports(["no_such_module"]).status == "stop"
    free, total = environment.host_memory()
    assert free is None or total is None or 0 < free <= total


@pytest.mark.parametrize(
    ("builds", "status"),
    [
        (("cu130", "cu132", ""), "ok"),
        (("cu128", "cu130", "cu130"), "stop"),
        (("cpu", "cu130", "cpu"), "stop"),
    ],
)
def test_builds_for_different_devices(
    monkeypatch: pytest.MonkeyPatch, builds: tuple[str, ...], status: str
) -> None:
    for name, build in zip(environment.COMPILED, builds, strict=True):
        monkeypatch.setattr(f"{name}.__version__", f"2.14.1+{build}" if build else "2.14.1")
    check = environment.imports()
    assert check.status == status
    assert ("torchvision +cu130" in check.found) == (status == "stop")
