"""DINO, iBOT and DINOv2 through a real Trainer, against their losses written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from tests.toy import toy_trainer, weights
from zoo.methods.image.base import SelfDistillation
from zoo.methods.image.dino import DINO
from zoo.methods.image.dinov2 import DINOv2
from zoo.methods.image.ibot import IBOT
from zoo.optim import Optim

TINY: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "prototypes": 12,
    "head_args": {"hidden_dim": 16, "bottleneck_dim": 8},
}
METHODS = {"dino": DINO, "ibot": IBOT, "dinov2": DINOv2}
B, V = 3, 2


def build(name: str, **options: Any) -> SelfDistillation:
    torch.manual_seed(0)
    return METHODS[name](**{**TINY, **options})


def batch(seed: int = 0) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    views = {
        "global": torch.rand(2 * B, 3, 16, 16, generator=rng),
        "local": torch.rand(V * B, 3, 8, 8, generator=rng),
    }
    return {"views": views, "index": torch.arange(B) + 100 * seed}


def loader(count: int = 6) -> DataLoader:
    return DataLoader([batch(seed) for seed in range(count)], batch_size=None)


def fit(method: SelfDistillation, steps: int = 4, **options: Any) -> Any:
    trainer = toy_trainer(max_steps=steps, **options)
    trainer.fit(method, loader())
    return trainer


def ce(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * (logits / 0.1).log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("targets", ["centring", "sinkhorn"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_written_out(name: str, targets: str) -> None:
    options: dict[str, Any] = {"teacher_temp_epochs": 0}
    if name != "dino":
        options |= {"patch_temp_epochs": 0, "mask_share": 1.0}
    method = build(name, targets=targets, **options)
    with torch.no_grad():  # another teacher than the student, and a centre that is not 0
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in method.modules():
            if hasattr(module, "centre"):
                module.centre.normal_(std=0.1)
    ready = method.prepared(batch())
    found = method.losses(ready)

    views, masks = ready["views"], ready["masks"]
    student, teacher = method.student, method.teacher.network
    seen = teacher(views["global"])
    mask = None if masks is None else masks.mask
    tokens, local = student(views["global"], mask), student(views["local"]).cls
    q = method.cls_targets(teacher.head(seen.cls), 0.07 if name == "dinov2" else 0.04).chunk(2)
    s = [*student.head(tokens.cls).chunk(2), *student.head(local).chunk(V)]
    pairs = [ce(q[g], s[v]).mean() for g in range(2) for v in range(2 + V) if v != g]
    torch.testing.assert_close(found["dino"], torch.stack(pairs).mean())
    if name != "dino":
        per_view = []
        targets_of = method.patch_targets(teacher.head(seen.patches[mask]), 0.07)
        for view in range(2 * B):
            rows = mask.nonzero()[:, 0] == view
            per_view.append(ce(targets_of[rows], student.head(tokens.patches[view][mask[view]])).mean())
        assert mask.any(1).all()
        torch.testing.assert_close(found["ibot"], torch.stack(per_view).mean())
    if name == "dinov2":
        koleo = torch.zeros(())
        for view in tokens.cls.chunk(2):
            x = view / view.norm(dim=1, keepdim=True)
            distance = torch.cdist(x, x).fill_diagonal_(torch.inf).amin(1)
            koleo = koleo - distance.log().mean()
        torch.testing.assert_close(found["koleo"], 0.1 * koleo, rtol=1e-4, atol=1e-5)
    assert (
        set(found) == {"dino": {"dino"}, "ibot": {"dino", "ibot"}, "dinov2": {"dino", "ibot", "koleo"}}[name]
    )


def test_losses_change_nothing_and_the_step_moves_the_centres() -> None:
    method = build("ibot", patch_temp_epochs=0)
    method.losses(batch())
    method.losses(batch())
    assert not method.cls_targets.centre.any()
    ready = method.prepared(batch())
    fit(method, steps=1)
    torch.testing.assert_close(method.cls_targets.centre, 0.1 * ready["teacher"]["cls"].mean(0, keepdim=True))
    torch.testing.assert_close(method.patch_targets.centre, 0.1 * ready["teacher"]["patch_mean"])


def test_the_centre_of_patches_is_the_mean_over_all_of_them() -> None:
    method = build("ibot", patch_temp_epochs=0)
    said = method.prepared(batch())["teacher"]
    network = method.teacher.network
    patches = method.teacher(batch()["views"]["global"]).patches
    torch.testing.assert_close(said["patch_mean"], network.head(patches).mean((0, 1))[None].detach())
    masked = build("ibot", patch_temp_epochs=0, centre_patches="masked").prepared(batch())["teacher"]
    assert torch.equal(masked["patch_mean"], masked["patch"])


def test_masks_depend_on_seed_step_and_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    method, image = build("dinov2"), batch()["views"]["global"]
    first, again, other = (method.draw_masks(image, number).mask for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.any(1).sum() <= B
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert not torch.equal(first, method.draw_masks(image, 0).mask)
    given = {**batch(), "masks": method.draw_masks(image, 5)}
    assert method.prepared(given)["masks"] is given["masks"]


def test_temperatures_move_by_epoch_or_by_step() -> None:
    class Recorded(DINO):
        seen: list[float]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.append(self.temperature(0.04, 0.07, 2))
            return super().training_step(batch, batch_idx)

    for every, expected in (
        ("epoch", [0.04] * 6 + [0.07] * 3),
        ("step", [0.04 + 0.03 * t / 11 for t in range(9)]),
    ):
        torch.manual_seed(0)
        method = Recorded(**TINY, temp_every=every)
        method.seen = []
        fit(method, steps=9)
        assert method.seen == pytest.approx(expected)


@pytest.mark.parametrize("name", METHODS)
def test_resuming_is_bit_for_bit(name: str, tmp_path: Path) -> None:
    def run(ckpt: str | None = None) -> SelfDistillation:
        save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        method = build(name)
        trainer = toy_trainer(max_steps=9, callbacks=[save], enable_checkpointing=True)
        trainer.fit(method, loader(2), ckpt_path=ckpt)
        return method

    straight, resumed = run(), run(str(tmp_path / "step=4.ckpt"))
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    loaded = METHODS[name].load_from_checkpoint(tmp_path / "step=4.ckpt")
    assert loaded.features(torch.rand(2, 3, 16, 16)).shape == (2, 32)


def test_features_are_the_teachers() -> None:
    method, image = build("dinov2"), torch.rand(2, 3, 16, 12)
    tokens = method.teacher(image)
    torch.testing.assert_close(method.features(image), tokens.cls)
    dense = method.dense_features(image)
    assert dense.shape == (2, 32, 4, 3)
    torch.testing.assert_close(dense[:, :, 1, 2], tokens.patches[:, 5])
    torch.testing.assert_close(method.predict(image[0]), tokens.cls[0])
    assert not method.features(image).requires_grad
    assert method.predict_step({"image": image, "index": torch.arange(2)}, 0)["features"].shape == (2, 32)


def test_a_head_of_its_own_for_patches() -> None:
    method = build("dinov2", patch_head=True, targets="sinkhorn", backbone_args=TINY["backbone_args"])
    assert method.student.patch_head is not None
    assert set(dict(method.teacher.network.named_parameters())) == set(
        dict(method.student.named_parameters())
    )
    before = weights(method.student.patch_head)
    fit(method, steps=8)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(method.student.patch_head), strict=True))


def test_convolutional_students_are_pooled_and_their_statistics_followed() -> None:
    method = build("dino", backbone="street_cnn", backbone_args={"widths": [4, 8]})
    fit(method, steps=2)
    own = dict(method.teacher.network.named_buffers())
    for name, buffer in method.student.named_buffers():
        assert torch.equal(own[name], buffer), name
    assert not method.teacher.network.training


# -- bad input --------------------------------------------------------------------------------------------


def test_nan_in_a_view_is_named_with_step_and_index() -> None:
    method = build("dino")
    bad = batch(3)
    bad["views"]["local"][B + 1, 0, 0, 0] = torch.nan  # second local view of the second image
    good = [batch(seed) for seed in range(3)]
    with pytest.raises(FloatingPointError, match=r"nan or inf in step 3 .*views.local: index 301:"):
        toy_trainer(max_epochs=1).fit(method, DataLoader([*good, bad], batch_size=None))


def test_one_image_batches() -> None:
    single = {"views": {"global": torch.rand(2, 3, 16, 16)}, "index": torch.arange(1)}
    for name in ("dino", "ibot"):
        losses = build(name, **({"patch_temp_epochs": 0} if name == "ibot" else {})).losses(single)
        assert all(loss.isfinite() for loss in losses.values())
    method = build("dinov2", teacher_temp_epochs=0, patch_temp_epochs=0)
    with pytest.raises(ValueError, match=r"raise data.batch_size to at least 2"):
        method.losses(single)


class Thirteen(L.LightningDataModule):
    num_classes = 13

    def train_dataloader(self) -> DataLoader:
        return loader()


def test_other_bad_input() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"set data.views to \{class_path: zoo.nn.MultiCrop\}"
    ):
        build("dino").losses({"image": torch.rand(2, 3, 16, 16)})
    with pytest.raises(ValueError, match="targets='centered'"):
        build("dino", targets="centered")
    with pytest.raises(ValueError, match="must be positive"):
        build("dino", teacher_temp=0.0)
    with pytest.raises(ValueError, match="centre_patches='none'"):
        build("ibot", centre_patches="none")
    with pytest.raises(MisconfigurationException, match=r"prototypes=12 cannot tell the 13 classes"):
        toy_trainer(max_steps=1).fit(build("dino"), datamodule=Thirteen())
    clipped = build("dino", optim=Optim("sgd", lr=0.1, schedule="constant", clip_norm=1.0))
    with pytest.raises(MisconfigurationException, match=r"both clip gradients"):
        fit(clipped, gradient_clip_val=1.0)


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 5, "num_heads": 2},
        ),
        ("elastic_vit_tiny", {"img_size": 16, "widths": [32], "depths": [5]}),
        ("elastic_resnet_tiny", {}),
    ],
)
def test_linear_probes_choose_among_four_kinds_of_features(backbone: str, arguments: dict[str, Any]) -> None:
    method = DINO(
        backbone, backbone_args=arguments, prototypes=16, head_args={"hidden_dim": 8, "bottleneck_dim": 4}
    )
    image = torch.rand(2, 3, 32, 32) if "resnet" in backbone else torch.rand(2, 3, 16, 16)
    kinds = method.eval().probe_features(image)
    assert list(kinds) == ["last", "last + mean", "four", "four + mean"]
    D = method.student.backbone.embed_dim
    torch.testing.assert_close(kinds["last"], method.features(image))
    mean = method.teacher(image).patches.mean(1)
    torch.testing.assert_close(kinds["last + mean"][:, D:], mean)
    torch.testing.assert_close(kinds["four + mean"][:, -D:], mean)
    torch.testing.assert_close(kinds["four"][:, -D:], kinds["last"])
    assert not torch.allclose(kinds["four"][:, :16], kinds["four"][:, -16:])
