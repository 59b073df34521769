"""The segmentation methods beyond their parity numbers: composition, evaluation, prediction, bad input."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from callbacks import (
    BatchPreview,
    EMATeacher,
    FutureTeacher,
    PredictionPanel,
    PseudoLabeler,
    PseudoLabelMonitor,
    TeacherDistance,
    Throughput,
    WritePredictions,
)
from datamodules import StreetShift, StreetShiftSemi
from tests import tiny
from tests.toy import toy_trainer, weights
from zoo import FST, FSTSemi, SelfTraining, SemiMeanTeacher, SourceOnly
from zoo.methods.segmentation import semi_supervised
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.nn import ohem_cross_entropy, prediction_entropy
from zoo.optim import Optim

SMALL: dict[str, Any] = {"backbone": "street_cnn", "optim": Optim(lr=1e-3, schedule="constant")}
PLAIN_FST: dict[str, Any] = {"ignore_top": 0, "ignore_bottom": 0, "feature_distance": 0.0, **SMALL}


def streetshift(**options: Any) -> StreetShift:
    return StreetShift(**{**tiny.STREETSHIFT, **options})


def fit(method: SegmentationMethod, data: Any, steps: int = 4, **kwargs: Any) -> L.Trainer:
    trainer = toy_trainer(max_steps=steps, limit_val_batches=0, **kwargs)
    trainer.fit(method, datamodule=data)
    return trainer


def seeded(build: Any) -> Any:
    L.seed_everything(0, verbose=False)
    return build()


@pytest.mark.parametrize("look", [{"depth": 2}, {"depth": 0, "width": 2}])
def test_fst_is_self_training_with_a_future_teacher(look: dict[str, int]) -> None:
    fst = seeded(lambda: FST(**look, **PLAIN_FST))
    fit(fst, streetshift())
    composed = seeded(lambda: SelfTraining(**SMALL))
    fit(composed, streetshift(), callbacks=[FutureTeacher(**look)])
    for ours, theirs in zip(weights(fst), weights(composed), strict=True):
        assert torch.equal(ours, theirs)
    plain = seeded(lambda: SelfTraining(**SMALL))
    fit(plain, streetshift())
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(fst.student), weights(plain.student), strict=True)
    )


def test_fst_without_look_ahead_is_self_training_bit_for_bit() -> None:
    zero = seeded(lambda: FST(depth=0, **PLAIN_FST))
    fit(zero, streetshift())
    plain = seeded(lambda: SelfTraining(**SMALL))
    fit(plain, streetshift())
    for ours, theirs in zip(zero.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_each_method_brings_its_recipe() -> None:
    kinds = {
        SourceOnly: [],
        SelfTraining: [EMATeacher, PseudoLabeler],
        FST: [FutureTeacher, PseudoLabeler],
        SemiMeanTeacher: [EMATeacher, PseudoLabeler],
        FSTSemi: [FutureTeacher, PseudoLabeler],
    }
    for method, expected in kinds.items():
        brought = [type(c) for c in method(**SMALL).default_callbacks()]
        watched = [TeacherDistance, Throughput, BatchPreview, PseudoLabelMonitor]
        watched = watched if expected else [Throughput, BatchPreview]
        assert brought == [*expected, PredictionPanel, WritePredictions, *watched]
    assert FST(**SMALL).depth == 3  # as released
    assert FST(backbone="street_cnn").optim.rules["head"].lr == 10.0


def test_the_uda_teacher_normalises_with_its_own_batches_and_drops_nothing() -> None:
    method = SelfTraining(head_args={"dropout": 0.5}, **SMALL)
    fit(method, streetshift())
    norms = [m for m in method.teacher.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    drops = [m for m in method.teacher.network.modules() if isinstance(m, torch.nn.Dropout2d)]
    assert all(m.training for m in norms)
    assert not any(m.training for m in drops)
    student = [m for m in method.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms[0].num_batches_tracked == 4  # one forward a step
    assert student[0].num_batches_tracked == 8  # source and mixed images
    assert not torch.equal(norms[0].running_mean, student[0].running_mean)


def test_feature_distance_pulls_on_the_encoder_only() -> None:
    method = SelfTraining(feature_distance=1.0, feature_distance_ratio=0.3, **SMALL)
    with torch.no_grad():
        for parameter in method.student.backbone.parameters():
            parameter.mul_(1.1)  # away from the frozen copy
    label = torch.full((2, 32, 64), 13)
    batch = {"source": {"image": torch.rand(2, 3, 32, 64), "label": label}}
    method.losses(batch)["feature_distance"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.backbone.parameters())
    assert all(p.grad is None for p in method.student.decode_head.parameters())
    assert not any(p.requires_grad for p in method.imagenet.parameters())
    fit(method, streetshift(), steps=2)
    assert not any(module.training for module in method.imagenet.modules())


def test_mixing_starts_at_its_step() -> None:
    seen: list[set[str]] = []

    class Watched(SelfTraining):
        def losses(self, batch: Any) -> dict[str, torch.Tensor]:
            losses = super().losses(batch)
            seen.append(set(losses))
            return losses

    fit(Watched(mix_start=2, **SMALL), streetshift())
    assert seen == [{"source"}, {"source"}, {"source", "mixed"}, {"source", "mixed"}]


def test_semi_supervised_epoch_zero_shares_the_weights_then_averages() -> None:
    states: list[tuple[int, bool]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, method: Any, *_: Any) -> None:
            pairs = zip(weights(method.student), weights(method.teacher.network), strict=True)
            states.append((trainer.current_epoch, all(torch.equal(a, b) for a, b in pairs)))

    method = FSTSemi(depth=1, **SMALL)
    trainer = toy_trainer(max_epochs=2, limit_val_batches=0, limit_train_batches=2, callbacks=[Watch()])
    trainer.fit(method, datamodule=StreetShiftSemi(**{**tiny.STREETSHIFT_SEMI, "num_target": 6}))
    assert states == [(0, True), (0, True), (1, False), (1, False)]
    assert method.evaluated() is method.teacher


def test_ohem_is_an_option_of_the_supervised_part() -> None:
    method = SemiMeanTeacher(supervised="ohem", ohem_min_kept=10, **SMALL)
    image, label = torch.rand(2, 3, 32, 64), torch.randint(0, 19, (2, 32, 64))
    mixed = {"image": image, "label": label, "weight": torch.ones(2, 32, 64)}
    hard = method.losses({"labelled": {"image": image, "label": label}, "mixed": mixed})["supervised"]
    method.supervised = "ce"
    method.student.eval()
    assert hard.isfinite()
    assert hard.item() > 0


def test_evaluation_counts_the_benchmarks_classes_in_percent() -> None:
    method, data = SourceOnly(**SMALL), streetshift()
    result = toy_trainer().test(method, datamodule=data, verbose=False)[0]
    names = {f"test/iou_{data.classes[c]}" for c in data.eval_classes}
    assert set(result) == {"test/mIoU", *names}

    data.setup("test")
    method.eval()
    hits, union = torch.zeros(19), torch.zeros(19)
    for batch in data.test_dataloader():
        prediction = method(batch["image"].float() / 255).argmax(1)
        for c in range(19):
            p, t = prediction == c, (batch["label"] == c)
            valid = batch["label"] != 255
            hits[c] += (p & t).sum()
            union[c] += ((p | t) & valid).sum()
    counted = torch.tensor([hits[c] / union[c] for c in data.eval_classes if union[c] > 0])
    assert result["test/mIoU"] == pytest.approx(100 * counted.mean().item(), abs=1e-3)


def test_labels_larger_than_images_are_judged_at_their_own_size() -> None:
    method = SourceOnly(**SMALL).eval()
    image, label = torch.rand(1, 3, 32, 64), torch.randint(0, 19, (1, 64, 128))
    with torch.no_grad():
        method.validation_step({"image": image, "label": label}, 0)
        expected = F.interpolate(method(image), (64, 128), mode="bilinear").argmax(1)
    got = method.iou.compute()["iou"]
    for c in range(19):
        hit = ((expected == c) & (label == c)).sum()
        union = ((expected == c) | (label == c)).sum()
        if union:
            assert got[c] == pytest.approx((hit / union).item())


def test_predict_takes_what_people_have() -> None:
    method = SourceOnly(**SMALL).train()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    expected = method.predict(Image.fromarray(pixels))
    assert expected.shape == (32, 64)
    assert torch.equal(method.predict(pixels), expected)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(method.predict(tensor), expected)
    assert torch.equal(method.predict(tensor.float() / 255), expected)
    assert method.training
    with pytest.raises(ValueError, match=r"shape \(1, 32, 64\): expected one RGB image"):
        method.predict(torch.rand(1, 32, 64))


def test_wrong_number_of_classes_says_which_to_set() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"num_classes=5.*19 classes: set model.num_classes to 19"
    ):
        fit(SourceOnly(num_classes=5, **SMALL), streetshift())


def test_timm_backbones_swap_by_name() -> None:
    method = SelfTraining(backbone="resnet18", optim=SMALL["optim"])
    fit(method, streetshift(), steps=2)
    assert method.student.backbone.channels == (64, 64, 128, 256, 512)
    assert torch.allclose(method.student.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_align_corners_reaches_the_network() -> None:
    image = torch.rand(1, 3, 32, 64)
    plain, aligned = (
        seeded(lambda value=value: SourceOnly(align_corners=value, **SMALL)).eval() for value in (False, True)
    )
    assert not torch.equal(plain(image), aligned(image))
    coarse = aligned.student.decode_head(aligned.student.backbone(aligned.student.normalize(image)))
    expected = F.interpolate(coarse, (32, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(aligned(image), expected)


def test_further_means_of_a_benchmark_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreetShift, "eval_subsets", {"mIoU2": (0, 10)})
    method = seeded(lambda: SourceOnly(**SMALL))
    (result,) = toy_trainer().test(method, streetshift(), verbose=False)
    assert result["test/mIoU2"] == pytest.approx((result["test/iou_road"] + result["test/iou_sky"]) / 2)


def test_an_auxiliary_head_is_trained_and_plays_no_part_in_prediction() -> None:
    head: dict[str, Any] = {"auxiliary_head": "fcn", "auxiliary_args": {"source": 2, "width": 16}}
    method = seeded(lambda: SelfTraining(**head, auxiliary_weight=0.5, **SMALL))
    part = {"image": torch.rand(2, 3, 32, 64), "label": torch.randint(0, 19, (2, 32, 64))}
    mixed = {**part, "weight": torch.zeros(2, 32, 64)}
    losses = method.eval().losses({"source": part, "mixed": mixed})
    assert set(losses) == {"source", "source_auxiliary", "mixed", "mixed_auxiliary"}
    logits = method.student.auxiliary(
        method.student.forward_with_features(part["image"])[1], part["label"].shape[-2:]
    )
    expected = 0.5 * F.cross_entropy(logits, part["label"])
    # The released code gives pixel weights to the main head alone.
    assert losses["mixed"] == 0
    torch.testing.assert_close(losses["source_auxiliary"], expected)
    torch.testing.assert_close(losses["mixed_auxiliary"], expected)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in method.student.auxiliary_head.parameters())
    before = method(part["image"])
    torch.nn.init.zeros_(method.student.auxiliary_head.conv_seg.weight)
    assert torch.equal(before, method(part["image"]))


def test_the_semi_supervised_auxiliary_loss_is_that_of_the_supervised_part() -> None:
    method = seeded(
        lambda: SemiMeanTeacher(
            auxiliary_head="fcn", auxiliary_args={"source": 2, "width": 16}, supervised="ohem", ohem_min_kept=100,
            **SMALL,
        )
    )  # fmt: skip
    part = {"image": torch.rand(2, 3, 32, 64), "label": torch.randint(0, 19, (2, 32, 64))}
    method.eval()
    losses = method.losses({"labelled": part, "mixed": {**part, "weight": torch.ones(2, 32, 64)}})
    features = method.student.forward_with_features(torch.cat([part["image"]] * 2))[1]
    logits = method.student.auxiliary(features, part["label"].shape[-2:])[:2]
    expected = 0.4 * ohem_cross_entropy(logits, part["label"], 0.7, 100)
    torch.testing.assert_close(losses["auxiliary"], expected)
    with pytest.raises(ValueError, match="auxiliary_kwargs needs auxiliary_head"):
        SemiMeanTeacher(auxiliary_args={"source": 2}, **SMALL)


@pytest.mark.parametrize(
    ("released", "own_norm", "same"), [(True, False, False), (False, True, False), (False, False, True)]
)
def test_what_each_half_of_a_semi_supervised_batch_decides_by_itself(
    released: bool, own_norm: bool, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why two processes are not one: the percentile of the filter, and the norm of the teacher's second forward."""
    method = seeded(lambda: SemiMeanTeacher(copy_epochs=0, **SMALL))
    method.student.eval()
    if not own_norm:
        monkeypatch.setattr(method.teacher, "using", lambda mode: nullcontext(method.teacher))
    if not released:
        monkeypatch.setattr(semi_supervised, "entropy_filtered_cross_entropy", weighed_pixel_by_pixel)
    image, label = torch.rand(4, 2, 3, 32, 64), torch.randint(19, (4, 2, 32, 64))
    halves = [
        {
            "labelled": {"image": image[i], "label": label[i]},
            "mixed": {"image": image[i + 2], "label": label[i + 2], "weight": torch.ones(2, 32, 64)},
        }
        for i in (0, 1)
    ]
    joint = {
        part: {key: torch.cat([half[part][key] for half in halves]) for key in halves[0][part]}
        for part in halves[0]
    }
    one, other, together = (
        {name: term.item() for name, term in method.losses(batch).items()} for batch in (*halves, joint)
    )
    assert (one["supervised"] + other["supervised"]) / 2 == pytest.approx(together["supervised"], rel=1e-6)
    mean = (one["unsupervised"] + other["unsupervised"]) / 2
    assert (mean == pytest.approx(together["unsupervised"], rel=1e-6)) is same


def weighed_pixel_by_pixel(logits: Tensor, judge: Tensor, label: Tensor, *_: Any) -> Tensor:
    """A filter in which no pixel knows of the others."""
    return (F.cross_entropy(logits, label, reduction="none") * prediction_entropy(judge)).mean()
