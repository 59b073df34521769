"""Reading image and label pairs: decode, resize, crop, and nothing else. Everything stays uint8.

PNGs are decoded with Pillow. Measured on one core, torchvision's decoder takes 0.27 ms where Pillow takes
0.34 (64×128), and 13.3 ms against 14.2 (1280×704); but torchvision 0.29 killed the process on a PNG whose
checksum is wrong, and it turns the palette indices of GTA5's labels into colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.label_files import read_sbd_classes, read_synthia_ids
from datamodules.labels import ENCODINGS, IGNORE_INDEX
from datamodules.layout import Pair

Size = tuple[int, int]
#: ``none``, ``ram``, True (on disk, in the cache of selfzoo) or the folder of a cache on disk.
Cache = bool | str

_REDRAWS: Final = 10
_UNREADABLE: Final = (OSError, SyntaxError, ValueError)  # what Pillow raises on damaged files


class BrokenImageError(ValueError):
    """A file that cannot be decoded, or an image and a label that do not belong together."""


def read_image(path: Path) -> Tensor:
    """RGB image ``[3,H,W]`` uint8. Raises :class:`BrokenImageError` naming a file that cannot be decoded."""
    return torch.from_numpy(_read_pixels(path, "RGB")).permute(2, 0, 1)


def read_label(path: Path, encoding: str) -> Tensor:
    """TrainIds ``[H,W]`` uint8 of a label file stored in ``encoding`` (a key of ``ENCODINGS``).

    Raises:
        BrokenImageError: the file cannot be decoded.
        ValueError: it holds values that are not in the encoding.
    """
    return torch.from_numpy(ENCODINGS[encoding].decode(_read_pixels(path, encoding=encoding), path))


def _read_pixels(path: Path, mode: str | None = None, encoding: str | None = None) -> np.ndarray:
    try:
        if path.suffix == ".mat":
            return read_sbd_classes(path)
        if encoding == "synthia":
            return read_synthia_ids(path)
        with Image.open(path) as image:
            return np.array(image if mode is None or image.mode == mode else image.convert(mode))
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise BrokenImageError(
            f"{path} cannot be decoded ({error}). "
            "Extract it again, or set skip_broken: true to leave such files out."
        ) from error


def drop_broken(pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """Leave out pairs with a damaged file or with an image and label of different size.

    Reads every file once, so the result is the same in every process. Of PNGs only the checksums are compared;
    others are decoded.

    Returns:
        the usable pairs, and the reasons why others were left out (each names its files).
    """
    usable, reasons = [], []
    for pair in pairs:
        try:
            sizes = [_verified_size(path) for path in (pair.image, pair.label) if path is not None]
            _check_same_size(pair, *(size[::-1] for size in sizes))
        except BrokenImageError as error:
            reasons.append(str(error))
        else:
            usable.append(pair)
    return usable, reasons


def _verified_size(path: Path) -> Size:
    """Width and height of a file whose checksums are right."""
    if path.suffix == ".mat":
        height, width = _read_pixels(path).shape
        return width, height
    try:
        with Image.open(path) as image:
            size = image.size
            if image.format == "PNG":
                image.verify()
            else:
                image.load()  # without checksums, only decoding finds the damage
    except _UNREADABLE as error:
        raise BrokenImageError(f"{path} is damaged ({error})") from error
    return size


def _stored_size(path: Path) -> Size:
    """Height and width of an image file, from its header alone."""
    with Image.open(path) as image:
        return image.height, image.width


def _check_same_size(pair: Pair, *sizes: tuple[int, ...]) -> None:
    if len(set(sizes)) > 1:
        image, label = (" x ".join(map(str, size)) for size in sizes)
        raise BrokenImageError(
            f"Image {pair.image} is {image} but its label {pair.label} is {label} (height x width). "
            "Set skip_broken: true to leave such pairs out."
        )


def scaled_size(height: int, width: int, resize: Size) -> Size:
    """Height and width after a resize that keeps the aspect ratio.

    ``resize`` bounds the long and the short side, in either order: 1052×1914 resized to (1280, 720) is
    704×1280.
    """
    scale = min(max(resize) / max(height, width), min(resize) / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resized_image(image: Tensor, resize: Size | None) -> Tensor:
    """Image ``[3,H,W]`` uint8 at the size of :func:`scaled_size`, bilinear."""
    if resize is None:
        return image.contiguous()
    return rescaled(image[None], scaled_size(image.shape[1], image.shape[2], resize))[0]


def resized_label(label: Tensor, resize: Size | None) -> Tensor:
    """Label ``[H,W]`` at the size of :func:`scaled_size`, nearest."""
    if resize is None:
        return label
    size = scaled_size(label.shape[0], label.shape[1], resize)
    return F.interpolate(label[None, None], size=size, mode="nearest")[0, 0]


def rescaled(images: Tensor, size: Size) -> Tensor:
    """Images ``[B,3,H,W]`` at another size, bilinear."""
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class RandomCrop:
    """A random window that is drawn again, up to ten times, while one class dominates it.

    Args:
        size: height and width of the window in pixels.
        max_class_share: the window is drawn again while a single class covers at least this share of its
            valid pixels. Needs a label.
        min_rare_pixels: with a ``rare_class``, the whole draw is repeated up to ten times until the window
            holds more than this many of its pixels (rare-class sampling, DAFormer, CVPR 2022).
    """

    size: Size
    max_class_share: float = 0.75
    min_rare_pixels: int = 1500

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"crop must be a height and a width of at least one pixel, got {self.size}.")

    def window(
        self, shape: Size, label: Tensor | None, rng: np.random.Generator, rare_class: int | None = None
    ) -> tuple[slice, slice]:
        """Rows and columns of a window in an image of ``shape`` (height, width).

        Raises:
            ValueError: the window is larger than the image.
        """
        margins = tuple(side - crop for side, crop in zip(shape, self.size, strict=True))
        if min(margins) < 0:
            raise ValueError(
                f"crop {self.size} does not fit an image of {shape} (height, width) pixels. "
                "Lower crop, or resize to a larger size."
            )
        window = self._balanced(margins, label, rng)
        if label is None or rare_class is None or max(margins) == 0:
            return window
        for _ in range(_REDRAWS):
            if torch.count_nonzero(label[window] == rare_class) > self.min_rare_pixels:
                break
            window = self._balanced(margins, label, rng)
        return window

    def cut(
        self, image: Tensor, label: Tensor | None, rng: np.random.Generator, rare_class: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Cut one :meth:`window` out of an image ``[C,H,W]`` and its label ``[H,W]``."""
        rows, columns = self.window((image.shape[1], image.shape[2]), label, rng, rare_class)
        return image[:, rows, columns], None if label is None else label[rows, columns]

    def _balanced(
        self, margins: Sequence[int], label: Tensor | None, rng: np.random.Generator
    ) -> tuple[slice, slice]:
        window = self._draw(margins, rng)
        if label is None or max(margins) == 0:
            return window
        for _ in range(_REDRAWS):
            counts = torch.bincount(label[window].flatten(), minlength=256)[:IGNORE_INDEX]
            # All pixels ignored counts as dominated: 0 < 0 is false.
            if counts.max() < self.max_class_share * counts.sum():
                break
            window = self._draw(margins, rng)
        return window

    def _draw(self, margins: Sequence[int], rng: np.random.Generator) -> tuple[slice, slice]:
        top, left = (int(rng.integers(margin + 1)) for margin in margins)
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])


class ImageJob(NamedTuple):
    """One file, and what is done to it before a window is cut.

    Args:
        file: an image, or a label.
        encoding: how the label is stored (a key of ``ENCODINGS``); None for an image.
        resize: bounds of the long and short side, see :func:`scaled_size`.
        short_side: in place of them the length of the short side (:func:`datamodules.image_sizes.shrunk`).
        longest_side: or the most that the longer side may measure (:func:`datamodules.image_sizes.fitted`).
    """

    file: Path
    encoding: str | None = None
    resize: Size | None = None
    short_side: int | None = None
    longest_side: int | None = None


class StoredPixels(Protocol):
    """A decoded and resized file on disk (:mod:`datamodules.image_cache`)."""

    @property
    def size(self) -> Size:
        """Height and width of the file it was made of."""

    def read(self) -> Tensor:
        """Uint8 ``[3,H,W]`` or ``[H,W]``."""


class PixelCache(Protocol):
    """Where decoded files are kept."""

    def records(self, jobs: Sequence[ImageJob]) -> Sequence[StoredPixels]:
        """What was made of the files; raises where something is missing."""


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Image and label pairs of one split.

    Args:
        pairs: the files. A dataset whose ``encoding`` is None never opens a label.
        encoding: how labels are stored (a key of ``ENCODINGS``), or None for images only.
        resize: bounds of the long and short side, see :func:`scaled_size`; images bilinear, labels nearest.
        resize_label: False keeps labels at their stored size, the size at which they are evaluated.
        crop: window for :meth:`draw`.
        cache: ``ram`` keeps decoded and resized pairs in the memory of every process that reads them. For one on disk
            call :meth:`read_from`.
        truth: training draws call the label ``truth``, and windows are drawn as if there were none: it is to be kept
            aside for monitors (:attr:`SegmentationDataModule.truth`).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        encoding: str | None = None,
        resize: Size | None = None,
        resize_label: bool = True,
        crop: RandomCrop | None = None,
        cache: Cache = "none",
        truth: bool = False,
    ) -> None:
        self.pairs, self.truth = list(pairs), truth
        self.encoding, self.resize_label, self.crop = encoding, resize_label, crop
        self.resize: Size | None = None if resize is None else (resize[0], resize[1])  # YAML gives lists
        self._cache: dict[int, tuple[Tensor, Tensor | None]] | None = {} if cache == "ram" else None
        self._stored: dict[Path, StoredPixels] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The whole image, for evaluation: ``image``, ``label`` (if read), ``index``, ``name`` and ``size``.

        ``size`` is the stored height and width, at which predictions are written.
        """
        image, label = self.load(index)
        pair = self.pairs[index]
        size = tuple(image.shape[1:]) if self.resize is None else _stored_size(pair.image)
        return {**self._sample(index, image, label), "name": pair.name, "size": size}

    def draw(self, index: int, rng: np.random.Generator, rare_class: int | None = None) -> dict[str, Any]:
        """A random window of the image, for training: ``image``, ``label`` (or ``truth``, if read), ``index``."""
        image, label = self.load(index)
        if self.crop is not None:
            try:
                if self.truth and label is not None:
                    rows, columns = self.crop.window((image.shape[1], image.shape[2]), None, rng, rare_class)
                    image, label = image[:, rows, columns], label[rows, columns]
                else:
                    image, label = self.crop.cut(image, label, rng, rare_class)
            except ValueError as error:
                raise ValueError(f"{self.pairs[index].image}: {error}") from error
        sample = self._sample(index, image, label)
        return {("truth" if key == "label" and self.truth else key): value for key, value in sample.items()}

    def load(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Decoded and resized image ``[3,H,W]`` and label ``[H,W]``, both uint8; do not write to them.

        Raises:
            BrokenImageError: a file cannot be decoded, or image and label differ in size.
            ValueError: a label holds values outside its encoding.
        """
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        loaded = self._load(self.pairs[index])
        if self._cache is not None:
            self._cache[index] = loaded
        return loaded

    def _load(self, pair: Pair) -> tuple[Tensor, Tensor | None]:
        labelled = self.encoding is not None and pair.label is not None
        if self._stored:
            image = self._stored[pair.image].read()
            return image, self._stored[pair.label].read() if labelled and pair.label else None
        image, label = read_image(pair.image), None
        if labelled and pair.label and self.encoding:
            label = read_label(pair.label, self.encoding)
            _check_same_size(pair, tuple(image.shape[1:]), tuple(label.shape))
            label = resized_label(label, self.resize if self.resize_label else None)
        return resized_image(image, self.resize), label

    def jobs(self) -> list[ImageJob]:
        """All files that are read, with what is done to them."""
        images = [ImageJob(pair.image, None, self.resize) for pair in self.pairs]
        if self.encoding is None:
            return images
        resize = self.resize if self.resize_label else None
        return images + [ImageJob(pair.label, self.encoding, resize) for pair in self.pairs if pair.label]

    def read_from(self, cache: PixelCache) -> None:
        """Read what was kept on disk in place of decoding.

        Raises:
            BrokenImageError: an image and its label differ in size.
            RuntimeError: a file is not in the cache.
        """
        jobs = self.jobs()
        self._stored = dict(zip((job.file for job in jobs), cache.records(jobs), strict=True))
        for pair in self.pairs:
            if pair.label in self._stored:
                _check_same_size(pair, self._stored[pair.image].size, self._stored[pair.label].size)

    @staticmethod
    def _sample(index: int, image: Tensor, label: Tensor | None) -> dict[str, Any]:
        sample: dict[str, Any] = {"image": image, "index": index}
        return sample if label is None else {**sample, "label": label}
