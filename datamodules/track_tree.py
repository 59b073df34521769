"""Views of tracks on disk: rendered once from the game's own files, complete and undamaged or not at all."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from PIL import Image

from datamodules.cache import ensure_folder, png_bytes, write_atomically
from datamodules.layout import LabelFiles, Layout, Split
from datamodules.track_files import PACKAGE, VERSION, TrackError, read_scene
from datamodules.track_labels import PALETTE
from datamodules.track_views import Stretch, draw_view

#: Raised by every change that alters a pixel, so that caches of older pixels are not reused.
RENDER_VERSION: Final = 1
#: Where the package is installed.
DEFAULT_ROOTS: Final = ("/usr/share/games/torcs", "/usr/local/share/games/torcs")

SOURCE: Final = tuple(
    Stretch(f"road/{name}")
    for name in ("alpine-1", "corkscrew", "e-track-2", "e-track-3", "e-track-6", "g-track-2", "wheel-1")
)
#: The package has one track in snow, so its lap is cut: between the stretches of two splits lie 150 m.
TARGET: Final = {
    "train": Stretch("road/alpine-2", ((0, 2900), (7600, 9600))),
    "val": Stretch("road/alpine-2", ((6100, 7100),)),
    "test": Stretch("road/alpine-2", ((3350, 5650),)),
}
#: CRC-32 of every track's 3-D description in ``VERSION``.
CHECKSUMS: Final = {
    "road/alpine-1": 0x31AFEBCF,
    "road/alpine-2": 0xB41E8865,
    "road/corkscrew": 0xA961A710,
    "road/e-track-2": 0x2F9F46CC,
    "road/e-track-3": 0x7259C293,
    "road/e-track-6": 0x5CC31B94,
    "road/g-track-2": 0x14627C11,
    "road/wheel-1": 0xFE3DA9FD,
}

_HOW_TO_GET: Final = (
    f"Install the Debian package {PACKAGE} (version {VERSION}, 318 MiB): `apt-get install {PACKAGE}`; or, without "
    f"being root, `apt-get download {PACKAGE} && dpkg -x {PACKAGE}_*.deb FOLDER`"
)


def _layout(title: str, *splits: str) -> Layout:
    return Layout(
        title=f"Race tracks, {title}",
        images="images",
        suffix=".png",
        labels=(LabelFiles("labels", ".png", "trainIds"),),
        splits={split: Split(f"{split}/*/*") for split in splits},
        origin=f"rendered on first use (prepare_data). {_HOW_TO_GET}",
    )


SOURCE_LAYOUT: Final = _layout("summer", "train")
TARGET_LAYOUT: Final = _layout("snow", "train", "val", "test")
#: All 256 entries: Pillow stores an image with few colours in four bits, and the ignore index needs eight.
_PALETTE: Final = [value for color in PALETTE for value in color] + [0] * (768 - 3 * len(PALETTE))
_SPLIT_SEEDS: Final = {"source": 0, "train": 1, "val": 2, "test": 3}


def find_root(root: str | None) -> Path:
    """The folder with the game's ``tracks`` and ``data``.

    Args:
        root: that folder, or one the package was extracted to; None looks where the package is installed.

    Raises:
        TrackError: it is not there.
    """
    places = [Path(root).expanduser()] if root else [Path(place) for place in DEFAULT_ROOTS]
    for place in places:
        for folder in (place, place / "usr/share/games/torcs"):
            if (folder / "tracks").is_dir():
                return folder
    raise TrackError(
        f"root={root!r}: there are no race tracks in {' or '.join(map(str, places))}. {_HOW_TO_GET} and set root to "
        "FOLDER."
    )


@dataclass(frozen=True)
class TrackTree:
    """One domain on disk: ``images/<split>/<track>/<track>_<number>.png`` and the same below ``labels``.

    Args:
        domain: ``source`` (summer) or ``target`` (snow).
        counts: images of each split; source images are spread evenly over the tracks.
        height: rows in pixels.
        width: columns in pixels.
        other_version: the folder of tracks of another version than ``VERSION``; empty accepts only that one.

    Raises:
        ValueError: a count or size cannot be rendered.
    """

    domain: str
    counts: Mapping[str, int]
    height: int
    width: int
    other_version: str = ""

    def __post_init__(self) -> None:
        for name, size in (("height", self.height), ("width", self.width)):
            if size < 16:
                raise ValueError(f"{name} must be at least 16 pixels, got {size}.")
        for split, count in self.counts.items():
            if count < 1:
                raise ValueError(f"The number of {split} images must be at least 1, got {count}.")

    def folder(self, base: Path) -> Path:
        """Where the tree lies below ``base``: every setting that changes a pixel is part of the name."""
        settings = [self.domain, dict(self.counts), self.height, self.width, self.other_version]
        digest = hashlib.sha256(json.dumps([RENDER_VERSION, *settings]).encode()).hexdigest()
        return base / f"racetracks-{self.domain}-{digest[:12]}"

    def ensure(self, base: Path, root: str | None) -> None:
        """Render the tree unless it is there undamaged. An interrupted run goes on where it was.

        Args:
            base: folder for the trees.
            root: see :func:`find_root`. Nothing is looked for where the tree is complete.

        Raises:
            TrackError: the game's files are missing, damaged or of another version.
        """
        what = f"{sum(self.counts.values())} race track images ({self.domain})"
        ensure_folder(
            self.folder(base), what, lambda folder: self._write(folder, find_root(root)), resume=True
        )

    def _write(self, folder: Path, root: Path) -> None:
        for stretch, views in self._views():
            # The label is written last: where there is one, the view is complete.
            missing = {path: seed for path, seed in views.items() if not (folder / "labels" / path).is_file()}
            if not missing:
                continue
            if not self.other_version:
                _check_version(root, stretch.track)
            scene = read_scene(root, stretch.track)
            for path, seed in missing.items():
                pixels, label = draw_view(scene, stretch, seed, self.height, self.width)
                painted = Image.fromarray(label)
                painted.putpalette(_PALETTE)
                for kind, image in (("images", Image.fromarray(pixels)), ("labels", painted)):
                    write_atomically(folder / kind / path, partial(_save, image))

    def _views(self) -> Iterator[tuple[Stretch, dict[str, tuple[int, int]]]]:
        """Stretches, and for each the paths and seeds of its views."""
        for split, count in self.counts.items():
            stretches = SOURCE if self.domain == "source" else (TARGET[split],)
            seed = _SPLIT_SEEDS["source" if self.domain == "source" else split]
            for position, stretch in enumerate(stretches):
                numbers = range(position, count, len(stretches))
                name = stretch.name
                yield (
                    stretch,
                    {f"{split}/{name}/{name}_{split}_{number:05d}.png": (seed, number) for number in numbers},
                )


def _save(image: Image.Image, file: BinaryIO) -> None:
    file.write(png_bytes(image))


def _check_version(root: Path, track: str) -> None:
    path = root / "tracks" / track / f"{Path(track).name}.acc"
    if not path.is_file():
        raise TrackError(f"There is no file {path}: is this {PACKAGE} of version {VERSION}? {_HOW_TO_GET}.")
    if zlib.crc32(path.read_bytes()) != CHECKSUMS[track]:
        raise TrackError(
            f"{path} is not that of {PACKAGE} {VERSION}, so results would not compare. Extract that version, or "
            "set other_version: true to render what is there."
        )
