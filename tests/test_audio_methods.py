"""SSAST and the audio classifier in training: masks, terms, broken clips, hand-over of weights, averages, metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from tests.test_nn_no_sync import assert_never_waits
from zoo.backbones.small import StreetCNN
from zoo.methods.audio.classifier import AudioClassifier, AudioClassifierNetwork
from zoo.methods.audio.ssast import SSAST
from zoo.nn import AudioFeatures, masks_at
from zoo.optim import Optim, parameter_groups

FRAMES, CLASSES = 64, 3
SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "frames": FRAMES}
FAST = Optim("adam", lr=3e-3, weight_decay=0.0, schedule="constant")


class Tones(L.LightningDataModule):
    """Clips of one tone each, three octaves apart by class, over noise."""

    def __init__(self, batches: int = 4, size: int = 6, broken: int | None = None, **options: Any) -> None:
        super().__init__()
        self.features = AudioFeatures(FRAMES, **options)
        self.num_classes, self.broken = CLASSES, broken
        self.batches, self.size = batches, size

    def clips(self) -> list[dict[str, Any]]:
        rng = torch.Generator().manual_seed(0)
        time = torch.arange(self.features.samples) / 16_000
        made = []
        for number in range(self.batches):
            label = torch.arange(self.size) % CLASSES
            pitch = 300.0 * 2.0 ** (1.5 * label) * (1 + 0.1 * torch.rand(self.size, generator=rng))
            phase = torch.rand(self.size, 1, generator=rng)
            noise = torch.randn(self.size, len(time), generator=rng)
            wave = 0.3 * torch.sin(2 * math.pi * (pitch[:, None] * time + phase)) + 0.01 * noise
            index = torch.arange(self.size) + self.size * number
            if self.broken is not None:
                wave[index == self.broken, 1_000] = torch.nan
            length = torch.full((self.size,), len(time))
            made.append({"waveform": wave, "length": length, "label": label, "index": index})
        return made

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.clips(), batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return self.features(batch, bool(self.trainer and self.trainer.training))


def trainer(folder: Path | None = None, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    options = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **options}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


def ssast(**options: Any) -> SSAST:
    torch.manual_seed(0)
    return SSAST("ast_tiny", SMALL, **{"masked": 12, "optim": FAST, **options})


def classifier(**options: Any) -> AudioClassifier:
    torch.manual_seed(0)
    settings = {"backbone_args": {**SMALL, "stride": (10, 10)}, "optim": FAST, **options}
    return AudioClassifier("ast_tiny", CLASSES, **settings)


def spectrograms() -> dict[str, Any]:
    data = Tones(batches=1)
    return data.features(data.clips()[0])


# -- the objectives ------------------------------------------------------------------------------------------------


def test_terms_have_masks_of_their_own_that_follow_the_step_alone() -> None:
    method, batch = ssast(), spectrograms()
    masks = method.prepared(batch)["masks"]
    again = method.prepared(batch)["masks"]
    other = method.prepared(batch, batch_idx=1)["masks"]
    assert torch.equal(masks["generative"].mask, again["generative"].mask)
    assert not torch.equal(masks["generative"].mask, other["generative"].mask)
    assert not torch.equal(masks["generative"].mask, masks["discriminative"].mask)
    assert (masks["generative"].mask.sum(1) == 12).all()
    shared = ssast(shared_mask=True).prepared(batch)["masks"]
    assert shared["generative"] is shared["discriminative"]


def test_reconstructions_hold_predictions_where_patches_are_masked() -> None:
    method, batch = ssast(shared_mask=True), spectrograms()
    parts = method.reconstruct(batch)
    original, masked, rebuilt = (parts[name] for name in ("original", "masked", "reconstructed"))
    assert torch.equal(original, batch["spectrogram"].transpose(1, 2))
    hidden = masked.isnan()
    assert torch.equal(masked[~hidden], original[~hidden])
    assert torch.equal(rebuilt[~hidden], original[~hidden])
    masks = method.draw_masks(batch, "pictures", method.val_masking)
    loss = method.losses({**batch, "masks": masks})["generative"]  # ten times the mean squared error
    assert 10 * (rebuilt - original)[hidden].square().mean().item() == pytest.approx(loss.item(), rel=1e-5)
    with pytest.raises(ValueError, match="task='discriminative' trains no reconstruction"):
        ssast(task="discriminative").reconstruct(batch)


def test_one_large_pass_is_the_two_passes() -> None:
    batch = ssast().prepared(spectrograms())
    joint = ssast().losses(dict(batch))
    for task, weight in (("discriminative", 1.0), ("generative", 10.0)):
        alone = ssast(task=task).losses(dict(batch))
        assert list(alone) == [task]
        assert joint[task].item() == pytest.approx(weight * alone[task].item(), rel=1e-5)


def test_losses_by_hand() -> None:
    method, batch = ssast(shared_mask=True, generative_weight=3.0), spectrograms()
    index = torch.tensor([[3, 7, 20]]).repeat(6, 1)
    masks = masks_at(index, 32)
    losses = method.losses(batch := {**batch, "masks": {"discriminative": masks, "generative": masks}})
    student, image = method.student, batch["spectrogram"].transpose(1, 2)[:, None]
    tokens = student.backbone.forward_tokens(image, masks.mask).patches
    nce, error, found = [], [], []
    for b in range(6):
        patches = [image[b, 0, 16 * (i // 4) :, 16 * (i % 4) :][:16, :16].flatten() for i in (3, 7, 20)]
        predicted = [student.matching(tokens[b, i]) for i in (3, 7, 20)]
        scores = torch.stack([torch.stack([x @ c for c in predicted]) for x in patches])
        nce += [-scores[i].log_softmax(0)[i] for i in range(3)]
        error += [
            F.mse_loss(student.reconstruction(tokens[b, i]), x)
            for i, x in zip((3, 7, 20), patches, strict=True)
        ]
        found += [(scores.softmax(1)[:, i].argmax() == i).float() for i in range(3)]
    assert losses["discriminative"].item() == pytest.approx(torch.stack(nce).mean().item(), rel=1e-5)
    assert losses["generative"].item() == pytest.approx(3 * torch.stack(error).mean().item(), rel=1e-5)
    assert batch["masked_accuracy"].item() == pytest.approx(torch.stack(found).mean().item())


def test_clusters_for_patches_and_none_for_frames() -> None:
    frame = SSAST("ast_tiny", {**SMALL, "patch": (128, 2)}, masked=20)
    names = [type(m.masking).__name__ for m in (ssast(), ssast(clusters=None), frame)]
    assert names == ["ClusterMasking", "UniformMasking", "UniformMasking"]
    assert ssast(cluster_form="fixed").masking.released is False
    assert ssast(val_masked=20).val_masking.count == 20
    assert (ssast().monitor, ssast().monitor_mode) == ("val/masked_accuracy", "max")
    assert (ssast(task="generative").monitor, ssast(task="generative").monitor_mode) == (
        "val/generative",
        "min",
    )


def test_the_host_never_waits() -> None:
    def build() -> Any:
        pretraining, tuning = ssast(), classifier(loss="bce")

        def losses(spectrogram: Tensor) -> list[Tensor]:
            batch = {"spectrogram": spectrogram, "label": torch.zeros(2, dtype=torch.long)}
            return [*pretraining.losses(batch).values(), *tuning.losses(batch).values()]

        return losses

    assert_never_waits(build, (2, FRAMES, 128))


@pytest.mark.slow
def test_both_terms_are_learned() -> None:
    method = ssast(optim=Optim("adam", lr=1e-3, weight_decay=0.0, schedule="constant"))
    data = Tones(batches=2, size=12)
    run = trainer(max_steps=90, limit_val_batches=0)
    run.fit(method, datamodule=data)
    with torch.no_grad():
        batch = data.features(data.clips()[0])
        losses = method.eval().losses(method.prepared(batch, 999))
    assert losses["discriminative"] < 0.8 * math.log(12)
    assert losses["generative"] / 10 < 0.65 * batch["spectrogram"].var()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"masked": 400}, "400 tokens are to be masked, but of a grid of 8 x 4 = 32 tokens at most 30"),
        ({"val_masked": 31}, "31 tokens are to be masked"),
        ({"task": "both"}, "task='both': expected one of joint, discriminative, generative"),
        ({"backbone_args": {**SMALL, "stride": (10, 10)}}, "patches do not overlap"),
        ({"backbone": "resnet18", "backbone_args": {}}, "AST|mask_token"),
    ],
)
def test_what_cannot_be_pretrained(options: dict[str, Any], complaint: str) -> None:
    settings = {"backbone": "ast_tiny", "backbone_args": SMALL, "masked": 12, **options}
    with pytest.raises((ValueError, TypeError), match=complaint):
        SSAST(**settings)


def test_a_clip_too_short_for_the_masks() -> None:
    short = {"spectrogram": torch.randn(2, 16, 128)}
    with pytest.raises(ValueError, match="8 x 1 = 8 tokens at most 6 can be"):
        ssast().losses(short)
    with pytest.raises(ValueError, match=r"batch has waveform: set data\.features to"):
        ssast().losses({"waveform": torch.zeros(2, 100)})


# -- training ------------------------------------------------------------------------------------------------------


def test_pretrain_resume_and_hand_over_to_another_grid(tmp_path: Path) -> None:
    method, run = ssast(), trainer(tmp_path, max_steps=4)
    run.fit(method, datamodule=Tones(mean=-5.0))
    assert {"val/masked_accuracy", "val/discriminative", "val/generative", "val/loss"} <= set(
        run.callback_metrics
    )
    assert "train/masked_accuracy" in run.logged_metrics
    path = tmp_path / "run.ckpt"
    run.save_checkpoint(path)
    loaded = SSAST.load_from_checkpoint(path, map_location="cpu")
    assert loaded.front_end.mean == -5.0
    wave = Tones().clips()[0]["waveform"][0]
    assert torch.equal(loaded.predict(wave), method.predict(wave))
    assert loaded.predict(wave).shape == (24,)
    resumed, on = ssast(), trainer(tmp_path, max_steps=6)
    on.fit(resumed, datamodule=Tones(mean=-5.0), ckpt_path=path)
    assert on.global_step == 6

    tuned = classifier(init_from=str(path), optim=Optim("sgd", lr=0.0, weight_decay=0.0, schedule="constant"))
    before = tuned.student.head[1].weight.clone()
    trainer(tmp_path, max_steps=1).fit(tuned, datamodule=Tones())
    for name in ("blocks.1.mlp.fc1.weight", "cls_token", "patch_embed.proj.bias"):
        assert torch.equal(
            tuned.student.backbone.get_parameter(name), method.student.backbone.get_parameter(name)
        )
    assert tuned.student.backbone.pos_grid.shape[2:] == (12, 5)
    report = tuned.student.load_report
    assert [a.what for a in report.resized] == ["position grid"]
    assert torch.equal(tuned.student.head[1].weight, before)


def test_every_method_ends_on_a_clip_that_is_not_finite() -> None:
    for method in (ssast(), classifier()):
        run = trainer(max_steps=3, log_every_n_steps=1)
        with pytest.raises(FloatingPointError, match=r"nan or inf in step 1 .*spectrogram: index 7:"):
            run.fit(method, datamodule=Tones(broken=7))


def test_learning_rates_fall_from_block_to_block() -> None:
    method = classifier(optim=Optim("adamw", lr=1.0, layer_decay=0.5))
    names = {parameter: name for name, parameter in method.student.named_parameters()}
    rates = {
        names[p]: group["lr"]
        for group in parameter_groups([method.student], method.optim)
        for p in group["params"]
    }
    assert rates["head.1.weight"] == rates["backbone.norm.weight"] == 1.0
    assert rates["backbone.blocks.1.attn.qkv.weight"] == 0.5
    assert rates["backbone.pos_grid"] == 0.125


def test_losses_of_the_classifier() -> None:
    batch = spectrograms()
    logits = classifier().student(batch["spectrogram"].transpose(1, 2)[:, None])
    hot = F.one_hot(batch["label"], CLASSES).float()
    mixed = 0.3 * hot + 0.7 * hot.flip(0)
    bce = -(hot * logits.sigmoid().log() + (1 - hot) * (1 - logits.sigmoid()).log()).mean()
    assert classifier(loss="bce").losses(batch)["classification"].item() == pytest.approx(
        bce.item(), rel=1e-5
    )
    both = classifier(loss="bce").losses({**batch, "label": hot})["classification"]
    assert both.item() == pytest.approx(bce.item(), rel=1e-5)
    soft = -(mixed * logits.log_softmax(1)).sum(1).mean()
    got = classifier().losses({**batch, "label": mixed})["classification"]
    assert got.item() == pytest.approx(soft.item(), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"loss": "bce", "selected_by": "mAP"}, {"pooling": "layers"}, {"pooling": "cls"}]
)
def test_tones_are_told_apart(options: dict[str, Any], tmp_path: Path) -> None:
    method, run = classifier(**options), trainer(tmp_path, max_epochs=10, check_val_every_n_epoch=10)
    mixing = {"mixup": 0.5, "num_classes": CLASSES} if options.get("loss") == "bce" else {}
    run.fit(method, datamodule=Tones(freq_mask=8, time_mask=8, **mixing))
    assert method.monitor in run.callback_metrics
    (result,) = run.test(method, datamodule=Tones(), verbose=False)
    assert result["test/accuracy"] > 55  # a third by chance
    assert result["test/mAP"] > 90
    assert result["test/EER"] < 20
    assert result["test/dprime"] > 1
    clip = Tones().clips()[0]
    scores = method.predict(clip["waveform"][2].numpy())
    assert scores.argmax() == clip["label"][2] == 2
    predicted = run.predict(method, datamodule=Tones())
    assert predicted is not None
    assert predicted[0]["scores"].shape == (6, CLASSES)


def test_the_number_of_classes_is_the_benchmarks() -> None:
    method = AudioClassifier("ast_tiny", 4, SMALL)
    with pytest.raises(
        MisconfigurationException, match=r"num_classes=4, but Tones has 3 classes: set model\.num_cl"
    ):
        trainer(max_steps=1).fit(method, datamodule=Tones())
    with pytest.raises(ValueError, match="loss='mse': expected one of cross_entropy, bce"):
        AudioClassifier("ast_tiny", 4, SMALL, loss="mse")  # type: ignore[arg-type]
    cnn: Any = StreetCNN()
    cnn.num_blocks = 4
    with pytest.raises(ValueError, match="needs a backbone with forward_blocks, StreetCNN has none"):
        AudioClassifierNetwork(cnn, 3, "layers")


# -- waveforms to predict --------------------------------------------------------------------------------------------


def test_predict_takes_stereo_and_other_rates() -> None:
    method = classifier()
    wave = Tones().clips()[0]["waveform"][1]
    mono = method.predict(wave)
    assert torch.allclose(method.predict(torch.stack((wave, wave))), mono)
    time = torch.arange(44_100) / 44_100
    high, low = (torch.sin(2 * math.pi * 440 * t) for t in (time, time[:16_000] * 44_100 / 16_000))
    torch.testing.assert_close(method.predict(high, 44_100), method.predict(low), rtol=0, atol=0.02)
    assert method.training


@pytest.mark.parametrize(
    ("waveform", "complaint"),
    [
        (torch.zeros(0), "0 samples at 16000 Hz, fewer than one frame"),
        (torch.zeros(399), r"399 samples at 16000 Hz, fewer than one frame \(400\)"),
        (torch.tensor([0.0, torch.nan] * 400), "nan or inf: the recording"),
        (torch.zeros(1_000, dtype=torch.int16), "waveform / 32768 for 16-bit integers"),
        (torch.zeros(1, 1, 1_000), r"must be float \[samples\] or \[channels, samples\]"),
    ],
)
def test_waveforms_that_cannot_be_predicted(waveform: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        classifier().predict(waveform)


def test_a_silent_clip_is_predicted() -> None:
    assert classifier().predict(torch.zeros(10_000)).isfinite().all()
