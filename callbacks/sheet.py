"""A contact sheet: rows of small pictures with titles, captions and a legend, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.labels import RGB

GAP = 6
MARGIN = 10
INK = (30, 30, 30)
FAINT = (110, 110, 110)


class Cell(NamedTuple):
    """One picture ``[h, w, 3]`` uint8 and what is written below it."""

    pixels: np.ndarray
    caption: str = ""


def sheet(
    rows: Sequence[Sequence[Cell | None]],
    titles: Sequence[str] = (),
    heading: str = "",
    legend: Mapping[str, RGB] | None = None,
    side: int = 128,
) -> Image.Image:
    """Put pictures into rows and columns.

    All are enlarged by the same whole factor, so that sizes can be compared and pixels stay square.

    Args:
        rows: cells from top to bottom; None leaves a place empty, and rows may be shorter than ``titles``.
        titles: above the columns.
        heading: above everything.
        legend: name → colour, below everything.
        side: the largest picture becomes about so many pixels high, or more.

    Raises:
        ValueError: there is no picture.
    """
    cells = [cell for row in rows for cell in row if cell is not None]
    if not cells:
        raise ValueError("rows hold no picture: there is nothing to draw")
    factor = max(1, round(side / max(cell.pixels.shape[0] for cell in cells)))
    columns = max(len(titles), *(len(row) for row in rows))
    widths, heights = [0] * columns, [0] * len(rows)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                h, w = (factor * length for length in cell.pixels.shape[:2])
                words = _width(cell.caption, 11)
                widths[j] = max(widths[j], w, words)
                heights[i] = max(heights[i], h + 16 * bool(cell.caption))
    for j, title in enumerate(titles):
        widths[j] = max(widths[j], _width(title, 13))
    width = sum(widths) + GAP * (columns - 1)
    width = max(width, _width(heading, 15))
    lines = _legend_lines(legend or {}, width)
    top = MARGIN + 24 * bool(heading)
    body = top + 19 * bool(titles)
    bottom = body + sum(heights) + GAP * (len(rows) - 1)
    height = bottom + (8 + 18 * len(lines) if lines else 0) + MARGIN
    canvas = Image.new("RGB", (width + 2 * MARGIN, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), heading, INK, font(15))
    lefts = [MARGIN + sum(widths[:j]) + GAP * j for j in range(columns)]
    # Titles and rows may be shorter than the widest row, which says how many columns there are.
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, top), title, INK, font(13))
    for i, row in enumerate(rows):
        y = body + sum(heights[:i]) + GAP * i
        for left, cell in zip(lefts, row, strict=False):
            if cell is not None:
                picture = Image.fromarray(cell.pixels)
                size = (picture.width * factor, picture.height * factor)
                canvas.paste(picture.resize(size, Image.Resampling.NEAREST), (left, y))
                draw.text((left, y + size[1] + 1), cell.caption, FAINT, font(11))
    for number, line in enumerate(lines):
        _draw_legend(draw, line, bottom + 8 + 18 * number)
    return canvas


def below(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures under one another."""
    width, height = max(p.width for p in pictures), sum(p.height for p in pictures)
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _legend_lines(legend: Mapping[str, RGB], width: int) -> list[list[tuple[int, str, RGB]]]:
    """Entries with their left ends, broken into lines of at most ``width``."""
    lines: list[list[tuple[int, str, RGB]]] = []
    left = width + 1
    for name, color in legend.items():
        needed = 18 + _width(name, 12) + 14
        if left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, name, color))
        left += needed
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, line: Sequence[tuple[int, str, RGB]], y: int) -> None:
    for left, name, color in line:
        x = MARGIN + left
        draw.rectangle((x, y + 2, x + 12, y + 14), color, (120, 120, 120))
        draw.text((x + 18, y + 1), name, INK, font(12))


@cache
def font(size: int) -> Any:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return int(font(size).getlength(text)) + 1 if text else 0
