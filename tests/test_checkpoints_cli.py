"""The command line: `zoo import`, where weights start, and which checkpoint is meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.cli_toy import checkpoint, config, notes, zoo_run
from tests.test_configs import QUIET, miniature
from tests.toy import toy_loader, toy_trainer
from zoo import create_backbone
from zoo.__main__ import main
from zoo.checkpoints import load_reports, read_weights
from zoo.config_files import UsageError
from zoo.method import Method
from zoo.methods.segmentation.self_training import SelfTraining, SourceOnly
from zoo.nn import build_segmentor
from zoo.pretrained import restoring
from zoo.resume import Trained


def source_only(verb: str, folder: Path, *typed: str) -> int:
    base = ["--config", "source_only/embedded", *miniature("source_only/embedded", folder), *QUIET]
    steps = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"] if verb == "fit" else []
    return main([verb, *base, *steps, *typed])


def save_backbone(path: str, fill: float = 0.01) -> None:
    state = create_backbone("street_cnn").state_dict()
    torch.save({name: torch.full_like(tensor, fill) for name, tensor in state.items()}, path)


# -- zoo import ---------------------------------------------------------------------------------------------


def test_import_shows_what_a_file_is_and_writes_ours(capsys: pytest.CaptureFixture[str]) -> None:
    network = create_backbone("mit_b0")
    state = {f"model.backbone.{n}": t for n, t in network.state_dict().items()}
    state |= {f"ema_model.backbone.{n}": t + 1 for n, t in network.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"epoch": 7}}, "uda.pth")
    assert main(["import", "uda.pth", "--into", "mit_b0", "--to", "out/mit.safetensors"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "segformer: MiT encoder of SegFormer",
        "student (also in the file: teacher)",
        "mit_b0 (depths 2-2-2-2, widths 32-64-160-256)",
        "meta.epoch=7",
        "backbone.patch_embed1.proj.weight [32, 3, 7, 7]",
        "mit_b0 would take",
        "100.0 %",
        "wrote out/mit.safetensors",
    ):
        assert part in shown
    with safe_open("out/mit.safetensors", "pt") as file:
        card = file.metadata()
    assert card["source"] == "uda.pth"
    assert (card["importer"], card["network"], card["format"]) == ("segformer", "student", "pt")
    assert "selfzoo" in card
    again = create_backbone("mit_b0", pretrained="out/mit.safetensors")
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    assert main(["import", "uda.pth", "--network", "teacher", "--to", "out/teacher.safetensors"]) == 0
    teacher = read_weights("out/teacher.safetensors").tensors["backbone.norm1.weight"]
    assert torch.equal(teacher, network.norm1.weight + 1)
    assert sorted(path.name for path in Path("out").iterdir()) == ["mit.safetensors", "teacher.safetensors"]


def test_import_complains_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    save_backbone("w.pth")
    for typed, complaint in (
        (["none.pth"], "there is no such file"),
        (["w.pth", "--to", "w.bin"], "call the file w.safetensors"),
        (["w.pth", "--network", "teacher"], "holds no teacher network"),
        (["w.pth", "--importer", "dinno"], "did you mean dino?"),
        (["w.pth", "--into", "resnt18"], "unknown backbone 'resnt18': did you mean"),
    ):
        assert main(["import", *typed]) == 1
        error = capsys.readouterr().err
        assert error.startswith("zoo import: error: ")
        assert complaint in error
        assert error.count("\n") == 1


def test_import_shows_what_would_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    save_backbone("w.pth")
    assert main(["import", "w.pth", "--into", "resnet18"]) == 0
    assert "0/11" in capsys.readouterr().out


def test_dispatching_stays_light() -> None:
    code = (
        "import sys, zoo.__main__ as m; m.main(['--help']); m.main(['list']); print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "zoo import" in printed
    assert printed.strip().endswith("False")


# -- model.pretrained -----------------------------------------------------------------------------------------


def test_pretrained_takes_a_source_and_nothing_is_fetched_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_backbone("w.pth")
    still = ["--model.optim.lr", "0"]
    assert source_only("fit", tmp_path, "--model.pretrained", "w.pth", *still, "--run_dir", "run") == 0
    assert "weights of w.pth: timm layout" in capsys.readouterr().err
    (report,) = json.loads(Path("run/run_card.json").read_text())["load_reports"].values()
    assert (report["source"], report["share"], report["missing"]) == ("w.pth", 1.0, [])
    assert config(Path("run/config.yaml"))["model"]["init_args"]["pretrained"] == "w.pth"
    last = "run/checkpoints/last.ckpt"
    assert (checkpoint(Path(last))["state_dict"]["student.backbone.stages.0.0.weight"] == 0.01).all()

    Path("w.pth").unlink()
    method = SourceOnly.load_from_checkpoint(last)
    assert method.hparams["pretrained"] == "w.pth"
    assert (method.student.backbone.stages[0][0].weight == 0.01).all()
    assert main(["test", "--config", "run/config.yaml", "--ckpt_path", last, *QUIET]) == 0
    again = ["--config", "run/config.yaml", "--ckpt_path", last, "--trainer.max_steps", "2", *QUIET]
    assert main(["fit", *again, "--run_dir", "on"]) == 0
    assert source_only("fit", tmp_path, "--model.pretrained", "w.pth") == 1
    assert "w.pth: there is no such file" in capsys.readouterr().err


def test_pretrained_of_another_network_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(create_backbone("mit_b0").state_dict(), "mit.pth")
    assert source_only("fit", tmp_path, "--model.pretrained", "mit.pth") == 1
    error = capsys.readouterr().err
    assert "nothing was loaded. The file looks like: mit_b0" in error
    assert "Traceback" not in error


def test_pretrained_true_still_means_the_networks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="street_cnn has no pretrained weights"):
        create_backbone("street_cnn", pretrained=True)
    with restoring():
        create_backbone("street_cnn", pretrained=True)
        create_backbone("street_cnn", pretrained="none.pth")
    asked = []
    monkeypatch.setattr(
        "zoo.backbones.timm.timm.create_model", lambda *a, **k: asked.append(k["pretrained"]) or 1 / 0
    )
    for pretrained in (True, False):
        with pytest.raises(ZeroDivisionError):
            create_backbone("resnet18", pretrained=pretrained)
    assert asked == [True, False]


# -- model.init_from --------------------------------------------------------------------------------------------


def test_fine_tuning_starts_from_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretraining = SourceOnly(backbone="street_cnn", num_classes=5)
    with torch.no_grad():
        for parameter in pretraining.student.parameters():
            parameter.fill_(0.02)
    trainer = toy_trainer(max_steps=0)
    trainer.strategy.connect(pretraining)
    trainer.save_checkpoint("pre.ckpt")

    still = ["--model.optim.lr", "0", "--run_dir", "run"]
    assert source_only("fit", tmp_path, "--model.init_from", "pre.ckpt", *still) == 0
    told = capsys.readouterr().err
    assert "weights of pre.ckpt: lightning layout, student" in told
    assert (
        "adapted (classes, left as initialised): decode_head.classifier.weight [5, 48, 1, 1] -> [19, 48, 1, 1]"
        in told
    )
    state = checkpoint(Path("run/checkpoints/last.ckpt"))["state_dict"]
    assert (state["student.backbone.stages.0.0.weight"] == 0.02).all()
    assert (state["student.decode_head.lateral.0.weight"] == 0.02).all()
    assert not (state["student.decode_head.classifier.weight"] == 0.02).any()

    Path("pre.ckpt").unlink()  # nothing needs it any more
    again = [
        "--model.init_from",
        "pre.ckpt",
        "--ckpt_path",
        "last",
        "--run_dir",
        "run",
        "--trainer.max_steps",
        "2",
    ]
    assert source_only("fit", tmp_path, "--model.optim.lr", "0", *again) == 0
    assert SourceOnly.load_from_checkpoint("run/checkpoints/last.ckpt").init_from == "pre.ckpt"
    assert source_only("fit", tmp_path, "--model.init_from", "pre.ckpt") == 1
    assert "pre.ckpt: there is no such file" in capsys.readouterr().err


def test_teachers_start_where_the_student_then_is() -> None:
    network = build_segmentor("street_cnn", "fpn", 4)
    torch.save(
        {f"backbone.{n}": torch.full_like(t, 0.5) for n, t in network.backbone.state_dict().items()}, "w.pth"
    )
    method = SelfTraining(backbone="street_cnn", num_classes=4, init_from="w.pth")
    assert not (method.student.backbone.stages[0][0].weight == 0.5).any()
    method.losses = lambda batch: {"none": 0.0 * sum(p.sum() for p in method.student.parameters())}  # type: ignore
    method.default_callbacks = lambda: [method.teacher_callback()]  # type: ignore[method-assign]
    method.optim.lr = method.optim.weight_decay = 0.0
    trainer = toy_trainer(max_steps=1)
    trainer.fit(method, toy_loader())
    for moved in (method.student, method.teacher.network):
        assert (moved.backbone.stages[0][0].weight == 0.5).all()
    assert list(load_reports(method)) == ["student"]

    with torch.no_grad():
        method.student.backbone.stages[0][0].weight.fill_(0.25)
    toy_trainer(max_steps=1).fit(method, toy_loader())  # going on is no new start
    assert (method.student.backbone.stages[0][0].weight == 0.25).all()


# -- the checkpoint wins nothing that was typed ---------------------------------------------------------------------


@pytest.mark.parametrize("key", ["pretrained", "init_from"])
def test_another_start_is_refused_when_resuming_and_told_when_evaluating(key: str) -> None:
    torch.save({"hyper_parameters": {key: "a.pth"}, "callbacks": {"x": {"rng_state": 1}}}, "x.ckpt")
    trained = Trained("x.ckpt", resumes=True)
    other = {"class_path": "x.X", "init_args": {key: "b.pth"}}
    with pytest.raises(
        UsageError, match=f"model.{key} is 'b.pth', but --ckpt_path brings all weights.*'a.pth'"
    ):
        trained.compare(other, resumes=True)
    (note,) = trained.compare(other, resumes=False)
    assert f"model.{key} is 'b.pth' without effect" in note
    assert trained.compare({"class_path": "x.X", "init_args": {key: "a.pth"}}, resumes=True) == []


def test_weights_that_are_no_checkpoint_of_a_run_are_told_apart() -> None:
    save_backbone("w.pth")
    with pytest.raises(UsageError, match=r"other weights: start from them with --model\.pretrained"):
        Trained("w.pth")


# -- --ckpt_path last | best | hpc ------------------------------------------------------------------------------------


def test_last_and_best_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--ckpt_path", "last", "--run_dir", "run", steps=2) == 0
    assert "--ckpt_path last: the run has none yet, so training starts from the beginning" in notes(capsys)
    assert zoo_run("fit", "--ckpt_path", "last", "--run_dir", "run", "--model.decay", "0.5", steps=4) == 0
    assert "model.decay is 0.5 as you asked; the checkpoint was trained with 0.9" in notes(capsys)
    assert checkpoint(Path("run/checkpoints/last.ckpt"))["global_step"] == 4
    assert zoo_run("test", "--ckpt_path", "best", "--run_dir", "run") == 0


@pytest.mark.parametrize(
    ("name", "typed", "complaint"),
    [
        ("last", [], "--ckpt_path last is the last checkpoint of a run folder: add --run_dir"),
        ("best", ["--run_dir", "run"], "--ckpt_path best: the run has no run/checkpoints/best.ckpt"),
        ("hpc", ["--run_dir", "run"], "--ckpt_path hpc: the run has no run/hpc_ckpt_1.ckpt"),
    ],
)
def test_named_checkpoints_that_are_not_there(
    name: str, typed: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo_run("fit", "--ckpt_path", name, *typed) == 2
    assert complaint in capsys.readouterr().err


def test_evaluating_needs_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("test", "--ckpt_path", "last", "--run_dir", "run") == 2
    assert "the run has no run/checkpoints/last.ckpt" in capsys.readouterr().err


def test_named_checkpoints_are_checked_as_paths_are(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_checkpoints_files import Evil

    Path("run/checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}, "extra": Evil()}, "run/checkpoints/last.ckpt")
    assert zoo_run("fit", "--ckpt_path", "last", "--run_dir", "run", steps=1) == 2
    assert "was refused: to read it, Python would have to run" in capsys.readouterr().err
    assert not Path("executed").exists()
    for number in (1, 10, 9):
        torch.save({"callbacks": {}, "global_step": number}, f"run/hpc_ckpt_{number}.ckpt")
    assert Trained("hpc", "run", resumes=True).path == "run/hpc_ckpt_10.ckpt"


def test_every_method_can_start_from_weights() -> None:
    """What cannot be typed does not exist: `init_from` is an option of every registered method."""
    import inspect

    from zoo.registry import get_method, list_methods

    for name in list_methods():
        accepted: set[str] = set()
        for cls in get_method(name).__mro__:
            if issubclass(cls, Method) and "__init__" in vars(cls):
                parameters = inspect.signature(vars(cls)["__init__"]).parameters
                accepted |= set(parameters)
                if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                    break
        assert "init_from" in accepted, name
