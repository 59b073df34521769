"""Two gloo processes with different data and different random numbers: one teacher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from tests.ddp_script import CALLBACKS, STEPS, build, rank_batch
from tests.toy import ToyMethod, toy_trainer

ROOT = Path(__file__).parents[1]


def joint(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The batch one process would see: both ranks' samples together."""
    merged: dict[str, Any] = {}
    for key, value in first.items():
        if isinstance(value, dict):
            merged[key] = joint(value, second[key])
        elif isinstance(value, Tensor):
            merged[key] = torch.cat([value, second[key]])
        else:
            merged[key] = [joint(a, b) for a, b in zip(value, second[key], strict=True)]
    return merged


def two_ranks(name: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What each rank ends with; their networks are the same."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.ddp_script", name, str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for key in ("student", "teacher"):
        for a, b in zip(ranks[0][key], ranks[1][key], strict=True):
            assert torch.equal(a, b)
    return ranks


@pytest.mark.slow
def test_ranks_agree_on_gradients_of_few_bits(tmp_path: Path) -> None:
    """Each has ranges of its own, of its own data."""
    first, second = (rank["callback"] for rank in two_ranks("mesa", tmp_path))
    assert first
    assert first.keys() == second.keys()
    assert any(
        not torch.equal(a, b) for place in first for a, b in zip(first[place], second[place], strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLBACKS if name != "mesa"])
def test_ranks_agree_and_equal_one_process_with_the_joint_batch(name: str, tmp_path: Path) -> None:
    ranks = two_ranks(name, tmp_path)
    method, callback = build(name)
    batches = [joint(rank_batch(step, 0), rank_batch(step, 1)) for step in range(STEPS)]
    trainer = toy_trainer(max_steps=STEPS, callbacks=[callback])
    trainer.fit(method, DataLoader(batches, batch_size=None))
    assert ranks[0]["global_step"] == trainer.global_step == STEPS
    assert ranks[0]["steps"] == method.teacher.steps
    for key, network in (("student", method.student), ("teacher", method.teacher)):
        for ours, single in zip(ranks[0][key], network.parameters(), strict=True):
            torch.testing.assert_close(ours, single.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_ends_the_other_and_says_why(dies: int, tmp_path: Path) -> None:
    """Under the command line's own launcher; the other rank waits for a gradient that never comes."""
    command = [
        *(
            sys.executable,
            "-m",
            "zoo",
            "fit",
            "--allow-imports",
            "tests",
            "--model",
            "tests.cli_toy.DyingMethod",
            "--data",
            "tests.cli_toy.CLIData",
        ),
        *("--model.dies", str(dies), "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", "4", "--run_dir", str(tmp_path / "run")),
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        _, said = process.communicate(timeout=180)  # until both have closed it
    assert process.returncode != 0
    assert f"ArithmeticError: rank {dies} cannot go on" in said


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_parameters_are_refused_at_the_start(strategy: type[Strategy]) -> None:
    method = ToyMethod()
    method.trainer = toy_trainer()
    method.trainer.strategy.__class__ = strategy
    with pytest.raises(MisconfigurationException, match=f"{strategy.__name__} shards parameters .* to ddp"):
        method.setup("fit")
