"""Tensors as pictures: images, label maps, heat maps, spectrograms, slices of volumes, positions of crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.sheet import Cell, font, sheet
from datamodules.labels import RGB

#: Frames of up to six crops.
FRAMES: tuple[RGB, ...] = (
    (230, 85, 13), (49, 130, 189), (49, 163, 84), (197, 27, 138), (217, 190, 20), (117, 107, 177),
)  # fmt: skip
ON_HEAT: RGB = (90, 220, 255)
"""Frames over heat maps."""
BLANK: RGB = (205, 205, 205)
"""Where there is no value."""


def image_pixels(image: Tensor) -> np.ndarray:
    """Pixels ``[H, W, 3]`` of an image ``[3, H, W]`` or ``[1, H, W]``, float in [0, 1]."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def colorize(label: Tensor, palette: Any) -> np.ndarray:
    """Colours ``[H, W, 3]`` of a label map; what has no colour (ignore) is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    return table[label.cpu().numpy().astype(np.uint8)]


def heat(values: Tensor, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colours of values ``[H, W]``, black for ``low`` to light yellow for ``high``; nan is grey.

    Without limits they are the smallest and the largest value.
    """
    from matplotlib import colormaps  # takes a third of a second to import

    array = values.detach().float().cpu().numpy()
    known = array[np.isfinite(array)]
    low = float(known.min(initial=np.inf)) if low is None else low
    high = float(known.max(initial=-np.inf)) if high is None else high
    scaled = (array - low) / max(high - low, 1e-12)
    pixels = (colormaps["magma"](np.nan_to_num(scaled))[..., :3] * 255).round().astype(np.uint8)
    return np.where(np.isfinite(array)[..., None], pixels, np.array(BLANK, np.uint8))


def spectrogram_pixels(
    spectrogram: Tensor, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Picture of a spectrogram ``[mels, T]``: time to the right, high frequencies on top; nan is grey."""
    return heat(spectrogram.flip(0), low, high)


def palette_of(datamodule: Any, count: int) -> Sequence[RGB]:
    """Colours of ``count`` classes: the benchmark's own, or distinct ones with a black background class."""
    own = getattr(datamodule, "palette", None)
    if own is not None:
        return own
    from matplotlib import colormaps

    table = (np.asarray(colormaps["tab20"].colors) * 255).round().astype(int)  # type: ignore[attr-defined]
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    return [(0, 0, 0), *(tuple(table[order[i % 20]].tolist()) for i in range(count - 1))]


def legend_of(labels: Sequence[Tensor], palette: Sequence[RGB], classes: Sequence[str]) -> dict[str, RGB]:
    """Names and colours of the classes that occur in label maps."""
    found = sorted({int(value) for label in labels for value in label.unique()})
    return {classes[c]: palette[c] for c in found if c < min(len(classes), len(palette))} | (
        {"ignore": (0, 0, 0)} if any(c >= len(palette) for c in found) else {}
    )


# -- segmentation ---------------------------------------------------------------------------------------


def segmentation_sheet(
    rows: Sequence[Mapping[str, Tensor]], palette: Sequence[RGB], classes: Sequence[str], heading: str = ""
) -> Image.Image:
    """Image, truth, prediction and confidence (black 0, light yellow 1) of every row.

    Args:
        rows: ``image`` ``[3, H, W]``, ``truth`` and ``prediction`` ``[H, W]``, ``confidence`` ``[H, W]``.
        palette: colours of the classes.
        classes: their names.
        heading: above everything.
    """
    drawn = []
    for row in rows:
        counted = row["truth"] != 255
        right = (row["truth"] == row["prediction"])[counted].float().mean()
        drawn.append(
            [
                Cell(image_pixels(row["image"])),
                Cell(colorize(row["truth"], palette)),
                Cell(colorize(row["prediction"], palette), f"{100 * float(right):.1f} % of pixels right"),
                Cell(heat(row["confidence"], 0, 1), f"mean {float(row['confidence'].mean()):.2f}"),
            ]
        )
    maps = [row[key] for row in rows for key in ("truth", "prediction")]
    titles = ("image", "truth", "prediction", "confidence")
    return sheet(drawn, titles, heading, legend_of(maps, palette, classes))


# -- spectrograms ---------------------------------------------------------------------------------------


def reconstruction_sheet(
    original: Tensor, masked: Tensor, reconstructed: Tensor, heading: str = ""
) -> Image.Image:
    """What a masked model saw and what it rebuilt, a clip per row, all in one scale of colours.

    Args:
        original: spectrograms ``[B, mels, T]``.
        masked: the same with nan where patches are masked.
        reconstructed: the same with predictions there.
        heading: above everything.
    """
    rows = []
    for clip, seen, rebuilt in zip(original, masked, reconstructed, strict=True):
        low, high = float(clip.min()), float(clip.max())
        hidden = seen.isnan()
        error = (rebuilt - clip)[hidden].square().mean()
        mean = (clip[hidden] - clip[~hidden].mean()).square().mean()  # of guessing the mean of what is seen
        captions = (
            "",
            f"{100 * float(hidden.float().mean()):.0f} % masked",
            f"error of masked values {float(error):.3f} (guessing the mean: {float(mean):.3f})",
        )
        rows.append(
            [
                Cell(spectrogram_pixels(values, low, high), caption)
                for values, caption in zip((clip, seen, rebuilt), captions, strict=True)
            ]
        )
    return sheet(rows, ("original", "masked", "reconstructed"), heading)


# -- volumes --------------------------------------------------------------------------------------------

PLANES = ("axial", "coronal", "sagittal")


def plane(volume: Tensor, axis: int, at: int) -> Tensor:
    """Slice of a volume ``[X, Y, Z]`` across an axis, as radiologists look at it: right side left, top or front up."""
    return volume.select(axis, at).transpose(0, 1).flip(0, 1)


def grey(values: Tensor) -> np.ndarray:
    """Grey levels of a slice in [0, 1]."""
    return image_pixels(values[None])


def overlaid(values: Tensor, label: Tensor, palette: Sequence[RGB], opacity: float = 0.55) -> np.ndarray:
    """A grey slice with the colours of its classes, background and ignored left grey."""
    under, over = grey(values), colorize(label, palette)
    shown = ((label > 0) & (label < len(palette))).cpu().numpy()[..., None]
    return np.where(shown, (1 - opacity) * under + opacity * over, under).astype(np.uint8)


def fullest(label: Tensor) -> tuple[int, int, int]:
    """Where along X, Y and Z a label map ``[X, Y, Z]`` shows most organs; the middle where it shows none."""
    organs = ((label > 0) & (label < 255)).float()
    if not bool(organs.any()):
        return tuple(side // 2 for side in label.shape)  # type: ignore[return-value]
    places = [organs.sum([other for other in range(3) if other != axis]).argmax() for axis in range(3)]
    return tuple(int(place) for place in places)  # type: ignore[return-value]


def volume_rows(
    volume: Tensor,
    labels: Mapping[str, Tensor],
    palette: Sequence[RGB],
    at: tuple[int, int, int] | None = None,
) -> list[list[Cell | None]]:
    """Three rows, the planes of a volume ``[X, Y, Z]``: plain, then with each label map laid over it."""
    if at is None:
        first = next(iter(labels.values()), torch.zeros_like(volume))
        at = fullest(first)
    rows: list[list[Cell | None]] = []
    for name, axis in zip(PLANES, (2, 1, 0), strict=True):
        values = plane(volume, axis, at[axis])
        maps = [Cell(overlaid(values, plane(label, axis, at[axis]), palette)) for label in labels.values()]
        rows.append([Cell(grey(values), f"{name}, {'XYZ'[axis]} = {at[axis]}"), *maps])
    return rows


# -- positions of crops ---------------------------------------------------------------------------------


def position_sheet(
    volume: Tensor,
    crop_box: Tensor,
    base_box: Tensor,
    truth: Tensor,
    predicted: Tensor | None = None,
    heading: str = "",
) -> Image.Image:
    """How crops of one volume lie over its base crops: a row per crop, with true and predicted overlaps.

    Maps are axial, in the layer of base crops that holds the crop's centre; all have the scale 0 to 1.

    Args:
        volume: ``[X, Y, Z]``.
        crop_box: ``[n, 6]``, voxels of the volume, as :mod:`zoo.nn.positions` has them.
        base_box: ``[m, 6]``.
        truth: true overlaps ``[n, m]``.
        predicted: predicted ones ``[n, m]``; None leaves them out.
        heading: above everything.
    """
    maps = {"true overlap": truth} | ({} if predicted is None else {"predicted overlap": predicted})
    rows, zoom = [], zoom_for(volume)
    for i, box in enumerate(crop_box.tolist()):
        middle = (box[2] + box[5]) // 2
        layer = [m for m, base in enumerate(base_box.tolist()) if base[2] <= middle < base[5]]
        bases = [base_box[m].tolist() for m in layer]
        row = [Cell(boxed(volume, bases, [box], middle, zoom), f"crop {i + 1}, Z = {middle}")]
        for name, values in maps.items():
            best = int(values[i].argmax())
            caption = "best base: " + ("right" if truth[i, best] == truth[i].amax() else "wrong")
            pixels = overlap_map(tuple(volume.shape), bases, values[i][layer], box, zoom)
            row.append(Cell(pixels, "" if name == "true overlap" else caption))
        rows.append(row)
    return sheet(rows, ("crop and bases", *maps), heading, side=1)


def boxed(
    volume: Tensor, bases: Sequence[Sequence[int]], crops: Sequence[Sequence[int]], z: int, zoom: int = 1
) -> np.ndarray:
    """Axial slice of a volume, enlarged, with thin white frames of base crops and coloured ones of crops."""
    picture = Image.fromarray(enlarged(grey(plane(volume, 2, z)), zoom))
    draw = ImageDraw.Draw(picture)
    for base in bases:
        draw.rectangle(_rectangle(base, volume.shape, zoom), outline=(255, 255, 255))
    for color, crop in zip(FRAMES, crops, strict=False):  # as many as there are colours
        draw.rectangle(_rectangle(crop, volume.shape, zoom), outline=color, width=3)
    return np.asarray(picture)


def overlap_map(
    shape: Sequence[int], bases: Sequence[Sequence[int]], values: Tensor, crop: Sequence[int], zoom: int = 1
) -> np.ndarray:
    """Base crops filled by their value, with the crop's frame over them."""
    filled = torch.full(tuple(shape[:2]), torch.nan)
    for base, value in zip(bases, values.tolist(), strict=True):
        filled[base[0] : base[3], base[1] : base[4]] = value
    picture = Image.fromarray(enlarged(heat(plane(filled[..., None], 2, 0), 0, 1), zoom))
    draw = ImageDraw.Draw(picture)
    frames = [_rectangle(base, shape, zoom) for base in bases]
    for frame in frames:
        draw.rectangle(frame, outline=(90, 90, 90))
    draw.rectangle(_rectangle(crop, shape, zoom), outline=ON_HEAT, width=3)
    for (left, top, right, bottom), value in zip(frames, values.tolist(), strict=True):
        ink = (0, 0, 0) if value > 0.6 else (255, 255, 255)
        draw.text(((left + right) / 2, (top + bottom) / 2), f"{value:.2f}", ink, font(12), anchor="mm")
    return np.asarray(picture)


def framed(pixels: np.ndarray, color: RGB) -> np.ndarray:
    """A picture with a coloured border inside."""
    picture = Image.fromarray(pixels)
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=color, width=3)
    return np.asarray(picture)


def enlarged(pixels: np.ndarray, zoom: int) -> np.ndarray:
    """Every pixel as ``zoom * zoom`` pixels."""
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def zoom_for(volume: Tensor, side: int = 192) -> int:
    """The factor by which an axial slice becomes about ``side`` pixels high."""
    return max(1, round(side / volume.shape[1]))


def _rectangle(box: Sequence[int], shape: Sequence[int], zoom: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of a box in an enlarged axial slice, which is seen from below, front up."""
    x0, y0, _, x1, y1, _ = box
    return (
        zoom * (shape[0] - x1),
        zoom * (shape[1] - y1),
        zoom * (shape[0] - x0) - 1,
        zoom * (shape[1] - y0) - 1,
    )
