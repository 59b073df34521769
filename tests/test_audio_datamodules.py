"""Audio benchmarks: reading clips, official layouts, splits, batches, statistics, and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
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
    IEMOCAP,
    AudioDataModule,
    AudioSet,
    AudioSetLibriSpeech,
    LibriSpeech,
    SpeechCommandsV1,
    SpeechCommandsV2,
    SpokenKeywords,
    TelephonePrompts,
    VoxCeleb1,
    keyword_voices,
)
from datamodules.audio_files import BrokenAudioError, Reading
from datamodules.audio_labels import MultiLabels, SingleLabels
from datamodules.keyword_voices import KEYWORDS, SYNTHESISERS, SynthesiserError
from datamodules.layout import LayoutError
from datamodules.sampling import WeightedPicker
from tests import tiny_audio
from tests.tiny_audio import AUDIO, RATE, pitch, pitch_of, tone, write_wav, write_with_soundfile
from zoo.config_files import package_configs
from zoo.nn import AudioFeatures
from zoo.registry import get_method

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


def librispeech(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": tiny_audio.librispeech_tree(folder), "labels": False}


# Their splits.


@pytest.mark.parametrize("resampled", [False, True])
def test_esc50_folds(tmp_path: Path, resampled: bool) -> None:
    root = tiny_audio.esc50_tree(tmp_path, resampled)
    tested = []
    for fold in range(1, 6):
        data = opened(ESC50(**AUDIO, root=str(root), fold=fold))
        assert {name[0] for name in names(data, "test")} == {str(fold)}
        assert {name[0] for name in names(data, "train")} == set("12345") - {str(fold)}
        assert names(data, "val") == names(data, "test")
        assert labels(data, "test") == [0, 1, 46]
        tested += names(data, "test")
        clip = data.datasets["test"][1]
        assert clip["length"] == pytest.approx(0.3 * RATE, abs=1)
        assert pitch_of(clip["waveform"][: clip["length"]]) == pytest.approx(pitch(1, fold), abs=3)
    assert len(set(tested)) == 15
    assert ESC50.classes[46] == "church_bells"
    assert len(set(ESC50.classes)) == 50


def test_esc50_holds_out_training_clips(tmp_path: Path) -> None:
    data = opened(ESC50(**AUDIO, root=str(tiny_audio.esc50_tree(tmp_path)), val_fraction=0.25))
    train, val = names(data, "train"), names(data, "val")
    assert (len(train), len(val)) == (9, 3)
    assert not set(train) & set(val)
    assert sorted(labels(data, "val")) == [0, 1, 46]


def test_speech_commands_words(tmp_path: Path) -> None:
    data = opened(SpeechCommandsV2(**tiny_audio.speech_commands_v2(tmp_path)))
    assert (data.num_classes, len(data.datasets["train"])) == (35, 10)
    assert data.classes == tuple(sorted(data.classes))
    subset = data.subset("test")
    for number in range(len(subset)):
        path, label = subset.path(number), labels(data, "test")[number]
        assert path.name == "0a7c2a3d_nohash_0.wav"
        assert data.classes[label] == path.parent.name
    assert {subset.path(n).name[6] for subset in [data.subset("train")] for n in range(10)} == {"0", "1"}


def test_speech_commands_keywords(tmp_path: Path) -> None:
    """Ten words; every other word is unknown; a second of noise is silence."""
    data = opened(SpeechCommandsV1(**tiny_audio.speech_commands_v1(tmp_path), balanced=True))
    assert data.classes[:2] == ("yes", "no")
    assert data.classes[10:] == ("_unknown_", "_silence_")
    of = {
        split: dict(
            zip(
                [data.subset(split).path(n).parent.name for n in range(len(data.subset(split)))],
                labels(data, split),
                strict=True,
            )
        )
        for split in ("train", "val", "test")
    }
    words = {"yes": 0, "no": 1, "bed": 10, "wow": 10}
    assert of["train"] == of["val"] == {**words, "_background_noise_": 11}
    assert of["test"] == {"yes": 0, "_unknown_": 10, "_silence_": 11}
    assert (len(names(data, "train")), len(names(data, "val"))) == (10, 6)
    drawn = data.datasets["train"]
    seen = [drawn[k] for k in range(60)]
    noise = [clip["waveform"] for clip in seen if clip["label"] == 11]
    assert all(clip["waveform"].shape[0] <= RATE for clip in seen)
    assert len({float(clip[0]) for clip in noise}) == len(noise)  # another second every time
    counts = np.bincount([int(clip["label"]) for clip in seen], minlength=12)
    assert counts[[0, 1, 10, 11]].min() >= 6  # weights 1/2, 1/2, 1/4, 1/2 of 2, 2, 4 and 2 clips
    again = SpeechCommandsV1(**tiny_audio.speech_commands_v1(tmp_path), balanced=True)
    assert torch.equal(opened(again).datasets["train"][7]["waveform"], drawn[7]["waveform"])


def test_speech_commands_without_test_set(tmp_path: Path) -> None:
    settings = {**tiny_audio.speech_commands_v1(tmp_path), "test_root": None}
    data = opened(SpeechCommandsV1(**settings), "test")
    assert sorted(labels(data, "test")) == [0, 1, 10, 10]


def test_librispeech(tmp_path: Path) -> None:
    data = opened(LibriSpeech(**librispeech(tmp_path)))
    assert [len(data.subset(split)) for split in ("train", "val", "test")] == [6, 4, 4]
    assert "label" not in data.datasets["val"][0]
    few = opened(LibriSpeech(**librispeech(tmp_path), hours=100))
    assert names(few, "train") == ["84-121123-0000", "84-121123-0001"]
    with pytest.raises(ValueError, match="hours must be one of 960, 460, 100"):
        LibriSpeech(hours=5)


def test_audioset_lists(tmp_path: Path) -> None:
    root = str(tiny_audio.audioset_tree(tmp_path))
    data = opened(AudioSet(batch_size=2, root=root))
    assert names(data, "train") == ["--PJHxphWEs_30", "-0.flac_XY_0", "B3_7"]
    rows = data.subset("train").labels.tensor(np.arange(3))
    assert [row.nonzero().flatten().tolist() for row in rows] == [[0, 137], [74], [0]]
    assert pitch_of(data.subset("train")[1]["waveform"]) == pytest.approx(pitch(1), abs=3)
    assert data.classes[137] == "Music"
    assert data.classes[1] == "Class 1, of many"
    assert names(data, "val") == names(data, "test") == ["E1_20", "E2_0"]
    full = opened(AudioSet(root=root, subset="full"))
    assert names(full, "train") == [*names(data, "train"), "U1_110", "U2_5"]


def test_audioset_manifests(tmp_path: Path) -> None:
    tree = tiny_audio.audioset_tree(tmp_path / "tree")
    absolute = str(tree / "unbalanced_train_segments" / "U1_110.wav")
    train = [("balanced_train_segments/B3_7.flac", "/m/09x0r,/m/04rlf"), (absolute, "/m/0bt9lr")]
    settings = {
        "root": str(tree),
        "train_json": str(tiny_audio.manifest(tmp_path / "train.json", train)),
        "eval_json": str(tiny_audio.manifest(tmp_path / "eval.json", train[:1])),
    }
    data = opened(AudioSet(**settings))
    assert names(data, "train") == ["B3_7", "U1_110"]
    assert [np.flatnonzero(row).tolist() for row in labels(data, "train")] == [[0, 137], [74]]
    weights = tmp_path / "train_weight.csv"
    weights.write_text("0.0\n2.5\n")
    weighted = opened(AudioSet(**settings, weight_file=str(weights)))
    assert {int(weighted.datasets["train"][k]["index"]) for k in range(20)} == {1}
    weights.write_text("1\n1\n1\n")
    with pytest.raises(LayoutError, match="3 weights for 2 training clips"):
        AudioSet(**settings, weight_file=str(weights)).setup()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("audio/missing.flac", "/m/09x0r"), r"1 of 2 clips listed in .*train\.json.*audio/missing\.flac"),
        (("balanced_train_segments/B3_7.flac", "/m/nothing"), r"B3_7\.flac has the label '/m/nothing'.*527"),
    ],
)
def test_audioset_manifests_that_lie(tmp_path: Path, entry: tuple[str, str], message: str) -> None:
    tree = tiny_audio.audioset_tree(tmp_path / "tree")
    good = ("balanced_train_segments/B3_7.flac", "/m/09x0r")
    train = str(tiny_audio.manifest(tmp_path / "train.json", [good, entry]))
    with pytest.raises(LayoutError, match=message):
        AudioSet(root=str(tree), train_json=train).setup("fit")


def test_missing_clips_may_be_left_out(tmp_path: Path) -> None:
    root = tiny_audio.audioset_tree(tmp_path)
    (root / "balanced_train_segments" / "-0.flac_XY_0.wav").unlink()
    with pytest.raises(LayoutError, match=r"1 of 3 clips .* missing .*-0\.flac_XY_0.*allow_partial"):
        AudioSet(root=str(root)).setup()
    data = opened(AudioSet(root=str(root), allow_partial=True))
    assert names(data, "train") == ["--PJHxphWEs_30", "B3_7"]
    assert [np.flatnonzero(row).tolist() for row in labels(data, "train")] == [[0, 137], [0]]


@pytest.mark.parametrize("content", ["[1, 2]", '{"clips": []}', "{", '{"data": [{"wav": "a.wav"}]}'])
def test_no_manifest(tmp_path: Path, content: str) -> None:
    tree = tiny_audio.audioset_tree(tmp_path / "tree")
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(LayoutError, match=r"train\.json is no manifest of the form"):
        AudioSet(root=str(tree), train_json=str(tmp_path / "train.json")).setup("fit")


def test_pretraining_mixture(tmp_path: Path) -> None:
    data = opened(AudioSetLibriSpeech(**tiny_audio.audioset_librispeech(tmp_path)))
    assert len(data.datasets["train"]) == 5 + 6
    assert names(data, "train")[4:6] == ["U2_5", "84-121123-0000"]
    subset = data.subset("train")
    assert [pitch_of(subset[n]["waveform"]) for n in (1, 6)] == pytest.approx([pitch(1), pitch(0, 1)], abs=3)
    assert "label" not in data.datasets["train"][0]
    with pytest.raises(ValueError, match="labels: true"):
        AudioSetLibriSpeech(labels=True)


@pytest.mark.parametrize("session", [1, 4])
def test_iemocap_sessions(tmp_path: Path, session: int) -> None:
    data = opened(IEMOCAP(**tiny_audio.iemocap(tmp_path), session=session))
    assert all(name.startswith(f"Ses0{session}") for name in names(data, "test"))
    found = dict(zip([name[-3:] for name in names(data, "test")], labels(data, "test"), strict=True))
    # neu, exc, hap, ang, sad, neu; numbers 5 and 6, fru and xxx, are none of the four
    assert found == {"000": 0, "001": 1, "002": 1, "003": 2, "004": 3, "007": 0}
    train, val = names(data, "train"), names(data, "val")
    assert (len(train), len(val)) == (19, 5)
    assert not {n for n in train + val if n.startswith(f"Ses0{session}")}
    assert not set(train) & set(val)
    with pytest.raises(ValueError, match=r"session must lie in 1\.\.5"):
        IEMOCAP(session=6)


def test_iemocap_without_a_dialogue(tmp_path: Path) -> None:
    root = tiny_audio.iemocap_tree(tmp_path)
    shutil.rmtree(root / "Session2" / "dialog")
    with pytest.raises(LayoutError, match=r"8 of 8 utterances of .*Session2.*EmoEvaluation"):
        IEMOCAP(**AUDIO, root=str(root)).setup()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("listed_as", ["iden_split.txt", "veri_test_class.txt"])
def test_voxceleb1(tmp_path: Path, together: bool, listed_as: str) -> None:
    root = tiny_audio.voxceleb1_tree(tmp_path, together, listed_as=listed_as)
    data = opened(VoxCeleb1(**AUDIO, root=str(root)))
    assert labels(data, "train") == [0, 0, 1, 1, 2, 2]
    assert labels(data, "val") == labels(data, "test") == [0, 1, 2]
    assert pitch_of(data.datasets["test"][1]["waveform"]) == pytest.approx(pitch(1, 3), abs=3)
    with pytest.raises(LayoutError, match="expected 153516 clips"):
        VoxCeleb1(root=str(root)).setup()


def test_fsd50k(tmp_path: Path) -> None:
    data = opened(FSD50K(**tiny_audio.fsd50k(tmp_path)))
    assert names(data, "train") == ["64760", "16399"]
    assert names(data, "val") == ["16401", "16402"]
    assert [np.flatnonzero(row).tolist() for row in labels(data, "test")] == [[3, 120], [50]]
    assert data.datasets["val"][0]["length"] == pytest.approx(0.3 * RATE, abs=1)


def test_telephone_prompts(tmp_path: Path) -> None:
    root = tiny_audio.telephone_tree(tmp_path / "usr" / "share" / "asterisk" / "sounds")
    for given in (root, tmp_path):  # the folder itself, or where packages were extracted to
        data = opened(TelephonePrompts(**AUDIO, root=str(given), languages=("it", "ru"), val_fraction=0.25))
        assert (len(data.subset("train")), len(data.subset("val"))) == (9, 3)
        subset = data.subset("train")
        assert "silence" not in {subset.path(n).parent.name for n in range(9)}
        assert sorted(set(labels(data, "train"))) == [0, 1]
        clip = subset[0]
        assert clip["length"] == pytest.approx(0.5 * RATE, abs=400)
        number = int(subset.path(0).stem.removeprefix("vm-"))
        assert pitch_of(clip["waveform"]) == pytest.approx(pitch(3, number), abs=5)
    with pytest.raises(ValueError, match="languages must be some of en, es"):
        TelephonePrompts(languages=("de",))


# Spoken keywords.


def test_nobody_who_is_tested_was_heard() -> None:
    for source, target in SYNTHESISERS.values():
        assert set(source.splits) == {"train", "val", "test"}
        voices = [
            voice for split in (source.splits, target.splits) for found in split.values() for voice in found
        ]
        assert len(voices) == len(set(voices))


def test_spoken_keywords(tmp_path: Path) -> None:
    settings = tiny_audio.spoken_keywords(tmp_path)
    data = opened(SpokenKeywords(**settings))
    speakers = {
        split: {name.split("_")[0] for name in names(data, split)} for split in ("train", "val", "test")
    }
    assert [len(found) for found in speakers.values()] == [8, 2, 4]
    assert not speakers["train"] & speakers["test"]
    assert np.bincount(labels(data, "train")).tolist() == [8] * 10
    clip = data.datasets["test"][3]
    assert clip["waveform"].shape == (RATE,)
    assert 0.15 < clip["waveform"].abs().max() < 0.85
    target = opened(SpokenKeywords(**settings, test_on="target"))
    assert {name[0] for name in names(target, "test")} == {"w"}
    both = opened(SpokenKeywords(**settings, with_target=True, labels=False))
    assert {name[0] for name in names(both, "train")} == {"s", "w"}
    assert "label" not in both.datasets["train"][0]
    with pytest.raises(ValueError, match="with_target"):
        SpokenKeywords(**settings, with_target=True)


def test_spoken_words_can_be_told_apart_across_voices(tmp_path: Path) -> None:
    """Mean spectra of a word, normalised by voice, are nearest to those of the same word more often than by chance."""
    data = opened(keywords(tmp_path))
    features = AudioFeatures(target_length=100)
    made = {}
    for split in ("train", "test"):
        subset = data.subset(split)
        batch = subset.batch(np.arange(len(subset)))
        thirds = features(batch)["spectrogram"].unflatten(2, (16, 8)).mean(3)
        loud = thirds.mean(2, keepdim=True)
        weight = (loud - loud.amin(1, keepdim=True)).square()
        described = torch.cat([(thirds * weight).sum(1) / weight.sum(1), (thirds * weight).std(1)], dim=1)
        made[split] = (described, batch["label"])
    (bank, classes), (query, truth) = made["train"], made["test"]
    nearest = torch.cdist(query, bank).argmin(1)
    assert (classes[nearest] == truth).float().mean() > 0.3  # by chance 0.1


def test_interrupted_synthesis_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**tiny_audio.spoken_keywords(tmp_path), "root": str(tmp_path)}
    said: list[str] = []
    speak = keyword_voices.say

    def counted(word: str, *arguments: Any) -> np.ndarray:
        said.append(word)
        if len(said) == 31:
            raise KeyboardInterrupt
        return speak(word, *arguments)

    monkeypatch.setattr(keyword_voices, "say", counted)
    with pytest.raises(KeyboardInterrupt):
        SpokenKeywords(**settings).prepare_data()
    SpokenKeywords(**settings).prepare_data()
    total = (8 + 2 + 4 + 4) * 10
    assert len(said) == total + 1
    data = opened(SpokenKeywords(**settings))
    assert len(said) == total + 1
    victim = data.subset("train").path(0)
    original = victim.read_bytes()
    victim.write_bytes(original[:-10])
    with pytest.warns(UserWarning, match="damaged"):
        SpokenKeywords(**settings).prepare_data()
    assert victim.read_bytes() == original


def test_missing_synthesisers_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data = SpokenKeywords(root=str(tmp_path))
    with pytest.raises(
        SynthesiserError, match=r"espeak-ng and flite.*apt-get install espeak-ng flite.*synthesiser: formant"
    ):
        data.prepare_data()


@pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")),
    reason="needs the Debian packages espeak-ng and flite",
)
def test_real_synthesisers() -> None:
    for voices in SYNTHESISERS["espeak"]:
        voice = next(iter(voices.splits.values()))[0]
        sound, rate = voices.say("yes", voice, np.random.default_rng(0))
        again, _ = voices.say("yes", voice, np.random.default_rng(0))
        other, _ = voices.say("no", voice, np.random.default_rng(0))
        assert rate in (16_000, 22_050)
        assert 0.2 < len(sound) / rate < 2.0
        assert np.abs(sound).max() > 0.05
        assert np.array_equal(sound, again)
        assert len(other) != len(sound) or not np.array_equal(other, sound)
        assert any(figure.isdigit() for figure in voices.version())
    with pytest.raises(SynthesiserError, match=r"espeak-ng -v nobody .* failed: .+"):
        SYNTHESISERS["espeak"][0]._run("-v", "nobody", "--stdout", "yes")


def test_a_synthesiser_that_says_nothing() -> None:
    for wrote in (b"", b"RIFF" + 40 * b"\0"):
        with pytest.raises(SynthesiserError, match="wrote no sound"):
            keyword_voices._samples(wrote)


def test_all_words_are_spoken() -> None:
    assert KEYWORDS == ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


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
    with pytest.raises(ValueError, match="synthesiser must be one of espeak, formant"):
        SpokenKeywords(synthesiser="piper")
    with pytest.raises(ValueError, match="per_voice must be at least 1"):
        SpokenKeywords(per_voice=0)


AUDIO_CONFIGS = sorted(
    path for folder in ("ssast", "audio_classifier") for path in (package_configs() / folder).glob("*.yaml")
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
        image = torch.zeros(2, 1, 128, frames)
        if path.parent.name == "audio_classifier":
            assert made.student(image).shape == (2, model["num_classes"])
        else:
            grid = made.student.backbone.grid(128, frames)
            assert made.student.backbone.forward_tokens(image).patches.shape[1] == grid[0] * grid[1]
            assert model["masked"] < grid[0] * grid[1]


def test_written_clips_are_plain_wav(tmp_path: Path) -> None:
    data = opened(keywords(tmp_path))
    with wave.open(str(data.subset("val").path(0))) as file:
        assert file.getparams()[:4] == (1, 2, RATE, RATE)
