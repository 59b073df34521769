"""Pictures of validations and batches: who draws what, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import BatchPreview, PositionPanel, ReconstructionPanel, VolumePanel
from tests.toy import ToyMethod, toy_trainer
from zoo.method import Method


class Draws(ToyMethod):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"norm": sum(p.square().sum() for p in self.student.parameters())}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return {"label": batch["label"]} if "label" in batch else None

    def reconstruct(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.asked.append(len(batch["spectrogram"]))
        image = batch["spectrogram"].transpose(1, 2)
        masked = image.clone()
        masked[..., :4] = torch.nan
        return {"original": image, "masked": masked, "reconstructed": image}

    def positions(self, batch: dict[str, Any]) -> Tensor:
        return torch.rand(*batch["crops"].shape[:2], batch["base"].shape[1])


def audio(size: int = 3) -> dict[str, Any]:
    return {"spectrogram": torch.rand(size, 16, 8)}


def crops() -> dict[str, Any]:
    return {
        "volume": torch.rand(1, 1, 16, 16, 8),
        "crops": torch.rand(1, 1, 1, 8, 8, 8),
        "base": torch.rand(1, 2, 1, 8, 8, 8),
        "crop_box": torch.tensor([[[2, 2, 0, 10, 10, 8]]]),
        "base_box": torch.tensor([[[0, 0, 0, 8, 8, 8], [8, 0, 0, 16, 8, 8]]]),
    }


def volumes() -> dict[str, Any]:
    return {"volume": torch.rand(2, 1, 8, 8, 8), "label": torch.ones(2, 8, 8, 8, dtype=torch.long)}


def loader(*batches: dict[str, Any]) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Not the working directory, which is not littered with pictures."""
    return tmp_path / "run"


def fit(
    callback: L.Callback, batch: dict[str, Any], method: Method, folder: Path, **options: Any
) -> list[str]:
    trainer = toy_trainer(
        max_steps=2, callbacks=[callback], default_root_dir=folder, val_check_interval=1, **options
    )
    trainer.fit(method, loader(audio(), audio()), loader({"other": torch.rand(1)}, batch, batch))
    return sorted(path.name for path in (folder / "pictures").glob("*.png"))


@pytest.mark.parametrize(
    ("callback", "batch", "name"),
    [
        (ReconstructionPanel(count=2), audio(), "val-reconstruction"),
        (PositionPanel(), crops(), "val-positions"),
        (VolumePanel(count=1), volumes(), "val-volume"),
    ],
)
def test_each_validation_draws_one_picture(callback: Any, batch: Any, name: str, run: Path) -> None:
    method = Draws()
    assert fit(callback, batch, method, run) == [f"{name}-step00000{step}.png" for step in (1, 2)]
    with Image.open(run / "pictures" / f"{name}-step000001.png") as picture:
        assert min(picture.size) > 60
    if "spectrogram" in batch:
        assert method.asked == [2, 2]  # once a validation, not in the sanity check, and no more than count


def test_tensorboard_gets_pictures_and_a_run_without_readers_draws_none(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(run, name="", version="events")
    fit(ReconstructionPanel(), audio(), Draws(), run, logger=logger)
    events = EventAccumulator(str(run / "events")).Reload()
    assert [event.step for event in events.Images("val/reconstruction")] == [1, 2]

    method = Draws()
    trainer = toy_trainer(max_steps=1, callbacks=[ReconstructionPanel()])
    trainer.fit(method, loader(audio()), loader(audio()))
    assert method.asked == []


def test_missing_contracts_are_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"needs ToyMethod\.reconstruct\(batch\)"):
        ReconstructionPanel().draw(ToyMethod(), audio(), None, None)
    with pytest.raises(MisconfigurationException, match=r"returns no \{'label'"):
        VolumePanel().draw(ToyMethod(), volumes(), None, None)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        PositionPanel(count=0)


def test_the_batch_is_drawn_before_chosen_steps(run: Path) -> None:
    trainer = toy_trainer(
        max_steps=4,
        callbacks=[BatchPreview(steps=[1, 3], count=1)],
        default_root_dir=run,
        accumulate_grad_batches=2,
    )
    trainer.fit(Draws(), loader(*(audio() for _ in range(8))))
    names = sorted(path.name for path in (run / "pictures").iterdir())
    assert names == ["train-batch-step000001.png", "train-batch-step000003.png"]
