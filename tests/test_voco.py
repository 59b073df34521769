"""VoCo: crops and labels, both versions' teachers, the omni-supervised stage, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from tests.toy import toy_trainer, weights
from tests.toy_volumes import SMALL, VIEWS, loader, register_toy_net, textured, voco_batch
from zoo.methods.medical.voco import VoCo, VoCoCVPR
from zoo.nn import VolumeCrops
from zoo.nn.heads.voco import Projector, RowDropout
from zoo.nn.positions import base_boxes, overlap_labels, position_loss, separation_loss
from zoo.optim import Optim

SGD = Optim("sgd", lr=0.1, weight_decay=0.0, schedule="constant")
PLAIN: dict[str, Any] = {"flip": 0.0, "rotate": 0.0, "shift_probability": 0.0}


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy_net(monkeypatch)


# -- labels and crops ----------------------------------------------------------------------------------------------


def test_labels_count_voxels() -> None:
    batch = voco_batch(num_crops=5)
    label = overlap_labels(batch["crop_box"], batch["base_box"])
    assert label.shape == (2, 5, 9)

    def mask(box: Tensor) -> Tensor:
        voxels = torch.zeros(24, 24, 8)
        x0, y0, z0, x1, y1, z1 = box.tolist()
        voxels[x0:x1, y0:y1, z0:z1] = 1
        return voxels

    for b in range(2):
        counted = [
            [(mask(crop) * mask(base)).sum() / 512 for base in batch["base_box"][b]]
            for crop in batch["crop_box"][b]
        ]
        assert torch.equal(label[b], torch.tensor(counted))
    torch.testing.assert_close(label.sum(-1), torch.ones(2, 5))


def test_labels_of_a_grid_in_all_directions() -> None:
    boxes = base_boxes((4, 6, 2), (2, 1, 3))
    assert boxes.shape == (6, 6)
    assert boxes[4].tolist() == [4, 0, 2, 8, 6, 4]
    assert torch.equal(overlap_labels(boxes, boxes), torch.eye(6))
    halfway = torch.tensor([[2, 0, 1, 6, 6, 3]])
    assert overlap_labels(halfway, boxes).tolist() == [[0.25, 0.25, 0.0, 0.25, 0.25, 0.0]]


def test_crops_are_what_their_boxes_say() -> None:
    volume = textured(3)
    torch.manual_seed(3)
    made = VolumeCrops(**VIEWS, num_crops=4, **PLAIN)(volume)
    assert torch.equal(made["volume"], volume)
    for b in range(3):
        for kind, boxes in (("crops", "crop_box"), ("base", "base_box")):
            for crop, (x0, y0, z0, x1, y1, z1) in zip(made[kind][b], made[boxes][b].tolist(), strict=True):
                assert torch.equal(crop, volume[b, :, x0:x1, y0:y1, z0:z1])
    starts = made["crop_box"][..., :2]
    assert len(starts.flatten(0, 1).unique(dim=0)) > 6
    assert made["crop_box"].dtype == torch.int64


def test_centres_reach_every_place_but_the_last() -> None:
    views = VolumeCrops(**VIEWS, num_crops=4000)
    starts = torch.tensor(views.draw_starts(1, torch.Generator().manual_seed(0)))[0]
    assert starts[:, 0].unique().tolist() == list(range(16))  # half a crop .. 24 - half a crop, end excluded
    assert starts[:, 2].unique().tolist() == [0]


def test_augmentation_is_flip_turn_and_shift_of_each_crop() -> None:
    views = VolumeCrops(**VIEWS, flip=0.5, rotate=0.7, shift=0.3, shift_probability=0.6)
    crops = torch.rand(64, 2, 8, 8, 8)
    got = views.augment(crops, torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    flips = torch.rand(64, 3, generator=rng) < 0.5
    turns = torch.randint(1, 4, (64,), generator=rng) * (torch.rand(64, generator=rng) < 0.7)
    offset = (torch.rand(64, generator=rng) * 2 - 1) * 0.3 * (torch.rand(64, generator=rng) < 0.6)
    for i, crop in enumerate(crops):
        wanted = crop.flip([axis + 1 for axis in range(3) if flips[i, axis]])
        wanted = torch.rot90(wanted, int(turns[i]), (1, 2)) + offset[i]
        assert torch.equal(got[i], wanted), (flips[i], turns[i])
    assert set(turns.tolist()) == {0, 1, 2, 3}
    assert offset.abs().max() <= 0.3


def test_draws_follow_the_global_generator() -> None:
    first, again, other = voco_batch(1), voco_batch(1), voco_batch(2)
    assert torch.equal(first["crop_box"], again["crop_box"])
    assert torch.equal(first["base"], again["base"])
    assert not torch.equal(first["crop_box"], other["crop_box"])


def test_rule_for_volumes_of_other_sizes() -> None:
    views = VolumeCrops(**VIEWS, **PLAIN)
    small = torch.rand(2, 1, 5, 24, 8) + 1  # narrower than one crop
    fitted = views(small)["volume"]
    assert torch.equal(fitted[:, :, 9:14], small)
    assert fitted.sum() == pytest.approx(small.sum().item())
    large = torch.arange(30 * 26 * 8).float().view(1, 1, 30, 26, 8).expand(6, -1, -1, -1, -1)
    torch.manual_seed(0)
    pieces = views(large)["volume"]
    assert pieces.shape == (6, 1, 24, 24, 8)
    assert len(pieces[:, 0, 0, 0, 0].unique()) > 2  # another piece of every volume
    assert all(torch.equal(p[0, 1] - p[0, 0], large[0, 0, 1, :24] - large[0, 0, 0, :24]) for p in pieces)
    resized = VolumeCrops(**VIEWS, **PLAIN, fit="resize")(large[:1])["volume"]
    expected = F.interpolate(large[:1], (24, 24, 8), mode="trilinear", align_corners=True)
    assert torch.equal(resized, expected)


def test_conference_crops_are_cut_large_and_resized() -> None:
    made = VolumeCrops((8, 8, 8), (3, 3, 1), resize=(4, 4, 4), **PLAIN)(textured(1))
    assert made["crops"].shape == (1, 2, 1, 4, 4, 4)
    whole = textured(1)[:, :, :8, :8]
    expected = F.interpolate(whole, (4, 4, 4), mode="trilinear", align_corners=True)
    torch.testing.assert_close(made["base"][0, :1], expected)
    assert made["base_box"][0, -1].tolist() == [16, 16, 0, 24, 24, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (8, 7, 8)}, r"crop must be three even sides, got \[8, 7, 8\]"),
        ({"grid": (1, 1, 1)}, r"grid=\[1, 1, 1\] must have at least two cells"),
        ({"num_crops": 0}, "num_crops=0 be at least 1"),
        ({"flip": 1.5}, "flip is a probability"),
        ({"fit": "stretch"}, "fit must be 'crop' or 'resize', got 'stretch'"),
        ({"crop": (8, 4, 8)}, r"\[8, 4, 8\] cannot be turned by a quarter: set rotate to 0"),
    ],
)
def test_crops_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VolumeCrops(**{**VIEWS, **options})


def test_crops_refuse_what_is_no_batch_of_volumes() -> None:
    views = VolumeCrops(**VIEWS)
    with pytest.raises(ValueError, match=r"volume has shape \[24, 24, 8\]: expected \[B, C, X, Y, Z\]"):
        views(torch.rand(24, 24, 8))
    with pytest.raises(TypeError, match=r"must be float in \[0, 1\], got torch.int16"):
        views(torch.zeros(1, 1, 24, 24, 8, dtype=torch.int16))


# -- the method ----------------------------------------------------------------------------------------------------


def test_rows_are_dropped_whole_even_in_evaluation() -> None:
    torch.manual_seed(0)
    dropped = RowDropout(0.2).eval()(torch.ones(400, 50))
    zero = (dropped == 0).sum(1)
    assert set(zero.tolist()) == {0, 50}
    assert 50 < (zero == 50).sum() < 110
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    with pytest.raises(ValueError, match="row_dropout must be within"):
        RowDropout(1.0)


class Spy(Callback):
    """Teacher and student weights at every forward of the losses."""

    def __init__(self, method: VoCo) -> None:
        self.seen: list[tuple[list[Tensor], list[Tensor]]] = []
        compute, followed = method.losses, self.followed

        def losses(batch: Any) -> Any:
            self.seen.append((weights(followed(method)), weights(method.teacher)))
            return compute(batch)

        method.losses = losses  # type: ignore[method-assign]

    @staticmethod
    def followed(method: VoCo) -> Any:
        return method.student if method.teacher_network == "whole" else method.student.projector


@pytest.mark.parametrize("version", [VoCo, VoCoCVPR])
def test_teacher_starts_on_its_own_and_moves_before_it_is_asked(version: type[VoCo]) -> None:
    """In every step, the first included: the student's forward changes no weights, so this is between the two."""
    torch.manual_seed(0)
    method = version(**SMALL, optim=SGD)
    start = weights(method.teacher)
    assert type(method.teacher.network) is (Projector if version is VoCo else type(method.student))
    matrices = [(t, s) for t, s in zip(start, weights(Spy.followed(method)), strict=True) if t.dim() > 1]
    assert all((t - s).abs().mean() > 0.01 for t, s in matrices)
    spy = Spy(method)
    trainer = toy_trainer(max_steps=3, callbacks=[spy])
    trainer.fit(method, loader([voco_batch(i) for i in range(3)]))
    assert len(spy.seen) == 3
    for student, teacher in spy.seen:
        start = [0.9 * t + 0.1 * s for t, s in zip(start, student, strict=True)]
        for got, wanted in zip(teacher, start, strict=True):
            torch.testing.assert_close(got, wanted)
    assert method.teacher.steps == 3
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in method.student.parameters()}


def test_teachers_look_at_other_devices_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """SyncBatchNorm does so in training mode alone; validation may run on one device only."""
    method = VoCoCVPR(**SMALL, optim=SGD)
    modes: list[bool] = []
    for module in method.teacher.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_hook(lambda norm, *_: modes.append(norm.training))
    for training in (True, False):
        modes.clear()
        method.train(training).losses(voco_batch(0))
        assert modes
        assert set(modes) == {training}


def test_versions_have_their_terms() -> None:
    torch.manual_seed(0)
    batch = voco_batch(size=3)
    large, cvpr = VoCo(**SMALL), VoCoCVPR(**{**SMALL, "hidden_dim": 32})
    assert set(large.losses(batch)) == {"intra", "inter", "separation"}
    assert set(cvpr.losses(batch)) == {"intra", "separation"}
    assert cvpr.hparams["teacher_network"] == "whole"
    assert cvpr.student.projector.layer1[0].out_features == 32
    assert VoCoCVPR(backbone="toy_3d").student.projector.layer3[0].out_features == 2048


def test_volumes_are_compared_with_the_next_one() -> None:
    """Exchanging the last two of three volumes changes whom each is compared with; doing so with two does not."""
    torch.manual_seed(0)
    method = VoCo(**SMALL, row_dropout=0.0)

    def inter(batch: dict[str, Tensor], order: list[int]) -> Tensor:
        return method.losses({key: value[order] for key, value in batch.items()})["inter"]

    three, two = voco_batch(size=3), voco_batch(size=2)
    assert not torch.allclose(inter(three, [0, 1, 2]), inter(three, [0, 2, 1]), atol=1e-4)
    torch.testing.assert_close(inter(two, [0, 1]), inter(two, [1, 0]))


def test_gradients_stop_where_they_should() -> None:
    torch.manual_seed(0)
    method, batch = VoCo(**SMALL), voco_batch()
    sum(method.losses(batch).values()).backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters())
    bases = (torch.randn(9, 8) + 1).requires_grad_()  # all alike enough to be pushed apart
    separation_loss(bases).backward()
    assert bases.grad[-1].abs().sum() == 0
    assert (bases.grad[:-1].abs().sum(1) > 0).all()


def test_half_precision_similarities_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    method, batch = VoCo(**SMALL, row_dropout=0.0), voco_batch()
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.losses(batch)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_network": "backbone"}, "teacher_network='backbone': expected one of projector, whole"),
        ({"logits": "teacher"}, "logits='teacher'"),
        ({"negatives": "none"}, "negatives='none'"),
        ({"inter_weight": -1.0}, "must not be negative"),
    ],
)
def test_method_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VoCo(**SMALL, **options)


def test_a_batch_without_crops_says_what_to_set() -> None:
    with pytest.raises(MisconfigurationException, match=r"class_path: zoo\.nn\.VolumeCrops"):
        VoCo(**SMALL).losses({"volume": textured(1)})


def test_features_and_prediction() -> None:
    method, volume = VoCo(**SMALL).eval(), textured(2)
    features = method.predict_step({"volume": volume, "name": ["a", "b"]}, 0)
    assert features["name"] == ["a", "b"]
    maps = method.student.backbone((volume - 0.5) / 0.25)
    expected = torch.cat((maps[0].mean((2, 3, 4)), maps[2].mean((2, 3, 4))), 1)
    torch.testing.assert_close(features["features"], expected)
    torch.testing.assert_close(method.predict(volume[0, 0].numpy()), expected[0])
    with pytest.raises(ValueError, match=r"volume has shape \[24, 24\]"):
        method.predict(volume[0, 0, :, :, 0])
    with pytest.raises(TypeError, match="window its intensities first"):
        method.features(volume.short())


def trained(shuffled: bool) -> tuple[float, float]:
    """Accuracy and loss on unseen volumes after 120 steps with true labels, or with those of other crops."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "hidden_dim": 32,
        "projection_dim": 32,
        "row_dropout": 0.0,
        "inter_weight": 0.0,
    }
    method = VoCo("toy_3d", **settings)
    views = VolumeCrops(**VIEWS, num_crops=4, flip=0.0, rotate=0.0, shift=0.02)
    test = views(textured(16, 1000))
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=3e-3)
    for step in range(120):
        batch = views(textured(4, step))
        if shuffled:
            batch["crop_box"] = batch["crop_box"].flatten(0, 1)[torch.randperm(16)].view(4, 4, 6)
        method.teacher.update(method.student.projector, 0.9)
        optimizer.zero_grad()
        torch.stack(list(method.losses(batch).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        predicted, label = method.positions(test), overlap_labels(test["crop_box"], test["base_box"])
    chosen = label.gather(-1, predicted.argmax(-1, keepdim=True))[..., 0]
    accuracy = (chosen == label.amax(-1)).float().mean()
    return accuracy.item(), position_loss(label, predicted).mean().item()


@pytest.mark.slow
def test_it_learns_where_crops_are() -> None:
    """Chance is 1/9. With labels of other crops it still learns that alike is alike, and no more."""
    (right, loss), (wrong, other_loss) = trained(shuffled=False), trained(shuffled=True)
    assert right > max(0.6, wrong + 0.1)
    assert loss < 0.85 * other_loss


def test_validation_logs_how_often_the_place_is_right() -> None:
    torch.manual_seed(0)
    method, batch = VoCo(**SMALL), voco_batch(num_crops=6)
    (scores,) = toy_trainer().validate(method, loader([batch]), verbose=False)
    with torch.no_grad():
        predicted, label = method.positions(batch), overlap_labels(batch["crop_box"], batch["base_box"])
    right = [label[b, n, predicted[b, n].argmax()] == label[b, n].max() for b in range(2) for n in range(6)]
    assert scores["val/position_accuracy"] == pytest.approx(100 * sum(map(float, right)) / 12)
    assert scores["val/intra"] == pytest.approx(position_loss(label, predicted).mean().item())
