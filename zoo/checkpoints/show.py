"""`zoo import`: what a file of weights is, what of it a network would take, and our form of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from zoo.checkpoints.convert import convert
from zoo.checkpoints.files import CheckpointError, WeightFile
from zoo.checkpoints.layouts import IMPORTERS
from zoo.checkpoints.load import best_plan
from zoo.checkpoints.readings import Candidate, readings
from zoo.checkpoints.sources import Source, open_source
from zoo.listing import table
from zoo.registry import UnknownNameError, create_backbone

SHOWN_FACTS = 8


def main(argv: Sequence[str]) -> int:
    """Show, and convert with ``--to``; the exit code is 1 where the file cannot be used."""
    layouts = "\n".join(f"  {importer.name:<18}{importer.title}" for importer in IMPORTERS.values())
    parser = argparse.ArgumentParser(
        prog="zoo import",
        description="Show what a file of weights is; nothing in it is ever executed.",
        epilog=f"layouts:\n{layouts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="FILE",
        help="a path, hf-hub:owner/name[@revision][:file], timm:name.tag or URL#sha256=...",
    )
    parser.add_argument("--to", type=Path, metavar="OUT", help="write our form of it: OUT.safetensors")
    parser.add_argument("--into", metavar="BACKBONE", help="show what of it this backbone would take")
    parser.add_argument("--importer", metavar="LAYOUT", help="read it as this layout; default: recognise it")
    parser.add_argument("--network", help="student, teacher, ...; default: the one its authors evaluate")
    arguments = parser.parse_args(argv)
    try:
        source = Source.parse(arguments.source)
        importer, network = arguments.importer or source.importer, arguments.network or source.network
        file = open_source(source)
        candidate = readings(file, importer, network)[0]
        print("\n".join(described(file, candidate)))
        if arguments.into:
            with torch.device("meta"):  # shapes alone
                backbone = create_backbone(arguments.into)
            print(f"\n{arguments.into} would take\n{best_plan(file, backbone, importer, network).report}")
        if arguments.to:
            convert(file, candidate, arguments.to)
            print(f"\nwrote {arguments.to}")
    except (CheckpointError, UnknownNameError) as error:
        print(f"zoo import: error: {error}", file=sys.stderr)
        return 1
    return 0


def described(file: WeightFile, candidate: Candidate) -> Iterator[str]:
    """What is known of one reading of a file, line by line; no network is built."""
    size = f", {file.size / 2**20:.1f} MiB" if file.size else ""
    others = f" (also in the file: {', '.join(candidate.others)})" if candidate.others else ""
    facts = [f"{name}={value}" for name, value in file.facts.items() if value != "" and len(str(value)) < 60]
    more = f", ... ({len(facts)} in all)" if len(facts) > SHOWN_FACTS else ""
    lines = {
        "file": f"{file.title}{size}",
        "layout": f"{candidate.importer.name}: {candidate.importer.title}",
        "network": f"{candidate.network}{others}",
        "architecture": candidate.architecture,
        "method": file.facts.get("hyper_parameters._class_path", ""),
        "beside it": ", ".join(facts[:SHOWN_FACTS]) + more,
        "note": candidate.importer.note,
    }
    yield from (f"{name:<14}{value}" for name, value in lines.items() if value)
    yield ""
    yield table(
        [_row(part, candidate) for part in dict.fromkeys(n.partition(".")[0] for n in candidate.tensors)]
    )


def _row(part: str, candidate: Candidate) -> dict[str, str]:
    tensors = {name: t for name, t in candidate.tensors.items() if name.partition(".")[0] == part}
    (first, one), *_ = tensors.items()
    *_, (last, other) = tensors.items()
    return {
        "part": part,
        "tensors": str(len(tensors)),
        "parameters": f"{sum(t.numel() for t in tensors.values()):,}",
        "types": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        "first": f"{first} {list(one.shape)}",
        "last": f"{last} {list(other.shape)}",
    }
