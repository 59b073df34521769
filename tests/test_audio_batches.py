"""Audio benchmarks: few labels, features, statistics, and bad input to all of them."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import datamodules
from datamodules import (
    ESC50,
    FSD50K,
    AudioDataModule,
    LibriSpeech,
    SpeechCommandsV1,
    SpeechCommandsV2,
    SpokenKeywords,
)
from datamodules.audio_files import BrokenAudioError
from datamodules.layout import LayoutError
from tests import tiny_audio
from tests.test_audio_datamodules import broken_clips, labels, librispeech, names, opened
from tests.tiny_audio import AUDIO, RATE, write_wav
from zoo.config_files import package_configs
from zoo.nn import AudioFeatures
from zoo.registry import get_method

# Few labels, features, statistics, and bad input to all of them.


def keywords(tmp_path: Path, **settings: Any) -> SpokenKeywords:
    return SpokenKeywords(**{**tiny_audio.spoken_keywords(tmp_path), "per_voice": 2, **settings})


def test_few_labels_have_equal_shares(tmp_path: Path) -> None:
    data = opened(keywords(tmp_path, labelled_fraction=0.25))
    assert len(data.datasets["train"]) == 40
    assert np.bincount(labels(data, "labelled")).tolist() == [4] * 10
    again = opened(keywords(tmp_path, labelled_fraction=0.25))
    other = opened(keywords(tmp_path, labelled_fraction=0.25, split_seed=1))
    assert names(again, "labelled") == names(data, "labelled") != names(other, "labelled")
    pretraining = opened(keywords(tmp_path, labelled_fraction=0.25, labels=False))
    assert len(pretraining.datasets["train"]) == 160
    assert sum(len(batch["label"]) for batch in pretraining.bank_dataloader()) == 40
    with pytest.raises(ValueError, match=r"labelled_fraction=0.02 labels 3 of 160 .* none of 7 classes"):
        opened(keywords(tmp_path, labelled_fraction=0.02))


class Doubled(nn.Module):
    """Shows what it was given."""

    sample_rate, samples = RATE, 4000

    def forward(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        return {**batch, "spectrogram": batch["waveform"][..., None] * 2, "training": training}


def test_features_are_made_on_the_batch(tmp_path: Path) -> None:
    data = opened(keywords(tmp_path, seconds=None, features=Doubled()))
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train["waveform"].shape == (2, 4000)  # no more is read than features use
    made = data.on_after_batch_transfer(train, 0)
    assert torch.equal(made["spectrogram"][..., 0], train["waveform"] * 2)
    assert made["training"]
    assert not data.on_after_batch_transfer(val, 0)["training"]
    with pytest.raises(ValueError, match="sample_rate=8000, but features expect 16000"):
        keywords(tmp_path, sample_rate=8000, features=Doubled())


def test_future_batches(tmp_path: Path) -> None:
    data = opened(keywords(tmp_path, features=AudioFeatures(target_length=20)))
    data.future_batches = 2
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    steps = [batch, *batch["future"]]
    assert [step["spectrogram"].shape for step in steps] == [(2, 20, 128)] * 3
    assert torch.cat([step["draw"] for step in steps]).tolist() == list(range(6))
    assert len({name for step in steps for name in step["name"]}) == 6


def test_padding(tmp_path: Path) -> None:
    root = str(tiny_audio.speech_commands_tree(tmp_path))
    longest = opened(SpeechCommandsV2(**AUDIO, root=root, seconds=3.0))
    fixed = opened(SpeechCommandsV2(**AUDIO, root=root, seconds=3.0, fixed_length=True))
    batch = next(iter(longest.test_dataloader()))
    assert batch["waveform"].shape[1] == RATE
    batch = next(iter(fixed.test_dataloader()))
    assert batch["waveform"].shape[1] == 3 * RATE
    assert not batch["waveform"][:, RATE:].any()
    short = opened(SpeechCommandsV2(**AUDIO, root=root, seconds=0.5, train_seconds=0.25))
    assert next(iter(short.test_dataloader()))["length"].tolist() == [8000, 8000]
    assert next(iter(short.train_dataloader()))["length"].tolist() == [4000, 4000]


def test_draws_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    data = opened(keywords(tmp_path, seconds=0.2, crop="random"))
    drawn = data.datasets["train"]
    together = drawn.__getitems__([3, 170, 9])
    for row, draw in enumerate((3, 170, 9)):
        assert torch.equal(together["waveform"][row], drawn[draw]["waveform"])
    first_pass = [int(drawn[k]["index"]) for k in range(len(drawn))]
    assert sorted(first_pass) == list(range(160)) != first_pass


def naive_statistics(data: AudioDataModule, features: AudioFeatures) -> tuple[float, float, int]:
    """Over the cells of all frames of every clip by itself."""
    cells = []
    for clip in data.subset("train"):
        made = features({"waveform": clip["waveform"][None], "length": clip["length"][None]})
        frames = int(made["frames"])
        cells.append((made["spectrogram"][0, :frames] * 2 * features.std + features.mean).double().flatten())
    values = torch.cat(cells)
    return float(values.mean()), float(values.std(correction=0)), len(values)


def test_statistics_are_those_of_all_cells(tmp_path: Path) -> None:
    features = AudioFeatures(target_length=60)
    data = opened(SpeechCommandsV2(**tiny_audio.speech_commands_v2(tmp_path), features=features))
    found = data.feature_statistics()
    mean, std, cells = naive_statistics(data, features)
    assert (found.clips, found.cells) == (10, cells)
    assert (found.mean, found.std) == pytest.approx((mean, std), rel=1e-5)
    made = AudioFeatures(target_length=60, mean=found.mean, std=found.std)
    normal = torch.cat([made(clip)["spectrogram"].flatten() for clip in data.bank_dataloader()])
    assert float(normal.mean()) == pytest.approx(0, abs=1e-3)
    assert float(normal.std()) == pytest.approx(0.5, abs=1e-3)


def test_statistics_are_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "cache"))
    settings = tiny_audio.speech_commands_v2(tmp_path)
    data = opened(SpeechCommandsV2(**settings, features=AudioFeatures(target_length=60)))
    found = data.feature_statistics()
    (file,) = (tmp_path / "cache" / "statistics").glob("speech_commands_v2-*.json")
    calls = []
    monkeypatch.setattr(AudioFeatures, "forward", lambda *arguments: calls.append(arguments))
    assert data.feature_statistics() == found
    assert not calls
    monkeypatch.undo()
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "cache"))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "mean": content["mean"] + 1}))  # its checksum is another's
    assert data.feature_statistics() == found
    assert json.loads(file.read_text()) == content
    few = data.feature_statistics(max_clips=3)
    assert few.clips == 3
    others = opened(SpeechCommandsV2(**settings, features=AudioFeatures(target_length=40)))
    assert others.feature_statistics() != found
    with pytest.raises(ValueError, match=r"set it to \{class_path: zoo.nn.AudioFeatures\}"):
        opened(SpeechCommandsV2(**settings)).feature_statistics()


def test_silence_is_a_clip(tmp_path: Path) -> None:
    root = tiny_audio.speech_commands_tree(tmp_path)
    for path in (root / "yes").glob("*.wav"):
        write_wav(path, np.zeros((RATE, 1)))
    data = opened(SpeechCommandsV2(**AUDIO, root=str(root), features=AudioFeatures(target_length=98)))
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for batch in loader:
            made: Tensor = data.on_after_batch_transfer(batch, 0)["spectrogram"]
            assert made.isfinite().all()


def test_broken_clips_stop_the_loader_or_are_left_out(tmp_path: Path) -> None:
    root = tiny_audio.speech_commands_tree(tmp_path / "commands")
    broken = broken_clips(tmp_path / "broken")
    victims = [root / word / "0a7c2a0d_nohash_0.wav" for word in ("yes", "no", "bed")]
    for victim, kind in zip(victims, ("no samples", "truncated", "nan"), strict=True):
        shutil.copy(broken[kind][0], victim)
    data = opened(SpeechCommandsV2(**AUDIO, root=str(root)))
    with pytest.raises(BrokenAudioError, match=r"0a7c2a0d_nohash_0\.wav .*skip_broken"):
        for _ in data.subset_dataloader("train"):
            pass
    with pytest.warns(UserWarning, match="skip_broken left out 3 of 10 train clips"):
        usable = opened(SpeechCommandsV2(**AUDIO, root=str(root), skip_broken=True), "fit")
    assert len(usable.datasets["train"]) == 7
    assert len(usable.skipped["train"]) == 3
    assert sum(len(batch["name"]) for batch in usable.subset_dataloader("train")) == 7


def test_wrong_rate_in_a_tree(tmp_path: Path) -> None:
    data = opened(ESC50(**tiny_audio.esc50(tmp_path), resample=False))
    with pytest.raises(BrokenAudioError, match=r"\.wav has 44100 Hz, not sample_rate=16000"):
        next(iter(data.test_dataloader()))


def test_label_that_is_no_class(tmp_path: Path) -> None:
    root = tiny_audio.esc50_tree(tmp_path)
    listing = root / "meta" / "esc50.csv"
    listing.write_text(listing.read_text().replace("rooster", "unicorn"))
    with pytest.raises(
        LayoutError, match=r"esc50\.csv: .*\.wav has the label 'unicorn', which is none of the 50"
    ):
        ESC50(**AUDIO, root=str(root)).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"train_seconds": -1.0}, "train_seconds must be positive"),
        ({"crop": "end"}, "crop must be start or random"),
        ({"labelled_fraction": 0.0}, r"labelled_fraction must lie in \(0, 1\]"),
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\)"),
        ({"sample_rate": 0}, "sample_rate must be at least 1 Hz"),
        ({"fold": 6}, r"fold must lie in 1\.\.5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESC50(**settings)


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation clips of its own: leave out val_fraction"):
        FSD50K(val_fraction=0.1)
    with pytest.raises(ValueError, match="num_train=99, but there are 12 training clips"):
        ESC50(**tiny_audio.esc50(tmp_path), num_train=99).setup()
    settings = librispeech(tmp_path / "speech")
    with pytest.raises(ValueError, match="balanced: true needs labels"):
        LibriSpeech(**settings, balanced=True).setup()
    with pytest.raises(ValueError, match="synthesiser must be one of espeak, espeak_further, formant"):
        SpokenKeywords(synthesiser="piper")
    with pytest.raises(ValueError, match="per_voice must be at least 1"):
        SpokenKeywords(per_voice=0)


AUDIO_CONFIGS = sorted(
    path
    for folder in ("ssast", "w2v_bert", "audio_classifier")
    for path in (package_configs() / folder).glob("*.yaml")
)


@pytest.mark.parametrize("path", AUDIO_CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_networks_of_configs_fit_their_data(path: Path) -> None:
    """At full size and without memory; tests of single steps make them smaller."""
    content = yaml.safe_load(path.read_text())
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    features = data["features"]["init_args"]
    frames = features["target_length"]
    assert frames == model["backbone_args"]["frames"]
    benchmark = getattr(datamodules, content["data"]["class_path"])
    if "num_classes" in model and benchmark is not SpeechCommandsV1 and benchmark is not SpeechCommandsV2:
        assert model["num_classes"] == benchmark.num_classes
    assert features.get("num_classes") in (None, model.get("num_classes"))
    method = get_method(path.parent.name)
    with torch.device("meta"):
        made = method(**{key: value for key, value in model.items() if key != "optim"})
        mels = features.get("bank", {"init_args": {"mels": 128}})["init_args"]["mels"]
        image = torch.zeros(2, 1, mels, frames)
        if path.parent.name == "audio_classifier":
            assert made.student(image).shape == (2, model["num_classes"])
        else:
            grid = made.student.backbone.grid(mels, frames)
            assert made.student.backbone.forward_tokens(image).patches.shape[1] == grid[0] * grid[1]
            assert model.get("masked", 0) < grid[0] * grid[1]


def test_written_clips_are_plain_wav(tmp_path: Path) -> None:
    data = opened(keywords(tmp_path))
    with wave.open(str(data.subset("val").path(0))) as file:
        assert file.getparams()[:4] == (1, 2, RATE, RATE)
