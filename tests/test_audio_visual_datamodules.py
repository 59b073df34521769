"""Video with sound: windows, lists, views, files, and what is said of files that cannot be used."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.preview import preview
from datamodules import CREMAD, AudioVisualLists, TalkingBlobs, VoxCeleb2, WerewolfXL
from datamodules.audio_files import BrokenAudioError, Reading
from datamodules.audio_visual_lists import below, read_list
from datamodules.layout import LayoutError
from datamodules.video_files import BrokenVideoError, FrameFolder, VideoFile, VideoWindows
from tests import tiny_videos
from tests.tiny_audio import RATE, pitch, pitch_of, tone, write_wav
from zoo.nn import AudioFeatures, VideoAugment

WINDOWS = VideoWindows(frames=4, step=2)


# -- windows ------------------------------------------------------------------------------------------------


def test_windows_of_long_clips_go_anywhere_and_take_their_sound() -> None:
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        window = WINDOWS.drawn(20, rng)
        assert window.frames == [window.frames[0] + n for n in (0, 2, 5, 7)]  # spread over eight frames
        assert window.start == window.frames[0] / 19
        assert window.end == (window.frames[0] + 8) / 19
        starts.add(window.frames[0])
    assert starts == set(range(12))
    assert VideoWindows().at(65, 0.0).frames[-1] == 63


def test_clips_shorter_than_a_window_repeat_their_last_frame() -> None:
    assert WINDOWS.at(8, 0.7) == ([0, 2, 5, 7], 0.0, 1.0)
    assert WINDOWS.at(5, 0.2) == ([0, 4, 4, 4], 0.0, 1.0)
    assert WINDOWS.at(1, 0.5) == ([0, 0, 0, 0], 0.0, 0.0)


def test_test_windows_reach_from_the_first_frame_to_the_last() -> None:
    first, last = WINDOWS.segments(20, 2)
    assert (first.frames, last.frames) == ([0, 2, 4, 6], [12, 14, 16, 18])
    assert (first.start, first.end, last.start, last.end) == (0, 8 / 19, 12 / 19, 1.0)
    assert [window.frames for window in WINDOWS.segments(3, 2)] == [[0, 2, 2, 2]] * 2


# -- files --------------------------------------------------------------------------------------------------


def test_frames_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tiny_videos.write_frames(tmp_path / "a", label=3, frames=12)
    (folder / "notes.txt").write_text("no frame")
    frames = FrameFolder(folder)
    assert len(frames) == 12
    video = frames.read([0, 11, 11, 5], 8)
    assert (video.shape, video.dtype) == ((3, 4, 8, 8), torch.uint8)
    assert video[:2, :, 0, 0].tolist() == [[0, 110, 110, 50], [60] * 4]


def test_video_files_give_the_frames_asked_for(tmp_path: Path) -> None:
    video = VideoFile(tiny_videos.write_video(tmp_path / "a.mp4", label=3, frames=20))
    assert len(video) == 20
    red = video.read([2, 2, 15], 16)[0, :, 8, 8].float()
    assert red.tolist() == pytest.approx([20, 20, 150], abs=6)


def test_sound_is_cut_as_a_share_of_the_file(tmp_path: Path) -> None:
    sound = np.concatenate([tone(400, 0.5), tone(800, 0.5)])
    path = write_wav(tmp_path / "a.wav", sound)
    part = Reading().between(path, 0.5, 0.75)
    assert len(part) == RATE // 4
    assert pitch_of(part) == pytest.approx(800, abs=3)
    assert len(Reading().between(path, 0.5, 0.55)) == len(sound)  # too few samples: all of them
    with pytest.raises(BrokenAudioError, match="holds 320 samples, too few to be sound"):
        Reading().between(write_wav(tmp_path / "b.wav", tone(400, 0.02)), 0.0, 1.0)


# -- benchmarks -----------------------------------------------------------------------------------------------


def cremad(folder: Path, **options: Any) -> CREMAD:
    settings = tiny_videos.listed("CREMA-D", "0124", frames=20)(folder)
    return CREMAD(**{**settings, **options})


def test_lists_of_another_machine_lead_to_the_root(tmp_path: Path) -> None:
    data = cremad(tmp_path)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["label"].tolist() == [0, 1]
    assert batch["name"] == ["00008", "00009"]
    assert batch["video"].shape == (2, 3, 4, 32, 32)
    # the middle window: frames 6 to 13 of 20, and the sound of the same share
    assert batch["video"][:, 0, :, 0, 0].tolist() == [[60, 80, 110, 130]] * 2
    assert batch["length"].tolist() == [int(14 / 19 * 12_800) - int(6 / 19 * 12_800)] * 2
    for row in range(2):
        assert pitch_of(batch["waveform"][row]) == pytest.approx(pitch(row, 8 + row), abs=4)
    assert below("/x/CREMA-D/AudioWAV/1.wav", "CREMA-D") == "AudioWAV/1.wav"
    assert below("AudioWAV/1.wav", "CREMA-D") == "AudioWAV/1.wav"
    assert data.validates_on_test


def test_training_draws_windows_and_test_shows_views(tmp_path: Path) -> None:
    data = cremad(tmp_path, test_size=40)
    data.setup("fit")
    data.setup("test")
    train = [batch["video"][:, 0, 0, 0, 0].tolist() for batch in data.train_dataloader()]
    assert train == [batch["video"][:, 0, 0, 0, 0].tolist() for batch in data.train_dataloader()]
    assert len({first for row in train for first in row}) > 2
    batch = next(iter(data.test_dataloader()))
    assert (len(batch["index"]), len(batch["video"]), len(batch["length"])) == (2, 8, 8)
    # two crops of each of two windows, clip by clip
    assert batch["video"][:, 0, 0, 0, 0].tolist() == [0, 0, 120, 120] * 2
    same = cremad(tmp_path)
    same.setup("test")
    assert len(next(iter(same.test_dataloader()))["video"]) == 4  # crops that are all the same count once


def test_device_batches_have_both_senses(tmp_path: Path) -> None:
    data = cremad(
        tmp_path, features=AudioFeatures(64, loudness=10.0), video_augment=VideoAugment(6, operations=1)
    )
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert (batch["video"].dtype, batch["video"].shape) == (torch.float32, (2, 3, 4, 32, 32))
    assert batch["spectrogram"].shape == (2, 64, 128)
    assert batch["label"].shape == (2, 6)
    picture = preview(batch, data)
    assert isinstance(picture, Image.Image)


def test_numbers_in_place_of_classes(tmp_path: Path) -> None:
    settings = tiny_videos.listed("Werewolf-XL", ["0.5 1.0 0.0", "1.5 0.25 1.0"])(tmp_path)
    data = WerewolfXL(**settings)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["label"].tolist() == [[0.5, 1.0, 0.0], [1.5, 0.25, 1.0]]
    with pytest.raises(ValueError, match="balanced: true needs classes"):
        WerewolfXL(**settings, balanced=True).setup("fit")


def test_speaking_faces_without_labels(tmp_path: Path) -> None:
    data = VoxCeleb2(**tiny_videos.voxceleb2(tmp_path))
    data.setup("fit")
    assert len(data.datasets["train"]) == 3
    batch = next(iter(data.train_dataloader()))
    assert "label" not in batch
    assert batch["video"].shape == (2, 3, 4, 32, 32)
    with pytest.raises(LayoutError, match="expected 1092009 clips"):
        VoxCeleb2(root=data.root).setup("fit")
    next((tmp_path / "voxceleb2" / "dev" / "wav").rglob("*.wav")).unlink()
    whole = VoxCeleb2(**{**tiny_videos.VIDEOS, "root": data.root})
    assert len(whole.clips("train")) == 3  # allow_partial: those with sound


def test_blobs_are_always_alike_and_people_never_shared() -> None:
    data = TalkingBlobs(people=2, val_people=2, test_people=2, takes=4)
    data.setup()
    people = [
        {name[:4] for name in data.subset(split).batch(np.arange(8))["name"]}
        for split in ("train", "val", "test")
    ]
    assert len(set.union(*people)) == 6
    batch = data.subset("train").batch(np.arange(4))
    assert batch["label"].tolist() == [0, 1, 2, 3]
    again = TalkingBlobs(people=2, val_people=2, test_people=2, takes=4).subset("train").batch(np.arange(4))
    assert torch.equal(batch["video"], again["video"])
    assert torch.equal(batch["waveform"], again["waveform"])
    data.features = AudioFeatures(64)
    assert data.feature_statistics().clips == 8  # told apart without files
    # falling and rising: the pitch of the last third against that of the first
    rises = [pitch_of(wave[-3000:]) > pitch_of(wave[:3000]) for wave in batch["waveform"]]
    assert rises == [False, True, False, True]


# -- what cannot be used ------------------------------------------------------------------------------------


def listing(folder: Path, text: str) -> Path:
    return tiny_videos.write_list(folder / "x.csv", text.splitlines())


LINES = {
    "a b": r"x.csv, line 2: 'a b' has 2 fields, expected 3: <frame folder> <wav file> <class>",
    "a b 1 2": "has 4 fields",
    "a b joy": "line 2: 'joy' is not a class number",
    "a b 6": r"line 2: class 6 is none of the 6 classes \(0 to 5\)",
    "a b -1": "class -1 is none of the 6",
    "a b 1.5": "'1.5' is not a class number",
}


@pytest.mark.parametrize("line", LINES)
def test_malformed_lines_are_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=LINES[line]):
        read_list(listing(tmp_path, f"c d 0\n{line}\n"), 6)


def test_malformed_numbers_are_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="line 1: '1 nan 2' is not finite numbers"):
        read_list(listing(tmp_path, "a b 1 nan 2\n"), 0, 3)
    with pytest.raises(LayoutError, match="lists no clip"):
        read_list(listing(tmp_path, "\n\n"), 6)
    with pytest.raises(LayoutError, match="There is no file"):
        read_list(tmp_path / "none.csv", 6)


def remove(path: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        target = root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def empty(root: Path) -> None:
    for path in (root / "faces" / "00000").iterdir():
        path.unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "missing frames": (remove("faces/00000"), LayoutError, r"1 of 8 clips listed in .*train.csv are missing"),
    "missing sound": (remove("sounds/00000.wav"), LayoutError, r"1 of 8 clips listed in .*train.csv are missing"),
    "no frames": (empty, BrokenVideoError, "holds no frames"),
    "damaged frame": (
        lambda root: [p.write_bytes(b"x") for p in (root / "faces" / "00000").iterdir()],
        BrokenVideoError,
        "cannot be decoded",
    ),
    "damaged sound": (
        lambda root: (root / "sounds" / "00000.wav").write_bytes(b"RIFF"),
        BrokenAudioError,
        "cannot be decoded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_clips_are_named_or_left_out(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, error, complaint = BROKEN[what]
    monkeypatch.setattr(CREMAD, "published", {})
    data = cremad(tmp_path, allow_partial=False)
    change(tmp_path / "set")
    with pytest.raises(error, match=complaint):
        data.subset("train").batch(np.arange(8))
    told = nullcontext() if error is LayoutError else pytest.warns(UserWarning, match="left out 1 of 8")
    with told:
        assert len(cremad_again(tmp_path, skip_broken=True).clips("train")) == 7


def cremad_again(folder: Path, **options: Any) -> CREMAD:
    paths = {"root": folder / "set", "lists": folder / "lists"}
    return CREMAD(**{**tiny_videos.VIDEOS, **paths, "num_frames": 4, "frame_step": 2, **options})


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for options, complaint in (
        ({"fold": 6}, r"fold must lie in 1..5"),
        ({"test_size": 16, "image_size": 32}, "test_size must be at least 32"),
        ({"num_frames": 0}, "frames=0"),
    ):
        with pytest.raises(ValueError, match=complaint):
            CREMAD(root="x", lists="y", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of the two must be positive"):
        AudioVisualLists(root="x", lists="y")
    with pytest.raises(ValueError, match="classes names 1 of num_classes=2"):
        AudioVisualLists(num_classes=2, classes=["joy"])
    with pytest.raises(ValueError, match="VoxCeleb2 has no labels"):
        VoxCeleb2(labels=True)
    with pytest.raises(LayoutError, match="lists is not set"):
        CREMAD(root=str(tmp_path)).setup("fit")
    cremad(tmp_path)
    with pytest.raises(LayoutError, match="lists 4 clips, expected 1463"):
        cremad_again(tmp_path, allow_partial=False).setup("fit")
    with pytest.raises(LayoutError, match="There is no folder root='nowhere'"):
        cremad_again(tmp_path, root="nowhere").setup("fit")


def test_reading_videos_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ImportError, match=r"reading \.mp4 files needs av: pip install 'selfzoo\[video\]'"):
        VideoFile(tmp_path / "a.mp4")
