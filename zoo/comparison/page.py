"""A comparison as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from zoo.comparison.figures import bars, curves
from zoo.comparison.table import Row, Table
from zoo.comparison.writers import cells


def as_html(tables: Sequence[Table]) -> str:
    """The page: per benchmark a sortable table, curves, bars, prediction panels and settings that differ."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(sections="\n".join(map(_section, tables)))


def _section(table: Table) -> str:
    parts = [f"<section><h2>{escape(table.benchmark)}: {escape(table.metric)}</h2>", _results(table)]
    parts += [f'<p class="note">{escape(note)}</p>' for note in table.notes]
    parts += [_picture(figure) for figure in (bars(table), curves(table)) if figure is not None]
    return "\n".join([*parts, _panels(table), _settings(table), "</section>"])


def _results(table: Table) -> str:
    """The table; cells that are numbers carry them, so that sorting does not read text."""
    head = "".join(f"<th><button>{escape(name)}</button></th>" for name in cells(table.rows[0], table))
    body = "\n".join(_result(row, table) for row in table.rows)
    return (
        f'<div class="wide"><table class="results"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _result(row: Row, table: Table) -> str:
    pick = max if table.mode == "max" else min
    numbers = {
        **{table.metric: row.mean, "best": pick(row.values.values()), "seeds": len(row.values)},
        **{"published": float(row.published.split(", ")[0]) if row.published else None},
        **{"steps": row.average("steps"), "time": row.average("seconds")},
        **{"samples/s": row.average("samples_per_second"), "memory": row.memory[0] if row.memory else None},
        **{"best - this": row.difference.mean if row.difference else None},
    }
    shown = "".join(
        f"<td{_data(numbers.get(name))}>{escape(text)}</td>" for name, text in cells(row, table).items()
    )
    return f'<tr class="{row.mark if row.mark != "?" else "unknown"}">{shown}</tr>'


def _data(number: float | None) -> str:
    return "" if number is None or not math.isfinite(number) else f' data-value="{number!r}"'


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<figure><img alt="" src="{_data_uri(buffer.getvalue())}"></figure>'


def _panels(table: Table) -> str:
    """The last prediction panel of every row's first run that has one."""
    shown = []
    for row in table.rows:
        last = next((run.pictures[-1] for run in row.runs if run.pictures), None)
        if last is not None:
            caption = escape(f"{row.label}: {last.stem}")
            shown.append(
                f'<figure><img alt="" src="{_data_uri(last.read_bytes())}"><figcaption>{caption}</figcaption></figure>'
            )
    return (
        f'<details class="panels" open><summary>Predictions</summary>{"".join(shown)}</details>'
        if shown
        else ""
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _settings(table: Table) -> str:
    """Two menus of rows and a table of what differs between them, filled by the page's script."""
    content = json.dumps([row.settings for row in table.rows], default=str).replace("<", "\\u003c")
    second = min(1, len(table.rows) - 1)
    menus = " against ".join(
        "<select>"
        + "".join(
            f'<option value="{index}"{" selected" if index == chosen else ""}>{escape(row.label)}</option>'
            for index, row in enumerate(table.rows)
        )
        + "</select>"
        for chosen in (0, second)
    )
    return (
        f"<h3>Settings that differ</h3><p>{menus}</p>"
        '<div class="wide"><table class="differences"><tbody></tbody></table>'
        f'</div><p class="equal" hidden>none</p><script class="settings" type="application/json">{content}</script>'
    )
