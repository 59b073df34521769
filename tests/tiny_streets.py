"""Miniature SYNTHIA, Dark Zurich and ACDC trees; see tests/tiny.py."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny import CLASSES, Kind, cityscapes_tree, random_pair, stored_label

#: trainId → SYNTHIA id; terrain, truck and train have no pixels there.
SYNTHIA_IDS = {
    0: 3, 1: 4, 2: 2, 3: 21, 4: 5, 5: 7, 6: 15, 7: 9, 8: 6, 10: 1, 11: 10, 12: 17, 13: 8, 15: 19, 17: 12, 18: 11,
    255: 0,
}  # fmt: skip
#: Settings of SYNTHIACityscapes, CityscapesDarkZurich and CityscapesACDC for the trees below.
STREETS: dict[str, Any] = {
    "source_resize": [64, 32],
    "target_resize": [64, 36],
    "crop": [32, 32],
    "num_workers": 0,
    "allow_partial": True,
}


#: Rare classes are no fewer pixels here than others: any pixel makes an image a candidate.
ANY_PIXEL = {"rare_class_min_pixels": 0, "rare_class_min_crop_pixels": 0}


def synthia_cityscapes(folder: Path) -> dict[str, Any]:
    """Settings of SYNTHIACityscapes on a miniature below ``folder``."""
    return _settings(synthia_tree(folder / "synthia"), cityscapes_tree(folder / "cityscapes"))


def cityscapes_darkzurich(folder: Path) -> dict[str, Any]:
    """The same for CityscapesDarkZurich."""
    return _settings(cityscapes_tree(folder / "cityscapes"), dark_zurich_tree(folder / "dark"))


def cityscapes_acdc(folder: Path) -> dict[str, Any]:
    """The same for CityscapesACDC."""
    return _settings(cityscapes_tree(folder / "cityscapes"), acdc_tree(folder / "acdc"))


def own_footage(folder: Path) -> dict[str, Any]:
    """The same for OwnFootage."""
    return _settings(cityscapes_tree(folder / "cityscapes"), footage_tree(folder / "frames"))


def footage_tree(root: Path, sizes: Sequence[tuple[int, int]] = ((36, 64), (48, 64), (72, 128))) -> Path:
    """Two drives of equal file names, a JPEG at the top, and what is no frame."""
    rng = np.random.default_rng(5)
    for number, size in enumerate(sizes):
        for place in (f"day/{number:06d}.png", f"night/{number:06d}.png"):
            save(random_pair(rng, *size)[0], root / place)
    save(random_pair(rng, 36, 64)[0], root / "top.JPG")
    save(random_pair(rng, 36, 64)[0], root / ".thumbnails/000000.png")
    (root / "day/notes.txt").write_text("rain from frame 2 on")
    return root


def _settings(source: Path, target: Path) -> dict[str, Any]:
    return {**STREETS, **ANY_PIXEL, "source_root": source, "target_root": target}


def write_png16(path: Path, pixels: np.ndarray) -> None:
    """Write ``[H,W,3]`` uint16 as PNG, which Pillow cannot."""
    height, width, _ = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\x00" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def synthia_tree(root: Path, count: int = 4, size: tuple[int, int] = (36, 64), seed: int = 2) -> Path:
    """``RGB/0000000.png`` and 16-bit ``GT/LABELS/0000000.png``: class, instance, nothing."""
    rng = np.random.default_rng(seed)
    for folder in ("RGB", "GT/LABELS"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    table = np.zeros(256, np.uint16)
    for train_id, number in SYNTHIA_IDS.items():
        table[train_id] = number
    for number in range(count):
        image, train_ids = random_pair(rng, *size, list(SYNTHIA_IDS))
        Image.fromarray(image).save(root / f"RGB/{number:07d}.png")
        label = np.zeros((*size, 3), np.uint16)
        label[..., 0] = table[train_ids]
        label[..., 1] = rng.integers(0, 2**16, size)
        write_png16(root / f"GT/LABELS/{number:07d}.png", label)
    return root


def dark_zurich_tree(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = (36, 64),
    kind: Kind = "labelTrainIds",
    seed: int = 3,
) -> Path:
    """Night images of two sequences a split, labels of val, and day images that ``corresp`` names crosswise.

    The day image of night image ``k`` is night image ``k`` plus 100, modulo 256.
    """
    rng = np.random.default_rng(seed)
    images = root / "rgb_anon"
    lines: dict[str, list[str]] = {}
    for split, count in (counts or {"train": 5, "val": 3, "test": 2}).items():
        for number in range(count):
            sequence = f"GOPR035{number % 2}"
            image, train_ids = random_pair(rng, *size)
            night = f"{split}/night/{sequence}/{sequence}_frame_{number:06d}"
            save(image, images / f"{night}_rgb_anon.png")
            if split == "val":
                save(stored_label(train_ids, kind), root / f"gt/{night}_gt_{_name(kind)}.png")
            if split == "train":
                day = f"train/day/GOPR9999/GOPR9999_frame_{count - number:06d}"
                save(image + np.uint8(100), images / f"{day}_rgb_anon.png")
                lines.setdefault(sequence, []).append(f"{night},{day}\n")
    for sequence, pairs in lines.items():
        file = root / f"corresp/train/night/{sequence}/{sequence}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(pairs))
    return root


def acdc_tree(
    root: Path,
    conditions: Sequence[str] = ("fog", "night", "rain", "snow"),
    size: tuple[int, int] = (36, 64),
    kind: Kind = "labelTrainIds",
    seed: int = 4,
) -> Path:
    """Of every condition two images a split, references of all, labels of train and val.

    A reference is its image plus 100, modulo 256.
    """
    rng = np.random.default_rng(seed)
    for condition in conditions:
        for split in ("train", "val", "test"):
            for number in range(2):
                image, train_ids = random_pair(rng, *size)
                sequence = f"GOPR0{number}"
                # Stems are unique in the whole set, as the real ones are.
                stem = f"{sequence}/{sequence}_{condition}_{split}_frame_{number:06d}"
                save(image, root / f"rgb_anon/{condition}/{split}/{stem}_rgb_anon.png")
                save(
                    image + np.uint8(100), root / f"rgb_anon/{condition}/{split}_ref/{stem}_rgb_ref_anon.png"
                )
                if split != "test":
                    label = stored_label(train_ids, kind)
                    save(label, root / f"gt/{condition}/{split}/{stem}_gt_{_name(kind)}.png")
    return root


def colors_of_synthia() -> dict[int, tuple[int, int, int]]:
    """TrainId → colour in GT/COLOR, of the classes that can be told from it; SYNTHIA has its own fences."""
    colors = {train_id: CLASSES[train_id][1] for train_id in SYNTHIA_IDS}
    return {**{k: v for k, v in colors.items() if k != 3}, 4: (64, 64, 128)}


def save(pixels: np.ndarray, path: Path) -> None:
    """Write an 8-bit image, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _name(kind: Kind) -> str:
    return "labelColor" if kind == "color" else kind
