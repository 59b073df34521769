"""Datamodules inside a Trainer: new draws every epoch, other images on every rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from datamodules import StreetShift
from tests.data_ddp_script import Recorder
from tests.tiny import STREETSHIFT

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_the_trainer_sees_new_draws_every_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    data = StreetShift(**{**STREETSHIFT, "seed": 0})
    trainer.fit(recorder, datamodule=data)
    first, second = recorder.seen["source"][:3], recorder.seen["source"][3:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(6))
    assert first != second
    assert recorder.seen["val"] == [[0, 1], [2]] * 2
    predicted = trainer.predict(Predictor(), datamodule=data)
    assert predicted == [["streetshift_400000_000000", "streetshift_400001_000000"]]


class Predictor(L.LightningModule):
    """Hands out the names it is shown."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        assert batch["image"].dtype == torch.float32
        return list(batch["name"])


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_two_ranks_see_different_images(tmp_path: Path) -> None:
    settings = {**STREETSHIFT, "num_source": 8, "seed": 0}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.data_ddp_script", str(tmp_path), json.dumps(settings)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    # 8 source images, 2 ranks, 2 a batch: two steps an epoch, each image once over both ranks.
    for start in (0, 2):
        shown = [index for rank in ranks for batch in rank["source"][start : start + 2] for index in batch]
        assert sorted(shown) == list(range(8))
    assert ranks[0]["target"] != ranks[1]["target"]
    # Three validation images, two epochs: none shown twice, although the ranks have unequal shares.
    assert sorted(chain(*ranks[0]["val"], *ranks[1]["val"])) == [0, 0, 1, 1, 2, 2]
