"""`zoo export`: a trained method as files for other tools, or the sub-networks of an elastic one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.config_files import UsageError
from zoo.export.sizes import export_poa
from zoo.listing import table

FORMATS = ("safetensors", "timm", "onnx", "program")


def main(argv: Sequence[str]) -> int:
    """Do what ``zoo export`` was asked for; wrong arguments and files are one line and the exit code 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    sizes = arguments.all or arguments.size
    chosen = [
        f"--{name}"
        for name in ("format", "network", "part", "input_size", "push")
        if getattr(arguments, name) is not None
    ]
    if sizes and chosen:
        parser.error(f"--all and --size write sub-networks of the teacher, without {', '.join(chosen)}")
    of_sizes = [
        f"--{name}"
        for name in ("backbone", "img_size", "benchmark", "accuracy", "no_plot")
        if getattr(arguments, name)
    ]
    if not sizes and of_sizes:
        parser.error(f"{', '.join(of_sizes)} belong to --all or --size")
    try:
        (export_poa if sizes else export)(arguments)
    except (ValueError, OSError, ImportError, UsageError) as error:
        print(f"zoo export: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def export(arguments: argparse.Namespace) -> None:
    """Write one network of a method in every format that was asked for, each checked against torch."""
    method = trained(arguments.checkpoint, arguments.method)
    network, part = arguments.network, arguments.part or "whole"
    formats = arguments.format or ["safetensors"]
    place = arguments.folder, network, part, arguments.input_size
    rows = [_row(kind, export_as(kind, method, *place)) for kind in formats]
    print(table(rows))
    if arguments.push:
        address = method.push_to_hub(arguments.push, network=network, part=part, private=arguments.private)
        print(f"\nuploaded: {address}")


def trained(checkpoint: str, name: str | None) -> Any:
    """The method of a checkpoint.

    Raises:
        CheckpointError: see :meth:`zoo.Method.from_pretrained`.
        UnknownNameError: there is no method ``name``.
    """
    from zoo.method import Method
    from zoo.registry import get_method

    kind: Any = Method if name is None else get_method(name)
    return kind.from_pretrained(checkpoint)


def export_as(
    kind: str,
    method: Any,
    folder: Path,
    network: str | None = None,
    part: str = "whole",
    size: tuple[int, ...] | None = None,
) -> Path:
    """Write one format.

    Args:
        kind: one of ``FORMATS``.
        method: in evaluation mode.
        folder: is made if need be.
        network: see :func:`zoo.export.card.chosen_network`.
        part: ``whole`` or ``backbone``; timm gets the backbone.
        size: of the input that graphs are made for, see :meth:`zoo.Method.example_input`.

    Returns:
        What was written.

    Raises:
        CheckpointError: it cannot be written, or computes something else than torch.
    """
    from zoo.export.card import card_of, deployed
    from zoo.export.weights import save_pretrained

    if kind == "safetensors":
        return save_pretrained(method, folder, network, part)
    example = method.example_input(size)
    if kind == "timm":
        from zoo.export.timm import export_timm

        # backbones see normalised images; spectrograms as images
        image = example.transpose(1, 2)[:, None] if method.input_name == "spectrogram" else example
        export_timm(method, folder / "timm", network, image)
        return folder / "timm"
    from zoo.export.graphs import save_onnx, save_program, trace

    module, card = deployed(method, network, part), card_of(method, network, part)
    examples = example if isinstance(example, tuple) else (example,)
    shapes = [["batch", *part.shape[1:]] for part in examples]
    card["input"]["shape"] = shapes if len(shapes) > 1 else shapes[0]
    program = trace(module, examples)
    if kind == "program":
        return save_program(program, module, examples, folder / "model.pt2", card)
    return save_onnx(program, module, examples, folder / "model.onnx", card, method.input_names())


def _row(kind: str, path: Path) -> dict[str, str]:
    read_by = {
        "safetensors": "from_pretrained, --model.pretrained, safetensors",
        "timm": "timm.create_model",
        "onnx": "onnxruntime",
        "program": "torch.export.load",
    }
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    return {"format": kind, "written": str(path), "MiB": f"{size / 2**20:.2f}", "read by": read_by[kind]}


def _size(text: str) -> tuple[int, ...]:
    sides = text.split("x")
    if not 2 <= len(sides) <= 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512x1024")
    return tuple(map(int, sides))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo export",
        description="Write a trained network for other tools, each file checked against torch; or, of a method with "
        "an elastic backbone (POA), its sub-networks (--all, --size).",
    )
    parser.add_argument("folder", type=Path, help="where to write; is made if need be")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="checkpoint of a run, an exported file or folder, hf-hub:owner/name; with --size also an authors' file",
    )
    parser.add_argument("--method", help="name of the method, where the checkpoint does not say it")
    parser.add_argument(
        "--format",
        action="append",
        choices=FORMATS,
        help="repeatable; safetensors by default. timm gets the backbone; a program is one of torch.export",
    )
    parser.add_argument("--network", help="student, teacher, ...; default: the one that predicts")
    parser.add_argument("--part", choices=("whole", "backbone"), help="default: whole")
    parser.add_argument(
        "--input_size",
        type=_size,
        metavar="HxW",
        help="height and width (TxMELS, XxYxZ) that graphs are made for, 512x1024; batches may be of any number",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the safetensors to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="a new repository there is private")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every size of the elastic family")
    which.add_argument(
        "--size", action="append", metavar="NAME", help="vit_small, vit_w448_d13, ...; repeatable"
    )
    parser.add_argument(
        "--backbone", help="name of the elastic backbone, where the checkpoint does not say it"
    )
    parser.add_argument(
        "--img_size",
        type=int,
        help="image that operations are counted for (default: that of the ViT, or 224)",
    )
    plot = parser.add_mutually_exclusive_group()
    plot.add_argument(
        "--benchmark",
        metavar="CONFIG",
        help="config (a name, or a run's config.yaml) on whose validation images the sizes' 20-NN accuracies are "
        "measured, for FOLDER/sizes.png (default: the run's config.yaml, if the checkpoint lies in a run)",
    )
    plot.add_argument("--accuracy", type=Path, metavar="CSV", help="name,accuracy for the plot instead")
    plot.add_argument("--no_plot", action="store_true", help="measure and draw nothing")
    parser.add_argument(
        "--images",
        type=int,
        default=10_000,
        help="at most so many images in the bank of the 20-NN, and to classify (default: 10000)",
    )
    return parser
