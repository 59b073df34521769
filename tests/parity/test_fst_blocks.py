"""Building blocks of FST (card section 4) against numbers recorded from the released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.formulas import assert_fingerprint, lab, load_cases, recipe
from zoo.metrics import SegmentationIoU
from zoo.nn import (
    BorderMask,
    ClassMix,
    ConfidenceShare,
    CutMix,
    CutOut,
    UnlabelledClassMix,
    blur_kernel_size,
    color_jitter,
    downscale_label,
    entropy_filtered_cross_entropy,
    feature_distance,
    gaussian_blur,
    ohem_cross_entropy,
    pixel_cross_entropy,
)

CASES = load_cases("fst_blocks.json")


def inputs(case: str) -> dict[str, Tensor]:
    return {name: recipe(spec) for name, spec in CASES[case]["inputs"].items() if isinstance(spec, dict)}


def scalar(value: Tensor, expected: float) -> None:
    torch.testing.assert_close(
        value.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def chosen(classes: list[list[int]]) -> Tensor:
    mask = torch.zeros(len(classes), 256, dtype=torch.bool)
    for row, names in zip(mask, classes, strict=True):
        row[names] = True
    return mask


class RecordedClassMix(ClassMix):
    """The recorded draw, and a note of the classes that were up for it."""

    def choose(self, present: Tensor) -> Tensor:
        self.present = present
        return chosen(CASES["classmix.masks"]["expected"]["chosen_classes_per_image"])


# -- ClassMix and pseudo-labels --------------------------------------------------------------------------


def test_classmix() -> None:
    label = inputs("classmix.masks")["labels"]
    tensors, params = inputs("classmix.mix"), CASES["classmix.mix"]["params"]
    weight = torch.full(label[:, 0].shape, params["target_weight"])
    weight[:, : params["ignore_top"]] = 0
    weight[:, -params["ignore_bottom"] :] = 0
    mixer = RecordedClassMix()
    mixed = mixer(
        {"image": tensors["source_img"], "label": label[:, 0]},
        {
            "image": tensors["target_img"],
            "pseudo_label": tensors["pseudo_label"],
            "pseudo_weight": weight,
        },
    )

    masks = CASES["classmix.masks"]["expected"]
    assert mixer.present[0].nonzero().flatten().tolist() == masks["unique_classes_in_batch"]
    assert torch.equal(mixer.present[0], mixer.present[1])
    pasted = (mixed["image"] == tensors["source_img"]).all(1, keepdim=True)
    expected = CASES["classmix.mix"]["expected"]
    for i in range(2):
        assert_fingerprint(pasted[i : i + 1], masks["masks"][i])
        assert_fingerprint(mixed["image"][i : i + 1], expected["mixed_img"][i])
        assert_fingerprint(mixed["label"][i : i + 1, None], expected["mixed_lbl"][i])
        assert_fingerprint(mixed["weight"][i : i + 1, None], expected["mixed_weight"][i])


def test_pseudo_weight() -> None:
    logits, params = inputs("pseudo.weight")["teacher_logits"], CASES["pseudo.weight"]["params"]
    expected = CASES["pseudo.weight"]["expected"]
    confidence, label = logits.softmax(1).max(1)
    assert_fingerprint(label, expected["pseudo_label"])
    assert_fingerprint(confidence, expected["max_prob"])

    share = ConfidenceShare(params["threshold"])
    weight = BorderMask(share, params["ignore_top"], params["ignore_bottom"])(logits)
    rows = weight[:, params["ignore_top"] : -params["ignore_bottom"]]
    scalar(rows.min(), expected["q"])
    scalar(rows.max(), expected["q"])
    scalar(weight.sum(), expected["weight_sum"])
    assert not weight[:, : params["ignore_top"]].any()
    assert not weight[:, -params["ignore_bottom"] :].any()


# -- strong augmentation ---------------------------------------------------------------------------------


def test_blur_kernel_size() -> None:
    expected = CASES["strong.blur_kernel_size"]["expected"]["kernel_by_side"]
    assert {side: blur_kernel_size(int(side)) for side in expected} == expected


def test_blur() -> None:
    image, params = inputs("strong.blur")["img"], CASES["strong.blur"]["params"]
    blurred = gaussian_blur(image, params["sigma"], tuple(params["kernel"]))
    assert_fingerprint(blurred, CASES["strong.blur"]["expected"]["out"], **CASES["strong.blur"]["tolerance"])


@pytest.mark.parametrize("setting", CASES["strong.color_jitter"]["expected"]["settings"])
def test_color_jitter(setting: dict[str, Any]) -> None:
    image = inputs("strong.color_jitter")["image_01"]
    jittered = color_jitter(image, *([setting[name]] for name in ("b", "c", "s", "h", "order")))
    tolerance = CASES["strong.color_jitter"]["tolerance"]
    assert_fingerprint(jittered, setting["out_01"], **tolerance)
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]).view(2, 1, 3, 1, 1)
    # The normalised values are 255 / std times as large as those the tolerance was meant for.
    assert_fingerprint((255 * jittered - mean) / std, setting["out_normalised"], tolerance["rtol"], atol=1e-3)


# -- losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy(memory_format: torch.memory_format) -> None:
    tensors, expected = inputs("loss.cross_entropy"), CASES["loss.cross_entropy"]["expected"]
    for name, weight in (("no_weight", None), ("weighted", tensors["weight"])):
        logits = tensors["logits"].contiguous(memory_format=memory_format).requires_grad_()
        loss = pixel_cross_entropy(logits, tensors["labels"], weight)
        scalar(loss, expected[name]["loss_f64"])
        (gradient,) = torch.autograd.grad(loss, logits)
        assert_fingerprint(gradient, expected[name]["grad"])
    valid = pixel_cross_entropy(tensors["logits"], tensors["labels"], average="valid")
    scalar(valid, expected["for_contrast_mean_over_valid_pixels_only"])


def test_upsampled_cross_entropy() -> None:
    logits, expected = inputs("loss.upsample_then_ce")["logits"], CASES["loss.upsample_then_ce"]["expected"]
    label = inputs("loss.cross_entropy")["labels"]
    upsampled = torch.nn.functional.interpolate(logits, label.shape[-2:], mode="bilinear")
    assert_fingerprint(upsampled, expected["upsampled"])
    scalar(pixel_cross_entropy(upsampled, label), expected["loss_f32"])


def test_downscale_label() -> None:
    params, expected = CASES["fdist.downscale_label"]["params"], CASES["fdist.downscale_label"]["expected"]
    label = inputs("fdist.downscale_label")["gt"][:, 0]
    cells = downscale_label(label, params["scale_factor"], params["num_classes"], params["min_ratio"])
    assert cells.flatten().tolist() == expected["out"]["values"]
    assert list(cells[:, None].shape) == expected["out"]["shape"]


def test_feature_distance() -> None:
    tensors, params = inputs("fdist.loss"), CASES["fdist.loss"]["params"]
    expected = CASES["fdist.loss"]["expected"]
    label = inputs("fdist.downscale_label")["gt"][:, 0]
    features = tensors["student_feat"].requires_grad_()
    distance = feature_distance(
        features, tensors["imagenet_feat"], label, params["classes"], params["min_ratio"], num_classes=6
    )
    loss = params["lambda"] * distance
    scalar(loss, expected["loss"])
    (gradient,) = torch.autograd.grad(loss, features)
    assert_fingerprint(gradient, expected["grad_student_feat"])
    assert int(gradient.abs().sum(1).count_nonzero()) == expected["selected_cells"]


@pytest.mark.parametrize("percent", CASES["semi.unsup_loss"]["params"]["percents"])
def test_entropy_filtered_cross_entropy(percent: int) -> None:
    tensors = inputs("semi.unsup_loss")
    expected = CASES["semi.unsup_loss"]["expected"]["by_percent"][str(percent)]
    logits = tensors["pred"].requires_grad_()
    loss = entropy_filtered_cross_entropy(logits, tensors["teacher_pred"], tensors["target"], percent)
    scalar(loss, expected["loss"])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_fingerprint(gradient, expected["grad"])
    assert int(gradient.abs().sum(1).count_nonzero()) == expected["kept_pixels"]


@pytest.mark.parametrize("setting", [name for name in CASES["semi.ohem"]["expected"] if "=" in name])
def test_ohem_cross_entropy(setting: str) -> None:
    tensors, expected = inputs("semi.ohem"), CASES["semi.ohem"]["expected"][setting]
    threshold, min_kept = (part.partition("=")[2] for part in setting.split(","))
    logits = tensors["main"].requires_grad_()
    main, auxiliary = (
        ohem_cross_entropy(prediction, tensors["target"], float(threshold), int(min_kept))
        for prediction in (logits, tensors["aux"])
    )
    scalar(main, expected["main_only"])
    total = main + CASES["semi.ohem"]["params"]["aux_weight"] * auxiliary
    scalar(total, expected["main_plus_aux"])
    (gradient,) = torch.autograd.grad(total, logits)
    assert_fingerprint(gradient, expected["grad_main"])


# -- mixing and metric of the semi-supervised code -------------------------------------------------------


def strong_augmentation(kind: str) -> CutMix | UnlabelledClassMix:
    """The mixer of a recorded kind, with the recorded draws."""
    expected = CASES["semi.strong_aug"]["expected"][kind]

    class Boxes:
        def boxes(self, count: int, height: int, width: int) -> Tensor:
            return torch.tensor(expected["removed_boxes_y0_y1_x0_x1"])

    class Classes:
        def choose(self, present: Tensor) -> Tensor:
            picked = chosen(expected["selected_classes_per_image"])
            assert not (picked & ~present).any()
            return picked

    source = Classes if kind == "classmix" else Boxes
    mixer = {"cutmix": CutMix, "cutout": CutOut, "classmix": UnlabelledClassMix}[kind]
    return type(f"Recorded{mixer.__name__}", (source, mixer), {})(p=1.0)


@pytest.mark.parametrize("kind", ["cutmix", "cutout", "classmix"])
def test_strong_augmentation(kind: str) -> None:
    tensors, expected = inputs("semi.strong_aug"), CASES["semi.strong_aug"]["expected"][kind]
    unlabelled = {
        "image": tensors["data"],
        "pseudo_label": tensors["target"],
        "pseudo_weight": tensors["confidence"],
    }
    mixed = strong_augmentation(kind)({}, unlabelled)
    assert_fingerprint(mixed["image"], expected["data"])
    assert_fingerprint(mixed["label"], expected["target"])
    assert_fingerprint(mixed["weight"], expected["logits"])


def test_iou() -> None:
    case = CASES["semi.iou"]
    spec, expected = case["inputs"]["pred"], case["expected"]
    C, shape = spec["C"], spec["shape"]
    i = torch.arange(torch.Size(shape).numel()).reshape(shape)
    prediction = (3 * lab(shape, spec["k"], C) + i // spec["div"]) % C
    label = recipe(case["inputs"]["target"])
    metric = SegmentationIoU(C)
    metric.update(prediction[:1], label[:1])
    metric.update(prediction[1:], label[1:])
    result = metric.compute()
    recorded = torch.tensor(expected["intersection"]) / torch.tensor(expected["union"])
    torch.testing.assert_close(result["iou"], recorded)
    scalar(result["mIoU"], expected["mIoU"])
