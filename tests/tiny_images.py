"""Miniature trees of the image benchmarks, in the layouts of the official archives.

Every image is one colour that tells its label and number, so that readers can be checked without the writer's help:
see :func:`pixel`. Nothing here uses the package's own readers.
"""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n02102040", "n02979186")


def pixel(label: int, number: int) -> tuple[int, int, int]:
    """Colour of the ``number``-th image of a class."""
    return ((20 * label + 10) % 256, 5 * number % 250, 200)


def flat_image(label: int, number: int, height: int, width: int) -> np.ndarray:
    """An image ``[height, width, 3]`` of one colour."""
    return np.full((height, width, 3), pixel(label, number), np.uint8)


def save_jpeg(path: Path, label: int, number: int, size: tuple[int, int] = (40, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(flat_image(label, number, *size)).save(path, "JPEG", quality=95)


def imagenet_tree(
    root: Path,
    train: int = 4,
    val: int = 2,
    wnids: Sequence[str] = WNIDS,
    size: tuple[int, int] = (40, 60),
    flat_val: bool = False,
) -> Path:
    """``train/<wnid>/<wnid>_<n>.JPEG`` and ``val/<wnid>/`` or flat ``val/ILSVRC2012_val_<n>.JPEG``.

    Flat validation images come with a development kit whose numbering of the classes is the reverse of the order
    of their names.
    """
    for label, wnid in enumerate(wnids):
        for number in range(train):
            save_jpeg(root / "train" / wnid / f"{wnid}_{number}.JPEG", label, number, size)
    labels = [label for label in range(len(wnids)) for _ in range(val)][::-1]
    for number, label in enumerate(labels, 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        save_jpeg(root / "val" / ("" if flat_val else wnids[label]) / name, label, number, size)
    if flat_val:
        write_devkit(root / "ILSVRC2012_devkit_t12" / "data", wnids, [len(wnids) - label for label in labels])
    return root


def write_devkit(folder: Path, wnids: Sequence[str], truth: Sequence[int]) -> None:
    from scipy.io import savemat

    folder.mkdir(parents=True)
    synsets = np.zeros(len(wnids), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    synsets["ILSVRC2012_ID"] = list(range(len(wnids), 0, -1))
    synsets["WNID"] = list(wnids)
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in truth))


def imagenette_tree(root: Path, folder: str = "imagenette2-320") -> Path:
    imagenet_tree(root / folder)
    return root


def tiny_imagenet_tree(root: Path, train: int = 3, val: int = 4) -> Path:
    """``train/<wnid>/images``, ``val/images`` with ``val_annotations.txt``, and an unsorted ``wnids.txt``."""
    base = root / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(train):
            save_jpeg(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", label, number, (64, 64))
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for number in range(val):
        label = (number + 1) % len(WNIDS)
        save_jpeg(base / "val" / "images" / f"val_{number}.JPEG", label, number, (64, 64))
        lines.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t0\t63\t63\n")
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "wnids.txt").write_text("\n".join(WNIDS[::-1]) + "\n")
    return root


def _cifar_batch(path: Path, labels: Sequence[int], key: str, size: int = 32) -> None:
    """A batch as Python 2 pickled it: ``data`` ``[N, 3072]``, red plane first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = [flat_image(label, n, size, size).transpose(2, 0, 1).ravel() for n, label in enumerate(labels)]
    path.write_bytes(pickle.dumps({"data": np.stack(planes), key: list(labels)}, protocol=2))


def cifar10_tree(root: Path, per_batch: int = 20) -> Path:
    labels = [n % 10 for n in range(per_batch)]
    for number in range(1, 6):
        _cifar_batch(root / f"cifar-10-batches-py/data_batch_{number}", labels, "labels")
    _cifar_batch(root / "cifar-10-batches-py/test_batch", labels, "labels")
    return root


def cifar100_tree(root: Path) -> Path:
    base = root / "cifar-100-python"
    for name in ("train", "test"):
        _cifar_batch(base / name, [n % 100 for n in range(300)], "fine_labels")
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class{n}" for n in range(100)]}, 2))
    return root


def stl10_tree(root: Path, train: int = 40, test: int = 20, unlabelled: int = 7) -> Path:
    """Raw bytes, columns first; labels from 1; ten folds of eight images."""
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    for name, count in (("train", train), ("test", test), ("unlabeled", unlabelled)):
        labels = [n % 10 for n in range(count)]
        images = np.stack([flat_image(label, n, 96, 96) for n, label in enumerate(labels)])
        images[:, 0, :, 0] = 255  # the first row is bright red
        images.transpose(0, 3, 2, 1).tofile(base / f"{name}_X.bin")
        if name != "unlabeled":
            (np.array(labels, np.uint8) + 1).tofile(base / f"{name}_y.bin")
    folds = [" ".join(str((fold * 4 + n) % train) for n in range(10)) for fold in range(10)]
    (base / "fold_indices.txt").write_text("\n".join(folds) + "\n")
    return root


def write_idx(path: Path, values: np.ndarray) -> None:
    """Two zeros, type 8, number of dimensions, dimensions as big-endian integers, bytes."""
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def fashion_mnist_tree(root: Path, train: int = 60, test: int = 20, suffix: str = ".gz") -> Path:
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.stack([np.full((28, 28), 20 * label + 10, np.uint8) for label in labels])
        write_idx(root / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(root / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return root


def optdigits(_: Path) -> dict[str, Any]:
    """Arguments of Optdigits, which is small as it is."""
    return {"batch_size": 4}


def imagenet(folder: Path) -> dict[str, Any]:
    """Arguments of ImageNet for a tree below ``folder``."""
    root = imagenet_tree(folder / "imagenet")
    return {
        "root": root,
        "batch_size": 2,
        "num_workers": 0,
        "allow_partial": True,
        "image_size": 64,
        "resize": 64,
    }


def small_family(backbone: str) -> list[str]:
    """Options that put a config of an elastic network on a miniature of its family, and its views and heads too."""
    family = backbone.split("_")[1].rstrip("0123456789")
    arguments = {"vit": "{img_size: 32, patch_size: 4, widths: [32, 64], depths: [2, 3]}"}
    side, local = (64, 32) if family == "resnet" else (32, 16)
    return [
        "--model.backbone", f"elastic_{family}_tiny", "--model.backbone_args", arguments.get(family, "null"),
        "--model.prototypes", "[1000, 1024]", "--model.head_args", "{hidden_dim: 16, bottleneck_dim: 8}",
        "--data.views.global_size", str(side), "--data.views.local_size", str(local),
        # The recipe's probe wants more neighbours than there are images.
        "--trainer.callbacks", "[{class_path: callbacks.KNNProbe, init_args: {k: [2]}}]",
    ]  # fmt: skip


def small_vit(args: dict[str, Any]) -> list[str]:
    """Options that put a recipe for ImageNet on a small vision transformer with its settings, and small views."""
    kept = "".join(f", {key}: {value}" for key, value in args.items())
    small = f"{{img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2{kept}}}"
    return [
        "--model.backbone", "vit_tiny_patch16_224", "--model.backbone_args", small,
        "--model.prototypes", "1000", "--model.head_args", "{hidden_dim: 16, bottleneck_dim: 8}",
        "--data.views.global_size", "32", "--data.views.local_size", "16",
        "--trainer.callbacks", "[{class_path: callbacks.KNNProbe, init_args: {k: [2]}}]",
    ]  # fmt: skip
