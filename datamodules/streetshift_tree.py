"""StreetShift on disk: rendered once into official trees, complete and undamaged or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.cache import ensure_folder, png_bytes
from datamodules.labels import CITYSCAPES_LABELS, TRAIN_ID_TO_ID
from datamodules.layout import CITYSCAPES, GTA5, Split
from datamodules.streetshift import FIRST_SEED, GENERATOR_VERSION, Domain, check_arguments, render

_ORIGIN = "rendered on first use (prepare_data); nothing to download"
#: The official trees, with as many images as were asked for.
SOURCE_TREE = replace(
    GTA5, title="StreetShift source (GTA5 tree)", origin=_ORIGIN, splits={"train": Split("*")}
)
TARGET_TREE = replace(
    CITYSCAPES,
    title="StreetShift target (Cityscapes tree)",
    origin=_ORIGIN,
    splits={name: Split(split.pattern) for name, split in CITYSCAPES.splits.items()},
)


@dataclass(frozen=True)
class RenderedTree:
    """One domain of StreetShift on disk.

    Args:
        domain: ``source`` is written as a GTA5 tree, ``target`` as a Cityscapes tree.
        counts: images of each split: a key of ``FIRST_SEED`` → number.
        height: rows in pixels.
        width: columns in pixels.
        shift: strength of the target's look; without effect on the source.

    Raises:
        ValueError: a count or size cannot be rendered.
    """

    domain: Domain
    counts: Mapping[str, int]
    height: int
    width: int
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_arguments(self.domain, self.shift, self.height, self.width)
        for split, count in self.counts.items():
            if not 1 <= count <= 100_000:  # the distance between two splits' seeds
                raise ValueError(f"The number of {split} images must lie in 1..100000, got {count}.")

    def folder(self, base: Path) -> Path:
        """Where the tree lies below ``base``: every setting that changes a pixel is part of the name."""
        settings = json.dumps([GENERATOR_VERSION, asdict(self)], sort_keys=True)
        return base / f"streetshift-{self.domain}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def ensure(self, base: Path) -> Path:
        """Return the folder, rendered unless it is there undamaged; safe from several processes at once."""
        folder = self.folder(base)
        ensure_folder(folder, f"{sum(self.counts.values())} StreetShift {self.domain} images", self._write)
        return folder

    def _write(self, root: Path) -> None:
        for path, content in self._files():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Paths in the official tree and contents of all files."""
        for split, count in self.counts.items():
            for number in range(count):
                seed = FIRST_SEED[split] + number
                image, train_ids = render(seed, self.domain, self.shift, self.height, self.width)
                label = Image.fromarray(np.array(TRAIN_ID_TO_ID, np.uint8)[train_ids])
                if self.domain == "source":
                    label.putpalette([value for entry in CITYSCAPES_LABELS for value in entry.color])
                    yield f"images/{number + 1:05d}.png", png_bytes(Image.fromarray(image))
                    yield f"labels/{number + 1:05d}.png", png_bytes(label)
                else:
                    place = f"{split}/streetshift/streetshift_{seed:06d}_000000"
                    yield f"leftImg8bit/{place}_leftImg8bit.png", png_bytes(Image.fromarray(image))
                    yield f"gtFine/{place}_gtFine_labelIds.png", png_bytes(label)
