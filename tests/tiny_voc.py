"""Miniature PASCAL VOC and SBD trees; see tests/tiny.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.tiny import cityscapes_tree

#: VOC's colours as its development kit lists them, background first; then that of borders.
COLORS = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
    (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]  # fmt: skip
BORDER = (224, 224, 192)
#: Images of each kind: VOC's own, VOC's validation, and those only SBD has labels of. SBD knows some of VOC's, too.
OWN, VAL, OTHERS, UNUSED = (
    [f"2007_{number:06d}" for number in range(5)],
    [f"2007_{number:06d}" for number in range(10, 13)],
    [f"2008_{number:06d}" for number in range(20, 26)],
    [f"2009_{number:06d}" for number in range(30, 33)],
)
#: Settings of VOCSemi and CityscapesSemi for miniature trees.
SEMI: dict[str, Any] = {
    "crop": [32, 32],
    "num_workers": 0,
    "batch_size": 2,
    "allow_partial": True,
}


def voc_semi(folder: Path) -> dict[str, Any]:
    """Settings of VOCSemi on a miniature below ``folder``."""
    return {**SEMI, "root": voc_tree(folder / "voc")}


def cityscapes_semi(folder: Path) -> dict[str, Any]:
    """The same for CityscapesSemi."""
    return {**SEMI, "root": cityscapes_tree(folder / "cityscapes")}


def indices(name: str) -> np.ndarray:
    """The label of an image: stripes of classes that depend on its number, and a border of 255. Sizes vary."""
    number = int(name[-6:])
    height, width = 30 + number % 3, 40 + number % 2
    label = (np.arange(width)[None] // 3 + np.arange(height)[:, None] // 5 + number) % 21
    label[:2] = 255
    return label.astype(np.uint8)


def voc_tree(root: Path, augmented: bool = True, painted: bool = False, seed: int = 5) -> Path:
    """VOCdevkit/VOC2012 with palette labels; ``augmented`` adds SegmentationClassAug, ``painted`` writes colours."""
    rng = np.random.default_rng(seed)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in (*OWN, *VAL, *OTHERS, *UNUSED):
        image = rng.integers(0, 256, (*indices(name).shape, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg")
    for name in (*OWN, *VAL):
        _write_label(indices(name), root / f"SegmentationClass/{name}.png", painted)
    if augmented:
        (root / "SegmentationClassAug").mkdir(exist_ok=True)
        for name in (*OWN, *VAL, *OTHERS):
            Image.fromarray(indices(name)).save(root / f"SegmentationClassAug/{name}.png")
    for split, names in {"train": OWN, "val": VAL, "trainval": [*OWN, *VAL]}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return root


def sbd_tree(root: Path, seed: int = 6) -> Path:
    """benchmark_RELEASE: ``dataset/img/*.jpg`` and ``dataset/cls/*.mat``, without borders.

    Its two splits mix images of VOC's training and validation with its own.
    """
    rng = np.random.default_rng(seed)
    splits: dict[Literal["train", "val"], list[str]] = {
        "train": [*OWN[:2], VAL[0], *OTHERS[:4]],
        "val": [OWN[2], VAL[1], *OTHERS[4:]],
    }
    for folder in ("dataset/img", "dataset/cls"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        (root / f"dataset/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            label = indices(name)
            label[label == 255] = 0
            image = rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8)
            Image.fromarray(image).save(root / f"dataset/img/{name}.jpg")
            savemat(root / f"dataset/cls/{name}.mat", {"GTcls": {"Boundaries": [0], "Segmentation": label}})
    return root


def _write_label(label: np.ndarray, path: Path, painted: bool) -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[:21], palette[255] = COLORS, BORDER
    if painted:
        Image.fromarray(palette[label]).save(path)
        return
    image = Image.fromarray(label)
    image.putpalette(palette.ravel().tolist())
    image.save(path)
