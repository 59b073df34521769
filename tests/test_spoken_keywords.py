"""Spoken keywords: voices, synthesisers, and what is said where there are none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import (
    SpokenKeywords,
    keyword_voices,
)
from datamodules.audio_files import Reading
from datamodules.keyword_voices import KEYWORDS, SYNTHESISERS, SynthesiserError
from tests import tiny_audio
from tests.test_audio_batches import keywords
from tests.test_audio_datamodules import labels, names, opened
from tests.tiny_audio import RATE
from zoo.nn import AudioFeatures

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


def test_phrases_are_words_without_the_silence_around_them(tmp_path: Path) -> None:
    settings = {**tiny_audio.spoken_keywords(tmp_path), "labels": False, "seconds": 3.0}
    data = opened(SpokenKeywords(**settings, words=3))
    shown, alone = data.datasets["train"], opened(SpokenKeywords(**settings)).datasets["train"]
    batch = shown.__getitems__([0, 1, 2])
    assert set(batch) == {"waveform", "length", "index", "name", "draw"}
    for number, length in enumerate(batch["length"].tolist()):
        word = alone[number]["waveform"]  # the same order of first words
        word = word[word.nonzero()[0, 0] : word.nonzero()[-1, 0] + 1]
        phrase = batch["waveform"][number, :length]
        assert torch.equal(phrase[: len(word)], word)
        silent = (phrase == 0).unfold(0, 800, 400).all(1)  # 50 ms
        assert len(word) + 2 * 0.1 * RATE < length
        assert silent.float().mean() < 0.3 < (alone[number]["waveform"] == 0).float().mean()
    assert torch.equal(shown.__getitems__([1])["waveform"][0, :length], batch["waveform"][1, :length])
    train = len(shown)
    later = next(d for d in range(train, 2 * train) if shown[d]["index"] == batch["index"][0])
    assert not torch.equal(shown[later]["waveform"], shown[0]["waveform"])  # other words follow
    val = data.datasets["val"]
    assert torch.equal(val[4]["waveform"], val.__getitems__([4, 2])["waveform"][0, : val[4]["length"]])
    assert data.datasets["val"].seconds == 3.0
    cut = opened(SpokenKeywords(**{**settings, "seconds": 0.9}, words=4)).datasets["train"]
    assert cut[0]["length"] == round(0.9 * RATE)
    for wrong in ({"words": 0}, {"words": 2, "labels": True}):
        with pytest.raises(ValueError, match=r"words=\d must be at least 1, and above it set labels: false"):
            SpokenKeywords(**{**settings, **wrong})


def test_a_word_without_the_silence_around_it(tmp_path: Path) -> None:
    settings = {**tiny_audio.spoken_keywords(tmp_path), "labels": False}
    whole = opened(SpokenKeywords(**settings)).datasets
    trimmed = opened(SpokenKeywords(**settings, trimmed=True)).datasets
    for split in ("train", "val"):
        for number in range(3):
            word, shown = whole[split][number]["waveform"], trimmed[split][number]
            word = word[word.nonzero()[0, 0] : word.nonzero()[-1, 0] + 1]
            pause = int(shown["length"]) - len(word)
            assert torch.equal(shown["waveform"][: len(word)], word)
            assert 0 <= pause <= 0.08 * RATE
            assert not shown["waveform"][len(word) :].any()
    with pytest.raises(ValueError, match="trimmed: true is about pre-training: set labels: false"):
        SpokenKeywords(**{**settings, "labels": True}, trimmed=True)


def test_a_phrase_by_one_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**tiny_audio.spoken_keywords(tmp_path), "labels": False, "seconds": 3.0, "words": 4}
    said: list[tuple[str, str]] = []  # word and voice
    read = Reading.clip

    def heard(self: Reading, path: Path) -> torch.Tensor:
        said.append((path.parent.name, path.stem.partition("_")[0]))
        return read(self, path)

    monkeypatch.setattr(Reading, "clip", heard)
    voices = {}
    for one_voice in (True, False):
        shown = opened(SpokenKeywords(**settings, one_voice=one_voice)).datasets["train"]
        said.clear()
        shown.__getitems__(list(range(8)))
        phrases = [said[start : start + 4] for start in range(0, 32, 4)]
        voices[one_voice] = [len({voice for _, voice in phrase}) for phrase in phrases]
        assert len({word for phrase in phrases for word, _ in phrase[1:]}) > 5
    assert voices[True] == 8 * [1]
    assert max(voices[False]) > 1
    with pytest.raises(ValueError, match="one_voice: true is about phrases"):
        SpokenKeywords(**{**settings, "words": 1}, one_voice=True)


def test_voices_to_choose_settings_by_are_in_no_other_split() -> None:
    usual, further = (SYNTHESISERS[name][0].splits for name in ("espeak", "espeak_further"))
    assert {**usual, "test": ()} == {**further, "test": ()}
    assert not set(further["test"]) & {voice for voices in usual.values() for voice in voices}
    assert len(further["test"]) == 12


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
