"""The omni-supervised stage of VoCo: who labels, from when on, and what labels train."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks import SnapshotTeacher
from tests.toy import SGD, toy_trainer, weights
from tests.toy_volumes import SMALL, ToyNet, loader, register_toy_net, voco_batch
from zoo.methods.medical.voco_omni import VoCoOmni
from zoo.optim import Optim

pytest.importorskip("monai")


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy_net(monkeypatch)


def omni(**options: Any) -> VoCoOmni:
    torch.manual_seed(0)
    return VoCoOmni(num_classes=3, optim=Optim(**SGD), **{**SMALL, **options})


def omni_batch(seed: int = 0) -> dict[str, Any]:
    unlabelled = voco_batch(seed)
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (2, 8, 8, 8), generator=rng)
    return {"unlabelled": unlabelled, "labelled": {"volume": label[:, None] / 2, "label": label}}


class Follow(Callback):
    """Which terms every step had, and what labelled."""

    step_order = 1000

    def __init__(self) -> None:
        self.terms: list[set[str]] = []
        self.students: list[list[Tensor]] = []
        self.labels: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.students.append(weights(pl_module.student))
        self.labels.append((batch["unlabelled"]["crops"], batch["unlabelled"].get("pseudo_label")))

    def on_losses(self, pl_module: Any, losses: dict[str, Tensor]) -> None:
        self.terms.append(set(losses))


def test_pseudo_labels_come_from_a_copy_of_the_middle_of_the_run() -> None:
    method, follow = omni(), Follow()
    toy_trainer(max_steps=6, callbacks=[follow]).fit(method, loader([omni_batch(i) for i in range(6)]))
    always = {"intra", "inter", "separation", "dice", "cross_entropy"}
    pseudo = {"pseudo_dice", "pseudo_cross_entropy"}
    # taken before step 3, used from step 4 on
    assert follow.terms == [always] * 4 + [always | pseudo] * 2
    for taken, then in zip(weights(method.labeler), follow.students[3], strict=True):
        assert torch.equal(taken, then)
    crops, label = follow.labels[-1]
    assert torch.equal(label, method.labeler(crops.flatten(0, 1)).argmax(1))
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(method.labeler), weights(method.student), strict=True)
    )


def test_the_middle_may_be_said_and_a_short_run_never_gets_there() -> None:
    method, follow = omni(semi_start=1), Follow()
    toy_trainer(max_steps=3, callbacks=[follow]).fit(method, loader([omni_batch(i) for i in range(3)]))
    assert ["pseudo_dice" in terms for terms in follow.terms] == [False, False, True]
    late = omni(semi_start=100)
    toy_trainer(max_steps=3).fit(late, loader([omni_batch(i) for i in range(3)]))
    assert late.labeler.steps == 0
    with pytest.raises(MisconfigurationException, match="steps count from 0"):
        SnapshotTeacher(at=-1)


def test_the_labeller_survives_a_stop(tmp_path: Any) -> None:
    batches = [omni_batch(i) for i in range(4)]
    method = omni(semi_start=1)
    trainer = toy_trainer(max_steps=3)
    trainer.fit(method, loader(batches))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again, follow = omni(semi_start=1), Follow()
    toy_trainer(max_steps=4, callbacks=[follow]).fit(again, loader(batches), ckpt_path=tmp_path / "x.ckpt")
    assert follow.terms[0] >= {"pseudo_dice"}
    for a, b in zip(weights(method.labeler), weights(again.labeler), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("detach", "trained"), [("released", [True, True, False]), ("all", [False] * 3), ("none", [True] * 3)]
)
def test_what_pseudo_labels_train(detach: Any, trained: list[bool]) -> None:
    """As released the map that is not pooled carries gradients, into its stage and those before it."""
    method, batch = omni(detach=detach), omni_batch()
    batch["unlabelled"]["pseudo_label"] = torch.randint(0, 3, (4, 8, 8, 8))
    batch["unlabelled"]["pseudo_weight"] = torch.ones(4, 8, 8, 8)
    terms = method.losses(batch)
    (terms["pseudo_dice"] + terms["pseudo_cross_entropy"]).backward()
    network: ToyNet = method.student.backbone
    reached = [stage.weight.grad is not None and bool(stage.weight.grad.any()) for stage in network.stages]
    assert reached == trained
    assert all(p.grad is not None for p in method.student.decode_head.parameters())


def test_pseudo_weights_count() -> None:
    method, batch = omni(), omni_batch()
    part = batch["unlabelled"]
    part["pseudo_label"] = torch.randint(0, 3, (4, 8, 8, 8))
    part["pseudo_weight"] = torch.zeros(4, 8, 8, 8)
    without = method.losses(batch)
    assert without["pseudo_cross_entropy"] == 0
    changed = copy.copy(batch)
    changed["unlabelled"] = {**part, "pseudo_label": (part["pseudo_label"] + 1) % 3}
    torch.testing.assert_close(method.losses(changed)["pseudo_dice"], without["pseudo_dice"])


def test_omni_refuses() -> None:
    with pytest.raises(ValueError, match="detach='some'"):
        omni(detach="some")
    with pytest.raises(ValueError, match="shares its backbone"):
        omni(teacher_network="whole")
