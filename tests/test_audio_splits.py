"""Audio benchmarks: the official splits, lists and manifests of each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import (
    ESC50,
    FSD50K,
    IEMOCAP,
    AudioSet,
    AudioSetLibriSpeech,
    LibriSpeech,
    SpeechCommandsV1,
    SpeechCommandsV2,
    TelephonePrompts,
    VoxCeleb1,
)
from datamodules.layout import LayoutError
from tests import tiny_audio
from tests.test_audio_datamodules import labels, librispeech, names, opened
from tests.tiny_audio import AUDIO, RATE, pitch, pitch_of

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


@pytest.mark.parametrize("fold", [1, 4])
def test_iemocap_sessions(tmp_path: Path, fold: int) -> None:
    data = opened(IEMOCAP(**tiny_audio.iemocap(tmp_path), fold=fold))
    assert all(name.startswith(f"Ses0{fold}") for name in names(data, "test"))
    found = dict(zip([name[-3:] for name in names(data, "test")], labels(data, "test"), strict=True))
    # neu, exc, hap, ang, sad, neu; numbers 5 and 6, fru and xxx, are none of the four
    assert found == {"000": 0, "001": 1, "002": 1, "003": 2, "004": 3, "007": 0}
    train, val = names(data, "train"), names(data, "val")
    assert (len(train), len(val)) == (19, 5)
    assert not {n for n in train + val if n.startswith(f"Ses0{fold}")}
    assert not set(train) & set(val)
    with pytest.raises(ValueError, match=r"fold must lie in 1\.\.5"):
        IEMOCAP(fold=6)


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
