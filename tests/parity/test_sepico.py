"""SePiCo (card sections 3 to 8) against numbers recorded from the released code."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import PseudoLabeler
from tests.parity.formulas import assert_fingerprint, blk, det, load_cases, params_init
from tests.toy import toy_trainer
from zoo import SePiCo
from zoo.nn import (
    BorderMask,
    ClassBalancedCrop,
    ClassMix,
    ClassStatistics,
    ConfidenceShare,
    DayNight,
    DayNightFusion,
    ProjectionHead,
    ScoreShare,
    Segmentor,
    bank_contrast,
    contrast_regulariser,
    distribution_contrast,
    label_of_cells,
    proto_contrast,
    rarity_weights,
)
from zoo.nn.crop import window
from zoo.optim import Optim
from zoo.teacher import Teacher

CASES = load_cases("sepico.json")
STEPS = [name for name in CASES if name.startswith("train_step.")]


def close(actual: Tensor, expected: Any) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-5, atol=1e-6)


def embedded(case: str, kf: float, kl: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features before normalisation, embeddings and labels of the cells."""
    inputs, params = CASES[case]["inputs"], CASES[case]["params"]
    label = inputs["labels"]
    features = det(inputs["features"]["shape"], kf).requires_grad_()
    pixels = blk(label["shape"], kl, label["C"], label["b"], label["ignore"])[:, 0]
    cells = label_of_cells(pixels, features, label["C"], params["min_ratio"])
    return features, F.normalize(features, dim=1), cells


def known(updates: int = 3) -> ClassStatistics:
    """The statistics after so many updates of ``stats.update``."""
    params = CASES["stats.update"]["params"]
    statistics = ClassStatistics(params["num_classes"], params["dim"], params["memory_length"])
    for kf, kl in params["updates [kf,kl]"][:updates]:
        _, embedding, cells = embedded("stats.update", kf, kl)
        statistics.update(embedding, cells)
    return statistics


def test_cells() -> None:
    expected = CASES["prep.flatten"]["expected"]["avg_pool"]
    _, embedding, cells = embedded("prep.flatten", 1, 0)
    kept = cells != 255
    assert int(kept.sum()) == expected["num_pixels"]
    assert cells[kept].tolist() == expected["labels"]["values"]
    assert_fingerprint(embedding.permute(0, 2, 3, 1)[kept], expected["features"])


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_statistics(updates: int) -> None:
    expected, statistics = CASES["stats.update"]["expected"]["per_update"][updates - 1], known(updates)
    close(statistics.count, expected["Amount"])
    assert_fingerprint(statistics.mean, expected["Ave"])
    assert_fingerprint(statistics.variance, expected["CoVariance"])

    bank = statistics.bank
    assert bank is not None
    assert bank.size.tolist() == expected["bank_lengths"]
    for index, key in ((0, "bank_class0"), (-1, "bank_last_class")):
        full = updates + 1 > bank.entries.shape[1]  # the oldest one lies behind the newest
        ordered = bank.entries[index].roll(-int(bank.written[index]) if full else 0, 0)[: bank.size[index]]
        assert_fingerprint(ordered, expected[key])


@pytest.mark.parametrize("setting", CASES["loss.contrastive"]["expected"]["losses"])
def test_contrast(setting: str) -> None:
    variant, tau, weight = (part.rpartition("=")[2] for part in setting.split(","))
    expected = CASES["loss.contrastive"]["expected"]["losses"][setting]
    inputs, statistics = CASES["loss.contrastive"]["inputs"], known()
    features, embedding, cells = embedded("loss.contrastive", inputs["features"]["k"], inputs["labels"]["k"])
    bank = statistics.bank
    assert bank is not None
    loss = {
        "proto": lambda: proto_contrast(embedding, cells, statistics.mean, float(tau)),
        "dist": lambda: distribution_contrast(
            embedding, cells, statistics.mean, statistics.variance, float(tau)
        ),
        "bank": lambda: bank_contrast(embedding, cells, bank.entries, bank.size, float(tau)),
    }[variant]()
    regulariser = contrast_regulariser(embedding, cells, statistics.mean, float(tau))
    close(regulariser, CASES["loss.contrastive"]["expected"]["regulariser_only_by_tau"][tau])
    total = loss + float(weight) * regulariser
    torch.testing.assert_close(total.item(), expected["loss_f64"], rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(total, features)
    # At temperature 100 the gradients are below the file's absolute tolerance.
    scale = expected["grad_wrt_unnormalised_features"]["l2"]
    assert_fingerprint(gradient, expected["grad_wrt_unnormalised_features"], rtol=2e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ["single_layer", "resize_concat", "one_conv"])
def test_projection(name: str) -> None:
    case = CASES[f"proj.{name}"]
    params, expected = case["params"], case["expected"]
    channels = params["inc"] if params["tr"] else [params["inc"]]
    indices = params["idx"] if params["tr"] else [params["idx"]]
    head = ProjectionHead(channels, params["ch"], params["nc"])
    state = {key: value for key, value in head.state_dict().items() if value.is_floating_point()}
    assert [[key, list(value.shape)] for key, value in state.items()] == expected["keys_and_shapes"]
    for j, (key, value) in enumerate(state.items()):
        base = det(value.shape, params["k0"] + j)
        if key.endswith("running_var"):
            value.copy_(1 + 0.5 * base.abs())
        elif value.dim() == 1 and key.endswith("weight"):
            value.copy_(1 + 0.1 * base)
        elif value.dim() == 1:
            value.copy_(0.1 * base)
        else:
            value.copy_(base / (value.numel() / value.shape[0]) ** 0.5)
    maps = [det(spec["shape"], spec["k"]) for spec in case["inputs"]["inputs"]]
    chosen = [maps[index] for index in indices]
    assert_fingerprint(head.eval()(chosen), expected["eval_out"])
    assert_fingerprint(head.train()(chosen), expected["train_mode_out (batch statistics)"])


@pytest.mark.parametrize(("name", "rule"), [("class_balanced", "balanced"), ("plain", "first")])
def test_crop(name: str, rule: Any) -> None:
    case = CASES[f"crop.{name}"]
    spec, params, expected = case["inputs"]["labels"], case["params"], case["expected"]
    candidates = torch.tensor(expected["candidates_y1_y2_x1_x2"])
    corners = candidates[None, :, [0, 2]]

    class Listed(ClassBalancedCrop):
        def corners(self, count: int, last_top: int, last_left: int) -> Tensor:
            return corners

    crop = Listed(spec["C"], rule, params["cat_max_ratio"], len(candidates))
    label = blk([1, 1, *spec["shape"][1:]], spec["k"], spec["C"], spec["b"])[:, 0]
    size = tuple(params["crop_size"])
    close(crop.scores(label, corners, size)[0], expected["scores"])
    top, left = crop(label, size)[0].tolist()
    assert [top, top + size[0], left, left + size[1]] == expected["chosen"]


def test_day_night() -> None:
    weights, case = CASES["dark.class_weights"], CASES["dark.mix_day_night"]
    for scale, expected in weights["expected"]["weights_by_s"].items():
        close(rarity_weights(weights["params"]["frequencies"], float(scale)), expected)
    assert weights["params"]["frequencies"] == list(DayNight().frequencies)

    spec, expected = case["inputs"]["day_probs"], case["expected"]
    day, night = ((spec["gain"] * det(spec["shape"], k)).softmax(1) for k in (1, 2))
    plain = DayNightFusion(DayNight(train_scale=0.0))(day, night)
    assert_fingerprint(plain, expected["mixed_without_class_weight"])
    fused = DayNightFusion(DayNight())(day, night)
    assert_fingerprint(fused, expected["mixed"])
    assert fused.argmax(1).flatten().bincount(minlength=19).tolist() == expected["label_histogram"]
    assert_fingerprint(fused.amax(1), expected["confidence"])
    share = sum(value >= 0.22 for value in expected["confidence"]["values"]) / 20
    assert ScoreShare(0.22)(fused).unique().tolist() == pytest.approx([share])


# -- whole iterations ------------------------------------------------------------------------------------


class TinyBackbone(nn.Module):
    mean, std, in_chans, strides = (0.0,) * 3, (1.0,) * 3, 3, (2,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = (width,)
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv1(image).tanh()]

    forward_features = forward


class TinyHead(nn.Module):
    """Classifiers of dilation 1 (a 1×1 convolution) and 2, summed."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        convs = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 3, padding=2, dilation=2)
        self.aspp_modules = nn.ModuleList(nn.ModuleDict({"conv": conv}) for conv in convs)

    def forward(self, features: list[Tensor]) -> Tensor:
        first, second = (branch["conv"](features[-1]) for branch in self.aspp_modules)
        return first + second


class LowestClasses(ClassMix):
    """The recorded steps paste the lowest half of the classes of the batch."""

    def choose(self, present: Tensor) -> Tensor:
        return present & (present.cumsum(1) <= (present.sum(1, keepdim=True) + 1) // 2)


def network(p: dict[str, Any]) -> Segmentor:
    student = Segmentor(TinyBackbone(p["hid"]), TinyHead(p["hid"], p["C"]))
    student.auxiliary_head = nn.ModuleList([ProjectionHead([p["hid"]], p["A"])])
    params_init(student, p["k0"], p["scale"])
    return student


def build(p: dict[str, Any]) -> SePiCo:
    # The recorded SGD steps have momentum and, whatever the file's "wd" says, no decay.
    adamw = p["opt"] == "adamw"
    decay, options = (p["wd"], {}) if adamw else (0.0, {"momentum": 0.9})
    method = SePiCo(
        {"dist": "distcl", "bank": "bankcl", "proto": "protocl"}[p["variant"]],
        backbone="street_cnn", contrast_layers=[0], num_classes=p["C"], projection_dim=p["A"],
        contrast_start=p["start"], contrast_weight=p["lw"], regulariser=p["reg"], temperature=p["tau"],
        label_ratio=p["ratio"], bank_length=p["mem"], decay=p["alpha"], strong_augment="none",
        optim=Optim(p["opt"], lr=p["lr"], weight_decay=decay, options=options, schedule="constant"),
    )  # fmt: skip
    method.student = network(p)
    method.teacher = Teacher(network(p), mode="train_no_dropout")
    return method


def batch(p: dict[str, Any], step: int, boxes: list[list[int]]) -> dict[str, Any]:
    """The step's images; the teacher has its own batch statistics, so target windows may be cut beforehand."""
    k, (h, w) = p["k_data"] + 10 * step, p["crop"]
    target = det((p["N"], 3, p["TH"], p["TW"]), k + 0.5)
    corner = torch.tensor(boxes)[:, None, [0, 2]]
    return {
        "source": {
            "image": det((p["N"], 3, h, w), k),
            "label": blk((p["N"], 1, h, w), k, p["C"], p["b"], p["ignore"])[:, 0],
        },
        "target": {"image": window(target, corner, (h, w))},
    }


class Probe(L.Callback):
    """What each step's losses were, and networks and statistics after it."""

    def __init__(self) -> None:
        self.after: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, method: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        statistics = method.statistics[0]
        self.after.append(
            {
                "mix_weight": batch["mixed"]["weight"].mean(),
                "Amount": statistics.count.clone(),
                "Ave": statistics.mean.clone(),
                "CoVariance": statistics.variance.clone(),
                "student": {n: t.detach().clone() for n, t in method.student.named_parameters()},
                "teacher": {n: t.detach().clone() for n, t in method.teacher.network.named_parameters()},
            }
        )


@pytest.mark.parametrize("name", STEPS)
def test_iterations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, tolerance = CASES[name]["params"], CASES[name]["tolerance"]
    expected_steps = CASES[name]["expected"]["steps"]
    method, probe, seen = build(p), Probe(), []
    original = method.losses

    def losses(batch: dict[str, Any]) -> dict[str, Tensor]:
        values = original(batch)
        seen.append({key: value.item() for key, value in values.items()})
        return values

    monkeypatch.setattr(method, "losses", losses)
    parts = {**method.labelling(), "weight": BorderMask(ConfidenceShare(p["thr"]), p["top"], p["bottom"])}
    labeler = type(method.pseudo_labeler())(**{**parts, "mix": LowestClasses()})
    assert isinstance(labeler, PseudoLabeler)
    batches = [batch(p, s["step"], s["target_crop_boxes_y1_y2_x1_x2"]) for s in expected_steps]
    trainer = toy_trainer(max_steps=p["steps"], callbacks=[labeler, probe])
    trainer.fit(method, DataLoader(batches, batch_size=None))

    names = {
        "source": "src.decode.loss_seg",
        "mixed": "mix.decode.loss_seg",
        "contrast_source": "src.aux.loss_cl",
        "contrast_target": "tgt.aux.loss_cl",
    }
    assert len(seen) == len(probe.after) == p["steps"]
    for expected, ours, got in zip(expected_steps, seen, probe.after, strict=True):
        assert {names[key]: value for key, value in ours.items()} == pytest.approx(
            expected["losses"], rel=5e-6, abs=5e-6
        )
        assert got["mix_weight"].item() == pytest.approx(expected["mix_weight_mean"], rel=1e-6)
        close(got["Amount"], expected["Amount"])
        for key in ("Ave", "CoVariance"):
            assert_fingerprint(got[key], expected[key], **tolerance)
        for who in ("student", "teacher"):
            renamed = {
                key.replace("auxiliary_head.", "auxiliary_head.0."): value
                for key, value in expected[who].items()
            }
            assert list(renamed) == list(got[who])
            for key, value in renamed.items():
                assert_fingerprint(got[who][key], value, **tolerance)
