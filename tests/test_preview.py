"""Pictures of batches: everything that training sees can be drawn, at its place and in its colours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.pictures import (
    BLANK,
    boxed,
    colorize,
    fullest,
    heat,
    legend_of,
    overlaid,
    overlap_map,
    plane,
    position_sheet,
    reconstruction_sheet,
    spectrogram_pixels,
)
from callbacks.preview import preview
from callbacks.sheet import Cell, sheet

PALETTE = [(10, 20, 30), (200, 40, 60), (40, 200, 80)]
STREET = SimpleNamespace(palette=PALETTE, classes=("road", "car", "tree"))


def has(picture: Image.Image, color: tuple[int, int, int]) -> int:
    """Number of pixels of exactly this colour."""
    return int((np.asarray(picture) == np.array(color)).all(-1).sum())


def domains() -> dict[str, Any]:
    label = torch.zeros(2, 16, 32, dtype=torch.long)
    label[:, :8] = 1
    weight = torch.ones(2, 16, 32)
    image = torch.full((2, 3, 16, 32), 0.5)
    return {
        "source": {"image": image, "label": label, "strong": image},
        "target": {"image": image, "pseudo_label": torch.full_like(label, 2), "pseudo_weight": weight},
        "mixed": {"image": image, "label": label, "weight": weight},
    }


def crops() -> dict[str, Any]:
    box = torch.tensor([[[2, 2, 0, 10, 10, 8]]])
    base = torch.tensor([[[0, 0, 0, 8, 8, 8], [8, 0, 0, 16, 8, 8]]])
    part = torch.rand(1, 2, 1, 8, 8, 8)
    return {
        "volume": torch.rand(1, 1, 16, 16, 8),
        "crops": part[:, :1],
        "base": part,
        "crop_box": box,
        "base_box": base,
    }


BATCHES: dict[str, dict[str, Any]] = {
    "views": {
        "image": torch.rand(3, 3, 16, 16),
        "label": torch.tensor([0, 1, -1]),
        "views": {"global": torch.rand(6, 3, 16, 16), "local": torch.rand(12, 3, 8, 8)},
    },
    "domains": domains(),
    "segmentation, flat": domains()["source"],
    "classes": {"image": torch.rand(9, 3, 8, 8), "label": torch.arange(9)},
    "spectrogram": {"spectrogram": torch.rand(2, 40, 16), "label": torch.eye(2), "frames": torch.ones(2)},
    "waveform": {"waveform": torch.rand(2, 1000) - 0.5, "label": torch.tensor([0, 1])},
    "crops": crops(),
    "volume": {"volume": torch.rand(2, 1, 8, 8, 8), "label": torch.ones(2, 8, 8, 8, dtype=torch.long)},
    "omni": {
        "labelled": {"volume": torch.rand(1, 1, 8, 8, 8), "label": torch.ones(1, 8, 8, 8, dtype=torch.long)},
        "unlabelled": crops(),
    },
    "volume, unlabelled": {"volume": torch.rand(1, 1, 8, 8, 8)},
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("datamodule", [None, STREET])
def test_every_kind_of_batch_is_drawn(name: str, datamodule: Any) -> None:
    picture = preview(BATCHES[name], datamodule)
    assert picture.mode == "RGB"
    assert picture.width > 60
    assert picture.height > 60
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 3


def test_more_samples_make_a_higher_picture_up_to_those_of_the_batch() -> None:
    heights = [preview(domains(), STREET, count).height for count in (1, 2, 3)]
    assert heights[0] < heights[1] == heights[2]


def test_domain_columns_hold_labels_in_the_colours_of_the_benchmark() -> None:
    picture = preview(domains(), STREET, count=1)  # enlarged eight times
    legend = 11 * 11  # inside of a swatch
    assert has(picture, PALETTE[1]) == 2 * 8 * 32 * 64 + legend  # label of source and of mixed
    assert has(picture, PALETTE[2]) == 16 * 32 * 64 + legend  # pseudo-label
    without = preview({"source": domains()["source"]}, STREET, count=1)
    assert has(without, PALETTE[2]) == 0
    assert without.width < picture.width / 2


def test_a_batch_without_pictures_says_what_it_holds() -> None:
    with pytest.raises(ValueError, match="it holds index, and one of views"):
        preview({"index": torch.arange(2)})
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        preview(domains(), STREET, 0)


def test_sheet_places_and_enlarges_cells() -> None:
    red, blue = np.full((4, 4, 3), (255, 0, 0), np.uint8), np.full((2, 2, 3), (0, 0, 255), np.uint8)
    picture = sheet([[Cell(red), Cell(blue)], [None, Cell(red)]], side=16)
    assert has(picture, (255, 0, 0)) == 2 * 16 * 16
    assert has(picture, (0, 0, 255)) == 8 * 8
    where = (np.asarray(picture) == (0, 0, 255)).all(-1).nonzero()
    assert (where[0].min(), where[1].min()) == (10, 10 + 16 + 6)  # margin; margin, first cell, gap
    with pytest.raises(ValueError, match="no picture"):
        sheet([[None]])


def test_colours_of_values() -> None:
    values = torch.tensor([[0.0, 1.0, float("nan")]])
    pixels = heat(values)
    assert pixels[0, 0].max() < 10
    assert pixels[0, 1].min() > 180
    assert tuple(pixels[0, 2]) == BLANK
    assert np.array_equal(heat(torch.tensor([[0.5]]), 0.5, 9.0)[0, 0], pixels[0, 0])
    assert np.array_equal(spectrogram_pixels(torch.tensor([[0.0], [1.0]]))[0, 0], pixels[0, 1])  # high on top
    assert tuple(colorize(torch.tensor([[255]]), PALETTE)[0, 0]) == (0, 0, 0)
    found = legend_of([torch.tensor([0, 2, 255])], PALETTE, STREET.classes)
    assert found == {"road": PALETTE[0], "tree": PALETTE[2], "ignore": (0, 0, 0)}


def test_reconstructions_hide_what_was_masked() -> None:
    original = torch.rand(1, 16, 32)
    masked = original.clone()
    masked[:, :, :16] = torch.nan
    picture = reconstruction_sheet(original, masked, original)
    assert 0 <= has(picture, BLANK) - 16 * 16 * 64 < 20  # and a few pixels of grey letters


def test_slices_are_seen_as_radiologists_see_them() -> None:
    volume = torch.zeros(4, 5, 6)
    volume[3, 4, 5] = 1.0  # right, front, top of the patient
    assert plane(volume, 2, 5)[0, 0] == 1.0  # axial: front up, right on the left
    assert plane(volume, 1, 4)[0, 0] == 1.0  # coronal: top up, right on the left
    assert plane(volume, 0, 3)[0, 0] == 1.0  # sagittal: top up, front on the left
    assert plane(volume, 2, 5).shape == (5, 4)
    assert fullest(volume.long()) == (3, 4, 5)
    assert fullest(torch.zeros(4, 6, 8)) == (2, 3, 4)


def test_labels_lie_over_slices_and_leave_the_background() -> None:
    pixels = overlaid(torch.full((1, 3), 0.4), torch.tensor([[0, 1, 255]]), PALETTE, opacity=1.0)
    assert [tuple(pixel) for pixel in pixels[0]] == [(102,) * 3, PALETTE[1], (102,) * 3]


def test_crops_and_overlaps_are_drawn_where_they_lie() -> None:
    batch = crops()
    crop, bases = batch["crop_box"][0, 0].tolist(), batch["base_box"][0].tolist()
    picture = boxed(torch.zeros(16, 16, 8), [], [crop], 4, zoom=2)
    rows, columns = (picture == (230, 85, 13)).all(-1).nonzero()
    assert (rows.min(), rows.max()) == (2 * (16 - 10), 2 * (16 - 2) - 1)
    assert (columns.min(), columns.max()) == (2 * (16 - 10), 2 * (16 - 2) - 1)
    filled = overlap_map((16, 16, 8), bases, torch.tensor([0.0, 1.0]), crop, zoom=4)
    assert filled[60, 60].max() < 10  # the first base: patient's left and back, bottom right
    assert filled[60, 4].min() > 180
    assert tuple(filled[4, 60]) == BLANK  # no base there
    truth = torch.tensor([[0.6, 0.1]])
    alone = position_sheet(batch["volume"][0, 0], batch["crop_box"][0], batch["base_box"][0], truth)
    both = position_sheet(batch["volume"][0, 0], batch["crop_box"][0], batch["base_box"][0], truth, truth)
    assert both.width > alone.width
