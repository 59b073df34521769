"""What `pip install selfzoo` gives: everything that a run from any folder needs, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SMALLEST = {
    "num_source": 2,
    "num_target": 2,
    "num_val": 2,
    "num_test": 2,
    "height": 32,
    "width": 64,
    "batch_size": 2,
}

pytestmark = pytest.mark.slow


def command(*arguments: str | Path, **environment: str) -> str:
    """Run with this interpreter; return what was printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY)
    (built,) = folder.glob("selfzoo-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command("-m", "pip", "install", "--no-deps", "--target", target, wheel)
    return target


def test_wheel_carries_cards_configs_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("zoo", "datamodules", "callbacks"):
        sources = (REPOSITORY / package).rglob("*")
        shipped = {
            p.relative_to(REPOSITORY).as_posix() for p in sources if p.suffix in (".py", ".yaml", ".typed")
        }
        assert f"{package}/py.typed" in shipped
        assert shipped <= names
    configs = {
        f"zoo/{p.relative_to(REPOSITORY).as_posix()}" for p in (REPOSITORY / "configs").rglob("*.yaml")
    }
    assert "zoo/configs/fst/embedded.yaml" in configs
    assert configs <= names
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"zoo", "datamodules", "callbacks"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_package_trains_from_any_folder(installed: Path) -> None:
    python = {"PYTHONPATH": str(installed)}
    assert [*Path().iterdir()] == []
    places = "import callbacks, datamodules, zoo, zoo.config_files as c; print(zoo.__file__, datamodules.__file__, "
    places += "callbacks.__file__, c.find_config('fst/embedded'))"
    assert all(place.startswith(str(installed)) for place in command("-c", places, **python).split())
    assert "fst" in command("-m", "zoo", "list", "methods", **python)

    sizes = [word for key, value in SMALLEST.items() for word in (f"--data.{key}", str(value))]
    fast = [
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "1",
        "--trainer.enable_progress_bar",
        "false",
    ]
    command("-m", "zoo", "fit", "--config", "fst/embedded", *sizes, *fast, **python)
    (run,) = Path().glob("runs/fst/streetshift/*")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "checkpoints"}
    assert (run / "checkpoints/last.ckpt").is_file()
