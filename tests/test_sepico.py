"""SePiCo beyond its parity numbers: crops and views, composition, look-ahead, day and night, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import EMATeacher, FutureTeacher, PredictionPanel, WritePredictions
from datamodules import StreetShift
from tests import tiny
from tests.toy import toy_trainer
from zoo import SePiCo
from zoo.methods.segmentation.sepico_labels import SePiCoLabeler
from zoo.nn import ClassBalancedCrop, DayNight
from zoo.nn.crop import window
from zoo.optim import Optim

SMALL: dict[str, Any] = {
    "backbone": "street_cnn", "optim": Optim(lr=1e-3, schedule="constant"), "projection_dim": 8,
    "contrast_layers": [1, 2], "contrast_start": 0, "ignore_top": 0, "ignore_bottom": 0, "label_ratio": 0.3,
}  # fmt: skip


# -- crops and views -------------------------------------------------------------------------------------


def test_a_window_is_a_slice() -> None:
    maps, corner = torch.rand(2, 3, 8, 9), torch.tensor([[[1, 2]], [[4, 0]]])
    cut = window(maps, corner, (4, 5))
    assert torch.equal(cut[0], maps[0, :, 1:5, 2:7])
    assert torch.equal(cut[1], maps[1, :, 4:8, 0:5])


def test_the_balanced_crop_finds_the_corner_where_classes_meet() -> None:
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[0, 8:, 8:], label[0, 8:, :8], label[0, :8, 8:] = 1, 2, 3
    torch.manual_seed(0)
    top, left = ClassBalancedCrop(4, tries=200)(label, (8, 8))[0].tolist()
    assert (top, left) == (4, 4)
    with pytest.raises(ValueError, match="cannot cut windows of 20x8 from images of 16x16"):
        ClassBalancedCrop(4)(label, (20, 8))


class Shift(nn.Module):
    """Adds one draw to all images of a call, so that calls can be told apart."""

    def forward(self, image: Tensor) -> Tensor:
        return image + torch.rand(()) + 1


def target_batch(width: int = 64, **target: Tensor) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    return {
        "source": {
            "image": torch.rand(2, 3, 32, 64, generator=rng),
            "label": torch.randint(0, 19, (2, 8, 16), generator=rng)
            .repeat_interleave(4, 1)
            .repeat_interleave(4, 2),
        },
        "target": {"image": torch.rand(2, 3, 32, width, generator=rng), **target},
    }


def test_large_targets_are_cut_and_every_image_gets_one_strong_view() -> None:
    method, batch = SePiCo(**SMALL), target_batch(width=96)
    clean = {key: batch[key]["image"].clone() for key in ("source", "target")}
    labeler = SePiCoLabeler(**{**method.labelling(), "augment": Shift()})
    labelled = labeler.label(method, batch)
    source, target, mixed = labelled["source"], labelled["target"], labelled["mixed"]
    for key in ("source", "target"):
        assert torch.equal(batch[key]["image"], clean[key])  # the batch itself stays as it is
    assert target["image"].shape == source["image"].shape
    for cut, whole in zip(target["image"], clean["target"], strict=True):
        assert any(torch.equal(cut, whole[:, :, left : left + 64]) for left in range(33))
    assert torch.equal(target["pseudo_label"], method.teacher(target["image"]).argmax(1))
    shift = (source["strong"] - source["image"]).mean()
    assert shift > 1
    torch.testing.assert_close(target["strong"], target["image"] + shift)
    assert mixed["image"].amin() >= 1

    late = SePiCoLabeler(**{**method.labelling(), "augment": Shift(), "start_step": 5})
    early = late.label(method, target_batch())
    assert "strong" in early["source"]
    assert not {"strong", "pseudo_label"} & set(early["target"])


def test_day_partners_help_with_static_classes_only() -> None:
    rules = DayNight(train_scale=0.0)
    method = SePiCo(day_night=rules, **SMALL)
    batch = target_batch(day=torch.rand(2, 3, 32, 64))
    labelled = method.pseudo_labeler().label(method, batch)["target"]
    day, night = (method.teacher(batch["target"][key]).softmax(1) for key in ("day", "image"))
    fused = night.clone()
    for c in rules.static_classes:
        w = torch.where(day[:, c] > 0.4, 0.8, 1 - 0.8)
        fused[:, c] = w * day[:, c] + (1 - w) * night[:, c]
    assert torch.equal(labelled["pseudo_label"], fused.argmax(1))
    assert not torch.equal(fused, night)
    with pytest.raises(MisconfigurationException, match=r"day_night needs batch\['target'\]\['day'\]"):
        method.pseudo_labeler().label(method, target_batch())


def test_by_night_rare_classes_weigh_more_in_cross_entropy_and_evaluation() -> None:
    method, plain = SePiCo(day_night={}, **SMALL), SePiCo(**SMALL)
    logits, label = torch.randn(2, 19, 4, 4), torch.randint(0, 19, (2, 4, 4))
    label[0, 0] = 255
    weight = torch.rand(2, 4, 4)
    expected = (
        F.cross_entropy(logits, label, method.train_weight, ignore_index=255, reduction="none") * weight
    )
    torch.testing.assert_close(
        method.cross_entropy(logits, {"label": label, "weight": weight}), expected.mean()
    )
    method.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 64)
    method.eval(), plain.eval()
    expected = plain(image).softmax(1) * method.test_weight.view(1, -1, 1, 1)
    torch.testing.assert_close(method(image).softmax(1), expected / expected.sum(1, keepdim=True))


# -- the method ------------------------------------------------------------------------------------------


def fit(method: SePiCo, steps: int = 3, **kwargs: Any) -> L.Trainer:
    trainer = toy_trainer(max_steps=steps, limit_val_batches=0, **kwargs)
    trainer.fit(method, datamodule=StreetShift(**tiny.STREETSHIFT))
    return trainer


def record(method: SePiCo) -> list[tuple[dict[str, float], int]]:
    """The losses of every call, and how many pixels the statistics had seen by then."""
    seen: list[tuple[dict[str, float], int]] = []
    original = method.losses

    def losses(batch: Any) -> dict[str, Tensor]:
        values = original(batch)
        seen.append(({k: v.item() for k, v in values.items()}, int(method.statistics[0].count.sum())))
        return values

    method.losses = losses  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {"contrast": "protocl"},
        {"contrast": "bankcl", "centroids": "image", "bank_length": 4},
        {
            "contrast": "distcl",
            "layer_fusion": "separate",
            "contrast_layers": [0, -1],
            "source_view": "clean",
        },
    ],
)
def test_variants_train(options: dict[str, Any]) -> None:
    method = SePiCo(**{**SMALL, **options})
    before = [p.detach().clone() for p in method.student.auxiliary_head.parameters()]
    seen = record(method)
    fit(method, steps=2)
    for losses, _ in seen:
        assert set(losses) == {"source", "contrast_source", "contrast_target", "mixed"}
        # log C of an undecided softmax plus the regulariser's -1, once per head
        heads = len(method.statistics)
        assert losses["contrast_source"] == pytest.approx(heads * 1.944, abs=0.02)
    assert (
        len(method.statistics)
        == len(method.student.auxiliary_head)
        == len(options.get("contrast_layers", [0]))
    )
    after = list(method.student.auxiliary_head.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_contrast_starts_at_its_step_and_statistics_at_the_first() -> None:
    method = SePiCo(**{**SMALL, "contrast_start": 2})
    head = [p.detach().clone() for p in method.student.auxiliary_head.parameters()]
    seen = record(method)
    fit(method, steps=2)
    assert [set(losses) for losses, _ in seen] == [{"source", "mixed"}] * 2
    assert 0 < seen[0][1] < seen[1][1]
    for before, after in zip(head, method.student.auxiliary_head.parameters(), strict=True):
        assert torch.equal(before, after)  # no gradient, no decay
    method = SePiCo(**{**SMALL, "contrast_start": 1})
    seen = record(method)
    fit(method, steps=2)
    assert [len(losses) for losses, _ in seen] == [2, 4]


def test_virtual_steps_read_the_statistics_and_leave_them_alone() -> None:
    looks = SePiCo(**SMALL)
    seen = record(looks)
    L.seed_everything(0, verbose=False)
    fit(looks, steps=3, callbacks=[FutureTeacher(depth=2, rewind="everything")])
    counts = [count for _, count in seen]
    assert len(counts) == 1 + 3 + 3  # the first iteration does not look ahead
    # Virtual runs know what the real step before left; the real step adds its batch, once.
    assert counts[0] == counts[1] == counts[2] < counts[3] == counts[4] == counts[5] < counts[6]
    assert counts[6] == int(looks.statistics[0].count.sum())


def test_statistics_are_in_the_checkpoint_and_come_from_the_teacher(tmp_path: Path) -> None:
    method = SePiCo(**{**SMALL, "contrast": "bankcl", "day_night": None})
    trainer = fit(method, steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SePiCo.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert loaded.statistics[0].count.sum() > 0
    for key, value in method.statistics.state_dict().items():
        assert torch.equal(loaded.statistics.state_dict()[key], value)
    assert loaded.statistics[0].bank.size.max() > 1

    # Of the teacher: what the student's projection holds does not matter.
    batch = target_batch()["source"]
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.zero_()
    method.update_statistics(batch)
    loaded.update_statistics(batch)
    assert torch.equal(method.statistics[0].mean, loaded.statistics[0].mean)
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_the_recipe() -> None:
    method = SePiCo(backbone="street_cnn")
    brought = [type(c) for c in method.default_callbacks()]
    assert brought[:4] == [EMATeacher, SePiCoLabeler, PredictionPanel, WritePredictions]
    assert (method.variant, method.contrast_start, method.temperature) == ("distcl", 3000, 100.0)
    norms = [m for m in method.teacher.network.auxiliary_head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(m.training for m in norms)
    names = [name for name, _ in method.student.named_parameters() if name.startswith("auxiliary_head")]
    assert names  # "head" in the name: ten times the rate
    assert method.optim.rules["head"].lr == 10.0


def test_bad_arguments_name_what_to_do() -> None:
    with pytest.raises(MisconfigurationException, match=r"contrast_layers=\[4\]: the backbone has 4 maps"):
        SePiCo(**{**SMALL, "contrast_layers": [4]})
    with pytest.raises(MisconfigurationException, match=r"names 19 classes, but num_classes=5: give one"):
        SePiCo(num_classes=5, day_night={}, **SMALL)
    with pytest.raises(
        ValueError, match=r"SePiCo\(contrast='dist'\): expected one of protocl, bankcl, distcl"
    ):
        SePiCo("dist", **SMALL)
    with pytest.raises(ValueError, match="centroids must be 'batch' or 'image', got 'pixel'"):
        SePiCo(centroids="pixel", **SMALL)
    label = torch.zeros(2, 30, 62, dtype=torch.long)
    batch = {"source": {"image": torch.rand(2, 3, 30, 62), "label": label}}
    with pytest.raises(ValueError, match="use an image size that is a multiple of the stride"):
        SePiCo(**SMALL).losses(batch)


def test_plain_ddp_is_refused_while_the_projection_is_unused() -> None:
    def setup(strategy: str, start: int) -> None:
        method = SePiCo(**{**SMALL, "contrast_start": start})
        method.trainer = toy_trainer(strategy=strategy, devices=2, callbacks=method.default_callbacks())
        method.setup("fit")

    with pytest.raises(
        MisconfigurationException, match=r"trainer\.strategy to ddp_find_unused_parameters_true"
    ):
        setup("ddp", start=10)
    setup("ddp", start=0)
    setup("ddp_find_unused_parameters_true", start=10)
