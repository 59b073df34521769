"""Few files at real sizes in the official layouts, made up: what a loader of each benchmark reads and decodes.

Pictures are smooth with some noise, so that a PNG of 1024 × 2048 pixels is about as large as one of a street (3 MB).
Sounds, videos, volumes and signals: :mod:`benchmarks.speed.input_recordings`.
"""

from __future__ import annotations

import csv
import gzip
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.track_tree import SOURCE, TARGET

RNG = np.random.default_rng(0)


def picture(height: int, width: int, noise: float = 2.0) -> np.ndarray:
    """``[height, width, 3]`` uint8."""
    coarse = RNG.integers(0, 256, (max(2, height // 32), max(2, width // 32), 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + RNG.normal(0, noise, smooth.shape), 0, 255).astype(np.uint8)


def regions(height: int, width: int, values: Sequence[int]) -> np.ndarray:
    """``[height, width]`` uint8 of large regions."""
    coarse = RNG.choice(np.array(values, np.uint8), (max(2, height // 64), max(2, width // 64)))
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def save(pixels: np.ndarray, path: Path, **options: Any) -> None:
    """An image file of the kind its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"compress_level": 3} if path.suffix == ".png" else {}), **options)


def written(path: Path, content: str | bytes) -> Path:
    """A file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Rows separated by commas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


# Streets.

IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def gta5(root: Path, count: int = 4) -> Path:
    """1052 × 1914."""
    for number in range(1, count + 1):
        save(picture(1052, 1914), root / f"images/{number:05d}.png")
        save(regions(1052, 1914, IDS), root / f"labels/{number:05d}.png")
    return root


def cityscapes(root: Path, count: int = 4) -> Path:
    """1024 × 2048."""
    for split, some in (("train", count), ("val", 1)):
        for number in range(some):
            place = f"{split}/bonn/bonn_{number:06d}_000019"
            save(picture(1024, 2048), root / f"leftImg8bit/{place}_leftImg8bit.png")
            save(regions(1024, 2048, IDS), root / f"gtFine/{place}_gtFine_labelIds.png")
    return root


def synthia(root: Path, count: int = 4) -> Path:
    """760 × 1280; labels of three 16-bit channels."""
    for number in range(count):
        save(picture(760, 1280), root / f"RGB/{number:07d}.png")
        label = np.zeros((760, 1280, 3), ">u2")
        label[..., 0] = regions(760, 1280, range(1, 13))
        raw = b"".join(b"\0" + row.tobytes() for row in label.reshape(760, -1))
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 1280, 760, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(raw)),
            (b"IEND", b""),
        ]
        packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        written(root / f"GT/LABELS/{number:07d}.png", b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return root


def dark_zurich(root: Path, count: int = 3) -> Path:
    """1080 × 1920, with day partners."""
    lines = []
    for split, some in (("train", count), ("val", 1), ("test", 1)):
        for number in range(some):
            night, day = f"{split}/night/A/A_frame_{number:06d}", f"train/day/B/B_frame_{number:06d}"
            save(picture(1080, 1920), root / f"rgb_anon/{night}_rgb_anon.png")
            if split == "train":
                save(picture(1080, 1920), root / f"rgb_anon/{day}_rgb_anon.png")
                lines.append(f"{night},{day}\n")
            save(regions(1080, 1920, range(19)), root / f"gt/{night}_gt_labelTrainIds.png")
    written(root / "corresp/train/night/A/A.csv", "".join(lines))
    return root


def acdc(root: Path) -> Path:
    """1080 × 1920 in four conditions."""
    for condition in ("fog", "night", "rain", "snow"):
        seen = picture(1080, 1920)
        for split in ("train", "val", "test"):
            stem = f"{condition}/{split}/A/A_{condition}_{split}_000001"
            save(seen, root / f"rgb_anon/{stem}_rgb_anon.png")
            save(regions(1080, 1920, range(19)), root / f"gt/{stem}_gt_labelTrainIds.png")
    return root


def voc(root: Path) -> Path:
    """375 × 500, JPEG."""
    names = [f"2007_{number:06d}" for number in range(8)]
    for name in names:
        save(picture(375, 500), root / f"JPEGImages/{name}.jpg", quality=92)
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            save(regions(375, 500, range(21)), root / f"{folder}/{name}.png")
    for split, some in (("train", names[:5]), ("val", names[5:7]), ("trainval", names[:7])):
        written(root / f"ImageSets/Segmentation/{split}.txt", "\n".join(some) + "\n")
    return root


# Images.


def imagenet(root: Path, count: int = 6) -> Path:
    """375 × 500, JPEG."""
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            for number in range(count):
                name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{wnid[1:]}{number}"
                save(picture(375, 500), root / split / wnid / f"{name}.JPEG", quality=92)
    return root


def tiny_imagenet(root: Path, count: int = 20) -> Path:
    """64 × 64, JPEG."""
    base, wnids = root / "tiny-imagenet-200", ("n01440764", "n02102040")
    lines = []
    for number in range(count):
        wnid = wnids[number % 2]
        save(picture(64, 64), base / f"train/{wnid}/images/{wnid}_{number}.JPEG")
        save(picture(64, 64), base / f"val/images/val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    written(base / "val/val_annotations.txt", "".join(lines))
    written(base / "wnids.txt", "\n".join(wnids) + "\n")
    return root


def cifar10(root: Path, count: int = 200) -> Path:
    """32 × 32, pickled."""
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        data = RNG.integers(0, 256, (count, 3072)).astype(np.uint8)
        content = pickle.dumps({"data": data, "labels": [n % 10 for n in range(count)]}, protocol=2)
        written(root / "cifar-10-batches-py" / name, content)
    return root


def stl10(root: Path, count: int = 100) -> Path:
    """96 × 96, raw."""
    for name in ("train", "test", "unlabeled"):
        pixels = RNG.integers(0, 256, (count, 3, 96, 96)).astype(np.uint8)
        written(root / f"stl10_binary/{name}_X.bin", pixels.tobytes())
        if name != "unlabeled":
            written(root / f"stl10_binary/{name}_y.bin", bytes(n % 10 + 1 for n in range(count)))
    folds = "\n".join(" ".join(map(str, range(10))) for _ in range(10))
    written(root / "stl10_binary/fold_indices.txt", folds + "\n")
    return root


def fashion_mnist(root: Path, count: int = 500) -> Path:
    """28 × 28, packed."""
    for prefix in ("train", "t10k"):
        for name, values in (
            ("images-idx3", RNG.integers(0, 256, (count, 28, 28))),
            ("labels-idx1", np.arange(count) % 10),
        ):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            content = gzip.compress(head + values.astype(np.uint8).tobytes())
            written(root / f"{prefix}-{name}-ubyte.gz", content)
    return root


def eyepacs(root: Path, patients: int = 5) -> Path:
    """2000 × 3000, JPEG."""
    rows: list[Sequence[object]] = [("image", "level")]
    for patient in range(1, patients + 1):
        for side in ("left", "right"):
            save(picture(2000, 3000), root / f"train/{patient}_{side}.jpeg", quality=90)
            rows.append((f"{patient}_{side}", patient % 5))
    write_csv(root / "trainLabels.csv", rows)
    return root


def sidd(root: Path) -> Path:
    """3000 × 5328, PNG; blocks of 256 pixels."""
    from scipy.io import savemat

    for number in ("010", "011"):
        place = f"SIDD_Medium_Srgb/Data/0001_001_S6_00100_00060_3200_L/0001_NOISY_SRGB_{number}.PNG"
        save(picture(3000, 5328, noise=8), root / place, compress_level=1)
    blocks = picture(256, 256 * 4).reshape(256, 4, 256, 3).swapaxes(0, 1).reshape(2, 2, 256, 256, 3)
    for name in ("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb", "BenchmarkNoisyBlocksSrgb"):
        savemat(root / f"{name}.mat", {name: blocks})
    return root


# Race tracks.


def race_tracks(root: Path) -> Path:
    """A game's folder: in place of every track a straight road in a field, with a wall and trees beside it."""
    tracks = {stretch.track for stretch in (*SOURCE, *TARGET.values())}
    for track in sorted(tracks):
        folder, name = root / "tracks" / track, track.rpartition("/")[2]
        written(folder / f"{name}.acc", scene())
        kinds = {"3d description": f"{name}.acc", "background image": "sky.png", "background type": "4"}
        values = "".join(f'<attstr name="{key}" val="{value}"/>' for key, value in kinds.items())
        written(folder / f"{name}.xml", f"<params>{values}</params>")
        for texture in ("grass", "asphalt", "wall", "tree"):
            save(picture(64, 64), folder / f"{texture}.png")
        save(picture(256, 512), folder / "sky.png")
    return root


def scene(pieces: Sequence[int] = range(0, 9600, 400), length: int = 15) -> str:
    """AC3D: ground, a road of numbered pieces as the views look for them, what stands beside it."""
    end = length * len(pieces)
    objects = {
        "TERR": (
            "grass",
            [(-500, -0.1, -500), (-500, -0.1, 500), (end + 500, -0.1, 500), (end + 500, -0.1, -500)],
        ),
        "B1": ("wall", [(0, 0, -7), (end, 0, -7), (end, 1, -7), (0, 1, -7)]),
        "TREE": ("tree", [(0, 0, 12), (end, 0, 12), (end, 6, 12), (0, 6, 12)]),
    }
    for number, piece in enumerate(pieces):
        x = number * length
        road = [(x, 0, -5), (x, 0, 5), (x + length, 0, 5), (x + length, 0, -5)]
        objects[f"TKMN{piece}"] = ("asphalt", road)
    lines = ["AC3Db", "OBJECT world", f"kids {len(objects)}"]
    for name, (texture, corners) in objects.items():
        lines += ["OBJECT poly", f'name "{name}"', f'texture "{texture}.png" base', f"numvert {len(corners)}"]
        lines += [" ".join(map(str, corner)) for corner in corners]
        lines += ["numsurf 1", "SURF 0x30", f"refs {len(corners)}"]
        lines += [f"{index} {x / 10} {(y + z) / 10}" for index, (x, y, z) in enumerate(corners)]
        lines.append("kids 0")
    return "\n".join(lines) + "\n"
