"""What a training step sees, as one picture: for ``zoo doctor`` and for the first steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from callbacks.pictures import (
    FRAMES,
    boxed,
    colorize,
    enlarged,
    framed,
    grey,
    heat,
    image_pixels,
    legend_of,
    palette_of,
    plane,
    spectrogram_pixels,
    volume_rows,
    zoom_for,
)
from callbacks.sheet import Cell, below, sheet

Batch = Mapping[str, Any]
WIDTH = 1000  # pixels, about

#: Columns of batches nested per domain: title → (part, key, kind).
DOMAIN_COLUMNS: dict[str, tuple[str, str, str]] = {
    f"{part} {title}".strip(): (part, key, kind)
    for part in ("source", "labelled", "target", "unlabelled", "mixed")
    for title, key, kind in (
        ("", "image", "image"),
        ("by day", "day", "image"),
        ("strong view", "strong", "image"),
        ("label", "label", "label"),
        ("pseudo-label", "pseudo_label", "label"),
        ("pseudo-weight", "pseudo_weight", "weight"),
        ("weight", "weight", "weight"),
    )
}


def preview(batch: Batch, datamodule: Any = None, count: int = 4) -> Image.Image:
    """Draw the first samples of a batch, as ``on_after_batch_transfer`` and the callbacks left it.

    Draws, with titles and a legend of classes: the global and local views of self-distillation; source, target
    and mixed images with labels, pseudo-labels, weights and strong views; videos; spectrograms; volumes in three
    planes, with labels; crops and base crops of volumes; plain images.

    Args:
        batch: a training or evaluation batch (``docs/architecture.md`` lists the keys).
        datamodule: for the names and colours of classes.
        count: most samples to draw.

    Raises:
        ValueError: the batch holds nothing that can be drawn, or no sample.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    kinds: dict[str, Callable[[Batch, Any, int], Image.Image]] = {
        "views": _views, "mixed": _domains, "source": _domains, "labelled": _domains,
        "target": _domains, "unlabelled": _domains, "video": _videos, "spectrogram": _spectrograms,
        "waveform": _waveforms, "pair": _pairs, "signal": _signals, "crops": _crops, "volume": _volumes,
        "image": _images,
    }  # fmt: skip
    for key, draw in kinds.items():
        if key in batch:
            return draw(batch, datamodule, count)
    raise ValueError(
        f"nothing in this batch can be drawn: it holds {', '.join(map(str, batch)) or 'nothing'}, and one of "
        f"{', '.join(kinds)} is needed"
    )


def _views(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Self-distillation: a row per image, view-major crops side by side."""
    first = batch["views"]["global"]
    total = len(batch["image"]) if "image" in batch else len(batch.get("index", first[: len(first) // 2]))
    titles = ["image"] * ("image" in batch)
    columns = [batch["image"]] if "image" in batch else []
    for name, views in batch["views"].items():
        groups = views.split(total)
        titles += [f"{name} {number + 1}" for number in range(len(groups))]
        columns += groups
    captions = _class_names(batch.get("label"), datamodule)
    rows = []
    for i in range(min(count, total)):
        cells = [Cell(image_pixels(column[i])) for column in columns]
        rows.append([Cell(cells[0].pixels, captions[i] if captions else ""), *cells[1:]])
    shown = ", ".join(f"{name} {list(views.shape[-2:])}" for name, views in batch["views"].items())
    return sheet(rows, titles, f"Views of a training batch: {shown}")


def _domains(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Adaptation and semi-supervision: a row per position in the batch, a column per picture of a domain."""
    present = {
        title: (batch[part][key], kind)
        for title, (part, key, kind) in DOMAIN_COLUMNS.items()
        if key in batch.get(part, {})
    }
    parts = [part for part in batch.values() if isinstance(part, Mapping)]
    if not present or any("volume" in part for part in parts):  # each drawn as if it were alone
        return below([preview(part, datamodule, count) for part in parts])
    maps = [values[:count] for values, kind in present.values() if kind == "label"]
    largest = max((int(m[m < 255].max()) + 1 for m in maps if bool((m < 255).any())), default=1)
    palette = palette_of(datamodule, largest)
    rows: list[list[Cell | None]] = []
    for i in range(min(count, max(len(values) for values, _ in present.values()))):
        rows.append([_domain_cell(values[i], kind, palette) if i < len(values) else None
                     for values, kind in present.values()])  # fmt: skip
    classes = getattr(datamodule, "classes", [f"class {c}" for c in range(largest)])
    domains = ", ".join(
        part for part in ("source", "labelled", "target", "unlabelled", "mixed") if part in batch
    )
    return sheet(rows, list(present), f"Training batch: {domains}", legend_of(maps, palette, classes))


def _domain_cell(values: Tensor, kind: str, palette: Any) -> Cell:
    if kind == "label":
        return Cell(colorize(values, palette))
    if kind == "weight":
        return Cell(heat(values, 0, 1), f"mean {float(values.float().mean()):.2f}")
    return Cell(image_pixels(values))


def _spectrograms(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Audio: a spectrogram per row, time to the right."""
    captions = _class_names(batch.get("label"), datamodule)
    shown = batch["spectrogram"][:count].transpose(1, 2)
    cells: list[Cell | None] = []
    for i, values in enumerate(shown):
        frames = f"{int(batch['frames'][i])} of {values.shape[1]} frames" if "frames" in batch else ""
        caption = ", ".join(part for part in (captions[i] if captions else "", frames) if part)
        cells.append(Cell(spectrogram_pixels(values), caption))
    mels, length = shown.shape[1:]
    beside = max(1, WIDTH // length)
    rows = [cells[start : start + beside] for start in range(0, len(cells), beside)]
    return sheet(rows, (), f"Log-mel spectrograms of a batch: {mels} bands, {length} frames")


def _videos(batch: Batch, datamodule: Any, count: int, frames: int = 6) -> Image.Image:
    """Video with sound: frames of a clip and its spectrogram side by side."""
    views = max(1, len(batch["video"]) // len(batch.get("index", batch["video"])))
    numbers = getattr(datamodule, "num_values", 0)
    captions = [] if numbers else _class_names(batch.get("label"), datamodule)
    rows: list[list[Cell | None]] = []
    for i, video in enumerate(batch["video"][: views * count : views]):
        picked = torch.linspace(0, video.shape[1] - 1, min(frames, video.shape[1])).long().tolist()
        row: list[Cell | None] = [Cell(image_pixels(video[:, number])) for number in picked]
        row[0] = Cell(image_pixels(video[:, picked[0]]), captions[i] if captions else "")
        if "spectrogram" in batch:
            row.append(Cell(spectrogram_pixels(batch["spectrogram"][views * i].T)))
        rows.append(row)
    return sheet(rows, (), f"Videos of a batch {list(batch['video'].shape[2:])}, first view", side=96)


def _waveforms(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Audio without features."""
    captions = _class_names(batch.get("label"), datamodule)
    waves = batch["waveform"][:count].float().cpu()
    rows = [[Cell(_curve(wave), captions[i] if captions else "")] for i, wave in enumerate(waves)]
    return sheet(rows, (), "Waveforms of a batch, -1 to 1")


def _pairs(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Biosignals in training: a row per participant, two segments side by side, channels below one another."""
    rows = [[Cell(_channels(view, 320)) for view in pair] for pair in batch["pair"][:count].float().cpu()]
    channels, length = batch["pair"].shape[2:]
    return sheet(rows, ("first", "second"), f"Pairs of a batch: {channels} channels, {length} samples")


def _signals(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Biosignals in evaluation: a row per segment, channels below one another."""
    rows = [[Cell(_channels(signal, 512))] for signal in batch["signal"][:count].float().cpu()]
    channels, length = batch["signal"].shape[1:]
    return sheet(rows, (), f"Segments of a batch: {channels} channels, {length} samples")


def _channels(signal: Tensor, width: int) -> Any:
    """Channels ``[C, T]`` below one another, each from its least to its largest sample."""
    middle = (signal.amax(1, keepdim=True) + signal.amin(1, keepdim=True)) / 2
    reach = (signal - middle).abs().amax(1, keepdim=True).clamp(min=1e-12)
    curves = [_curve(channel, width, 48) for channel in (signal - middle) / reach]
    return np.concatenate(curves)


def _curve(wave: Tensor, width: int = 512, height: int = 96) -> Any:
    """Pixels of a curve ``[T]`` within [-1, 1]: from the least to the largest sample of every column."""
    width = min(width, len(wave))
    pieces = torch.nn.functional.pad(wave[None, None], (0, -len(wave) % width), mode="replicate").view(
        width, -1
    )
    level = torch.linspace(1, -1, height)[:, None]
    step = 2 / height
    filled = (level <= pieces.amax(1) + step) & (level >= pieces.amin(1) - step)
    return image_pixels(1 - 0.75 * filled.float()[None])


def _crops(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Position prediction: where crops lie in a volume, and the crops as networks get them."""
    rows: list[list[Cell | None]] = []
    zoom = zoom_for(batch["volume"][0, 0])
    for i in range(min(count, len(batch["crops"]))):
        boxes, bases = batch["crop_box"][i].tolist(), batch["base_box"][i].tolist()
        z = (boxes[0][2] + boxes[0][5]) // 2
        inside = [base for base in bases if base[2] <= z < base[5]]
        where = Cell(boxed(batch["volume"][i, 0].cpu(), inside, boxes, z, zoom), f"axial, Z = {z}")
        crops = [  # as many as there are colours
            Cell(framed(pixels, color))
            for color, pixels in zip(
                FRAMES, (_middle(crop, zoom) for crop in batch["crops"][i]), strict=False
            )
        ]
        rows.append([where, *crops, *(Cell(_middle(base, zoom)) for base in batch["base"][i][:2])])
    titles = ["volume", *(f"crop {k + 1}" for k in range(len(rows[0]) - 3)), "base 1", "base 2"]
    return sheet(rows, titles, "Crops and base crops of volumes", side=1)


def _middle(volume: Tensor, zoom: int) -> np.ndarray:
    """Axial slice through the middle of a crop ``[C, x, y, z]``."""
    return enlarged(grey(plane(volume[0].cpu(), 2, volume.shape[-1] // 2)), zoom)


def _volumes(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Volumes in three planes, with their labels."""
    classes: Sequence[str] = getattr(datamodule, "classes", ())
    palette = palette_of(datamodule, max(len(classes), 2))
    with_maps = "label" in batch and batch["label"].ndim == 4
    rows: list[list[Cell | None]] = []
    shown = min(count, len(batch["volume"]))
    maps = [batch["label"][i].cpu() for i in range(shown)] if with_maps else []
    for i in range(shown):
        labels = {"label": maps[i]} if with_maps else {}
        planes = volume_rows(batch["volume"][i, 0].cpu(), labels, palette)
        rows.append([cell for row in planes for cell in row])
    legend = legend_of([m[m > 0] for m in maps], palette, classes)
    return sheet(rows, (), f"Volumes of a batch {list(batch['volume'].shape[2:])}", legend, side=160)


def _images(batch: Batch, datamodule: Any, count: int) -> Image.Image:
    """Flat batches: images with the names of their classes, or with label maps."""
    label = batch.get("label")
    shown = batch["image"][: 4 * count]
    if label is not None and label.ndim == 3:
        part = {"source": {"image": batch["image"], "label": label}}
        return _domains(part, datamodule, count)
    captions = _class_names(label, datamodule)
    cells: list[Cell | None] = [
        Cell(image_pixels(image), captions[i] if captions else "") for i, image in enumerate(shown)
    ]
    rows = [cells[start : start + 8] for start in range(0, len(cells), 8)]
    return sheet(rows, (), f"Images of a batch {list(batch['image'].shape[-2:])}", side=96)


def _class_names(label: Tensor | None, datamodule: Any) -> list[str]:
    """What is written below samples: the name of each one's class, or of its classes; -1 has none."""
    if label is None:
        return []
    classes: Sequence[str] = getattr(datamodule, "classes", ())

    def name(index: int) -> str:
        return "" if index < 0 else classes[index] if index < len(classes) else f"class {index}"

    if label.ndim == 2:
        return [", ".join(name(c) for c in row.nonzero().flatten().tolist()) for row in label.cpu()]
    return [name(int(index)) for index in label.tolist()]
