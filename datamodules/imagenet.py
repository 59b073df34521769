"""ImageNet-1k (ILSVRC 2012, Russakovsky et al., IJCV 2015) and its hundred-class subset ImageNet-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from datamodules.file_images import FileImageDataModule
from datamodules.layout import Layout, LayoutError, Pair, Split

_DEVKIT: Final = "ILSVRC2012_devkit_t12"
_FOLDERS: Final = Layout(
    title="ImageNet-1k",
    images=".",
    suffix=".JPEG",
    labels=(),
    splits={"train": Split("train/*/*", (1281167,)), "val": Split("val/*/*", (50000,))},
    origin="image-net.org (registration): ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
    f"{_DEVKIT}.tar.gz",
)
_FLAT_VAL: Final = replace(_FOLDERS, splits={**_FOLDERS.splits, "val": Split("val/*", (50000,))})


class ImageNet(FileImageDataModule):
    """A thousand classes; 1,281,167 training and 50,000 validation images, on which results are reported.

    ``root`` holds ``train/<wnid>/*.JPEG`` and either ``val/<wnid>/*.JPEG`` or the 50,000 files of the archive
    flat in ``val`` beside the extracted development kit, whose ground truth then labels them (needs SciPy).
    Classes are the folders of ``train`` in order of their names, as everywhere in the field.
    """

    name = "imagenet"
    num_classes = 1000
    layout: ClassVar[Mapping[str, Layout]] = {"root": _FOLDERS}
    test_split = "val"

    def tree(self) -> Layout:
        """Validation images in folders, or flat where they lie directly in ``val``."""
        return _FLAT_VAL if self._val_is_flat() else _FOLDERS

    def _val_is_flat(self) -> bool:
        return self.root is not None and any(
            (Path(self.root).expanduser() / "val").glob("ILSVRC2012_val_*.JPEG")
        )

    def class_names(self, root: Path) -> tuple[str, ...]:
        """The wnids, from the folders of ``train`` (or, where only that exists, of ``val``)."""
        names = _class_folders(root)
        if len(names) > self.num_classes or (len(names) < self.num_classes and not self.allow_partial):
            raise LayoutError(
                f"{root} holds {len(names)} class folders, expected {self.num_classes} "
                "(allow_partial: true accepts fewer)."
            )
        return names

    def class_of(self, split: str, base: Path, pairs: Sequence[Pair]) -> list[str]:
        """The folder's name, or for flat validation images what the development kit says."""
        if split == "train" or not self._val_is_flat():
            return super().class_of(split, base, pairs)
        truth = _ground_truth(base / _DEVKIT / "data")
        # Files are numbered from 1: ILSVRC2012_val_00000001.JPEG.
        numbers = [int(pair.name.rpartition("_")[2]) for pair in pairs]
        if max(numbers) > len(truth):
            raise LayoutError(
                f"{base / _DEVKIT}: the ground truth labels {len(truth)} images, not {max(numbers)}."
            )
        return [truth[number - 1] for number in numbers]


class ImageNet100(ImageNet):
    """A hundred of ImageNet's classes; ``root`` is an ImageNet tree, of which only these are read.

    Args:
        class_file: text file whose lines begin with the wnids of the classes, such as the list of Tian et al.
            (CMC, ECCV 2020); None takes the first ``num_classes`` wnids of ``train``.
        num_classes: how many classes the first ones are.
        **common: see :class:`~datamodules.file_images.FileImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "imagenet100"
    num_classes = 100
    layout: ClassVar[Mapping[str, Layout]] = {"root": replace(_FOLDERS, title="ImageNet-100")}
    skips_other_classes = True

    def __init__(self, class_file: str | None = None, num_classes: int = 100, **common: Any) -> None:
        super().__init__(**common)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        self.class_file = class_file
        self.num_classes = num_classes if class_file is None else len(self._listed())  # type: ignore[misc]

    def tree(self) -> Layout:
        """ImageNet's; a subset has no published number of files."""
        full = super().tree()
        splits = {name: replace(split, counts=()) for name, split in full.splits.items()}
        return replace(full, title="ImageNet-100", splits=splits)

    def class_names(self, root: Path) -> tuple[str, ...]:
        """The listed wnids, or the first ones."""
        folders = _class_folders(root)
        if self.class_file is None:
            if len(folders) < self.num_classes and not self.allow_partial:
                raise LayoutError(
                    f"{root} holds {len(folders)} class folders, num_classes={self.num_classes}."
                )
            return folders[: self.num_classes]
        names = self._listed()
        if missing := sorted(set(names) - set(folders)):
            raise LayoutError(
                f"class_file={self.class_file!r}: {len(missing)} of its {len(names)} classes have no folder in "
                f"{root}, e.g. {missing[0]}."
            )
        return names

    def _listed(self) -> tuple[str, ...]:
        path = Path(self.class_file or "").expanduser()
        if not path.is_file():
            raise ValueError(f"class_file={self.class_file!r}: there is no such file.")
        names = tuple(line.split()[0] for line in path.read_text().splitlines() if line.strip())
        if not names or len(set(names)) < len(names):
            raise ValueError(f"class_file={self.class_file!r} is empty or names a class twice.")
        return names


def _class_folders(root: Path) -> tuple[str, ...]:
    folder = root / "train" if (root / "train").is_dir() else root / "val"
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _ground_truth(devkit: Path) -> list[str]:
    """The wnid of every validation image, in the order of their numbers."""
    meta, truth = devkit / "meta.mat", devkit / "ILSVRC2012_validation_ground_truth.txt"
    for path in (meta, truth):
        if not path.is_file():
            raise LayoutError(
                f"Validation images lie flat in val, so {path} is needed to label them: extract {_DEVKIT}.tar.gz "
                "into root, or sort the images into val/<wnid>/."
            )
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("Reading ImageNet's development kit needs SciPy: pip install scipy") from error
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    # The kit's own numbering is not the order of the wnids; numbers above 1,000 are inner nodes of WordNet.
    wnids = {
        int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
    }
    numbers = [int(line) for line in truth.read_text().split()]
    if unknown := sorted(set(numbers) - set(wnids)):
        raise LayoutError(f"{truth} names class {unknown[0]}, which {meta} does not know.")
    return [wnids[number] for number in numbers]
