"""Generated volumes on disk: rendered once into a Decathlon tree, complete and undamaged or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from datamodules.cache import ensure_folder
from datamodules.layout import Layout, Split
from datamodules.volume_files import write_nifti
from datamodules.volume_lists import listed_layout

#: Split → its section in the list, and the first of its seeds.
SECTIONS: Final = {"train": ("training", 0), "val": ("validation", 100_000), "test": ("test", 200_000)}


class Rendering(NamedTuple):
    """A volume ``[X, Y, Z]``, its labels and their affine ``[4, 4]``."""

    volume: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def rendered_layout(title: str) -> Layout:
    """The tree of generated volumes, of any number."""
    return listed_layout(
        title,
        "rendered on first use (prepare_data); nothing to download",
        "dataset.json",
        **{split: Split(section) for split, (section, _) in SECTIONS.items()},
    )


@dataclass(frozen=True)
class RenderedVolumes:
    """Generated volumes with labels.

    Args:
        name: of the tree.
        settings: everything that changes a voxel; part of the folder's name.
        counts: split → number of volumes.
        classes: names of the labels, from 0.
        render: seed → a volume.

    Raises:
        ValueError: a count is out of range.
    """

    name: str
    settings: Sequence[object]
    counts: Mapping[str, int]
    classes: Sequence[str]
    render: Callable[[int], Rendering]

    def __post_init__(self) -> None:
        """Check the counts."""
        for split, count in self.counts.items():
            if not 1 <= count <= 100_000:  # the distance between two splits' seeds
                raise ValueError(f"num_{split} must lie in 1..100000, got {count}.")

    def folder(self, base: Path) -> Path:
        """Where the tree lies below ``base``."""
        settings = json.dumps([self.settings, dict(self.counts)])
        return base / f"{self.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def ensure(self, base: Path) -> Path:
        """Return the folder, rendered unless it is there undamaged; safe from several processes at once.

        Raises:
            ImportError: nibabel is not installed.
        """
        ensure_folder(self.folder(base), f"{sum(self.counts.values())} volumes of {self.name}", self._write)
        return self.folder(base)

    def _write(self, root: Path) -> None:
        content: dict[str, object] = {
            "name": self.name,
            "tensorImageSize": "3D",
            "labels": {str(number): name for number, name in enumerate(self.classes)},
        }
        for split, count in self.counts.items():
            section, first = SECTIONS[split]
            end = "Ts" if split == "test" else "Tr"
            entries = []
            for seed in range(first, first + count):
                made, file = self.render(seed), f"{self.name}_{seed:06d}.nii.gz"
                entries.append({"image": f"./images{end}/{file}", "label": f"./labels{end}/{file}"})
                write_nifti(root / entries[-1]["image"], made.volume, made.affine)
                write_nifti(root / entries[-1]["label"], made.label, made.affine)
            content[section] = entries
        (root / "dataset.json").write_text(json.dumps(content, indent=1))
