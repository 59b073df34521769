"""Miniature trees of the volume benchmarks, in their official layouts, written with nibabel alone.

Every volume holds one bright box in water within air: its corner tells the voxel order, its label the class. Axes run
to the left, back and top of the patient (LPS), as in the official files, and spacings differ between axes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from datamodules.layout import Pair

SIZE = (24, 20, 12)
SPACING = (1.5, 1.5, 3.0)
LPS = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
#: Settings of every benchmark that put it on these trees.
MINI: dict[str, Any] = {"allow_partial": True, "num_workers": 0, "seed": 0}


def box(size: Sequence[int] = SIZE, label: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units int16 and classes uint8 ``[X, Y, Z]``: air, a body of water, and a box at one of its corners."""
    rng = np.random.default_rng(seed)
    volume, classes = np.full(size, -1000, np.int16), np.zeros(size, np.uint8)
    body = tuple(slice(2, side - 2) for side in size)
    volume[body] = rng.integers(-20, 20, [side - 4 for side in size])
    organ = tuple(slice(3, side // 2) for side in size)
    volume[organ], classes[organ] = 200, label
    return volume, classes


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = LPS) -> Path:
    """Write NIfTI; without an affine neither code is set, as in files that were converted carelessly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def case(
    root: Path, image: str, label: str | None, number: int = 0, classes: int = 2, channels: int = 0
) -> dict[str, str]:
    """One volume with, where named, its label map; the entry of a list."""
    volume, mask = box(label=1 + number % (classes - 1), seed=number)
    if channels:
        volume = np.stack([volume + 10 * channel for channel in range(channels)], -1)
    save(root / image, volume)
    if label is None:
        return {"image": f"./{image}"}
    save(root / label, mask)
    return {"image": f"./{image}", "label": f"./{label}"}


def pair(folder: Path, **changes: Any) -> Pair:
    """A volume with its labels, one of them changed."""
    volume, label = box()
    volume, label = changes.get("volume", volume), changes.get("label", label)
    image = save(folder / "v.nii.gz", volume, changes.get("affine", LPS))
    mask = save(folder / "l.nii.gz", label, changes.get("label_affine", LPS))
    return Pair(image, mask, "v")


def write_list(path: Path, classes: int = 2, **sections: list[Any]) -> None:
    labels = {str(number): "background" if number == 0 else f"organ {number}" for number in range(classes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": "tiny", "modality": {"0": "CT"}, "labels": labels, **sections}))


def btcv_tree(root: Path, listed: bool = True) -> Path:
    """Three training and two validation volumes, under their official names."""
    numbers = (1, 2, 3, 35, 36)
    cases = [
        case(root, f"imagesTr/img{n:04d}.nii.gz", f"labelsTr/label{n:04d}.nii.gz", i, classes=14)
        for i, n in enumerate(numbers)
    ]
    if listed:  # MONAI's variant, without "./" and with a test section of plain paths
        plain = [{key: value.removeprefix("./") for key, value in entry.items()} for entry in cases]
        write_list(
            root / "dataset_0.json",
            training=plain[:3],
            validation=plain[3:],
            test=["imagesTs/img0061.nii.gz"],
        )
    return root


def msd_tree(root: Path, channels: int = 0, classes: int = 2) -> Path:
    """Three labelled training volumes, one without a label for prediction."""
    names = [f"spleen_{number}.nii.gz" for number in (1, 2, 3)]
    cases = [
        case(root, f"imagesTr/{name}", f"labelsTr/{name}", number, classes, channels)
        for number, name in enumerate(names)
    ]
    case(root, "imagesTs/spleen_9.nii.gz", None, 9, classes, channels)
    write_list(root / "dataset.json", classes, training=cases, test=["./imagesTs/spleen_9.nii.gz"])
    return root


def amos22_tree(root: Path) -> Path:
    """CT and MRI (from number 501 on), two and one for training, one and one for validation."""
    sections: dict[str, list[Any]] = {"training": [], "validation": [], "test": []}
    for section, end, numbers in (("training", "Tr", (1, 4, 507)), ("validation", "Va", (8, 540))):
        for i, n in enumerate(numbers):
            name = f"amos_{n:04d}.nii.gz"
            sections[section].append(case(root, f"images{end}/{name}", f"labels{end}/{name}", i, classes=16))
    sections["test"].append(case(root, "imagesTs/amos_0200.nii.gz", None))
    write_list(root / "dataset.json", 16, **sections)
    return root


def flare22_tree(root: Path) -> Path:
    """As downloaded: two of the first ten cases, and two of the others."""
    for i, n in enumerate((1, 2, 11, 12)):
        case(
            root, f"images/FLARE22_Tr_{n:04d}_0000.nii.gz", f"labels/FLARE22_Tr_{n:04d}.nii.gz", i, classes=14
        )
    return root


def luna16_tree(root: Path, count: int = 4) -> Path:
    """MetaImages in two subsets; the matrix mirrors the first axis, as a few of the originals do."""
    for number in range(count):
        volume, _ = box(seed=number)
        folder, name = root / f"subset{number % 2}", f"1.3.6.1.{number}"
        folder.mkdir(parents=True, exist_ok=True)
        header = {
            "ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
            "CompressedData": "False", "TransformMatrix": "-1 0 0 0 1 0 0 0 1", "Offset": "10 -20 -30",
            "ElementSpacing": "1.5 1.5 3.0", "DimSize": "24 20 12", "ElementType": "MET_SHORT",
            "ElementDataFile": f"{name}.raw",
        }  # fmt: skip
        (folder / f"{name}.mhd").write_text("".join(f"{key} = {value}\n" for key, value in header.items()))
        (folder / f"{name}.raw").write_bytes(volume.astype("<i2").tobytes(order="F"))
    return root


def prect_tree(root: Path) -> Path:
    """One source of each group, with the release's lists; sources of equal file names."""
    sources = {
        "BTCV": ("BTCV/dataset_0.json", ("training", "validation")),
        "DeepLesion": ("jsons/DeepLesion.json", ("training",)),
        "LIDC_convert_v1": ("jsons/LIDC.json", ("training",)),
        "HNSCC_convert_v1": ("jsons/HNSCC.json", ("training",)),
    }
    for offset, (folder, (file, sections)) in enumerate(sources.items()):
        found = {}
        for i, section in enumerate(sections):
            entry = case(root / folder, f"{i:05d}.nii.gz", None, 10 * offset + i)
            found[section] = [entry]
        write_list(root / file, **found)
    return root


def brains_tree(root: Path) -> Path:
    """The template of nilearn's wheel, tiny."""
    size = (24, 28, 20)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    kinds = {
        "t1": np.where(radius < 0.9, 120 + 100 * (radius < 0.5), 0),
        "gm": np.where((radius > 0.5) & (radius < 0.8), 250, 0),
        "wm": np.where(radius <= 0.5, 250, 0),
    }
    for kind, array in kinds.items():
        name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        save(root / "nilearn/datasets/data" / name, array.astype(np.uint8), np.eye(4))
    return root


def colin_tree(root: Path) -> Path:
    """Colin-27 and its atlas as Debian's mricron-data unpacks, tiny: a bright ball of two regions."""
    size, folder = (24, 28, 20), root / "usr/share/mricron/templates"
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij"))
    ball = (grid**2).sum(0) < 0.8
    save(folder / "ch2.nii.gz", (200 * ball).astype(np.uint8), np.eye(4))
    save(folder / "aal.nii.gz", (ball * np.where(grid[0] < 0, 1, 2)).astype(np.uint8), np.eye(4))
    (folder / "aal.nii.txt").write_text("1 Precentral_L 2001\n2 Precentral_R 2002\n")
    return root


#: TorsoPhantom and TorsoScanners with a few volumes.
FEW: dict[str, Any] = {"num_train": 4, "num_val": 2, "num_test": 1}


def torso(folder: Path) -> dict[str, Any]:
    return {**FEW, "cache_folder": folder / "volumes", "batch_size": 2}


def omni_volumes(folder: Path) -> dict[str, Any]:
    """Both parts of OmniVolumes."""
    few = torso(folder)
    return {f"{part}.{key}": value for part in ("labelled", "unlabelled") for key, value in few.items()}


def supervised(tree: Callable[[Path], Path]) -> Callable[[Path], dict[str, Any]]:
    """Settings of a segmentation benchmark on its tree."""

    def settings(folder: Path) -> dict[str, Any]:
        root = tree(folder / "tree")
        return {**MINI, "root": root, "cache_folder": folder / "volumes", "crop": [8, 8, 8], "num_crops": 2}

    return settings


def msd(folder: Path) -> dict[str, Any]:
    return {**supervised(msd_tree)(folder), "num_val": 1}


def prect(folder: Path) -> dict[str, Any]:
    """Three by three, or four by four, base crops of 8³."""
    window = {"resize": [32, 32, 8], "crop": [32, 32, 8], "views.crop": [8, 8, 8], "views.resize": [8, 8, 8]}
    root = prect_tree(folder / "tree")
    return {
        **MINI,
        **window,
        "root": root,
        "cache_folder": folder / "volumes",
        "sources": "null",
        "num_val": 1,
    }


def luna16(folder: Path) -> dict[str, Any]:
    """Three by three base crops of 8³."""
    root, window = luna16_tree(folder / "tree"), {"crop": [24, 24, 8], "views.crop": [8, 8, 8]}
    return {**MINI, **window, "root": root, "cache_folder": folder / "volumes", "num_val": 1}


def omni_prect(folder: Path) -> dict[str, Any]:
    """Volumes with labels in folders, and those of :func:`prect`."""
    parts = {"labelled": supervised(msd_tree)(folder / "labelled"), "unlabelled": prect(folder / "prect")}
    del parts["unlabelled"]["sources"]  # there are no others
    return {f"{part}.{key}": value for part, of in parts.items() for key, value in of.items()}


def small_network(model: dict[str, Any]) -> list[str]:
    """Options that put a tiny network into a config with Swin UNETR, and windows to match."""
    options = ["--model.backbone", "residual_unet", "--model.backbone_args", '{"widths": [4, 8]}']
    return options + (["--model.inference.window", "[8, 8, 8]"] if "inference" in model else [])
