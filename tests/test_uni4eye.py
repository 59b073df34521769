"""Uni4Eye: what its losses see, what takes turns, what is refused; its classifier in both dimensions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_cohen_kappa

from datamodules import EyePhotographs, EyeScans, TakingTurns
from datamodules.sampling import ResumableLoader, StridedSampler, TurnsLoader
from tests import tiny_eyes
from tests.toy import toy_trainer
from zoo.methods.medical.eye_classifier import EyeClassifier
from zoo.methods.medical.uni4eye import Uni4Eye
from zoo.nn import VolumeFlips
from zoo.nn.gradient_map import gradient_map
from zoo.nn.unified_autoencoder import patch_values

ENCODER: dict[str, Any] = {
    "embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 16, "volume_size": [8, 4, 12], "patch": 4,
    "volume_patch": 4,
}  # fmt: skip


def built(**options: Any) -> Uni4Eye:
    torch.manual_seed(0)
    encoder = {**ENCODER, **options.pop("backbone_args", {})}
    decoder = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5}
    return Uni4Eye("unified_vit_small", encoder, **{**decoder, **options})


def batch_of(axes: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if axes == 2:
        return {"image": torch.rand(2, 3, 16, 16, generator=generator)}
    return {"volume": torch.rand(2, 1, 8, 4, 12, generator=generator)}


def summed(losses: dict[str, Tensor]) -> float:
    return sum(loss.item() for loss in losses.values())


# -- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
def test_only_masked_patches_count(axes: int) -> None:
    method = built(background="zero").eval()
    batch = method.masked(batch_of(axes), "here")
    x, masks = method.network_input(batch), batch["masks"]
    assert masks.mask.sum(1).tolist() == [masks.mask.shape[1] - masks.mask.shape[1] // 2] * 2
    before, targets = method.losses(batch), method.targets(batch, x)
    assert list(before) == [f"intensity_{axes}d", f"gradient_{axes}d"]

    def changed(hidden: bool) -> float:
        where = masks.mask if hidden else ~masks.mask
        other = {name: torch.where(where[..., None], values + 1, values) for name, values in targets.items()}
        method.targets = lambda *_: other  # type: ignore[method-assign]
        return summed(method.losses(batch))

    assert changed(hidden=False) == summed(before)
    assert changed(hidden=True) != summed(before)

    # and the encoder sees nothing of what is hidden
    key = "image" if axes == 2 else "volume"
    hidden = masks.mask.view(2, 1, *method.student.backbone.grid(*x.shape[2:]))
    for axis in range(2, x.ndim):
        hidden = hidden.repeat_interleave(4, axis)
    other = method.student.backbone.prepared(torch.where(hidden, 0.5, batch[key])) if axes == 2 else None
    if other is not None:
        for name, values in method.student(other, masks).items():
            assert torch.equal(values, method.student(x, masks)[name])


@pytest.mark.parametrize("axes", [2, 3])
def test_without_gradients_it_is_a_plain_masked_autoencoder(axes: int) -> None:
    both, plain = built(), built(gradient_weight=0.0)
    plain.student.load_state_dict(
        {k: v for k, v in both.student.state_dict().items() if not k.startswith("gradient")}
    )
    batch = both.masked(batch_of(axes))
    (alone,), joint = plain.losses(batch).values(), both.losses(batch)
    assert torch.equal(alone, joint[f"intensity_{axes}d"])
    # the mean squared error over masked patches, written out
    x = both.network_input(batch)
    values, predicted = patch_values(x, (4,) * axes), both.student(x, batch["masks"], everywhere=True)
    errors = (predicted["intensity"] - values).square().mean(2)
    mask = batch["masks"].mask
    torch.testing.assert_close(alone, (errors * mask).sum() / mask.sum())
    target = patch_values(gradient_map(batch_of(axes)["image" if axes == 2 else "volume"]), (4,) * axes)
    errors = (predicted["gradient"] - target).square().mean(2)
    torch.testing.assert_close(joint[f"gradient_{axes}d"], (errors * mask).sum() / mask.sum())
    doubled = built(gradient_weight=2.0).losses(batch)[f"gradient_{axes}d"]
    torch.testing.assert_close(doubled, 2 * joint[f"gradient_{axes}d"])


def test_weights_of_the_other_dimension_get_no_gradient() -> None:
    method = built()
    for axes, other in ((2, "3"), (3, "2")):
        method.zero_grad()
        torch.stack(list(method.losses(batch_of(axes)).values())).sum().backward()
        without = {name for name, p in method.student.named_parameters() if p.grad is None}
        assert without == {
            f"{part}.{kind}"
            for part in (
                f"backbone.patch_embed.proj{other}",
                f"intensity.heads.{other}",
                f"gradient.heads.{other}",
            )
            for kind in ("weight", "bias")
        }


def test_background_of_volumes() -> None:
    volume = batch_of(3)["volume"] * (torch.rand(2, 1, 8, 4, 12) > 0.5)
    noisy, still = built(), built(background="zero")
    batch = noisy.masked({"volume": volume}, "a")
    x = noisy.network_input(batch)
    assert torch.equal(x[volume == 0], batch["background"][volume == 0])
    assert torch.equal(x[volume > 0], still.network_input({"volume": volume})[volume > 0])
    assert not still.network_input(still.masked({"volume": volume}))[volume == 0].any()
    assert torch.equal(noisy.masked({"volume": volume}, "a")["background"], batch["background"])
    assert not torch.equal(noisy.masked({"volume": volume}, "b")["background"], batch["background"])


def test_entropy_guides_masks_to_what_is_there() -> None:
    image = torch.full((1, 3, 16, 16), 0.5)
    image[:, :, :8] = torch.rand(1, 3, 8, 16)  # the upper half: eight of sixteen patches
    for guided in (True, False):
        mask = built(entropy_guided=guided).masked({"image": image.expand(32, -1, -1, -1)})["masks"].mask
        share = mask[:, :8].float().mean().item()
        assert share > 0.99 if guided else 0.4 < share < 0.6


def test_normalised_targets_come_back_in_pictures() -> None:
    method = built(normalise_patches=True)
    batch = method.masked(batch_of(2), "pictures")
    x = method.network_input(batch)
    hidden = batch["masks"].gather(patch_values(x, (4, 4)))
    values = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(batch["masks"].gather(method.targets(batch, x)["intensity"]), values)
    gradient = batch["masks"].gather(patch_values(gradient_map(x), (4, 4)))
    method.student.forward = lambda *_, **__: {"intensity": values, "gradient": gradient}  # type: ignore[method-assign]
    shown = method.reconstruct(batch_of(2))
    torch.testing.assert_close(shown["reconstructed"], shown["original"])
    torch.testing.assert_close(shown["gradient_reconstructed"], shown["gradient_original"])
    assert shown["masked"].isnan().float().mean() == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 must be within"),
        ({"gradient_weight": -1.0}, "gradient_weight=-1.0 not negative"),
        ({"volume_gradient": "3d"}, "volume_gradient='3d': expected one of slices, volume"),
        ({"background": "black"}, "background='black'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_batches_that_do_not_fit() -> None:
    method = built()
    with pytest.raises(ValueError, match="image or volume, one of the two, and this one holds label"):
        method.losses({"label": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"sides \[24, 24\].*change the size of the data, or img_size"):
        method.losses({"image": torch.rand(1, 3, 24, 24)})
    with pytest.raises(ValueError, match="backbone='ast_tiny' must be a unified ViT"):
        Uni4Eye("ast_tiny", {"depth": 1})


def test_values_that_are_no_numbers_stop_the_run() -> None:
    image = torch.rand(2, 3, 16, 16)
    image[0, 0, 0, 0] = torch.nan
    trainer = toy_trainer(max_steps=1, log_every_n_steps=1)
    loader = torch.utils.data.DataLoader([{"image": image}], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)nan|finite"):
        trainer.fit(built(), loader)


def test_a_step_logs_its_own_terms_only(tmp_path: Path) -> None:
    batches = [{"volume": torch.rand(2, 1, 8, 4, 12)}, {"image": torch.rand(2, 3, 16, 16)}]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    logger = CSVLogger(tmp_path, name="", version="")
    toy_trainer(max_steps=2, log_every_n_steps=1, logger=logger).fit(built(), loader)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [{name for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert [{name[-2:] for name in row if name[-2:] in ("2d", "3d")} for row in rows] == [{"3d"}, {"2d"}]


def test_pictures_and_volumes_are_told_apart() -> None:
    method = built().eval()
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    of_array = method.predict(picture)
    assert torch.equal(of_array, method.predict(Image.fromarray(picture)))
    volume = torch.rand(8, 4, 12)
    assert torch.equal(method.predict(volume), method.features(volume[None, None])[0])
    assert method.example_input((8, 4, 12)).shape == (2, 1, 8, 4, 12)


# -- turns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mixed", "first", "second"),
    [
        (False, [0, 2, 100, 102, 104], [4, 6, 106, 108, 110]),
        (True, [100, 0, 102, 2, 104], [106, 4, 108, 6, 110]),  # three batches and two, spread evenly
    ],
    ids=["passes", "steps"],
)
def test_loaders_take_turns_and_go_on_within_one(mixed: bool, first: list[int], second: list[int]) -> None:
    def loader(first: int, count: int) -> ResumableLoader:
        sampler = StridedSampler(count, endless=True)
        return ResumableLoader(range(first, first + 100), batch_size=2, sampler=sampler)

    turns = TurnsLoader([loader(0, 4), loader(100, 6)], mixed)
    assert len(turns) == 5
    assert [b.tolist() for b in turns] == [[n, n + 1] for n in first]
    turns.sampler.set_epoch(1)
    for seen in (0, 1, 2, 4, 5):
        turns.position = lambda seen=seen: seen  # type: ignore[misc]
        assert [b[0].item() for b in turns] == (second[seen:] or second)


def turns_of(folder: Path, turns: Any = "passes", **volumes: Any) -> TakingTurns:
    images = EyePhotographs(**tiny_eyes.photographs(folder), seed=0)
    scans = EyeScans(**{"views": VolumeFlips(), **tiny_eyes.scans(folder), **volumes}, seed=0)
    return TakingTurns(images, scans, turns=turns)


def test_a_round_shows_volumes_then_images(tmp_path: Path) -> None:
    data = turns_of(tmp_path)
    data.prepare_data()
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert [next(iter({"image", "volume"} & batch.keys())) for batch in batches] == ["volume"] * 4 + [
        "image"
    ] * 4
    assert sorted(i for b in batches[4:] for i in b["index"].tolist()) == list(range(8))
    assert batches[0]["volume"].shape == (2, 1, 32, 16, 32)
    assert 0 <= batches[0]["volume"].min() <= batches[0]["volume"].max() <= 1
    assert data.preprocessing["volume"]["window"] == [0.0, 255.0]
    with pytest.raises(ValueError, match=r"data.volumes must have views.*data.images must have none"):
        turns_of(tmp_path, views=None)
    with pytest.raises(ValueError, match=r"data.turns='epochs': expected passes or steps"):
        turns_of(tmp_path, "epochs")
    mixed = turns_of(tmp_path, "steps")
    mixed.setup("fit")
    assert ["image" in batch for batch in mixed.train_dataloader()] == 4 * [False, True]
    assert ["image" in batch for batch in mixed.val_dataloader()] == [False, True]


def test_flips_and_noise_of_volumes() -> None:
    torch.manual_seed(0)
    volume = torch.rand(64, 1, 4, 2, 4) * (torch.rand(64, 1, 4, 2, 4) > 0.3)
    plain = VolumeFlips((0.0, 1.0, 0.0), noise_probability=0.0)(volume)["volume"]
    assert torch.equal(plain, volume.flip(3))
    noisy = VolumeFlips((0.0, 0.0, 0.0))(volume)["volume"]
    assert torch.equal(noisy[volume == 0], volume[volume == 0])
    changed = (noisy != volume).flatten(1).any(1).float().mean()
    assert 0.05 < changed < 0.4
    assert (noisy - volume).abs().max() < 5 * 5**0.5 / 255
    with pytest.raises(ValueError, match="noise_variance=-1"):
        VolumeFlips(noise_variance=-1)


# -- classifier ----------------------------------------------------------------------------------------------------


def classifier(axes: int, **options: Any) -> EyeClassifier:
    other = {"volume_size": None} if axes == 2 else {"img_size": None}
    return EyeClassifier("unified_vit_small", 3, {**ENCODER, **other}, **options)


@pytest.mark.parametrize("axes", [2, 3])
def test_classifier_starts_from_a_run_and_reports(axes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = built()
    trainer = toy_trainer(max_steps=0)
    trainer.strategy.connect(pretrained)
    trainer.save_checkpoint("uni4eye.ckpt")
    method = classifier(axes)
    from zoo.checkpoints import load_pretrained

    load_pretrained(method.student.backbone, "uni4eye.ckpt", show=False)
    for name, tensor in method.student.backbone.state_dict().items():
        assert torch.equal(tensor, pretrained.student.backbone.state_dict()[name]), name

    batch = {**batch_of(axes), "label": torch.tensor([0, 2])}
    logged: dict[str, float] = {}
    monkeypatch.setattr(method, "log_dict", lambda values, **_: logged.update(values))
    method.eval()
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
    label = torch.tensor([0, 1, 2, 2])
    monkeypatch.setattr(method.student, "forward", lambda x: scores)
    method.validation_step({**batch, "label": label}, 0)
    method.on_validation_epoch_end()
    assert logged["val/accuracy"] == 75
    share = scores.softmax(1)
    assert logged["val/auc"] == pytest.approx(100 * multiclass_auroc(share, label, 3).item())
    kappa = multiclass_cohen_kappa(scores.argmax(1), label, 3, weights="quadratic").item()
    assert logged["val/kappa"] == pytest.approx(100 * kappa)


def test_classifiers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"one dimension: set backbone_args to \{volume_size: null\}"):
        EyeClassifier("unified_vit_small", 3, ENCODER)
    with pytest.raises(ValueError, match="pooling='mean'"):
        classifier(2, pooling="mean")
    with pytest.raises(ValueError, match="takes images of 16x16: set volume_size"):
        classifier(2)(torch.rand(1, 1, 8, 4, 12))
    assert classifier(3, pooling="patches")(torch.rand(2, 1, 8, 4, 12)).shape == (2, 3)
