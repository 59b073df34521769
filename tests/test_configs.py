"""Every config of the package runs a step through the real command line, on miniature data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from zoo.__main__ import main
from zoo.config_files import package_configs
from zoo.registry import list_methods, method_card

CONFIGS = sorted(
    path.relative_to(package_configs()).with_suffix("").as_posix()
    for path in package_configs().rglob("*.yaml")
)
QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
STEP = [
    "--trainer.max_steps",
    "1",
    "--trainer.val_check_interval",
    "1",
    "--trainer.num_sanity_val_steps",
    "0",
]


def streetshift(_: Path) -> dict[str, Any]:
    return tiny.STREETSHIFT


def streetshift_semi(_: Path) -> dict[str, Any]:
    return tiny.STREETSHIFT_SEMI


def gta5_cityscapes(folder: Path) -> dict[str, Any]:
    source, target = tiny.gta5_tree(folder / "gta5"), tiny.cityscapes_tree(folder / "cityscapes")
    # Rare classes are no fewer pixels here than others: any pixel makes an image a candidate.
    rare = {"rare_class_min_pixels": 0, "rare_class_min_crop_pixels": 0}
    return {**tiny.GTA5_CITYSCAPES, **rare, "source_root": source, "target_root": target}


MINIATURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "StreetShift": streetshift,
    "StreetShiftSemi": streetshift_semi,
    "GTA5Cityscapes": gta5_cityscapes,
}


#: Of backbones that take gigabytes to train, the smallest of the same family.
SMALLER = {"pvt_v2_b5": "pvt_v2_b0"}


def miniature(config: str, folder: Path) -> list[str]:
    """The command-line options that put a config on miniature data and never ask for a download."""
    content = yaml.safe_load((package_configs() / f"{config}.yaml").read_text())
    options = tiny.as_options(MINIATURES[content["data"]["class_path"]](folder))
    model = content["model"]["init_args"]
    if model.get("pretrained"):
        options += ["--model.pretrained", "false"]
    if model["backbone"] in SMALLER:
        options += ["--model.backbone", SMALLER[model["backbone"]]]
    return options


@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_through_the_command_line(config: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [
        "fit",
        "--config",
        config,
        *miniature(config, tmp_path),
        *QUIET,
        *STEP,
        "--run_dir",
        str(run_dir),
    ]
    assert main(command) == 0
    resolved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert resolved["trainer"]["max_steps"] == 1
    assert (run_dir / "checkpoints" / "last.ckpt").is_file()
    assert "val/mIoU" in (run_dir / "metrics.csv").read_text()
    assert list((run_dir / "pictures").glob("*.png"))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_line_is_the_command(config: str) -> None:
    first = (package_configs() / f"{config}.yaml").read_text().splitlines()[0]
    assert first == f"# zoo fit --config {config}"


def test_cards_and_configs_name_each_other() -> None:
    named = {config for name in list_methods() for config in method_card(name).configs}
    assert named == set(CONFIGS)
