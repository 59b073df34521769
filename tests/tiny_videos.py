"""Miniature trees of the audio-visual benchmarks, in the layouts that HiCMAE was released with.

A frame's red tells its number, its green the class; sounds are tones of :mod:`tests.tiny_audio`, whose pitch tells
class and clip. Nothing here uses the package's own readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tiny_audio import RATE, pitch, tone, write_wav

#: Settings of all audio-visual benchmarks for the trees below.
VIDEOS: dict[str, Any] = {
    "num_workers": 0,
    "batch_size": 2,
    "eval_batch_size": 2,
    "image_size": 32,
    "allow_partial": True,
}
TALKING_BLOBS: dict[str, Any] = {
    "people": 3,
    "val_people": 2,
    "test_people": 1,
    "takes": 4,
    "batch_size": 2,
    "eval_batch_size": 4,
    "labelled_fraction": 1.0,
}


def frame(number: int, label: int, size: int = 24) -> np.ndarray:
    return np.full((size, size, 3), (10 * number % 250, 20 * label, 100), np.uint8)


def write_frames(folder: Path, label: int, frames: int = 70, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        Image.fromarray(frame(number, label)).save(folder / f"frame_det_00_{number + 1:06d}{suffix}")
    return folder


def write_video(path: Path, label: int, frames: int = 70) -> Path:
    """An MPEG-4 file of 25 frames a second."""
    av = pytest.importorskip("av", reason="needs the extra `video`")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(frame(number, label, 32), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_list(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def listed_tree(
    root: Path,
    lists: Path,
    labels: Sequence[str],
    anchor: str = "",
    fold: str = "split01",
    parts: Sequence[str] = ("train", "test"),
    frames: int = 70,
) -> None:
    """Two clips of every label in training, one elsewhere; lists hold paths of another machine below ``anchor``."""
    before = f"/share/home/somebody/{anchor}/" if anchor else ""
    number = 0
    for part in parts:
        lines = []
        for label, text in enumerate(labels):
            for _ in range(2 if part == "train" else 1):
                video, sound = f"faces/{number:05d}", f"sounds/{number:05d}.wav"
                write_frames(root / video, label, frames)
                write_wav(root / sound, tone(pitch(label, number), frames / 25))
                lines.append(f"{before}{video} {before}{sound} {text}")
                number += 1
        write_list(lists / fold / f"{part}.csv", lines)


def listed(anchor: str, labels: Sequence[str], frames: int = 9) -> Callable[[Path], dict[str, Any]]:
    """Settings of a set given by lists."""

    def settings(folder: Path) -> dict[str, Any]:
        listed_tree(folder / "set", folder / "lists", labels, anchor, frames=frames)
        return {**VIDEOS, "root": folder / "set", "lists": folder / "lists", "num_frames": 4, "frame_step": 2}

    return settings


def audio_visual_lists(folder: Path) -> dict[str, Any]:
    return {
        **listed("", [str(n) for n in range(2)])(folder),
        "lists": folder / "lists" / "split01",
    }


def voxceleb2_tree(root: Path, frames: int = 12) -> Path:
    """Four clips of ``dev``, one of ``test``."""
    for number in range(5):
        part = "test" if number == 4 else "dev"
        clip = f"id{number // 2:05d}/abc{number}/{number:05d}"
        write_video(root / part / "mp4" / f"{clip}.mp4", number, frames)
        write_wav(root / part / "wav" / f"{clip}.wav", tone(pitch(number), frames / 25), RATE)
    return root


def voxceleb2(folder: Path) -> dict[str, Any]:
    root = voxceleb2_tree(folder / "voxceleb2")
    return {**VIDEOS, "root": root, "val_fraction": 0.25, "num_frames": 4, "frame_step": 2}


def talking_blobs(_: Path) -> dict[str, Any]:
    return TALKING_BLOBS


def small_network(model: dict[str, Any]) -> list[str]:
    """In place of networks that take gigabytes to train: one for the videos above."""
    if model["backbone_args"]["image_size"] == 32:
        return []
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 2, "image_size": 32, "frames": 4}
    options = [part for key, value in sizes.items() for part in (f"--model.backbone_args.{key}", str(value))]
    return options + (["--model.levels", "[0,1]"] if "levels" in model else [])
