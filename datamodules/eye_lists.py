"""Eyes that are listed in text files, ``path label`` a line, as Uni4Eye keeps its collections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.eye_sets import EyeVolumes, path_labels
from datamodules.file_images import FileImageDataModule
from datamodules.image_sets import ImageSource
from datamodules.layout import Layout, LayoutError, LayoutReport, Pair, Split, SplitReport
from datamodules.slice_folders import PICTURES
from datamodules.volume_files import stem_of
from datamodules.volume_processing import Processing
from datamodules.volume_sets import Size3


def _layout(title: str, unit: str) -> Layout:
    return Layout(
        title=title,
        images=".",
        suffix="",
        labels=(),
        splits={split: Split(f"{split}.txt") for split in ("train", "val", "test")},
        origin="your own: train.txt, val.txt and test.txt with lines 'path label', paths from the root on",
        unit=unit,
    )


class EyeImageLists(FileImageDataModule):
    """Images (.bmp, .jpg, .jpeg, .png) of ``train.txt``, ``val.txt`` and ``test.txt`` at the root.

    Args:
        class_names: names of labels 0, 1, ...; -1 says that there is none, for pre-training.
        **common: see :class:`~datamodules.file_images.FileImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "eye_image_lists"
    classes: ClassVar[tuple[str, ...]] = ("healthy", "diseased")
    num_classes = 2
    layout: ClassVar[Mapping[str, Layout]] = {"root": _layout("Lists of images", "images")}

    def __init__(self, class_names: tuple[str, ...] = ("healthy", "diseased"), **common: Any) -> None:
        super().__init__(**common)
        self.classes, self.num_classes = tuple(class_names), len(class_names)  # type: ignore[misc]

    def _inspect(self, splits: Mapping[str, bool]) -> LayoutReport:
        root = None if self.root is None else Path(self.root).expanduser()
        if root is None or not root.is_dir():
            return super()._inspect(splits)
        return LayoutReport(self.tree(), root, "root", {name: _listed(root, name) for name in splits})

    def class_names(self, root: Path) -> tuple[str, ...]:
        """As they were given."""
        return self.classes

    def read(self, split: str, report: LayoutReport | None) -> ImageSource:
        """The images of a list with its labels."""
        assert report is not None
        assert report.root is not None
        label = dict(path_labels(report.root / f"{split}.txt"))
        pairs = self.usable_pairs(report, split)
        paths = [pair.image.relative_to(report.root).as_posix() for pair in pairs]
        labels = np.array([label[path] for path in paths], np.int64)
        return self.images_of(split, report.root, paths, labels)


class EyeVolumeLists(EyeVolumes):
    """Scans (NIfTI, or folders of slices) of ``train.txt``, ``val.txt`` and ``test.txt`` at the root.

    Without ``processing``, intensities are scaled by the percentiles of each scan.

    Args:
        class_names: names of labels 0, 1, ...; -1 says that there is none, for pre-training.
        size: sides to which scans are resized.
        processing: everything that is done to scans, in place of the above.
        **common: see :class:`~datamodules.eye_sets.EyeVolumes`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "eye_volume_lists"
    classes: ClassVar[tuple[str, ...]] = ("healthy", "diseased")
    num_classes = 2
    eval_classes: ClassVar[tuple[int, ...]] = (0, 1)
    layout: ClassVar[Mapping[str, Layout]] = {"root": _layout("Lists of volumes", "volumes")}
    test_split = "test"
    holds_out_val = False

    def __init__(
        self,
        class_names: tuple[str, ...] = ("healthy", "diseased"),
        size: Size3 = (224, 112, 224),
        processing: Processing | None = None,
        **common: Any,
    ) -> None:
        plain = Processing(
            spacing=None, window=None, resize=(size[0], size[1], size[2]), missing_affine="spacing"
        )
        super().__init__(size=size, processing=processing or plain, **common)
        self.classes, self.num_classes = tuple(class_names), len(class_names)  # type: ignore[misc]
        self.eval_classes = tuple(range(self.num_classes))  # type: ignore[misc]

    def find(self, root: Path, split: str) -> list[Pair]:
        """The scans of a list; ValueError where it cannot be read, or names a class that there is not."""
        lines = path_labels(root / f"{split}.txt")
        wrong = [(path, label) for path, label in lines if not -1 <= label < self.num_classes]
        if wrong:
            raise ValueError(
                f"{split}.txt gives {wrong[0][0]} the label {wrong[0][1]}, but there are {self.num_classes} classes: "
                "set data.class_names"
            )
        return [Pair(root / path, None, _name_of(path)) for path, _ in lines]

    def read_diagnoses(self, root: Path) -> Mapping[str, int]:
        """The labels of all lists that are there."""
        files = [path for split in self.layout["root"].splits if (path := root / f"{split}.txt").is_file()]
        return {_name_of(path): label for file in files for path, label in path_labels(file)}


def _name_of(path: str) -> str:
    """A name that no other path has: ``a/b.nii.gz`` → ``a_b``."""
    return (Path(path).parent / stem_of(Path(path))).as_posix().removeprefix("./").replace("/", "_")


def _listed(root: Path, split: str) -> SplitReport:
    """The images of a list, and what is wrong with it."""
    try:
        paths = [path for path, _ in path_labels(root / f"{split}.txt")]
    except LayoutError as error:
        return SplitReport(split, problems=(str(error),))
    pairs = tuple(Pair(root / path, None, Path(path).stem) for path in paths)
    absent = [path for path in paths if not (root / path).is_file()]
    problems = (
        [f"{len(absent)} of {len(paths)} images are missing: {', '.join(absent[:3])}"] if absent else []
    )
    other = [path for path in paths if Path(path).suffix.lower() not in PICTURES]
    problems += [f"{other[0]} is no image ({', '.join(PICTURES)})"] if other else []
    return SplitReport(split, pairs, None, tuple(problems or ([] if pairs else ["the list is empty"])))
