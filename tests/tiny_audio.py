"""Miniature trees of the audio benchmarks, in the layouts of the official archives.

Every clip is a tone whose pitch tells its label and number, so that readers can be checked without the writer's help:
see :func:`pitch_of`. Nothing here uses the package's own readers.
"""

from __future__ import annotations

import csv
import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATE = 16_000
#: Settings of all audio benchmarks for the trees below.
AUDIO: dict[str, Any] = {
    "num_workers": 0,
    "batch_size": 2,
    "eval_batch_size": 2,
    "allow_partial": True,
}


def pitch(label: int, number: int = 0) -> int:
    """Frequency in Hz of the ``number``-th clip of a class; all are below 4 kHz."""
    return 200 + 60 * (label % 50) + 10 * (number % 6)


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A sine of amplitude 0.5, ``[samples, channels]`` float."""
    times = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * frequency * times)[:, None], channels, axis=1)


def pitch_of(waveform: Any, rate: int = RATE) -> float:
    """The loudest frequency of ``[samples]``, in Hz."""
    spectrum = np.abs(np.fft.rfft(np.asarray(waveform) * np.hanning(len(waveform)), n=8 * RATE))
    return float(spectrum.argmax()) * rate / (8 * RATE)


def write_wav(path: Path, sound: np.ndarray, rate: int = RATE) -> Path:
    """16-bit PCM of ``[samples, channels]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((sound.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
    return path


def write_with_soundfile(path: Path, sound: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    """FLAC and whatever else libsndfile writes."""
    soundfile = pytest.importorskip("soundfile", reason="needs the extra `audio`")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, **options)
    return path


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


# ESC-50: 44.1 kHz, five folds. Two clips a fold.

ESC50 = [("dog", 0), ("rooster", 1), ("church_bells", 46)]


def esc50_tree(root: Path, resampled: bool = False, seconds: float = 0.3) -> Path:
    rows: list[Sequence[object]] = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    for fold in range(1, 6):
        for name, target in ESC50:
            file = f"{fold}-1{target:05d}-A-{target}.wav"
            rate, folder = (RATE, "audio_16k") if resampled else (44_100, "audio")
            write_wav(root / folder / file, tone(pitch(target, fold), seconds, rate), rate)
            rows.append((file, fold, target, name, target < 10, 100000 + target, "A"))
    write_csv(root / "meta" / "esc50.csv", rows)
    return root


# Speech Commands: file names repeat across words.

WORDS_V1 = ("yes", "no", "bed", "wow")
WORDS_V2 = (*WORDS_V1, "visual")


def speech_commands_tree(root: Path, words: Sequence[str] = WORDS_V2) -> Path:
    """Per word two clips to train on and one each to validate and test with; two files of noise of 3 s."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for label, word in enumerate(words):
        for number in range(4):
            path = f"{word}/0a7c2a{number}d_nohash_0.wav"
            write_wav(root / path, tone(pitch(label, number), 0.9 if number == 0 else 1.0))
            if number >= 2:
                lists[("validation_list.txt", "testing_list.txt")[number - 2]].append(path)
    for name, listed in lists.items():
        (root / name).write_text("".join(f"{path}\n" for path in listed))
    for number, name in enumerate(("white_noise", "running_tap")):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, (3 * RATE, 1))
        write_wav(root / "_background_noise_" / f"{name}.wav", noise)
    (root / "_background_noise_" / "README.md").write_text("not a clip")
    return root


def speech_commands_test_tree(root: Path) -> Path:
    for number, name in enumerate(("yes", "_unknown_", "_silence_")):
        write_wav(root / name / f"{number}.wav", tone(pitch(number)))
    return root


# LibriSpeech.

SUBSETS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)


def librispeech_tree(root: Path, seconds: float = 0.5) -> Path:
    for label, subset in enumerate(SUBSETS):
        for number in range(2):
            folder = root / subset / f"{84 + label}" / "121123"
            name = f"{84 + label}-121123-{number:04d}.flac"
            write_with_soundfile(folder / name, tone(pitch(label, number), seconds))
        (folder / f"{84 + label}-121123.trans.txt").write_text("84-121123-0000 GO\n")
    return root


def libri_light_tree(root: Path, seconds: float = 0.5) -> Path:
    for label, archive in enumerate(("small", "medium", "large")):
        for number in range(4):
            folder = root / archive / f"{100 + label}" / f"book_{number % 2}_librivox_64kb_mp3"
            write_with_soundfile(folder / f"book_{number:02d}_64kb.flac", tone(pitch(label, number), seconds))
            (folder / f"book_{number:02d}_64kb.json").write_text("{}")
    return root


# AudioSet: 527 classes, of which a few occur.

SPEECH, MUSIC, DOG = "/m/09x0r", "/m/04rlf", "/m/0bt9lr"
#: Part → (id, start in seconds, labels).
SEGMENTS = {
    "balanced_train_segments": [
        ("--PJHxphWEs", 30, (SPEECH, MUSIC)),
        ("-0.flac_XY", 0, (DOG,)),
        ("B3", 7, (SPEECH,)),
    ],
    "unbalanced_train_segments": [("U1", 110, (MUSIC,)), ("U2", 5, (SPEECH,))],
    "eval_segments": [("E1", 20, (SPEECH, DOG)), ("E2", 0, (MUSIC,))],
}


def label_csv(path: Path) -> Path:
    """``class_labels_indices.csv``; Speech is 0, Dog 74, Music 137, as in the official one."""
    named = {0: (SPEECH, "Speech"), 74: (DOG, "Dog"), 137: (MUSIC, "Music")}
    rows = [(n, *named.get(n, (f"/m/x{n:03d}", f"Class {n}, of many"))) for n in range(527)]
    return write_csv(path, [("index", "mid", "display_name"), *rows])


def audioset_tree(root: Path, seconds: float = 0.5) -> Path:
    """The official lists, and clips: of odd number WAV, of even number FLAC."""
    label_csv(root / "class_labels_indices.csv")
    number = 0
    for part, clips in SEGMENTS.items():
        lines = [
            "# Segments csv created Sun Mar  5 10:54:31 2017",
            "# num_ytids=3",
            "# YTID, start, end, labels",
        ]
        for ytid, start, labels in clips:
            sound, stem = tone(pitch(number), seconds), root / part / f"{ytid}_{start}"
            if number % 2:
                write_wav(stem.with_name(f"{stem.name}.wav"), sound)
            else:
                write_with_soundfile(stem.with_name(f"{stem.name}.flac"), sound)
            lines.append(f'{ytid}, {start}.000, {start + 10}.000, "{",".join(labels)}"')
            number += 1
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


def manifest(path: Path, clips: Sequence[tuple[str, str]]) -> Path:
    """A JSON manifest of (path, labels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": [{"wav": wav, "labels": labels} for wav, labels in clips]}))
    return path


# IEMOCAP: stereo in nature; emotions of whole dialogues in one file.

EMOTIONS = ("neu", "exc", "hap", "ang", "sad", "fru", "xxx", "neu")


def iemocap_tree(root: Path, seconds: float = 0.5) -> Path:
    for session in range(1, 6):
        base, dialogue = root / f"Session{session}", f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, emotion in enumerate(EMOTIONS):
            name = f"{dialogue}_{'FM'[number % 2]}{number:03d}"
            sound = tone(pitch(number, session), seconds, channels=1)
            write_wav(base / "sentences" / "wav" / dialogue / f"{name}.wav", sound)
            lines.append(f"[{number}.2901 - {number}.8357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]")
            lines += ["C-E2:\tNeutral;\t()", f"A-E3:\tval 3; act 2; dom  2;\t({emotion})", ""]
        evaluation = base / "dialog" / "EmoEvaluation"
        evaluation.mkdir(parents=True)
        (evaluation / f"{dialogue}.txt").write_text("\n".join(lines))
        (evaluation / f"._{dialogue}.txt").write_text("left by another system")
    return root


# VoxCeleb1: folders of verification, list of identification.


def voxceleb1_tree(
    root: Path, together: bool = False, speakers: int = 3, listed_as: str = "iden_split.txt"
) -> Path:
    lines = []
    for label in range(speakers):
        speaker = f"id{10001 + label}"
        folder = root / ("wav" if together else "test/wav" if label == 1 else "dev/wav")
        for number, part in enumerate((1, 1, 2, 3)):
            path = f"{speaker}/1zcIwhmdeo{number}/00001.wav"
            write_wav(folder / path, tone(pitch(label, number), 0.5))
            lines.append(f"{part} {path}")
    (root / listed_as).write_text("\n".join(lines) + "\n")
    return root


# FSD50K: 44.1 kHz, labels by name.

FSD50K = {
    "dev": [
        ("64760", "Bark,Dog", "train"),
        ("16399", "Music", "train"),
        ("16401", "Dog", "val"),
        ("16402", "Bark", "val"),
    ],
    "eval": [("37199", "Music,Bark", ""), ("175151", "Dog", "")],
}


def fsd50k_tree(root: Path) -> Path:
    number = 0
    for part, clips in FSD50K.items():
        rows: list[Sequence[object]] = [("fname", "labels", "mids", *(("split",) if part == "dev" else ()))]
        for name, labels, split in clips:
            sound = tone(pitch(number), 0.3, 44_100)
            write_wav(root / f"FSD50K.{part}_audio" / f"{name}.wav", sound, 44_100)
            rows.append((name, labels, "/m/x", *((split,) if part == "dev" else ())))
            number += 1
        write_csv(root / "FSD50K.ground_truth" / f"{part}.csv", rows)
    named = {3: "Bark", 50: "Dog", 120: "Music"}
    vocabulary = [(n, named.get(n, f"Class_{n}"), f"/m/x{n}") for n in range(200)]
    write_csv(root / "FSD50K.ground_truth" / "vocabulary.csv", vocabulary)
    return root


def telephone_tree(root: Path) -> Path:
    """Headerless GSM of 8 kHz, also in sub-folders; ``silence`` is none of the prompts."""
    folders = ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")
    for label, folder in enumerate(folders):
        for number in range(6):
            name = f"digits/{number}" if number % 2 else f"vm-{number}"
            _write_gsm(root / folder / f"{name}.gsm", tone(pitch(label, number), 0.5, 8000))
        _write_gsm(root / folder / "silence" / "1.gsm", np.zeros((8000, 1)))
    (root / folders[-1] / "is.gsm").touch()  # as it is published
    return root


def _write_gsm(path: Path, sound: np.ndarray) -> None:
    write_with_soundfile(path, sound, 8000, format="RAW", subtype="GSM610")


# Settings of every benchmark on its miniature below a folder.


def esc50(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": esc50_tree(folder / "esc50")}


def speech_commands_v1(folder: Path) -> dict[str, Any]:
    tests = speech_commands_test_tree(folder / "tests")
    return {**AUDIO, "root": speech_commands_tree(folder / "commands", WORDS_V1), "test_root": tests}


def speech_commands_v2(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": speech_commands_tree(folder / "commands")}


def audioset(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": audioset_tree(folder / "audioset")}


def audioset_librispeech(folder: Path) -> dict[str, Any]:
    return {**audioset(folder), "librispeech_root": librispeech_tree(folder / "librispeech")}


def librispeech(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": librispeech_tree(folder / "librispeech")}


def libri_light(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": libri_light_tree(folder / "libri-light"), "val_fraction": 0.25}


def audio_folders_tree(root: Path) -> Path:
    """Six barks, four meows in folders of their own, two recordings at the top, and what is no recording."""
    for label, (name, count) in enumerate((("dog", 6), ("cat", 4))):
        for number in range(count):
            place = root / name / f"day {number % 2}" / f"{number}.wav"
            write_wav(place, tone(pitch(label, number), 0.3 + 0.1 * number))
    write_wav(root / "top.WAV", tone(pitch(2), 0.5))
    write_wav(root / "stereo.wav", tone(pitch(3), 0.5, 8000, 2), 8000)
    write_wav(root / ".cache" / "hidden.wav", tone(pitch(4), 0.5))
    (root / "notes.txt").write_text("recorded in spring")
    return root


def audio_folders(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": audio_folders_tree(folder / "recordings"), "val_fraction": 0.25}


def iemocap(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": iemocap_tree(folder / "iemocap")}


def voxceleb1(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": voxceleb1_tree(folder / "voxceleb")}


def fsd50k(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": fsd50k_tree(folder / "fsd50k")}


def telephone_prompts(folder: Path) -> dict[str, Any]:
    return {**AUDIO, "root": telephone_tree(folder / "prompts")}


def spoken_keywords(folder: Path) -> dict[str, Any]:
    """By our own synthesiser, which is always there."""
    settings = {key: value for key, value in AUDIO.items() if key != "allow_partial"}
    return {
        **settings,
        "synthesiser": "formant",
        "per_voice": 1,
        "per_target_voice": 1,
        "labelled_fraction": 1.0,
    }


def small_conformer(method: str) -> list[str]:
    """Options that make a conformer, which may have a billion parameters, of one or two layers."""
    network = {
        "embed_dim": 16,
        "num_heads": 2,
        "ffn_dim": 16,
        "conv_channels": [2, 2],
        "mels": 80,
        "frames": 96,
    }
    if method != "W2vBERT":
        return ["--model.backbone_args", json.dumps({**network, "depth": 1})]
    layers = {"contrastive_layers": "1", "prediction_layers": "1", "entries": "8", "distractors": "3"}
    options = [word for name, value in layers.items() for word in (f"--model.{name}", value)]
    return ["--model.backbone_args", json.dumps(network), *options]
