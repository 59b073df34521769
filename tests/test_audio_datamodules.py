"""Audio benchmarks: reading clips, official layouts, splits, batches, statistics, and what is said of broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datamodules
from datamodules import (
    AudioDataModule,
)
from datamodules.audio_files import BrokenAudioError, Reading
from datamodules.audio_labels import MultiLabels, SingleLabels
from datamodules.audio_sets import AudioSubset
from datamodules.layout import LayoutError
from datamodules.sampling import WeightedPicker
from tests import tiny_audio
from tests.tiny_audio import AUDIO, pitch_of, tone, write_wav, write_with_soundfile

SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ESC50": tiny_audio.esc50,
    "SpeechCommandsV1": tiny_audio.speech_commands_v1,
    "SpeechCommandsV2": tiny_audio.speech_commands_v2,
    "AudioSet": tiny_audio.audioset,
    "AudioSetLibriSpeech": tiny_audio.audioset_librispeech,
    "IEMOCAP": tiny_audio.iemocap,
    "VoxCeleb1": tiny_audio.voxceleb1,
    "FSD50K": tiny_audio.fsd50k,
    "TelephonePrompts": tiny_audio.telephone_prompts,
    "SpokenKeywords": tiny_audio.spoken_keywords,
}


def opened(data: AudioDataModule, stage: str | None = None) -> AudioDataModule:
    data.prepare_data()
    data.setup(stage)
    return data


def names(data: AudioDataModule, split: str) -> list[str]:
    subset = data.subset(split)
    return [subset.path(n).stem for n in range(len(subset))]


def labels(data: AudioDataModule, split: str) -> list[Any]:
    found = data.subset(split).labels
    assert found is not None
    return found.tensor(np.arange(len(found))).tolist()


# Reading.


def test_a_clip_is_what_was_written(tmp_path: Path) -> None:
    sound = tone(440, 0.5)
    clip = Reading().clip(write_wav(tmp_path / "a.wav", sound))
    assert (clip.dtype, clip.shape) == (torch.float32, (8000,))
    np.testing.assert_allclose(clip, sound[:, 0], atol=1e-4)


def test_flac_and_wav_hold_the_same(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, (5000, 1))
    wav = Reading().clip(write_wav(tmp_path / "a.wav", sound))
    flac = Reading().clip(write_with_soundfile(tmp_path / "a.flac", np.round(sound * 32767) / 32768))
    assert torch.equal(wav, flac)


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", "PCM_U8"])
def test_other_kinds_of_wav(tmp_path: Path, subtype: str) -> None:
    sound = tone(300, 0.2)
    clip = Reading().clip(write_with_soundfile(tmp_path / "a.wav", sound, subtype=subtype))
    np.testing.assert_allclose(clip, sound[:, 0], atol=0.01)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(300, 0.2), tone(900, 0.2)
    clip = Reading().clip(write_wav(tmp_path / "a.wav", np.concatenate([left, right], axis=1)))
    np.testing.assert_allclose(clip, ((left + right) / 2)[:, 0], atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_another_rate_is_converted_or_refused(tmp_path: Path, rate: int) -> None:
    path = write_wav(tmp_path / "a.wav", tone(440, 0.5, rate), rate)
    clip = Reading().clip(path)
    assert len(clip) == pytest.approx(8000, abs=1)
    assert pitch_of(clip) == pytest.approx(440, abs=2)
    np.testing.assert_allclose(clip[500:-500], tone(440, 0.5)[500 : len(clip) - 500, 0], atol=0.01)
    with pytest.raises(
        BrokenAudioError, match=rf"a\.wav has {rate} Hz, not sample_rate=16000.*resample: true"
    ):
        Reading(resample=False).clip(path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".gsm"])
def test_windows(tmp_path: Path, suffix: str) -> None:
    """A part that is read is that part of the whole; drawn ones differ."""
    ramp = (np.arange(16_000) / 16_000 * 0.9)[:, None]
    if suffix == ".gsm":
        sound = np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 1))
        path = write_with_soundfile(tmp_path / "a.gsm", sound, 8000, format="RAW", subtype="GSM610")
        reading = Reading(8000)
    else:
        path = write_wav(tmp_path / "a.wav", ramp)
        reading = Reading()
        if suffix == ".flac":
            path = write_with_soundfile(tmp_path / "a.flac", ramp)
    whole = reading.clip(path)
    assert torch.equal(reading.clip(path, 0.25), whole[: reading.sample_rate // 4])
    starts = set()
    for seed in range(4):
        part = reading.clip(path, 0.25, np.random.default_rng(seed))
        start = int(np.random.default_rng(seed).integers(len(whole) - len(part) + 1))
        assert torch.equal(part, whole[start : start + len(part)])
        starts.add(start)
    assert len(starts) == 4
    assert torch.equal(reading.clip(path, 9.0, np.random.default_rng(0)), whole)


def test_gain(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(440, 0.1))
    torch.testing.assert_close(Reading(gain=-20.0).clip(path), Reading().clip(path) / 10)


def broken_clips(folder: Path) -> dict[str, tuple[Path, str]]:
    """Kind → file, and what is said of it."""
    path = write_wav(folder / "cut.wav", tone(440, 0.5))
    path.write_bytes(path.read_bytes()[:-1001])
    (folder / "text.wav").write_text("this is not sound, whatever its name says")
    nan = tone(440, 0.1)
    nan[7] = np.nan
    return {
        "no samples": (write_wav(folder / "empty.wav", np.zeros((0, 1))), "holds no samples"),
        "no samples in FLAC": (
            write_with_soundfile(folder / "empty.flac", np.zeros((0, 1))),
            "holds no samples|cannot be decoded",
        ),
        "truncated": (path, "promises 8000 samples where 7499"),
        "no sound": (folder / "text.wav", "cannot be decoded"),
        "nan": (write_with_soundfile(folder / "nan.wav", nan, subtype="FLOAT"), "nan or infinite"),
    }


@pytest.mark.parametrize("kind", ["no samples", "no samples in FLAC", "truncated", "no sound", "nan"])
def test_unusable_clips_are_named(tmp_path: Path, kind: str) -> None:
    path, message = broken_clips(tmp_path)[kind]
    with pytest.raises(BrokenAudioError, match=rf"{path.name}.*({message}).*skip_broken"):
        Reading().clip(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.wav"):
        Reading().clip(tmp_path / "no.wav")


def test_without_soundfile_plain_wav_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flac = tmp_path / "a.flac"
    flac.write_bytes(b"fLaC")
    path = write_wav(tmp_path / "a.wav", tone(440, 0.1))
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    assert len(Reading().clip(path)) == 1600
    with pytest.raises(ImportError, match=r"a\.flac.*selfzoo\[audio\]"):
        Reading().clip(flac)


# Labels and draws.


def test_multi_labels() -> None:
    clips = [[0, 9], [9], [], [9, 526], [0]]
    found = MultiLabels.of(clips, 527)
    rows = found.tensor(np.arange(5))
    assert (rows.shape, rows.dtype) == ((5, 527), torch.float32)
    assert [row.nonzero().flatten().tolist() for row in rows] == clips
    counts = found.counts()
    assert (counts[[0, 9, 526]].tolist(), counts.sum()) == ([2, 3, 1], 6)
    weight = 1 / (counts + 0.01)
    np.testing.assert_allclose(found.balancing_weights(), [sum(weight[c] for c in clip) for clip in clips])
    assert found.strata().tolist() == [0, 9, 0, 526, 0]
    assert found.part(np.array([3])).tensor(np.array([0])).nonzero()[:, 1].tolist() == [9, 526]


def test_single_labels() -> None:
    found = SingleLabels(np.array([2, 0, 2, 2]), 4)
    assert found.counts().tolist() == [1, 0, 3, 0]
    weights = found.balancing_weights()
    np.testing.assert_allclose(weights / weights[0], [1, 3.01 / 1.01, 1, 1])


def test_weighted_draws_have_their_shares() -> None:
    picker = WeightedPicker(np.array([1.0, 0.0, 3.0]))
    drawn = [picker(k, np.random.default_rng([5, k])).index for k in range(4000)]
    assert np.bincount(drawn, minlength=3) / 4000 == pytest.approx([0.25, 0.0, 0.75], abs=0.03)
    assert drawn[:9] == [picker(k, np.random.default_rng([5, k])).index for k in range(9)]


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_unusable_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be finite"):
        WeightedPicker(np.array(weights))


# Every benchmark.


@pytest.mark.parametrize("benchmark", SETTINGS)
def test_batches(benchmark: str, tmp_path: Path) -> None:
    data: AudioDataModule = opened(getattr(datamodules, benchmark)(**SETTINGS[benchmark](tmp_path)))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        waveform, length = batch["waveform"], batch["length"]
        assert (waveform.dtype, waveform.shape) == (torch.float32, (2, int(length.max())))
        assert length.dtype == batch["index"].dtype == torch.int64
        for row, samples in zip(waveform, length, strict=True):
            assert row[:samples].abs().max() > 0.1
            assert not row[samples:].any()
        assert len(batch["name"]) == 2
        if "label" in batch and batch["label"].is_floating_point():
            assert batch["label"].shape == (2, data.num_classes)
        elif "label" in batch:
            assert batch["label"].shape == (2,)
            assert 0 <= int(batch["label"].min()) <= int(batch["label"].max()) < data.num_classes
        assert ("draw" in batch) == (loader.dataset is data.datasets["train"])
    assert data.labels == ("label" in next(iter(data.train_dataloader())))


@pytest.mark.parametrize("benchmark", SETTINGS)
def test_evaluation_shows_every_clip_once(benchmark: str, tmp_path: Path) -> None:
    data = opened(getattr(datamodules, benchmark)(**SETTINGS[benchmark](tmp_path)), "test")
    index = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert index.tolist() == list(range(len(data.datasets["test"])))
    assert len(index) > 1


@pytest.mark.parametrize("benchmark", [name for name in SETTINGS if name != "SpokenKeywords"])
def test_a_wrong_root_is_one_error(benchmark: str, tmp_path: Path) -> None:
    (tmp_path / "other" / "things").mkdir(parents=True)
    data = getattr(datamodules, benchmark)(root=str(tmp_path / "other"))
    with pytest.raises(LayoutError, match=r"root='.*other'\) cannot be used") as raised:
        data.setup()
    assert "Where to get it" in str(raised.value)


@pytest.mark.parametrize("benchmark", ["ESC50", "SpeechCommandsV2", "VoxCeleb1", "FSD50K", "LibriSpeech"])
def test_a_part_is_not_the_whole(benchmark: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "LibriSpeech": librispeech}[benchmark](tmp_path)
    with pytest.raises(LayoutError, match=r"expected \d+ clips .* found \d+: not fully extracted"):
        getattr(datamodules, benchmark)(**{**settings, "allow_partial": False}).setup()


def test_libri_light_holds_a_share_of_its_archives_out(tmp_path: Path) -> None:
    settings = {**tiny_audio.libri_light(tmp_path), "labels": False}
    for hours, recordings in ((600, 4), (6_000, 8), (60_000, 12)):
        data = datamodules.LibriLight(hours, **settings)
        data.setup()
        held_out = [str(data.subset("val").path(n)) for n in range(len(data.subset("val")))]
        shown = [str(data.subset("train").path(n)) for n in range(len(data.subset("train")))]
        assert len(held_out) == recordings / 4
        assert len({*held_out, *shown}) == recordings
    with pytest.raises(ValueError, match="hours must be one of 60000, 6000, 600"):
        datamodules.LibriLight(100, **settings)
    with pytest.raises(ValueError, match="val_fraction must be above 0"):
        datamodules.LibriLight(**{**settings, "val_fraction": 0.0})


# Folders of one's own.


def test_any_folder_of_recordings(tmp_path: Path) -> None:
    settings = {**tiny_audio.audio_folders(tmp_path), "labels": False, "seed": 0}
    data, again = (opened(datamodules.AudioFolders(**settings), "fit") for _ in range(2))
    assert len(data.subset("train")) == 9
    held_out = names(data, "val")
    assert len(held_out) == 3
    assert held_out == names(again, "val")
    shown = {
        str(data.subset(split).path(n)) for split, count in (("train", 9), ("val", 3)) for n in range(count)
    }
    root = Path(settings["root"])
    assert shown == {
        str(p) for p in root.rglob("*") if p.suffix.lower() == ".wav" and ".cache" not in p.parts
    }
    batches = list(data.train_dataloader())
    assert "label" not in batches[0]
    assert {len(batch["waveform"]) for batch in batches} == {2}
    clips = data.clips("train")
    stereo = next(n for n in range(len(clips)) if clips.path(n).name == "stereo.wav")
    assert pitch_of(data.reading.clip(clips.path(stereo))) == pytest.approx(tiny_audio.pitch(3), abs=3)


def test_folders_are_classes(tmp_path: Path) -> None:
    settings = {**tiny_audio.audio_folders(tmp_path), "class_names": ("cat", "dog"), "val_fraction": 0.5}
    data = opened(datamodules.AudioFolders(**settings))
    assert (data.classes, data.num_classes) == (("cat", "dog"), 2)
    for split in ("train", "val"):
        subset = data.subset(split)
        folders = [subset.path(n).relative_to(settings["root"]).parts[0] for n in range(len(subset))]
        assert [data.classes[label] for label in labels(data, split)] == folders
        assert sorted(folders) == ["cat"] * 2 + ["dog"] * 3
    # The same recordings are held out of pre-training.
    assert names(datamodules.AudioFolders(**settings, labels=False), "val") == names(data, "val")


def test_what_is_said_of_bad_folders(tmp_path: Path) -> None:
    settings = {**tiny_audio.audio_folders(tmp_path), "labels": False}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.mp3").write_bytes(b"ID3")
    for change, complaint in (
        ({"root": None}, "root is not set"),
        ({"root": tmp_path / "nowhere"}, r"there is no folder .*nowhere"),
        (
            {"root": tmp_path / "empty"},
            r"no file at any depth ends in \.wav, \.flac, \.ogg, \.gsm: convert other kinds",
        ),
        ({"val_fraction": 0.01}, r"val_fraction=0\.01 holds out 0 of 12 recordings"),
        ({"class_names": ("dog", "cow")}, r"class_names: there are no files that end in .* below .*cow"),
    ):
        with pytest.raises(LayoutError, match=complaint):
            datamodules.AudioFolders(**{**settings, **change}).setup("fit")
    for change, complaint in (
        ({"val_fraction": 0.0}, "val_fraction must be above 0"),
        ({"labels": True}, r"labels: true needs class_names, .*Set labels: false"),
    ):
        with pytest.raises(ValueError, match=complaint):
            datamodules.AudioFolders(**{**settings, **change})
    (Path(settings["root"]) / "top.WAV").write_bytes(b"RIFF")
    clips = datamodules.AudioFolders(**settings).clips("train")
    broken = next(n for n in range(len(clips)) if clips.path(n).name == "top.WAV")
    with pytest.raises(BrokenAudioError, match=r"top\.WAV .*skip_broken: true"):
        AudioSubset(clips)[broken]
    with pytest.warns(UserWarning, match="skip_broken left out 1 of 12 train clips"):
        opened(datamodules.AudioFolders(**settings, skip_broken=True), "fit")


def librispeech(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": tiny_audio.librispeech_tree(folder), "labels": False}
