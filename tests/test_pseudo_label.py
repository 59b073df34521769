"""Predict → weight → mix → augment, part by part, and what becomes of their state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import EMATeacher, FutureTeacher, PseudoLabeler, TeacherPrediction
from tests.toy import SGD, ToyMethod, toy_loader, toy_trainer
from zoo.method import Method
from zoo.nn import BorderMask, ClassMix, ConfidenceShare, FixedThreshold, FreeMatch, NoMix
from zoo.optim import Optim
from zoo.teacher import Teacher


class Pixels(Method):
    """A one-layer segmenter that remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__(Optim(**SGD))
        self.student = nn.Conv2d(3, 4, 1)
        self.teacher = Teacher(self.student, mode="train_no_dropout")
        self.seen: list[dict[str, Any]] = []

    def default_callbacks(self) -> list:
        return [EMATeacher(decay=0.9)]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        self.seen.append(batch)
        loss = self.student(batch["source"]["image"]).square().mean()
        if "mixed" in batch:
            logits = self.student(batch["mixed"]["image"])
            loss = loss + nn.functional.cross_entropy(logits, batch["mixed"]["label"], ignore_index=255)
        return {"source": loss}


def pixel_batch(seed: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 2, 3, 8, 8, generator=rng)
    label = torch.randint(0, 4, (2, 8, 8), generator=rng)
    return {"source": {"image": image[0], "label": label}, "target": {"image": image[1]}}


class Brighter(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image + 1.0


def test_label_is_the_written_out_pipeline() -> None:
    torch.manual_seed(0)
    method, batch = Pixels(), pixel_batch(0)
    labeler = PseudoLabeler(weight=BorderMask(ConfidenceShare(0.3), 1, 2), mix=ClassMix(), augment=Brighter())
    torch.manual_seed(7)
    labelled = labeler.label(method, batch)
    assert set(batch) == {"source", "target"}  # the batch itself is left as it was
    assert set(batch["target"]) == {"image"}

    probability = method.teacher(batch["target"]["image"]).softmax(1)
    confidence, expected = probability.max(1)
    weight = torch.full((2, 8, 8), (confidence >= 0.3).float().mean().item())
    weight[:, :1], weight[:, -2:] = 0, 0
    assert torch.equal(labelled["target"]["pseudo_label"], expected)
    torch.testing.assert_close(labelled["target"]["pseudo_weight"], weight)
    torch.manual_seed(7)
    mixed = ClassMix()(batch["source"], labelled["target"])
    assert torch.equal(labelled["mixed"]["image"], mixed["image"] + 1.0)
    assert torch.equal(labelled["mixed"]["label"], mixed["label"])


def test_the_training_step_receives_the_labelled_batch_from_start_step_on() -> None:
    method = Pixels()
    labeler = PseudoLabeler(mix=NoMix(), start_step=2)
    loader = torch.utils.data.DataLoader([pixel_batch(i) for i in range(4)], batch_size=None)
    toy_trainer(max_steps=4, callbacks=[labeler]).fit(method, loader)
    assert ["mixed" in batch for batch in method.seen] == [False, False, True, True]
    assert "pseudo_weight" in method.seen[3]["target"]


def test_look_ahead_draws_a_fresh_labelling_from_the_teacher_as_it_is() -> None:
    torch.manual_seed(0)
    method = Pixels()
    labeler = PseudoLabeler(weight=FixedThreshold(0.0), mix=ClassMix())
    loader = torch.utils.data.DataLoader([pixel_batch(i) for i in range(2)], batch_size=None)
    toy_trainer(max_steps=2, callbacks=[labeler, FutureTeacher(depth=3)]).fit(method, loader)
    runs = method.seen[1:]  # the first iteration has no look-ahead; then three virtual runs and the real one
    assert len(runs) == 4
    assert all(torch.equal(run["source"]["image"], runs[0]["source"]["image"]) for run in runs)
    mixes = [run["mixed"]["image"] for run in runs]
    assert any(not torch.equal(mix, mixes[0]) for mix in mixes[1:])


class Other(nn.Module):
    def forward(self, method: Method, image: Tensor) -> Tensor:
        return torch.zeros(len(image), 4, 8, 8).index_fill_(1, torch.tensor([2]), 5.0)


def test_each_part_can_be_replaced() -> None:
    labelled = PseudoLabeler(predict=Other(), weight=FixedThreshold(0.99), mix=None).label(
        Pixels(), pixel_batch(0)
    )
    assert (labelled["target"]["pseudo_label"] == 2).all()
    assert (labelled["target"]["pseudo_weight"] == 0).all()  # confidence 0.980
    assert "mixed" not in labelled


def test_the_teacher_predicts_in_the_mode_it_is_asked_for() -> None:
    method = Pixels()
    method.teacher = Teacher(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), mode="train_no_dropout")
    image = torch.rand(4, 3, 8, 8)
    own = TeacherPrediction()(method, image)
    torch.testing.assert_close(own.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    evaluated = TeacherPrediction(mode="eval")(method, image)
    assert evaluated.mean((0, 2, 3)).abs().max() > 1e-3
    assert method.teacher.network[1].training


def test_state_of_the_parts_is_in_the_checkpoint_and_comes_back(tmp_path: Path) -> None:
    def run(steps: int, ckpt: str | None = None) -> tuple[Pixels, FreeMatch]:
        torch.manual_seed(0)
        method, weight = Pixels(), FreeMatch(4, momentum=0.5)
        save = ModelCheckpoint(tmp_path / str(steps), "{step}", every_n_train_steps=2, save_top_k=-1)
        loader = torch.utils.data.DataLoader([pixel_batch(i) for i in range(2)], batch_size=None)
        trainer = toy_trainer(
            max_steps=steps,
            callbacks=[PseudoLabeler(weight=weight, mix=NoMix()), save],
            enable_checkpointing=True,
        )
        trainer.fit(method, loader, ckpt_path=ckpt)
        return method, weight

    _, straight = run(4)
    _, resumed = run(4, str(tmp_path / "4" / "step=2.ckpt"))
    assert straight.level != 0.25
    assert torch.equal(resumed.level, straight.level)
    assert torch.equal(resumed.prediction, straight.prediction)
    # without the callback, as in evaluation, the file still loads strictly
    plain = Pixels.load_from_checkpoint(tmp_path / "4" / "step=4.ckpt", map_location="cpu", strict=True)
    assert plain.teacher.steps == 4


def test_missing_parts_of_the_batch_are_named() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"the batch has no 'unlabelled', only \['source', 'target'\]"
    ):
        PseudoLabeler(unlabelled="unlabelled").label(Pixels(), pixel_batch(0))


def test_a_labeller_of_a_method_without_teacher_is_an_error() -> None:
    class Plain(ToyMethod):
        def __init__(self) -> None:
            super().__init__()
            del self.teacher

        def default_callbacks(self) -> list:
            return []

    with pytest.raises(AttributeError, match="teacher"):
        toy_trainer(max_steps=1, callbacks=[PseudoLabeler()]).fit(Plain(), toy_loader(1))
