"""Whole training iterations of the released FST code, reproduced through a real Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import PseudoLabeler, TeacherPrediction
from tests.parity.formulas import assert_fingerprint, blk, det, lab, params_init
from zoo.methods.segmentation.fst import FST, FSTSemi
from zoo.methods.segmentation.self_training import SelfTraining
from zoo.methods.segmentation.semi_supervised import SemiMeanTeacher
from zoo.nn import BorderMask, ClassMix, ConfidenceShare, CutMix, FixedThreshold, NoMix
from zoo.optim import Optim, ParameterRule
from zoo.teacher import Frozen, Teacher

CASES = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "data" / "fst_steps.json").read_text())["cases"]
}
UDA = [name for name in CASES if name.startswith("train_step.")]
SEMI = [name for name in CASES if name.startswith("semi.train.")]


class TinyBackbone(nn.Module):
    def __init__(self, hidden: int, batch_norm: bool, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, hidden, 3, stride, 1, bias=not batch_norm)
        if batch_norm:
            self.bn1 = nn.BatchNorm2d(hidden)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.conv1(image)
        return [(self.bn1(x) if hasattr(self, "bn1") else x).tanh()]


class TinySegmentor(nn.Module):
    """The network of the parity cases, with the interface of zoo.nn.Segmentor."""

    def __init__(self, params: dict[str, Any], k0: int) -> None:
        super().__init__()
        self.backbone = TinyBackbone(params["hid"], params["bn"], params.get("stride", 1))
        self.decode_head = nn.Module()
        self.decode_head.conv2 = nn.Conv2d(params["hid"], params["C"], 1)
        params_init(self, k0, params["scale"])

    def forward_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.backbone(image)
        logits = self.decode_head.conv2(features[-1])
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False), features

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_with_features(image)[0]

    def normalize(self, image: Tensor) -> Tensor:
        return image


class LowestClasses(ClassMix):
    """The parity cases choose the lowest half of the classes of the batch."""

    def choose(self, present: Tensor) -> Tensor:
        return present & (present.cumsum(1) <= (present.sum(1, keepdim=True) + 1) // 2)


class ListedCutMix(CutMix):
    """The parity cases list the coin of every call and the boxes of every image, in order."""

    def __init__(self, coins: list[float], boxes: list[list[int]]) -> None:
        super().__init__()
        self.coins, self.listed = list(coins), list(boxes)

    def coin(self) -> bool:
        return self.coins.pop(0) < 0.5

    def boxes(self, count: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        drawn, self.listed = self.listed[:count], self.listed[count:]
        return [tuple(box) for box in drawn]


def batch_uda(p: dict[str, Any], k: float) -> dict[str, Any]:
    shape = (p["N"], 3, p["H"], p["W"])
    label = blk((p["N"], 1, p["H"], p["W"]), int(k), p["C"], p["b"])[:, 0]
    return {"source": {"image": det(shape, k), "label": label}, "target": {"image": det(shape, k + 0.5)}}


def optim(p: dict[str, Any], **options: Any) -> Optim:
    if p.get("opt", "sgd") == "sgd":
        options["momentum"] = p["momentum"]
    return Optim(p.get("opt", "sgd"), lr=p["lr"], weight_decay=p["wd"], options=options, schedule="constant")


def record_losses(method: L.LightningModule) -> list[dict[str, float]]:
    """Let ``method.losses`` write down what it returns, forward by forward."""
    seen: list[dict[str, float]] = []
    original = method.losses

    def losses(batch: dict[str, Any]) -> dict[str, Tensor]:
        values = original(batch)
        seen.append({name: value.item() for name, value in values.items()})
        if "mixed" in batch and "weight" in batch["mixed"]:
            seen[-1]["weight"] = batch["mixed"]["weight"].float().mean().item()
        return values

    method.losses = losses
    return seen


class Probe(L.Callback):
    """Copies of both networks, the counter and the first optimiser state after every step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, method: Any, *_: Any) -> None:
        self.after.append(
            {
                "student": {n: t.detach().clone() for n, t in method.student.state_dict().items()},
                "teacher": {n: t.detach().clone() for n, t in method.teacher.network.state_dict().items()},
                "steps": method.teacher.steps,
                "state": {
                    k: v.clone() if isinstance(v, Tensor) else v
                    for k, v in trainer.optimizers[0].state[next(method.student.parameters())].items()
                },
            }
        )


def trainer(**kwargs: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **kwargs,
    )  # fmt: skip


def build_uda(p: dict[str, Any]) -> SelfTraining:
    common: dict[str, Any] = {
        "backbone": "street_cnn", "num_classes": p["C"], "decay": p["alpha"], "optim": optim(p),
        "feature_distance": p.get("fd_lambda", 0.0), "feature_distance_classes": tuple(p.get("fd_classes", ())),
        "feature_distance_ratio": p.get("fd_ratio", 0.75),
    }  # fmt: skip
    if p["kind"] == "st":
        method: SelfTraining = SelfTraining(**common)
    else:
        looks = {"depth": p["K"]} if p["kind"] == "fst_d" else {"depth": 0, "width": p["K"]}
        method = FST(**looks, **common)
    method.student = TinySegmentor(p, p["k0"])
    method.teacher = Teacher(TinySegmentor(p, p["k0"]), mode="train_no_dropout")
    if "k_im" in p:
        method.imagenet = Frozen(TinySegmentor(p, p["k_im"]).backbone)
    return method


@pytest.mark.parametrize("name", UDA)
def test_uda_iterations(name: str) -> None:
    case = CASES[name]
    p, tolerance = case["params"], case["tolerance"]
    method = build_uda(p)
    losses, probe = record_losses(method), Probe()
    batches = []
    for step in range(p["steps"]):
        batch = batch_uda(p, p["k_data"] + 10 * step)
        if p["kind"] == "fst_w":
            ks = [p["k_data"] + 10 * step + 100 * (j + 1) for j in range(p["K"])]
            batch["future"] = [batch_uda(p, k) for k in ks]
        batches.append(batch)
    labeler = PseudoLabeler(
        weight=BorderMask(ConfidenceShare(p["thr"]), p["top"], p["bottom"]), mix=LowestClasses()
    )
    trainer(max_steps=p["steps"], callbacks=[labeler, probe]).fit(
        method, DataLoader(batches, batch_size=None)
    )

    seen = iter(losses)
    for expected, got in zip(case["expected"]["steps"], probe.after, strict=True):
        for forward in expected["losses_per_forward_in_order"]:
            ours = next(seen)
            assert ours["source"] == pytest.approx(forward["decode.loss_seg"], rel=5e-5)
            assert ours["mixed"] == pytest.approx(forward["mix.decode.loss_seg"], rel=5e-5)
            assert ours["weight"] == pytest.approx(forward["mix_weight_mean"], rel=5e-5)
            if "src.loss_imnet_feat_dist" in forward:
                assert ours["feature_distance"] == pytest.approx(
                    forward["src.loss_imnet_feat_dist"], rel=5e-5
                )
        assert got["steps"] == expected["update_counter_after"]
        for network in ("student", "teacher"):
            for key, value in {**expected[network], **expected.get(f"{network}_bn_buffers", {})}.items():
                assert_fingerprint(got[network][key], value, **tolerance)
        for key, value in expected.get("optimizer_state_first_tensor", {}).items():
            if key == "step":
                assert float(got["state"][key]) == value
            else:
                assert_fingerprint(got["state"][key], value, **tolerance)
    assert next(seen, None) is None


@pytest.mark.parametrize("name", SEMI)
def test_semi_supervised_epochs(name: str) -> None:
    case = CASES[name]
    p, tolerance = case["params"], case["tolerance"]
    epochs = case["expected"]["epochs"]
    recipe = Optim(
        "sgd", lr=p["lr"], weight_decay=p["wd"], options={"momentum": p["momentum"]},
        rules={"decode_head": ParameterRule(lr=10.0)}, schedule="poly", power=0.9,
    )  # fmt: skip
    common = {"backbone": "street_cnn", "num_classes": p["C"], "decay": p["ema"], "percent": p["drop"]}
    method = (FSTSemi if p["fst"] else SemiMeanTeacher)(optim=recipe, **common)
    method.student = TinySegmentor(p, p["k0"])
    method.teacher = Teacher(TinySegmentor(p, 41), init="independent", mode="eval")
    if p["aug"] == "cutmix":
        draws = "aug_draws_per_forward (cutmix applied when < 0.5)"
        coins = [coin for epoch in epochs for coin in epoch[draws]]
        boxes = [box for epoch in epochs for box in epoch["cutmix_boxes_y0_y1_x0_x1_in_order"]]
        mix: nn.Module = ListedCutMix(coins, boxes)
    else:
        mix = NoMix()
    labeler = PseudoLabeler(
        predict=TeacherPrediction(mode="eval"), weight=FixedThreshold(0.0), mix=mix,
        labelled="labelled", unlabelled="unlabelled",
    )  # fmt: skip

    def batch(epoch: int, iteration: int) -> dict[str, Any]:
        k, shape = p["k_data"] + 1000 * epoch + 10 * iteration, (p["N"], 3, p["H"], p["W"])
        label = lab((p["N"], p["H"], p["W"]), k, p["C"], p["ignore"])
        return {
            "labelled": {"image": det(shape, k), "label": label},
            "unlabelled": {"image": det(shape, k + 5)},
        }

    def loader() -> DataLoader:
        epoch = method.trainer.current_epoch
        return DataLoader([batch(epoch, i) for i in range(p["iters"])], batch_size=None)

    method.train_dataloader = loader
    losses, probe = record_losses(method), Probe()
    trainer(
        max_epochs=p["epochs"], reload_dataloaders_every_n_epochs=1, callbacks=[labeler, probe]
    ).fit(method)  # fmt: skip

    seen = iter(losses)
    rename = {"encoder.": "backbone.", "decoder.": "decode_head."}
    for epoch, expected in enumerate(epochs):
        got = probe.after[(epoch + 1) * p["iters"] - 1]
        pairs = zip(
            expected["sup_loss_per_forward_in_order"],
            expected["unsup_loss_per_forward_in_order"],
            strict=True,
        )
        for supervised, unsupervised in pairs:
            ours = next(seen)
            assert ours["supervised"] == pytest.approx(supervised, rel=5e-5)
            assert ours["unsupervised"] == pytest.approx(unsupervised, rel=5e-5)
        for network in ("student", "teacher"):
            for key, value in {**expected[network], **expected.get(f"{network}_bn_buffers", {})}.items():
                for theirs, own in rename.items():
                    key = key.replace(theirs, own)
                assert_fingerprint(got[network][key], value, **tolerance)
    assert next(seen, None) is None
