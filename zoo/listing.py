"""`zoo list`: tables of methods, benchmarks and backbones. Only the last one imports torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from zoo import registry
from zoo.cards import Card

Row = dict[str, str]


def main(argv: Sequence[str]) -> int:
    """Print what ``zoo list`` was asked for; the exit code is 1 where nothing matches."""
    parser = argparse.ArgumentParser(prog="zoo list", description="List what the zoo has.")
    parser.add_argument("what", nargs="?", choices=[*KINDS], help="default: methods and benchmarks")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, e.g. '*vit*'")
    parser.add_argument("--json", action="store_true", help="print all that is known, as JSON")
    arguments = parser.parse_args(argv)

    kinds = [arguments.what] if arguments.what else ["methods", "benchmarks"]
    found = {kind: KINDS[kind].names(arguments.pattern) for kind in kinds}
    if arguments.json:
        print(
            json.dumps({kind: [KINDS[kind].record(name) for name in found[kind]] for kind in kinds}, indent=2)
        )
    else:
        tables = [table([KINDS[kind].row(name) for name in found[kind]]) for kind in kinds if found[kind]]
        print("\n\n".join(tables))
    for kind in kinds:
        if not found[kind]:
            near = registry.suggest(arguments.pattern.strip("*"), KINDS[kind].names("*"))
            hint = f"; nearest: {', '.join(near)}" if near else ""
            print(f"zoo list: no {kind} match {arguments.pattern!r}{hint}", file=sys.stderr)
    return 0 if all(found.values()) else 1


def table(rows: Sequence[Row]) -> str:
    """Rows of equal keys as aligned columns under a header."""
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def method_row(name: str) -> Row:
    """What one chooses a method by: its field, its paper, how to run it and what it reaches."""
    card = registry.method_card(name)
    published = [f"{n.value:g} {n.metric} {n.benchmark}" for n in card.published]
    ours = [f"{n.mean:.1f} ± {n.std:.1f} {n.metric} {n.benchmark}, {n.seeds} seeds" for n in card.ours]
    return {
        "method": card.name,
        "modality": card.modality,
        "task": card.task,
        "paper": f"{card.paper.venue} {card.paper.year}",
        "config": (card.configs or ("-",))[0],
        "published": (published or ["-"])[0],
        "ours": (ours or ["-"])[0],
    }


def benchmark_row(name: str) -> Row:
    """What one chooses a benchmark by."""
    card = registry.benchmark_card(name)
    return {
        "benchmark": card.name,
        "modality": card.modality,
        "task": card.task,
        "metric": card.metric,
        "samples": ", ".join(f"{split} {count}" for split, count in card.splits.items()) or "-",
        "title": card.title,
    }


def backbone_row(name: str) -> Row:
    """A backbone's name is all that is known without building it."""
    return {"backbone": name}


def card_record(card: Card) -> dict[str, Any]:
    """A card as plain JSON values; the path of this machine stays out."""
    record = dataclasses.asdict(card)
    del record["path"]
    return {"class" if key == "class_path" else key: value for key, value in record.items()}


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one kind of thing is found, shown and exported."""

    names: Callable[[str], list[str]]
    row: Callable[[str], Row]
    record: Callable[[str], dict[str, Any]]


KINDS = {
    "methods": Kind(registry.list_methods, method_row, lambda name: card_record(registry.method_card(name))),
    "backbones": Kind(registry.list_backbones, backbone_row, lambda name: {**backbone_row(name)}),
    "benchmarks": Kind(
        registry.list_benchmarks, benchmark_row, lambda name: card_record(registry.benchmark_card(name))
    ),
}
