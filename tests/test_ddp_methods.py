"""Every method in two gloo processes: see tests/method_ddp_script.py for what they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resuming import differences, logged
from tests.test_configs import QUIET
from zoo.__main__ import main
from zoo.registry import list_methods, method_card

ROOT = Path(__file__).parents[1]
#: Each rank normalises, mines or compares within its own batch, as the authors' code does: docs/reliability.md.
PER_RANK = {
    "dinov2",
    "poa",
    "fst_semi",
    "semi_mean_teacher",
    "voco",
    "voco_cvpr",
    "voco_omni",
    "w2v_bert",
    "hicmae",
    "wearable_biosignals",
}
#: Their validation draws crops or masks on each rank.
DRAWN_VALIDATION = {"voco", "voco_cvpr", "voco_omni", "ssast", "w2v_bert", "uni4eye", "hicmae"}
#: After three steps batch norm's running variances still silence what goes in: what tells embeddings apart is rounding.
ROUNDED_VALIDATION = {"wearable_biosignals"}
GROUPS: dict[str, list[str]] = {}
for _name in list_methods():
    _card = method_card(_name)
    GROUPS.setdefault("street" if "segmentation" in _card.task else _card.modality, []).append(_name)


@pytest.mark.slow
@pytest.mark.parametrize("names", [pytest.param(names, id=group) for group, names in GROUPS.items()])
def test_methods_in_two_processes(names: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.method_ddp_script", str(tmp_path), ",".join(names),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    problems = {name: found for name in names if (found := problems_of(name, tmp_path))}
    assert not problems, problems


def problems_of(name: str, folder: Path) -> list[str]:
    """What two processes did that they should not have done."""
    first, second = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    found = [f"rank 0 and 1 differ in {key}" for key in (*first["unequal_in_step"], *first["unequal"])]
    straight, resumed = folder / name / "straight.ckpt", folder / name / "run" / "checkpoints" / "last.ckpt"
    states = [torch.load(path, weights_only=True) for path in (straight, resumed)]
    found += [f"resumed: {key}" for key in differences(*states)]

    # Draws: other images on each rank; the same ones again from where the run was resumed (step 1 of 3).
    for rank in (first, second):
        images, drawn = rank["index"], rank["drawn"]
        step = len(images) // 5
        if images[3 * step :] != images[step : 3 * step] or drawn[3:] != drawn[1:3]:
            found.append(f"the resumed run drew others: {images}, {drawn}")
    step = len(first["index"]) // 5
    several = len({*first["index"], *second["index"]}) > 1
    if several and set(first["index"][:step]) & set(second["index"][:step]):
        found.append("both ranks drew the same images")
    if first["drawn"] and first["drawn"] == second["drawn"]:
        found.append("both ranks drew the same sub-networks")

    # Rounding of float32: 2e-4 in three-dimensional networks.
    if (first["deviation"] > 1e-3) != (name in PER_RANK):
        found.append(f"gradients differ from the joint batch's by {first['deviation']}")
    rows = logged(folder / name / "run" / "metrics-1.csv")
    steps = [row["step"] for row in rows if "train/loss" in row]
    if steps != ["0", "1", "2"]:
        found.append(f"logged at steps {steps}")
    return found + uncounted(name, folder, first, second)


def uncounted(name: str, folder: Path, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Metrics of two processes against those of one, which sees every image once."""
    config, run = f"{name}/embedded", folder / name / "alone"
    command = ["validate", "--config", config, *first["options"], *QUIET]
    straight = str(folder / name / "straight.ckpt")
    if main([*command, "--ckpt_path", straight, "--run_dir", str(run)]) != 0:
        return ["validation failed"]
    (row,) = logged(run / "metrics.csv") or [{}]
    alone = {key: float(value) for key, value in row.items() if key.startswith("val/")}
    found = [
        f"{key}: ranks report {v} and {second['validated'].get(key)}"
        for key, v in first["validated"].items()
        if v != second["validated"].get(key)
    ]
    return found + [
        f"{key} is {first['validated'].get(key)} in two processes and {value} in one"
        for key, value in alone.items()
        if name not in DRAWN_VALIDATION | ROUNDED_VALIDATION
        and first["validated"].get(key) != pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True)
    ]
