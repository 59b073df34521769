"""`zoo compare`: which method is better, by how much, and whether the difference is one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.comparison.runs import find_runs
from zoo.comparison.table import Row, Table, compare, differing
from zoo.comparison.writers import as_csv, as_latex, as_markdown, as_text
from zoo.config_files import UsageError
from zoo.listing import table as aligned


def main(argv: Sequence[str]) -> int:
    """Print the tables, write files if asked to; 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="zoo compare", description="Compare runs, benchmark by benchmark.")
    parser.add_argument(
        "runs", nargs="+", help="run folders, folders above, patterns, or 'wandb:entity/project?group=...'"
    )
    parser.add_argument("--metric", help="by which (default: what the runs monitor), e.g. test/mIoU")
    parser.add_argument(
        "--mode", choices=["max", "min"], help="what is better (default: as monitored, else max)"
    )
    parser.add_argument("--at", choices=["best", "last"], default="best", help="which step counts")
    parser.add_argument("--unfinished", action="store_true", help="also take runs that did not finish")
    parser.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="settings in which two rows or runs differ"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write compare.md, .csv, .tex, .html and pictures there"
    )
    arguments = parser.parse_args(argv)
    try:
        runs = find_runs(arguments.runs)
        tables = compare(runs, arguments.metric, arguments.mode, arguments.at, arguments.unfinished)
        print(as_text(tables))
        if arguments.diff:
            print("\n" + diff_text(*(find_row(tables, name) for name in arguments.diff)))
        if arguments.out:
            write(tables, arguments.out)
            print(
                f"\nwritten to {arguments.out}: {', '.join(sorted(p.name for p in arguments.out.iterdir()))}"
            )
    except UsageError as error:
        print(f"zoo compare: error: {error}", file=sys.stderr)
        return 2
    return 0


def find_row(tables: Sequence[Table], name: str) -> Row:
    """The row called ``name``, by its label, a run or a folder.

    Raises:
        UsageError: there is none.
    """
    for table in tables:
        if row := table.row(name):
            return row
    labels = ", ".join(repr(row.label) for table in tables for row in table.rows)
    raise UsageError(f"--diff {name}: no such row or run; the rows are {labels}")


def diff_text(first: Row, second: Row) -> str:
    """The settings in which two rows differ, side by side."""
    one, other = first.settings, second.settings
    keys = differing(one, other)
    if not keys:
        return f"{first.label} and {second.label} have equal settings"
    names = [row.label for row in (first, second)]
    names = names if names[0] != names[1] else [row.runs[0].name for row in (first, second)]
    return aligned([{"setting": k, names[0]: _shown(one, k), names[1]: _shown(other, k)} for k in keys])


def _shown(settings: dict[str, object], key: str) -> str:
    return str(settings[key]) if key in settings else "-"


def write(tables: Sequence[Table], folder: Path) -> None:
    """Write Markdown, CSV, LaTeX, PNGs, and one page that needs nothing else."""
    from zoo.comparison.figures import bars, curves
    from zoo.comparison.page import as_html

    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ("md", as_markdown(tables)),
        ("csv", as_csv(tables)),
        ("tex", as_latex(tables)),
        ("html", as_html(tables)),
    ):
        (folder / f"compare.{suffix}").write_text(text, encoding="utf-8")
    for table in tables:
        for name, figure in (("curves", curves(table)), ("bars", bars(table))):
            if figure is not None:
                figure.savefig(folder / f"{table.benchmark}-{name}.png", dpi=150)
