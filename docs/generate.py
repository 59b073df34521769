"""Rewrite the tables of README.md that come from cards: `python docs/generate.py`, with `--check` only compare."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from zoo.cards import BenchmarkCard
from zoo.registry import benchmark_card, list_benchmarks, list_methods, method_card

README = Path(__file__).parents[1] / "README.md"


def methods_table() -> str:
    """Markdown table of all methods; published and own numbers are never mixed into one column."""
    lines = ["| method | task | paper | configs | published | ours |", "|---|---|---|---|---|---|"]
    for name in list_methods():
        card = method_card(name)
        configs = "<br>".join(f"`{config}`" for config in card.configs)
        published = "<br>".join(
            f"{p.benchmark}, {p.backbone}: {p.value:g} {p.metric}" for p in card.published
        )
        ours = "<br>".join(
            f"{o.benchmark}, {o.run.rpartition(', ')[2]}: {o.mean:.1f} ± {o.std:.1f} {o.metric} ({o.seeds} seeds)"
            for o in card.ours
        )
        paper = f"[{card.paper.venue} {card.paper.year}]({card.paper.url})"
        lines.append(
            f"| `{name}`: {card.title} | {card.task} | {paper} | {configs} | {published or '-'} | {ours or '-'} |"
        )
    return "\n".join(lines)


def origin(card: BenchmarkCard) -> str:
    """Where the data of a benchmark come from."""
    if card.url:
        return f"[download]({card.url})"
    if shipped := re.search(r"shipped with \S+", card.licence):
        return shipped.group()
    made = re.search("generated|made on this machine", card.licence)
    return "made on first use" if made else "bring your own"


def benchmarks_table() -> str:
    """Markdown table of all benchmarks."""
    lines = ["| benchmark | class | task | metric | data |", "|---|---|---|---|---|"]
    for name in list_benchmarks():
        card = benchmark_card(name)
        lines.append(
            f"| `{name}`: {card.title} | `{card.class_name}` | {card.task} | {card.metric} | {origin(card)} |"
        )
    return "\n".join(lines)


TABLES = {"methods": methods_table, "benchmarks": benchmarks_table}


def regenerated(text: str) -> str:
    """``text`` with every block between ``<!-- name -->`` and ``<!-- /name -->`` made anew."""
    for name, table in TABLES.items():
        block = f"<!-- {name} -->\n{table()}\n<!-- /{name} -->"
        text, found = re.subn(
            f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"README.md: expected one block <!-- {name} -->, found {found}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if README.md is not up to date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = regenerated(old)
    if check and new != old:
        sys.exit("README.md is out of date: run `make docs`")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
