"""The picture of an elastic family: accuracy against parameters, one curve per depth or width."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure


def plot_accuracy(table: str | Path, accuracies: str | Path, figure: str | Path, title: str = "") -> None:
    """Draw accuracy against parameters, a curve per width.

    Args:
        table: ``sizes.csv`` of ``zoo export``.
        accuracies: a CSV with the columns ``name`` (as in the table) and ``accuracy``, in percent; sizes that are
            missing from it are left out.
        figure: file to write; its ending chooses the format.
        title: above the picture.

    Raises:
        ValueError: a column is missing, a name is none of the table's, or there is nothing to draw.
    """
    sizes = {row["name"]: row for row in _read(table, ("name", "width", "parameters"))}
    curves: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for row in _read(accuracies, ("name", "accuracy")):
        if row["name"] not in sizes:
            raise ValueError(f"{accuracies}: {row['name']!r} is no network of {table}")
        size = sizes[row["name"]]
        point = (int(size["parameters"]) / 1e6, float(row["accuracy"]), row["name"])
        curves[int(size["width"])].append(point)

    picture = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = picture.subplots()
    for width, points in sorted(curves.items()):
        parameters, accuracy, names = zip(*sorted(points), strict=True)
        axes.plot(parameters, accuracy, marker="o", markersize=3, linewidth=1, label=f"width {width}")
        for x, y, name in zip(parameters, accuracy, names, strict=True):
            if "_w" not in name:  # only networks that have a name of their own
                axes.annotate(name, (x, y), xytext=(3, -9), textcoords="offset points", fontsize=7)
    axes.set(xlabel="parameters (million)", ylabel="accuracy (%)", title=title)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    picture.savefig(figure, dpi=150)


def write_accuracies(found: Mapping[str, float], path: str | Path) -> None:
    """Write ``name,accuracy``, what :func:`plot_accuracy` reads."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("name", "accuracy"), *((name, f"{value:.2f}") for name, value in found.items())])


def _read(path: str | Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(column not in rows[0] for column in columns):
        raise ValueError(f"{path} must be a CSV with the columns {', '.join(columns)} and at least one row")
    return rows
