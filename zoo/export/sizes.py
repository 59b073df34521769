"""`zoo export --all`, `--size`: the sub-networks of a trained elastic backbone as files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.backbones.elastic import ElasticBackbone
from zoo.backbones.elastic_layouts import load_exactly, load_poa_weights
from zoo.checkpoints.files import read_plain
from zoo.config_files import find_config
from zoo.extraction import export_sizes
from zoo.listing import table
from zoo.registry import create_backbone
from zoo.size_accuracy import K, SizeJudge, accuracies, benchmark_of
from zoo.size_plot import plot_accuracy, write_accuracies

_TEACHER_BACKBONE = re.compile(r"^teacher\.(?:.*\.)?backbone\.")


def export_poa(arguments: argparse.Namespace) -> None:
    """Sizes of the teacher's backbone (POA, section 9 of the card)."""
    backbone = teacher_backbone(Path(arguments.checkpoint), arguments.backbone)
    sizes = backbone.sizes() if arguments.all else [backbone.find_size(name) for name in arguments.size]
    folder, config = arguments.folder, None if arguments.no_plot or arguments.accuracy else _config(arguments)
    judge = SizeJudge(benchmark_of(config), limit=arguments.images) if config else None
    found = export_sizes(backbone, sizes, folder, arguments.img_size)
    rows = [
        {"network": e.name, "M parameters": f"{e.parameters / 1e6:.2f}", "GFLOPs": f"{e.flops / 1e9:.2f}"}
        for e in found
    ]
    drawn = arguments.accuracy
    if judge:
        backbone.to("cuda" if torch.cuda.is_available() else "cpu")
        measured, drawn = accuracies(judge, backbone, sizes), folder / "accuracies.csv"
        write_accuracies(measured, drawn)
        rows = [{**row, f"{K}-NN %": f"{measured[row['network']]:.1f}"} for row in rows]
    print(table(rows))
    written = [f"{len(found)} files", "sizes.csv", "sizes.md", *(["accuracies.csv"] if judge else [])]
    if drawn:
        plot_accuracy(folder / "sizes.csv", drawn, folder / "sizes.png", backbone.family)
        written.append("sizes.png")
    print(f"\n{', '.join(written)} in {folder}")
    if not drawn and not arguments.no_plot:
        print("no plot: the checkpoint lies in no run; name a --benchmark, or give --accuracy")


def _config(arguments: argparse.Namespace) -> Path | None:
    """The config with the benchmark to measure accuracies on; ``None`` where the checkpoint lies in no run."""
    if arguments.benchmark:
        return find_config(arguments.benchmark)
    run = Path(arguments.checkpoint).resolve().parent.parent / "config.yaml"
    return run if run.is_file() else None


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
