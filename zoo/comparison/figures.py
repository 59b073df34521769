"""Curves and bars of a comparison."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure

from zoo.comparison.table import Row, Table


def curves(table: Table) -> Figure | None:
    """The metric against steps: a line per row, the mean over seeds, with its range; None without curves."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for row in table.rows:
        steps, values = _curve(row, table.metric)
        if steps:
            (line,) = axes.plot(
                steps, [np.mean(v) for v in values], marker="o", markersize=3, label=row.label
            )
            lowest, highest = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)
    if not axes.lines:
        return None
    axes.set(xlabel="optimiser steps", ylabel=table.metric, title=table.benchmark)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    return figure


def _curve(row: Row, metric: str) -> tuple[list[int], list[list[float]]]:
    """Values of all seeds by step."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for run in row.runs:
        for step, value in run.read_curve(metric):
            if math.isfinite(value):
                by_step[step].append(value)
    return sorted(by_step), [by_step[step] for step in sorted(by_step)]


def bars(table: Table) -> Figure:
    """Mean of every row with its standard deviation, one dot per seed, and the published number as a line."""
    figure = Figure(figsize=(6.4, 1.2 + 0.4 * len(table.rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table.rows))[::-1]  # the best at the top
    for place, row in zip(places, table.rows, strict=True):
        deviation = 0.0 if math.isnan(row.std) else row.std
        axes.barh(place, row.mean, xerr=deviation, height=0.6, alpha=1.0 if row.is_best else 0.6, capsize=3)
        axes.plot([*row.values.values()], [place] * len(row.values), "k.", markersize=4)
        for number in filter(None, row.published.split(", ")):
            axes.vlines(float(number), place - 0.35, place + 0.35, colors="black", linestyles="dotted")
    axes.set_yticks(places, [row.label for row in table.rows])
    axes.set(xlabel=f"{table.metric} (dots: seeds, dotted: published)", title=table.benchmark)
    axes.grid(axis="x", alpha=0.3)
    return figure
