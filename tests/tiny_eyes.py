"""Miniatures of the ophthalmic benchmarks: generated eyes in small numbers, and official trees."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from PIL import Image

from tests.tiny_images import save_jpeg
from tests.tiny_volumes import box, save

#: A few eyes of every split.
FEW: dict[str, Any] = {"num_train": 8, "num_val": 4, "num_test": 4, "num_workers": 0}


def photographs(folder: Path) -> dict[str, Any]:
    return {**FEW, "root": folder / "photographs", "batch_size": 2, "labelled_fraction": 1.0}


def scans(folder: Path) -> dict[str, Any]:
    return {
        **FEW, "root": folder / "scans", "cache_folder": folder / "volumes", "batch_size": 2, "labelled_fraction": 1.0,
    }  # fmt: skip


def taking_turns(folder: Path) -> dict[str, Any]:
    """Both parts of TakingTurns."""
    parts = {"images": photographs(folder), "volumes": scans(folder)}
    return {f"{part}.{key}": value for part, of in parts.items() for key, value in of.items()}


# -- official trees ------------------------------------------------------------------------------------------------


def write_sheet(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(list(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def write_slices(folder: Path, count: int, suffix: str, label: int = 0) -> None:
    """Slices whose grey level is their number times ten; names are not padded, so that 10 sorts before 2."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        plane = np.full((10, 8), 10 * number, np.uint8)
        plane[:2] = 5 * label
        Image.fromarray(plane).save(folder / f"{number}{suffix}")


def eyepacs_tree(root: Path, patients: int = 6) -> Path:
    rows = ["image,level"]
    for patient in range(1, patients + 1):
        for side in ("left", "right"):
            save_jpeg(root / "train" / f"{patient}_{side}.jpeg", patient % 5, patient)
            rows.append(f"{patient}_{side},{patient % 5}")
    (root / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    return root


def amd_tree(root: Path) -> Path:
    for label, (kind, letter) in enumerate((("Non-AMD", "N"), ("AMD", "A"))):
        for number in range(1, 4):
            save_jpeg(root / "Training400" / kind / f"{letter}{number:04d}.jpg", label, number)
    return root


def pm_tree(root: Path) -> Path:
    for label, letter in enumerate("NHP"):
        for number in range(1, 4):
            save_jpeg(root / "PALM-Training400" / f"{letter}{number:04d}.jpg", label, number)
    return root


def gamma_tree(root: Path, eyes: int = 6) -> Path:
    rows: list[list[Any]] = [["data", "non", "early", "mid_advanced"]]
    for eye in range(1, eyes + 1):
        label, name = eye % 3, f"{eye:04d}"
        save_jpeg(root / name / f"{name}.jpg", label, eye)
        write_slices(root / name / f"{name}_img", 11, "_image.jpg", label)
        rows.append([eye, *(int(label == grade) for grade in range(3))])
    write_sheet(root / "training_GT.xlsx", rows)
    return root


def octa500_tree(root: Path) -> Path:
    diseases = ("NORMAL", "DR", "OTHERS")
    rows: list[list[Any]] = [["ID", "Gender", "Disease"]]
    for eye in (10001, 10002, 10003, 10181, 10182, 10201, 10202):
        for modality in ("OCT", "OCTA"):
            write_slices(root / "OCTA_6mm" / modality / str(eye), 11, ".bmp", eye % 3)
        rows.append([eye, "F", diseases[eye % 3]])
    write_sheet(root / "OCTA_6mm" / "Text labels.xlsx", rows)
    return root


def lists_tree(root: Path) -> Path:
    """Images and scans in one tree; scans as NIfTI and as a folder of slices."""
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        images, scans = [], []
        for number in range(count):
            image, scan = f"images/{split} {number}.jpg", f"scans/{split}{number}.nii.gz"
            save_jpeg(root / "2d" / image, number % 2, number)
            images.append(f"{image} {number % 2}")
            if number:
                save(root / "3d" / scan, box((16, 8, 16), seed=number)[0])
            else:
                scan = f"scans/{split}{number}"
                write_slices(root / "3d" / scan, 11, ".bmp")
            scans.append(f"{scan} {-1 if split == 'train' else number % 2}")
        (root / "2d" / f"{split}.txt").write_text("\n".join(images) + "\n")
        (root / "3d" / f"{split}.txt").write_text("\n".join(scans) + "\n\n")
    return root


#: Settings of every benchmark that put it on these trees and a network of 16 pixels.
MINI: dict[str, Any] = {"allow_partial": True, "num_workers": 0, "seed": 0, "batch_size": 2}


def images_of(tree: Callable[[Path], Path]) -> Callable[[Path], dict[str, Any]]:
    """Settings of a benchmark of photographs on its tree."""

    def settings(folder: Path) -> dict[str, Any]:
        return {**MINI, "root": tree(folder / "tree"), "image_size": 16, "resize": 16, "num_val": 2}

    return settings


def volumes_of(tree: Callable[[Path], Path]) -> Callable[[Path], dict[str, Any]]:
    """Settings of a benchmark of scans on its tree."""

    def settings(folder: Path) -> dict[str, Any]:
        return {
            **MINI, "root": tree(folder / "tree"), "cache_folder": folder / "volumes", "size": [16, 8, 16],
            "num_val": 2,
        }  # fmt: skip

    return settings


def lists(folder: Path) -> dict[str, Any]:
    """Both parts of TakingTurns with lists."""
    lists_tree(folder / "tree")
    images = {**images_of(lambda _: folder / "tree" / "2d")(folder), "num_val": None}
    volumes = {**volumes_of(lambda _: folder / "tree" / "3d")(folder), "num_val": None}
    parts = {"images": images, "volumes": volumes}
    return {f"{p}.{key}": v for p, of in parts.items() for key, v in of.items() if v is not None}


def small_network(model: dict[str, Any]) -> list[str]:
    """Options that put a tiny network of 16 pixels into a config with a large unified ViT."""
    sizes = {"img_size": 16, "volume_size": [16, 8, 16], **(model.get("backbone_args") or {})}
    arguments = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch": 8, "volume_patch": 8, **sizes}
    decoder = (
        {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2} if "num_classes" not in model else {}
    )
    options = ["--model.backbone_args", json.dumps(arguments)]
    return options + [part for key, value in decoder.items() for part in (f"--model.{key}", str(value))]
