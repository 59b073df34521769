"""A comparison as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from zoo.comparison.table import Row, Table
from zoo.listing import table as aligned

MARKS = {"best": "*", "same": "~", "worse": "", "?": "?"}
LEGEND = "* best   ~ not to be told from the best (95 %)   ? too few pairs to say"


def cells(row: Row, table: Table) -> dict[str, str]:
    """What a row shows, by column; the mark comes behind the mean."""
    pick = max if table.mode == "max" else min
    shown = {
        "method": row.method,
        "backbone": row.backbone,
        "variant": row.variant,
        table.metric: f"{mean_std(row)} {MARKS[row.mark]}".rstrip(),
        "best": f"{pick(row.values.values()):.2f}",
        "seeds": str(len(row.values)),
        "published": row.published or "-",
        "steps": _number(row.average("steps")),
        "time": _duration(row.average("seconds")),
        "samples/s": _number(row.average("samples_per_second")),
        "memory": _memory(row),
        "best - this": str(row.difference) if row.difference else "-",
    }
    if not any(other.variant for other in table.rows):
        del shown["variant"]
    return shown


def mean_std(row: Row) -> str:
    """``76.01 ± 0.52``; without a deviation for one seed."""
    return f"{row.mean:.2f}" + ("" if math.isnan(row.std) else f" ± {row.std:.2f}")


def as_text(tables: Sequence[Table]) -> str:
    """Aligned columns, for the terminal."""
    parts = []
    for table in tables:
        parts.append(f"{table.benchmark}, {table.metric}\n" + aligned([cells(r, table) for r in table.rows]))
        parts += ["\n".join(f"note: {note}" for note in table.notes)] if table.notes else []
    return "\n\n".join([*parts, LEGEND])


def as_markdown(tables: Sequence[Table]) -> str:
    """One table per benchmark; the best is bold."""
    lines: list[str] = []
    for table in tables:
        rows = [cells(row, table) for row in table.rows]
        rows[0][table.metric] = f"**{rows[0][table.metric].removesuffix(' *')}**"
        lines += [f"## {table.benchmark}", "", _pipes(rows[0])]
        lines += ["|---" * len(rows[0]) + "|", *(_pipes(row.values()) for row in rows), ""]
        lines += [f"- {note}" for note in table.notes] + [""] * bool(table.notes)
    return "\n".join([*lines, f"bold: best; {LEGEND.removeprefix('* best   ')}", ""])


def _pipes(texts: object) -> str:
    escaped = (str(text).replace("|", "\\|") for text in texts)  # type: ignore[attr-defined]
    return f"| {' | '.join(escaped)} |"


def as_csv(tables: Sequence[Table]) -> str:
    """One line a row, numbers in full, the same columns for every benchmark."""
    out = io.StringIO()
    lines = [
        {
            **{"benchmark": table.benchmark, "metric": table.metric, "method": row.method},
            **{"backbone": row.backbone, "variant": row.variant, "seeds": " ".join(row.values)},
            **{"mean": row.mean, "std": row.std if not math.isnan(row.std) else "", "mark": row.mark},
            **{"published": row.published, "steps": row.average("steps"), "seconds": row.average("seconds")},
            **{"samples_per_second": row.average("samples_per_second")},
            **{"memory_bytes": row.memory[0] if row.memory else "", "difference": row.difference or ""},
            **{"config_hash": row.runs[0].card["config_hash"], "runs": " ".join(r.name for r in row.runs)},
        }
        for table in tables
        for row in table.rows
    ]
    writer = csv.DictWriter(out, [*lines[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def as_latex(tables: Sequence[Table]) -> str:
    """A ``tabular`` with booktabs rules: methods and backbones down, mean ± std and published number across.

    The best is bold; what cannot be told from it is underlined.
    """
    parts = []
    for table in tables:
        lines = [
            f"% {table.benchmark}",
            r"\begin{tabular}{llrr}",
            r"\toprule",
            rf"Method & Backbone & {_tex(table.metric)} & Published \\",
            r"\midrule",
        ]
        for row in table.rows:
            value = f"{row.mean:.2f}" + ("" if math.isnan(row.std) else rf" \pm {row.std:.2f}")
            style = {"best": rf"\mathbf{{{value}}}", "same": rf"\underline{{{value}}}"}
            name = " ".join(filter(None, [row.method, row.variant]))
            shown = style.get(row.mark, value)
            lines.append(rf"{_tex(name)} & {_tex(row.backbone)} & ${shown}$ & {row.published or '--'} \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {char: f"\\{char}" for char in "&%$#_{}"}
    return "".join(special.get(char, char) for char in text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )


def _memory(row: Row) -> str:
    if row.memory is None:
        return "-"
    used, where = row.memory
    return f"{used / 2**30:.2f} GiB" + (" (host)" if where == "host" else "")
