"""Miniature trees of the denoising benchmarks, in the layouts of the official archives; see tests/tiny.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

#: Settings of SIDD and DND for the trees below; the root is missing.
MINI: dict[str, Any] = {
    "crop": 20,
    "patch_size": 30,
    "patch_stride": 20,
    "batch_size": 2,
    "num_workers": 0,
    "allow_partial": True,
}
SMALL_NETWORK = ["--model.backbone_args", "{width: 8, modules: 1}"]


def noisy_picture(number: int, height: int, width: int) -> np.ndarray:
    """``[height, width, 3]`` uint8 whose pixels tell where they are: row, column, number."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8)


def sidd_tree(root: Path, scenes: int = 2, size: tuple[int, int] = (70, 90)) -> Path:
    """Two noisy images (and their clean ones, which nobody may read) a scene, and 2 x 2 blocks of 24 pixels."""
    for scene in range(1, scenes + 1):
        folder = root / "SIDD_Medium_Srgb/Data" / f"{scene:04d}_001_S6_00100_00060_3200_L"
        folder.mkdir(parents=True)
        for number in ("010", "011"):
            picture = noisy_picture(10 * scene + int(number), *size)
            Image.fromarray(picture).save(folder / f"{scene:04d}_NOISY_SRGB_{number}.PNG")
            (folder / f"{scene:04d}_GT_SRGB_{number}.PNG").write_bytes(b"not to be read")
    clean = np.stack([noisy_picture(n, 24, 24) for n in range(4)]).reshape(2, 2, 24, 24, 3)
    noisy = clean + np.random.default_rng(0).integers(0, 9, clean.shape).astype(np.uint8)
    for name, blocks in (
        ("ValidationNoisyBlocksSrgb", noisy),
        ("ValidationGtBlocksSrgb", clean),
        ("BenchmarkNoisyBlocksSrgb", noisy[:, ::-1]),
    ):
        savemat(root / f"{name}.mat", {name: blocks})
    return root


def dnd_tree(root: Path, images: int = 3, size: tuple[int, int] = (60, 50)) -> Path:
    """HDF5 files as MATLAB writes them, columns first; two boxes of 24 x 20 pixels an image."""
    (root / "images_srgb").mkdir(parents=True)
    for number in range(1, images + 1):
        with h5py.File(root / "images_srgb" / f"{number:04d}.mat", "w") as file:
            file["InoisySRGB"] = (noisy_picture(number, *size) / 255).astype(np.float32).T
    boxes = np.array(
        [[1, 1, 24, 20], [11, 21, 34, 40]], float
    )  # first row and column, last row and column, from 1
    with h5py.File(root / "info.mat", "w") as file:
        info = file.create_group("info")
        references = []
        for number in range(images):
            file[f"#refs#/{number}"] = boxes.T
            references.append(file[f"#refs#/{number}"].ref)
        info.create_dataset(
            "boundingboxes", (1, images), h5py.ref_dtype, np.array([references], h5py.ref_dtype)
        )
    return root


def sidd(folder: Path) -> dict[str, Any]:
    """Settings of SIDD on a miniature below ``folder``."""
    return {**MINI, "root": sidd_tree(folder / "sidd"), "cache_folder": folder / "patches"}


def dnd(folder: Path) -> dict[str, Any]:
    """The same of DND."""
    return {**MINI, "root": dnd_tree(folder / "dnd_2017"), "cache_folder": folder / "patches"}


def photographs(_: Path) -> dict[str, Any]:
    """Settings of PackagedPhotographs, which are small as they are."""
    return {"crop": 20, "batch_size": 2, "num_crops": 12, "tile": 72, "eval_batch_size": 4}
