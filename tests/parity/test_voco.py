"""VoCo against the numbers of its released code: labels, crops, losses, projector, whole head, encoder, schedules."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from callbacks import EMATeacher
from tests.parity.formulas import DATA, det
from tests.toy import toy_trainer
from zoo.method import Method
from zoo.methods.medical.segmenter import VolumeSegmenter
from zoo.methods.medical.voco import VoCo
from zoo.nn.heads.voco import Projector
from zoo.nn.positions import base_boxes, overlap_labels, position_loss, separation_loss, similarity
from zoo.nn.volume_crops import VolumeCrops
from zoo.nn.volume_losses import dice_cross_entropy
from zoo.optim import Optim, build_optimizer
from zoo.optim_schedule import OptimSchedule
from zoo.teacher import Teacher

CASES: dict[str, Any] = json.loads((DATA / "voco.json").read_text())


@torch.no_grad()
def fill(tensors: dict[str, Tensor]) -> None:
    """Every floating-point tensor by formula, in the order of the released names."""
    floats = [name for name in sorted(tensors) if tensors[name].is_floating_point()]
    for i, name in enumerate(floats):
        n = torch.arange(tensors[name].numel(), dtype=torch.float64)
        tensors[name].copy_((0.05 * torch.sin(0.7 * n + i)).reshape(tensors[name].shape))


def assert_summary(actual: Tensor, expected: dict[str, Any], rtol: float, atol: float) -> None:
    assert list(actual.shape) == expected["shape"]
    flat = actual.detach().double().flatten()
    size = flat.numel()
    close = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(
        flat[expected["flat_index"]], torch.tensor(expected["values"]).double(), **close
    )
    assert flat.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=rtol, abs=atol * size)
    assert flat.norm().item() == pytest.approx(expected["l2"], rel=rtol, abs=atol * size**0.5)
    assert flat.mean().item() == pytest.approx(expected["mean"], rel=rtol, abs=atol)
    assert flat.std(unbiased=False).item() == pytest.approx(expected["std_population"], rel=rtol, abs=atol)


def boxes_around(centres: list[list[int]], roi: int = 64) -> Tensor:
    """Random crops as the release places them: half = roi // 2 on both sides of the centre, one slab deep."""
    centre, half = torch.tensor(centres), roi // 2
    depth = torch.tensor([[0, roi]]).expand(len(centre), 2)
    low, high = centre - half, centre + half
    return torch.stack((low[:, 0], low[:, 1], depth[:, 0], high[:, 0], high[:, 1], depth[:, 1]), 1)


def labels_of(centres: list[list[int]], roi: int = 64, cells: int = 3) -> Tensor:
    return overlap_labels(boxes_around(centres, roi), base_boxes((roi,) * 3, (cells, cells, 1)))


# -- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["position_labels", "position_labels_v1_cvpr_geometry"])
def test_position_labels(key: str) -> None:
    assert len(CASES[key]) >= 2
    for case in CASES[key]:
        label = labels_of([case["center_xy"]], case["roi"], case["num_crops"])[0]
        expected = torch.tensor(case["labels_row_major_x_then_y"])
        torch.testing.assert_close(label, expected, rtol=0, atol=1e-7)
        assert torch.equal(label == 0, expected == 0)


def test_label_statistics_over_all_centres() -> None:
    case = CASES["position_label_statistics_default_geometry"]
    centres = torch.cartesian_prod(torch.arange(32, 160), torch.arange(32, 160)).tolist()
    label = labels_of(centres)
    assert len(label) == case["n_centers"]
    assert label.double().mean(0).tolist() == pytest.approx(case["mean_label_per_base"], abs=1e-9)
    assert (label.sum(1).min(), label.sum(1).max()) == (case["row_sum_min"], case["row_sum_max"])
    positives = (label > 0).sum(1)
    assert positives.double().mean().item() == pytest.approx(case["mean_number_of_positive_bases"])
    shares = {str(n): (positives == n).double().mean().item() for n in positives.unique().tolist()}
    assert shares == pytest.approx(case["fraction_by_number_of_positive_bases"])


def test_crop_contents() -> None:
    case = CASES["crop_contents"]
    volume = det((1, 192, 192, 64), case["k"])[None]
    views = VolumeCrops(num_crops=2, flip=0.0, rotate=0.0, shift_probability=0.0)
    starts = [[x - 32, y - 32, 0] for x, y in (c["center_xy"] for c in case["random_crops"])]
    views.draw_starts = lambda batch, rng: [starts]  # type: ignore[method-assign]
    made = views(volume)
    index = torch.tensor(case["voxel_index_in_crop"]).T
    for kind, expected in (("crops", case["random_crops"]), ("base", case["base_crops"])):
        assert made[kind].shape[1] == len(expected)
        for crop, numbers in zip(made[kind][0], expected, strict=True):
            assert crop.double().mean().item() == pytest.approx(numbers["mean"], abs=1e-7)
            assert crop[0][tuple(index)].tolist() == pytest.approx(numbers["values"], abs=1e-7)
    assert made["base_box"][0, :, :3].tolist() == [c["origin_xyz"] for c in case["base_crops"]]
    assert made["crop_box"][0, :, :3].tolist() == starts


# -- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["similarity_and_losses"], ids=lambda case: f"n{case['n']}")
def test_similarities_losses_and_gradients(case: dict[str, Any]) -> None:
    sizes = {"x_student": case["n"], "x_teacher": case["n"], "bases_student": 9, "bases_teacher": 9}
    rows = {name: det((sizes[name], case["dim"]), k).requires_grad_() for name, k in case["k"].items()}
    label = labels_of(case["label_centers_xy"])
    logits = similarity(rows["x_student"], rows["bases_teacher"])
    torch.testing.assert_close(
        logits, torch.tensor(case["logits_student_vs_teacher_bases"]), rtol=0, atol=1e-6
    )

    intra = position_loss(label, logits)
    assert intra.item() == pytest.approx(case["intra_loss"], abs=5e-5)
    (grad,) = torch.autograd.grad(intra, rows["x_student"])
    assert_summary(grad, case["grad_intra_wrt_x_student"], 2e-4, 2e-6)

    target = similarity(rows["x_teacher"], rows["bases_teacher"]).detach()
    found = similarity(rows["x_student"], rows["bases_student"])
    torch.testing.assert_close(target, torch.tensor(case["inter_target"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(found, torch.tensor(case["inter_prediction"]), rtol=0, atol=1e-6)
    inter = position_loss(target, found)
    assert inter.item() == pytest.approx(case["inter_loss"], abs=5e-5)
    of_crops, of_bases = torch.autograd.grad(inter, (rows["x_student"], rows["bases_student"]))
    assert_summary(of_crops, case["grad_inter_wrt_x_student"], 2e-4, 2e-6)
    assert_summary(of_bases, case["grad_inter_wrt_bases_student"], 2e-4, 2e-6)

    separation = separation_loss(rows["bases_student"])
    assert separation.item() == pytest.approx(case["regularization_loss"], abs=1e-6)
    (grad,) = torch.autograd.grad(separation, rows["bases_student"])
    assert_summary(grad, case["grad_regularization_wrt_bases_student"], 2e-4, 1e-8)
    assert grad[-1].abs().sum() == case["grad_regularization_wrt_last_base_abs_sum"] == 0

    both = (similarity(rows["x_student"], rows["bases_teacher"])
            + similarity(rows["x_teacher"], rows["bases_student"])) / 2  # fmt: skip
    v1 = case["v1_cvpr"]
    torch.testing.assert_close(both, torch.tensor(v1["logits"]), rtol=0, atol=1e-6)
    loss = position_loss(label, both, negatives="squared")
    assert loss.item() == pytest.approx(v1["pos"] + v1["neg_squared"], abs=5e-5)


def test_losses_of_several_volumes_are_taken_one_by_one() -> None:
    case = CASES["entropy_loss_explicit"]
    label, logits = torch.tensor(case["labels"]), torch.tensor(case["logits"])
    assert position_loss(label, logits).item() == pytest.approx(case["loss"], abs=5e-5)
    two = position_loss(torch.stack((label, label.flip(0))), torch.stack((logits, logits)))
    assert two.shape == (2,)
    torch.testing.assert_close(two[1], position_loss(label.flip(0), logits))
    assert two[0] != two[1]


# -- projector and whole head --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["projector"], ids=lambda case: str(case["dims_in_hidden_out"][0]))
def test_projector(case: dict[str, Any]) -> None:
    projector = Projector(*case["dims_in_hidden_out"])
    assert sorted(projector.state_dict()) == case["state_names"]
    assert sum(p.numel() for p in projector.parameters()) == case["n_parameters"]
    fill(projector.state_dict())
    rows = det((case["batch"], case["dims_in_hidden_out"][0]), case["input_k"])
    output = projector(rows)
    assert_summary(output, case["output"], 1e-5, 1e-5)
    assert torch.equal(output, projector.eval()(rows)) == case["train_equals_eval"]


class GivenEmbedding(nn.Module):
    """A backbone whose pooled map is one fixed tensor, whatever it sees."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        self.channels, self.strides, self.in_chans = (embedding.shape[1],), (1,), 1
        self.mean, self.std = (0.0,), (1.0,)

    def forward_features(self, volume: Tensor) -> list[Tensor]:
        return [self.embedding[:, :, None, None, None]]

    forward = forward_features


class FixedDropout(nn.Module):
    def __init__(self, keep: list[int]) -> None:
        super().__init__()
        self.keep = torch.tensor(keep)[:, None]

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.keep / 0.8


class Given(VoCo):
    """VoCo over a fixed embedding."""

    def __init__(self, embedding: Tensor, hidden: int, out: int) -> None:
        Method.__init__(self, Optim("adamw", lr=1e-4, options={"amsgrad": True}, schedule="constant"))
        self.sizes, self.row_dropout = {"hidden_dim": hidden, "out_dim": out}, 0.0
        self.teacher_network, self.logits, self.negatives, self.momentum = "projector", "student", "log", 0.9
        self.intra_weight = self.inter_weight = self.separation_weight = 1.0
        self.student = self.build_student(GivenEmbedding(embedding))
        self.teacher = Teacher(Projector(embedding.shape[1], hidden, out), init="independent")
        named = {f"student.{n}": t for n, t in self.student.projector.state_dict().items()}
        fill(named | {f"teacher.{n}": t for n, t in self.teacher.network.state_dict().items()})


def head(case: dict[str, Any]) -> tuple[Given, dict[str, Tensor], Tensor]:
    embedding = det(case["embedding_shape"], case["embedding_k"]).requires_grad_()
    method = Given(embedding, *case["dims_in_hidden_out"][1:])
    B, n = case["batch"], case["sw"]
    voxel = torch.zeros(1, 1, 1, 1, 1)
    batch = {
        "crops": voxel.expand(B, n, 1, 1, 1)[..., None],
        "base": voxel.expand(B, 9, 1, 1, 1)[..., None],
        "crop_box": boxes_around(case["label_centers_xy"]).view(B, n, 6),
        "base_box": base_boxes((64,) * 3, (3, 3, 1)).expand(B, 9, 6),
    }
    return method, batch, embedding


def before_step(method: VoCo) -> None:
    """What the method's own callback does before a step."""
    callback = next(c for c in method.default_callbacks() if isinstance(c, EMATeacher))
    trainer = toy_trainer(max_steps=3)
    trainer.strategy._lightning_module = method
    callback.before_step(trainer, method, None)
    method.teacher.advance()


HEADS = pytest.mark.parametrize("case", CASES["voco_head_given_embeddings"], ids=lambda c: f"sw{c['sw']}")


@HEADS
def test_first_step_of_the_head(case: dict[str, Any]) -> None:
    method, batch, embedding = head(case)
    before_step(method)
    terms = method.losses(batch)
    expected = case["first_step"]
    for name, key in (("intra", "intra"), ("inter", "inter"), ("separation", "reg")):
        assert terms[name].item() == pytest.approx(expected[key], rel=3e-5)
    loss = torch.stack(list(terms.values())).sum()
    assert loss.item() == pytest.approx(expected["loss"], rel=3e-5)
    loss.backward()
    assert_summary(embedding.grad, case["grad_embedding"], 2e-4, 1e-6)
    for name, norm in case["grad_student_l2"].items():
        grad = method.student.projector.get_parameter(name).grad
        dead = name in ("layer1.0.bias", "layer2.0.bias")  # a batch norm follows
        assert grad.norm().item() == pytest.approx(0 if dead else norm, rel=2e-4, abs=1e-3 if dead else 0)
    assert all(p.grad is None for p in method.teacher.parameters())
    for name, summary in case["teacher_after_one_forward"].items():
        assert_summary(method.teacher.network.get_parameter(name), summary, 1e-5, 1e-7)


@HEADS
def test_three_steps_of_the_head(case: dict[str, Any]) -> None:
    method, batch, _ = head(case)
    optimizer = build_optimizer(method.trained_modules(), method.optim)
    for expected in case["loss_at_steps_0_1_2_adamw_amsgrad_lr1e-4_wd0.01_no_dropout"]:
        before_step(method)
        loss = torch.stack(list(method.losses(batch).values())).sum()
        assert loss.item() == pytest.approx(expected, rel=3e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@HEADS
def test_the_teacher_moves_even_where_the_student_does_not(case: dict[str, Any]) -> None:
    method, batch, _ = head(case)
    for expected in case["two_forwards_without_optimizer"]:
        before_step(method)
        assert sum(method.losses(batch).values()).item() == pytest.approx(expected, rel=3e-5)


def test_dropped_rows_reach_the_student_alone() -> None:
    case = CASES["voco_head_given_embeddings"][0]
    expected = case["with_row_dropout_mask"]
    method, batch, _ = head(case)
    method.student.drop = FixedDropout(expected["keep_rows"])  # type: ignore[assignment]
    before_step(method)
    terms = method.losses(batch)
    for name, key in (("intra", "intra"), ("inter", "inter"), ("separation", "reg")):
        assert terms[name].item() == pytest.approx(expected[key], rel=3e-5)


# -- encoder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def medical() -> None:
    pytest.importorskip("monai")
    pytest.importorskip("einops")


def encoder(feature_size: int, merging: str) -> nn.Module:
    from zoo.backbones import SwinUNETREncoder
    from zoo.nn.volume_networks import VolumeEncoder

    network = VolumeEncoder(SwinUNETREncoder(feature_size=feature_size, merging=merging)).eval()
    fill(network.backbone.state_dict())
    return network


SMALL, PUBLISHED_SIZE = CASES["encoder"]
ENCODERS = [
    pytest.param("legacy", SMALL, id="legacy"),
    pytest.param("legacy", PUBLISHED_SIZE, id="legacy-48", marks=pytest.mark.slow),
    pytest.param("corrected", *CASES["encoder_monai_1_6_1_corrected_patch_merging"]["cases"], id="corrected"),
]


@pytest.mark.usefixtures("medical")
@pytest.mark.parametrize(("merging", "case"), ENCODERS)
def test_encoder_under_both_mergings(merging: str, case: dict[str, Any]) -> None:
    F = case["feature_size"]
    network = encoder(F, merging)
    floats = [t for t in network.backbone.state_dict().values() if t.is_floating_point()]
    assert len(floats) == CASES["encoder"][0]["n_filled"]
    volume = det(case["input_shape"], case["input_k"])
    with torch.no_grad():
        if "hidden_state_shapes" in case:
            hidden = network.backbone.swinViT(volume)
            assert [list(h.shape) for h in hidden] == case["hidden_state_shapes"]
        embedding = network(volume)
    assert_summary(embedding, case["embedding"], 1e-5, 2e-5)
    means = [part.mean().item() for part in embedding.split([F, F, 2 * F, 4 * F, 16 * F], 1)]
    assert means == pytest.approx(case["segment_means"], abs=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("medical")
def test_end_to_end() -> None:
    """As exact as rounding allows: crops of sine volumes have nearly the same embedding (spread 1e-4), which the
    projector's norm blows up. The same crops taken one by one move the terms by 0.1 to 1 %.
    """
    case = CASES["end_to_end_small"]
    method = VoCo(
        backbone_args={"feature_size": case["feature_size"]},
        hidden_dim=case["projector_dims"][1],
        projection_dim=case["projector_dims"][2],
        row_dropout=0.0,
    ).eval()
    named = {f"backbone.{n}": t for n, t in method.student.backbone.state_dict().items()}
    named |= {f"student.{n}": t for n, t in method.student.projector.state_dict().items()}
    fill(named | {f"teacher.{n}": t for n, t in method.teacher.network.state_dict().items()})
    views = VolumeCrops(num_crops=1, flip=0.0, rotate=0.0, shift_probability=0.0)
    starts = [[[x - 32, y - 32, 0]] for x, y in case["random_crop_centers_xy"]]
    views.draw_starts = lambda batch, rng: starts  # type: ignore[method-assign]
    batch = views(torch.stack([det((1, 192, 192, 64), k) for k in case["volumes_k"]]))
    before_step(method)
    with torch.no_grad():
        terms = method.losses(batch)
    for name, key in (("intra", "intra"), ("inter", "inter"), ("separation", "reg")):
        assert terms[name].item() == pytest.approx(case[key], rel=2e-2)
    assert sum(terms.values()).item() == pytest.approx(case["loss"], rel=5e-3)


# -- fine-tuning and schedules -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("medical")
def test_segmentation_loss() -> None:
    (case,) = CASES["segmentation_loss"]
    logits = (case["mult"] * det(case["shape"], case["k"])).requires_grad_()
    B, _, *size = case["shape"]
    label = ((torch.arange(B * torch.Size(size).numel()) * 7 + 3) % 5).view(B, *size)
    terms = dice_cross_entropy(logits, label)
    assert terms["dice"].item() == pytest.approx(case["dice_only"], rel=1e-6)
    assert terms["cross_entropy"].item() == pytest.approx(case["cross_entropy_only_all_channels"], rel=1e-6)
    loss = terms["dice"] + terms["cross_entropy"]
    assert loss.item() == pytest.approx(case["dice_ce"], rel=1e-6)
    loss.backward()
    assert_summary(logits.grad, case["grad_logits"], 1e-5, 1e-8)


@pytest.mark.parametrize(
    ("key", "method", "total"),
    [
        ("warmup_cosine_pretrain", VoCo, "total_steps"),
        ("linear_warmup_cosine_finetune", VolumeSegmenter, "max_steps"),
    ],
)
def test_learning_rates(key: str, method: type[Method], total: str) -> None:
    case = CASES["lr_schedules"][key]
    optim = method.default_optim(None)  # type: ignore[arg-type]
    assert optim.lr == case["base_lr"]
    if key == "linear_warmup_cosine_finetune":  # 20 epochs of 24 steps
        assert optim.warmup_epochs * 24 == case["warmup_steps"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    schedule = OptimSchedule(optimizer, optim, case[total], steps_per_epoch=24)
    for step, expected in case["lr_by_step"].items():
        schedule.last_epoch = int(step)
        assert schedule.get_lr()[0] == pytest.approx(expected, rel=2e-9, abs=1e-18)
