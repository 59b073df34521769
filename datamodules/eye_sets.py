"""What ophthalmic benchmarks share: held-out eyes, scans as folders of slices, tables of diagnoses."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.file_images import FileImageDataModule
from datamodules.layout import LayoutError, Pair
from datamodules.volume_classes import VolumeClassification
from datamodules.volume_processing import Processing
from datamodules.volume_sets import Size3
from zoo.extras import require


class EyeImages(FileImageDataModule):
    """Photographs of the fundus with one diagnosis each, of which the public labels are those of training.

    A fixed part is held out for validation, and results are reported on it.

    Args:
        **common: see :class:`~datamodules.file_images.FileImageDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    test_split = "val"
    holds_out_val = True

    def class_names(self, root: Path) -> tuple[str, ...]:
        """The diagnoses."""
        return self.classes


class EyeVolumes(VolumeClassification):
    """OCT or OCTA scans with one diagnosis each; where there is no official split, a fixed part is held out.

    Scans are cut to what is not 0 and resized to ``size``: depth, slices, columns; the short side lies in the middle,
    as Uni4Eye takes them.

    Args:
        size: sides to which scans are resized, see :class:`~datamodules.volume_processing.Processing`.
        processing: everything that is done to scans, in place of the benchmark's.
        crop: sides of training windows in voxels; None gives whole scans.
        num_crops: windows of each scan in supervised training.
        batch_size: training scans a step, on every device.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    test_split = "val"
    holds_out_val = True

    def __init__(
        self,
        size: Size3 = (224, 112, 224),
        processing: Processing | None = None,
        crop: Size3 | None = None,
        num_crops: int = 1,
        batch_size: int = 8,
        **common: Any,
    ) -> None:
        processing = processing or Processing(
            spacing=None, window=(0.0, 255.0), resize=(size[0], size[1], size[2])
        )
        super().__init__(
            processing=processing, crop=crop, num_crops=num_crops, batch_size=batch_size, **common
        )

    @cached_property
    def diagnoses(self) -> Mapping[str, int]:
        """Name of a scan → its class."""
        return self.read_diagnoses(Path(str(self.root)).expanduser())

    @abstractmethod
    def read_diagnoses(self, root: Path) -> Mapping[str, int]:
        """Name of a scan → its class, from the files below the root; LayoutError where they cannot be read."""

    def class_of(self, pair: Pair) -> int:
        """The diagnosis."""
        if pair.name not in self.diagnoses:
            raise LayoutError(
                f"{pair.image} has no diagnosis: it is none of the {len(self.diagnoses)} scans listed"
            )
        return self.diagnoses[pair.name]


def sheet_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the first sheet of an Excel file, by the names in its first row.

    Raises:
        LayoutError: there is no such file, or it is no Excel file.
        ImportError: openpyxl is not installed.
    """
    openpyxl = require("openpyxl", "medical", "reading tables of diagnoses")
    if not path.is_file():
        raise LayoutError(f"{path} is missing: it holds the diagnoses, and is part of the official download")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        head, *rows = book.worksheets[0].iter_rows(values_only=True)
    # What openpyxl and zipfile raise for damaged files and others is of many kinds.
    except Exception as error:
        raise LayoutError(
            f"{path} cannot be read as an Excel file ({type(error).__name__}: {error})"
        ) from error
    names = [str(name).strip() for name in head]
    # A sheet stores no empty cells behind the last one of a row; readers look columns up by name.
    return [dict(zip(names, row, strict=False)) for row in rows if any(cell is not None for cell in row)]


def csv_column(path: Path, key: str, value: str) -> dict[str, str]:
    """Two columns of a CSV file as a mapping.

    Raises:
        LayoutError: there is no such file, or it lacks a column.
    """
    if not path.is_file():
        raise LayoutError(f"{path} is missing: it holds the diagnoses, and is part of the official download")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {key, value} <= set(reader.fieldnames or ()):
            raise LayoutError(
                f"{path} has the columns {', '.join(reader.fieldnames or ())}: expected {key} and {value}"
            )
        return {row[key]: row[value] for row in reader}


def path_labels(path: Path) -> list[tuple[str, int]]:
    """Lines ``path label`` of a text file; paths may hold spaces, empty lines do not count.

    Raises:
        LayoutError: there is no such file, or a line holds no whole number behind its path.
    """
    if not path.is_file():
        raise LayoutError(f"there is no list {path.name} in {path.parent}: expected lines 'path label'")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        file, _, label = line.strip().rpartition(" ")
        if line.strip() and not (file and label.lstrip("-").isdigit()):
            raise LayoutError(f"{path}, line {number}: {line!r} is no path with a class number behind it")
        if line.strip():
            found.append((file.strip(), int(label)))
    return found


def one_of(row: Mapping[str, Any], names: tuple[str, ...], path: Path) -> int:
    """The class whose column holds 1.

    Raises:
        LayoutError: none or several of the columns do.
    """
    marked = [number for number, name in enumerate(names) if str(row.get(name)).strip() in ("1", "1.0")]
    if len(marked) != 1:
        raise LayoutError(f"{path}: a row marks {len(marked)} of the columns {', '.join(names)}: {dict(row)}")
    return marked[0]
