"""Deterministic mode repeats bit for bit, and lower precision trains, for a method of every field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_configs import QUIET, miniature
from zoo.__main__ import main

FIELDS = ["fst/embedded", "dino/embedded", "ssast/embedded", "voco/embedded"]
STEPS = [
    "--trainer.max_steps",
    "2",
    "--trainer.limit_val_batches",
    "0",
    "--trainer.num_sanity_val_steps",
    "0",
]


def trained(config: str, data: list[str], folder: Path, *options: str) -> dict[str, Any]:
    command = ["fit", "--config", config, *data, *QUIET, *STEPS, *options, "--run_dir", str(folder)]
    assert main(command) == 0
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(autouse=True)
def _again() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("config", FIELDS)
def test_deterministic_runs_repeat_bit_for_bit(config: str, tmp_path: Path) -> None:
    data = miniature(config, tmp_path)
    once, again, other = (
        trained(config, data, tmp_path / name, "--trainer.deterministic", "true", "--seed_everything", seed)
        for name, seed in (("once", "3"), ("again", "3"), ("other", "4"))
    )
    assert all(torch.equal(again[name], tensor) for name, tensor in once.items())
    assert any(not torch.equal(other[name], tensor) for name, tensor in once.items())


@pytest.mark.slow
@pytest.mark.parametrize("config", FIELDS[:3])
def test_bf16_trains(config: str, tmp_path: Path) -> None:
    data = miniature(config, tmp_path)
    full = trained(config, data, tmp_path / "full")
    mixed = trained(config, data, tmp_path / "mixed", "--trainer.precision", "bf16-mixed")
    floats = {name: tensor for name, tensor in mixed.items() if tensor.is_floating_point()}
    assert all(torch.isfinite(tensor).all() for tensor in floats.values())
    assert any(not torch.equal(full[name], tensor) for name, tensor in floats.items())
    assert {tensor.dtype for name, tensor in floats.items() if name.startswith("student.")} == {torch.float32}
