"""The ingredients that self-training methods share, switched one by one: what each changes in a training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks import PseudoLabeler
from datamodules import StreetShift, StreetShiftSemi
from tests import tiny
from tests.test_configs import QUIET, STEP
from tests.toy import toy_trainer
from zoo import FST, FSTSemi, SelfTraining, SemiMeanTeacher, SePiCo
from zoo.__main__ import main
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.nn import (
    BorderMask,
    ClassBalanced,
    ClassMix,
    ConfidenceShare,
    CowMix,
    CutMix,
    CutOut,
    EntropyFilter,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
    Inference,
    NoMix,
    UnlabelledClassMix,
    WeightSchedule,
    entropy_filtered_cross_entropy,
)
from zoo.optim import Optim
from zoo.registry import UnknownNameError

SMALL: dict[str, Any] = {"backbone": "street_cnn", "optim": Optim(lr=1e-3, schedule="constant")}
FLAT: dict[str, Any] = {"ignore_top": 0, "ignore_bottom": 0, **SMALL}
SEPICO: dict[str, Any] = {"projection_dim": 8, "contrast_layers": [1, 2], "contrast_start": 0, **FLAT}


def parts(method: Any) -> Any:
    return method.pseudo_labeler().parts


def uda_batch() -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(2, 2, 3, 32, 64, generator=rng)
    label = torch.randint(0, 19, (2, 8, 16), generator=rng).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return {"source": {"image": image[0], "label": label}, "target": {"image": image[1]}}


def semi_batch() -> dict[str, Any]:
    batch = uda_batch()
    return {"labelled": batch["source"], "unlabelled": batch["target"]}


# -- by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SelfTraining, FST, SePiCo])
def test_mixers_and_weightings_of_domain_adaptation(method: type[SelfTraining]) -> None:
    for name, mixer in {"classmix": ClassMix, "cutmix": CutMix, "cowmix": CowMix, "none": NoMix}.items():
        assert type(parts(method(mix=name, **FLAT))["mix"]) is mixer
    for name in ("cutmix", "cowmix"):
        chosen = parts(method(mix=name, **FLAT))["mix"]
        assert (chosen.p, chosen.partner) == (1.0, "labelled")  # as DACS compares mixers
    blobs = parts(method(mix="cowmix", mix_args={"sigma": (2.0, 3.0), "p": 0.25}, **FLAT))["mix"]
    assert (blobs.sigma, blobs.p, blobs.partner) == ((2.0, 3.0), 0.25, "labelled")
    weightings = {
        "share": ConfidenceShare, "threshold": FixedThreshold, "flexmatch": FlexMatch, "freematch": FreeMatch,
        "class_balanced": ClassBalanced, "entropy": EntropyFilter, "none": FixedThreshold,
    }  # fmt: skip
    for name, weighting in weightings.items():
        assert type(parts(method(weighting=name, **FLAT))["weight"]) is weighting
    assert parts(method(weighting="threshold", threshold=0.7, **FLAT))["weight"].threshold == 0.7
    assert parts(method(weighting="none", threshold=0.7, **FLAT))["weight"].threshold == 0.0
    balanced = parts(method(weighting="class_balanced", weighting_args={"portion": 0.3}, **FLAT))["weight"]
    assert balanced.portion == 0.3
    assert type(parts(method(**FLAT))["mix"]) is ClassMix
    assert type(parts(method(**FLAT))["weight"]) is ConfidenceShare


@pytest.mark.parametrize("method", [SemiMeanTeacher, FSTSemi])
def test_mixers_and_weightings_of_semi_supervised_learning(method: type[SemiMeanTeacher]) -> None:
    mixers = {
        "cutmix": CutMix, "cowmix": CowMix, "classmix": UnlabelledClassMix, "cutout": CutOut, "none": NoMix,
    }  # fmt: skip
    for name, mixer in mixers.items():
        assert type(parts(method(mix=name, **SMALL))["mix"]) is mixer
    assert parts(method(mix="cowmix", **SMALL))["mix"].partner == "unlabelled"
    assert parts(method(**SMALL))["weight"].threshold == 0.0  # as released: the entropy filter decides alone
    assert type(parts(method(weighting="flexmatch", **SMALL))["weight"]) is FlexMatch
    with pytest.raises(ValueError, match=r"weighting='share': the entropy filter takes or leaves pixels"):
        method(weighting="share", **SMALL)


def test_unknown_names_suggest_the_nearest() -> None:
    for argument, name, near in (
        ("mix", "cutmx", "cutmix"),
        ("weighting", "flexmach", "flexmatch"),
        ("strong_augment", "dac", "dacs"),
    ):
        with pytest.raises(UnknownNameError, match=f"unknown {argument} '{name}': did you mean .*{near}"):
            SelfTraining(**{argument: name}, **FLAT).pseudo_labeler()


def test_by_night_only_the_share_is_known() -> None:
    with pytest.raises(MisconfigurationException, match=r"weighting='flexmatch'.* only weighting='share'"):
        SePiCo(day_night={}, weighting="flexmatch", **SEPICO).pseudo_labeler()


# -- borders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["share", "threshold", "flexmatch", "freematch", "class_balanced"])
def test_borders_of_every_side_and_weighting(weighting: str) -> None:
    border = {"ignore_top": 3, "ignore_bottom": 5, "ignore_left": 7, "ignore_right": 9}
    method = SelfTraining(weighting=weighting, threshold=0.0, **border, **SMALL)
    labeler = method.pseudo_labeler()
    assert isinstance(labeler.parts["weight"], BorderMask)
    weight = labeler.label(method, uda_batch())["target"]["pseudo_weight"]
    assert weight[:, 3:-5, 7:-9].any()
    weight[:, 3:-5, 7:-9] = 0
    assert not weight.any()
    without = SelfTraining(weighting=weighting, **FLAT).pseudo_labeler().parts["weight"]
    assert not isinstance(without, BorderMask)


def test_pixels_without_trust_are_left_out_of_the_semi_supervised_term() -> None:
    method = SemiMeanTeacher(ignore_top=4, ignore_right=10, mix="none", percent=80, **SMALL).eval()
    batch = method.pseudo_labeler().label(method, semi_batch())
    label = batch["mixed"]["label"].clone()
    label[:, :4], label[:, :, -10:] = 255, 255
    assert not torch.equal(label, batch["mixed"]["label"])
    logits = method.student(batch["mixed"]["image"])
    images = torch.cat([batch["labelled"]["image"], batch["mixed"]["image"]])
    with method.teacher.using("train"):
        judge = method.teacher(images)[2:]
    expected = entropy_filtered_cross_entropy(logits, judge, label, 80)
    torch.testing.assert_close(method.losses(batch)["unsupervised"], expected)
    everything = entropy_filtered_cross_entropy(logits, judge, batch["mixed"]["label"], 80)
    assert abs(everything - expected) > 1e-4


# -- weights of the terms --------------------------------------------------------------------------------


def losses(method: SegmentationMethod, batch: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: loss.detach() for name, loss in method.losses(batch).items()}


@pytest.mark.parametrize("kind", [SelfTraining, SePiCo])
def test_weights_scale_the_terms_of_domain_adaptation(kind: type[SelfTraining]) -> None:
    options = SEPICO if kind is SePiCo else FLAT
    plain, weighted = kind(**options), kind(supervised_weight=0.5, unsupervised_weight=3.0, **options)
    weighted.load_state_dict(plain.state_dict())
    batch = plain.pseudo_labeler().label(plain, uda_batch())
    before, after = losses(plain, batch), losses(weighted, batch)
    factors = {"source": 0.5, "mixed": 3.0}
    assert set(factors) <= set(before)
    for name, loss in before.items():
        torch.testing.assert_close(after[name], factors.get(name, 1.0) * loss)


def test_weights_scale_the_terms_of_semi_supervised_learning() -> None:
    plain = SemiMeanTeacher(**SMALL)
    weighted = SemiMeanTeacher(supervised_weight=0.5, unsupervised_weight=3.0, **SMALL)
    weighted.load_state_dict(plain.state_dict())
    batch = plain.pseudo_labeler().label(plain, semi_batch())
    before, after = losses(plain, batch), losses(weighted, batch)
    torch.testing.assert_close(after["supervised"], 0.5 * before["supervised"])
    torch.testing.assert_close(after["unsupervised"], 3.0 * before["unsupervised"])


def test_schedules_follow_the_steps_that_count() -> None:
    seen: list[tuple[int, float, float]] = []

    class Watched(FST):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            values = super().losses(batch)
            seen.append((self.global_step, values["source"].item(), values["mixed"].item()))
            return values

    fade = {"weight": 0.0, "schedule": "step", "start": 3, "initial": 1.0}
    gate = WeightSchedule(1.0, "step", start=2)
    method = Watched(depth=2, feature_distance=0.0, supervised_weight=fade, unsupervised_weight=gate, **FLAT)
    trainer = toy_trainer(max_steps=4, limit_val_batches=0)
    trainer.fit(method, datamodule=StreetShift(**tiny.STREETSHIFT))
    assert [step for step, _, _ in seen] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]  # two look-aheads a step
    assert all((source > 0) == (step < 3) and (mixed > 0) == (step >= 2) for step, source, mixed in seen)


# -- the command line ------------------------------------------------------------------------------------

SWITCHED = {
    "mix": "cowmix",
    "mix_args": {"sigma": [2.0, 4.0]},
    "weighting": "freematch",
    "weighting_args": {"momentum": 0.5},
    "ignore_left": 3,
    "supervised_weight": 0.5,
    "unsupervised_weight": {"schedule": "sigmoid", "steps": 10},
    "inference": {"window": [16, 24], "stride": [10, 12], "scales": [1.0, 1.5], "flip": True},
}


@pytest.mark.parametrize("config", ["sepico/embedded", "fst_semi/embedded"])
def test_everything_is_an_option_in_yaml_and_comes_back(config: str, tmp_path: Path) -> None:
    late = {} if "semi" in config else {"mix_start": 0}
    override = tmp_path / "switched.yaml"
    override.write_text(yaml.safe_dump({"model": {"init_args": {**SWITCHED, **late}}}))
    tree = tiny.STREETSHIFT_SEMI if "semi" in config else tiny.STREETSHIFT
    base = ["--config", config, "--config", str(override), *tiny.as_options(tree), *QUIET]
    assert main(["fit", *base, *STEP, "--run_dir", str(tmp_path / "run")]) == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert resolved["unsupervised_weight"] == {
        "weight": 1.0, "schedule": "sigmoid", "start": 0, "steps": 10, "initial": 0.0
    }  # fmt: skip
    assert resolved["inference"]["window"] == [16, 24]

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert state["training_parts.weight.weight.level"] != 1 / 19  # FreeMatch, within the border, has moved
    kind: Any = {"self_training": SelfTraining, "sepico": SePiCo, "fst_semi": FSTSemi}[
        config.partition("/")[0]
    ]
    method = kind.load_from_checkpoint(last, map_location="cpu")
    assert method.inference == Inference((16, 24), (10, 12), scales=(1.0, 1.5), flip=True)
    assert method.unsupervised_weight == WeightSchedule(1.0, "sigmoid", steps=10)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("unsupervised_weight", "{schedule: linear}", "schedule='linear' is a ramp: set steps"),
        ("weighting", "flexmach", "model.weighting: expected one of 'share', 'threshold', 'flexmatch'"),
        ("inference.stride", "[8, 8]", "inference.stride=(8, 8) needs inference.window"),
    ],
)
def test_bad_options_are_one_line(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "--config", "self_training/embedded", f"--model.{option}", value]
    assert main(command) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


# -- inference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SelfTraining, SemiMeanTeacher, SePiCo])
def test_inference_is_used_by_validation_test_and_prediction(kind: type[SegmentationMethod]) -> None:
    options = SEPICO if kind is SePiCo else SMALL
    inference = Inference(window=(16, 16), stride=(10, 12), flip=True)
    torch.manual_seed(0)
    method = kind(inference=inference, **options).eval()
    image, size = torch.rand(2, 3, 24, 40), (30, 50)
    with torch.no_grad():
        for name, parameter in method.evaluated().named_parameters():
            if "classifier" in name:  # an untrained network predicts one class everywhere
                parameter.normal_() if parameter.dim() > 1 else parameter.zero_()
        expected = inference(method.evaluated(), image, size)
        assert torch.equal(method(image, size), expected)
        assert not torch.equal(method(image).argmax(1), method.evaluated()(image).argmax(1))
        label = expected.argmax(1)
        method.validation_step({"image": image, "label": label}, 0)
        method.test_step({"image": image, "label": label}, 0)
        prediction = method.predict_step({"image": image, "size": [list(size)] * 2, "name": ["a", "b"]}, 0)
    assert method.iou.compute()["mIoU"] == 1.0
    assert torch.equal(prediction["label"].long(), label)
    torch.testing.assert_close(prediction["confidence"], expected.softmax(1).amax(1))
    assert torch.equal(method.predict(image[0]), method(image[:1])[0].argmax(0))


def test_a_callback_of_ones_own_replaces_every_part() -> None:
    method = SelfTraining(**FLAT)
    labeler = PseudoLabeler(weight=FreeMatch(19), mix=CowMix(p=1.0, partner="labelled"))
    trainer: L.Trainer = toy_trainer(max_steps=2, limit_val_batches=0, callbacks=[labeler])
    trainer.fit(method, datamodule=StreetShift(**tiny.STREETSHIFT))
    assert method.training_parts["weight"].level != 1 / 19
    assert [type(c) for c in trainer.callbacks].count(PseudoLabeler) == 1


def test_semi_supervised_mixers_train() -> None:
    for mix in ("cowmix", "classmix", "cutout"):
        method = SemiMeanTeacher(mix=mix, mix_args={"p": 1.0}, weighting="class_balanced", **SMALL)
        trainer = toy_trainer(max_steps=2, limit_val_batches=0)
        trainer.fit(method, datamodule=StreetShiftSemi(**tiny.STREETSHIFT_SEMI))
        assert trainer.global_step == 2
