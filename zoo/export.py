"""`zoo export`: the sub-networks of a trained elastic backbone as files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.backbones.elastic import ElasticBackbone
from zoo.backbones.elastic_layouts import load_exactly, load_poa_weights
from zoo.checkpoints.files import read_plain
from zoo.extraction import export_sizes
from zoo.listing import table
from zoo.registry import create_backbone
from zoo.size_plot import plot_accuracy

_TEACHER_BACKBONE = re.compile(r"^teacher\.(?:.*\.)?backbone\.")


def main(argv: Sequence[str]) -> int:
    """Do what ``zoo export`` was asked for; wrong arguments and files are one line and the exit code 2."""
    parser = argparse.ArgumentParser(
        prog="zoo export",
        description="Write sub-networks of a pre-training run's teacher as safetensors files, with a table.",
    )
    parser.add_argument("folder", type=Path, help="where to write; is made if need be")
    parser.add_argument("--method", choices=[*EXPORTERS], default="poa", help="default: poa")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint of a run, or authors' file"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every size of the family")
    which.add_argument(
        "--size", action="append", metavar="NAME", help="vit_small, vit_w448_d13, ...; repeatable"
    )
    parser.add_argument("--backbone", help="name of the backbone, where the checkpoint does not say it")
    parser.add_argument(
        "--img_size",
        type=int,
        help="image that operations are counted for (default: that of the ViT, or 224)",
    )
    parser.add_argument("--accuracy", type=Path, help="CSV with name,accuracy: also draw FOLDER/sizes.png")
    arguments = parser.parse_args(argv)
    try:
        EXPORTERS[arguments.method](arguments)
    except (ValueError, OSError) as error:
        print(f"zoo export: error: {error}", file=sys.stderr)
        return 2
    return 0


def export_poa(arguments: argparse.Namespace) -> None:
    """Sizes of the teacher's backbone (POA, section 9 of the card)."""
    backbone = teacher_backbone(arguments.checkpoint, arguments.backbone)
    sizes = backbone.sizes() if arguments.all else [backbone.find_size(name) for name in arguments.size]
    found = export_sizes(backbone, sizes, arguments.folder, arguments.img_size)
    if arguments.accuracy:
        plot_accuracy(
            arguments.folder / "sizes.csv",
            arguments.accuracy,
            arguments.folder / "sizes.png",
            backbone.family,
        )
    rows = [
        {"network": e.name, "M parameters": f"{e.parameters / 1e6:.2f}", "GFLOPs": f"{e.flops / 1e9:.2f}"}
        for e in found
    ]
    print(table(rows))
    print(f"\n{len(found)} files and sizes.csv, sizes.md in {arguments.folder}")


def teacher_backbone(path: Path, name: str | None = None) -> ElasticBackbone:
    """The elastic backbone of the teacher in a checkpoint.

    Args:
        path: a checkpoint of Lightning, whose hyper-parameters name the backbone (``backbone``,
            ``backbone_args``), or an evaluation file of the POA authors, ``{"teacher": state}``.
        name: a backbone with its default arguments, in place of that of the hyper-parameters.

    Raises:
        ValueError: no backbone of a teacher in the file, no name for it, not an elastic one, or another size.
    """
    content = read_plain(path)
    facts: Mapping[str, Any] = content.get("hyper_parameters") or {}
    kwargs = {} if name else facts.get("backbone_args") or {}
    name = name or facts.get("backbone")
    if not isinstance(name, str):
        raise ValueError(
            f"{path} does not say which backbone it holds: add --backbone elastic_vit_large, ..."
        )
    backbone = create_backbone(name, **kwargs)
    if not isinstance(backbone, ElasticBackbone):
        raise ValueError(
            f"backbone {name!r} of {path} has no sub-networks: only elastic backbones can be exported"
        )
    if "state_dict" not in content:
        load_poa_weights(backbone, content, str(path))
        return backbone.eval()
    states: dict[str, dict[str, Any]] = {}
    for key, tensor in content["state_dict"].items():
        if found := _TEACHER_BACKBONE.match(key):
            states.setdefault(found[0], {})[key.removeprefix(found[0])] = tensor
    if len(states) != 1:
        raise ValueError(
            f"{path} holds {len(states)} backbones of a teacher, not one: names must be like "
            "teacher.network.backbone..."
        )
    (state,) = states.values()
    load_exactly(backbone, state, str(path))
    return backbone.eval()


EXPORTERS: dict[str, Callable[[argparse.Namespace], None]] = {"poa": export_poa}
