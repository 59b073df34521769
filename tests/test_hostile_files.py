"""Files that want to be more than data: configs that name foreign classes, pickles, checkpoints."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli_toy import TOY, only_run, zoo_run
from zoo.__main__ import main
from zoo.class_paths import resolve_class
from zoo.config_files import UsageError

EVIL = "from pathlib import Path\nPath('ran').touch()\nfrom lightning.pytorch.callbacks import Callback\n"


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that leaves a mark when it is imported."""
    Path("evilmodule.py").write_text(EVIL + "class Mine(Callback): ...\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return "evilmodule.Mine"


@pytest.mark.parametrize("place", ["callback", "logger", "model", "typed", "checkpoint"])
def test_a_foreign_class_is_refused_and_never_imported(
    place: str, evil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "callback": {"trainer": {"callbacks": [{"class_path": evil}]}},
        "logger": {"trainer": {"logger": {"class_path": evil}}},
        "model": {"model": {"class_path": evil}},
    }.get(place, {})
    Path("evil.yaml").write_text(yaml.safe_dump(settings))
    options = ["--config", "evil.yaml"]
    if place == "typed":
        options = ["--trainer.callbacks+", evil]
    if place == "checkpoint":
        assert zoo_run("fit", steps=1) == 0
        path = only_run() / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        content["hyper_parameters"]["_class_path"] = evil
        torch.save(content, "evil.ckpt")
        options = ["--ckpt_path", "evil.ckpt"]
    capsys.readouterr()
    command = ["fit", *(TOY if place != "model" else TOY[2:]), *options, "--trainer.max_steps", "1"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "evilmodule.Mine may not be named" in said
    assert "add --allow-imports evilmodule" in said
    assert not Path("ran").exists()


def test_what_is_allowed_is_imported(evil: str) -> None:
    command = [sys.executable, "-m", "zoo", "fit", "--config", "self_training/embedded", "--print_config"]
    command += ["--trainer.callbacks+", evil]
    repository = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{Path.cwd()}"}
    for options, code in (([], 2), (["--allow-imports", "evilmodule"], 0)):
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, env=environment, check=False
        )
        assert (done.returncode, Path("ran").exists()) == (code, code == 0), done.stderr


@pytest.mark.parametrize(
    "name", ["os.system", "torch.hub.load", "builtins.eval", "zoo:get_method", "torch.nn.NoSuch"]
)
def test_files_resolve_classes_of_the_list_only(name: str) -> None:
    with pytest.raises(UsageError, match=r"may not be named|no class"):
        resolve_class(name)


def test_python_tags_in_yaml_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("evil.yaml").write_text("trainer: {max_steps: !!python/object/apply:os.mkdir [ran]}")
    assert zoo_run("fit", "--config", "evil.yaml") == 2
    assert not Path("ran").exists()
    assert "evil.yaml is no YAML: could not determine a constructor" in capsys.readouterr().err


def test_a_pickled_checkpoint_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, ("ran",)

    torch.save({"state_dict": {}, "hyper_parameters": {"x": Evil()}}, "evil.ckpt")
    Path("bare.ckpt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.ckpt", "bare.ckpt"):
        assert zoo_run("fit", "--ckpt_path", name, steps=1) == 2
        assert main(["rerun", name]) == 2
        assert main(["import", name]) != 0
    assert not Path("ran").exists()
    assert "posix.mkdir" in capsys.readouterr().err
