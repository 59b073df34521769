"""Miniature official data trees and tiny benchmark settings, for every test that needs data.

Nothing here uses the package's own tables or writers, so that readers are tested against an independent account
of the formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Kind = Literal["labelIds", "labelTrainIds", "color"]

#: trainId → (Cityscapes id, colour).
CLASSES = {
    0: (7, (128, 64, 128)),
    1: (8, (244, 35, 232)),
    2: (11, (70, 70, 70)),
    3: (12, (102, 102, 156)),
    4: (13, (190, 153, 153)),
    5: (17, (153, 153, 153)),
    6: (19, (250, 170, 30)),
    7: (20, (220, 220, 0)),
    8: (21, (107, 142, 35)),
    9: (22, (152, 251, 152)),
    10: (23, (70, 130, 180)),
    11: (24, (220, 20, 60)),
    12: (25, (255, 0, 0)),
    13: (26, (0, 0, 142)),
    14: (27, (0, 0, 70)),
    15: (28, (0, 60, 100)),
    16: (31, (0, 80, 100)),
    17: (32, (0, 0, 230)),
    18: (33, (119, 11, 32)),
    255: (0, (0, 0, 0)),
}

#: Arguments of StreetShift that render in a fraction of a second.
STREETSHIFT: dict[str, Any] = {
    "num_source": 6,
    "num_target": 5,
    "num_val": 3,
    "num_test": 2,
    "height": 32,
    "width": 64,
    "batch_size": 2,
    "eval_batch_size": 2,
}
#: The same for StreetShiftSemi.
STREETSHIFT_SEMI: dict[str, Any] = {
    "num_labelled": 2,
    **{key: value for key, value in STREETSHIFT.items() if key != "num_source"},
}
#: Arguments of GTA5Cityscapes for the trees below; the roots are missing.
GTA5_CITYSCAPES: dict[str, Any] = {
    "source_resize": [64, 32],
    "target_resize": [64, 32],
    "crop": [32, 32],
    "num_workers": 0,
    "allow_partial": True,
}


def as_options(settings: Mapping[str, Any], prefix: str = "--data.") -> list[str]:
    """Settings as command-line options."""
    return [f"{prefix}{key}={str(value).lower()}" for key, value in settings.items()]


def random_pair(
    rng: np.random.Generator, height: int, width: int, train_ids: Sequence[int] = tuple(CLASSES)
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy RGB image and trainIds in 4×4 blocks that cover all classes and 255."""
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    ids = np.array(train_ids)
    blocks = np.resize(rng.permutation(ids), (height // 4 + 1) * (width // 4 + 1))
    label = blocks.reshape(height // 4 + 1, width // 4 + 1).repeat(4, 0).repeat(4, 1)[:height, :width]
    return image, label.astype(np.uint8)


def gta5_tree(root: Path, count: int = 4, size: tuple[int, int] = (36, 64), seed: int = 0) -> Path:
    """A GTA5 tree: ``images/00001.png`` and palette ``labels/00001.png`` whose index is the Cityscapes id."""
    rng = np.random.default_rng(seed)
    palette = np.zeros((256, 3), np.uint8)
    for number, color in CLASSES.values():
        palette[number] = color
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        image, train_ids = random_pair(rng, *size)
        Image.fromarray(image).save(root / f"images/{number:05d}.png")
        label = Image.fromarray(stored_label(train_ids, "labelIds"))
        label.putpalette(palette.ravel().tolist())
        label.save(root / f"labels/{number:05d}.png")
    return root


def cityscapes_tree(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = (32, 64),
    kind: Kind = "labelIds",
    seed: int = 1,
) -> Path:
    """A Cityscapes tree with two cities a split, labels stored as one ``kind``."""
    rng = np.random.default_rng(seed)
    for split, count in (counts or {"train": 5, "val": 3, "test": 2}).items():
        for number in range(count):
            city = f"{split}city{number % 2}"
            image, train_ids = random_pair(rng, *size)
            place = f"{split}/{city}/{city}_{number:06d}_000019"
            for folder, name, pixels in (
                ("leftImg8bit", "leftImg8bit", image),
                ("gtFine", f"gtFine_{kind}", stored_label(train_ids, kind)),
            ):
                path = root / folder / f"{place}_{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def expected_pairs(count: int, size: tuple[int, int], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images and trainIds a tree was written with, in the order of writing."""
    rng = np.random.default_rng(seed)
    return [random_pair(rng, *size) for _ in range(count)]


def stored_label(train_ids: np.ndarray, kind: Kind) -> np.ndarray:
    """TrainIds as a label file of this kind stores them."""
    if kind == "labelTrainIds":
        return train_ids
    if kind == "labelIds":
        table = np.zeros(256, np.uint8)
        for train_id, (number, _) in CLASSES.items():
            table[train_id] = number
        return table[train_ids]
    colors = np.zeros((256, 3), np.uint8)
    for train_id, (_, color) in CLASSES.items():
        colors[train_id] = color
    return colors[train_ids]
