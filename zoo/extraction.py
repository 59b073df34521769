"""Sub-networks of an elastic backbone as files: ordinary networks that need neither their siblings nor training."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from zoo.backbones.elastic import Depth, ElasticBackbone
from zoo.backbones.elastic_layouts import FAMILIES, load_timm_state_dict, timm_recipe, timm_state_dict
from zoo.nn.elastic import Size

METADATA_KEY = "selfzoo"


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What is known of an extracted network; stored in its file and as a row of the table.

    Args:
        name: ``vit_small``, or ``vit_w448_d13`` where the field has no name for the size.
        family: ``vit``, ``swin`` or ``resnet``.
        width: channels of the first stage.
        depth: number of blocks, or one number per stage.
        parameters: numbers in the file.
        flops: floating-point operations of one forward of one image (two per multiply-add).
        img_size: side of that image.
        arguments: constructor arguments of the zoo's class.
        timm_model: name for ``timm.create_model``, empty where timm has no such shape.
        timm_arguments: and its arguments.
    """

    name: str
    family: str
    width: int
    depth: Depth
    parameters: int
    flops: int
    img_size: int
    arguments: dict[str, Any]
    timm_model: str
    timm_arguments: dict[str, Any]


def save_extracted(
    backbone: ElasticBackbone, size: Size, folder: str | Path, img_size: int | None = None
) -> Extracted:
    """Write one size of ``backbone`` as ``<folder>/<name>.safetensors``, in timm's layout.

    ::

        zoo.extraction.load_extracted("sizes/vit_small.safetensors")  # a backbone of the zoo, any family and size
        model, arguments = zoo.extraction.timm_call("sizes/vit_small.safetensors")
        timm.create_model(model, **arguments)

    The first computes exactly what the elastic forward of that size does. timm's own code, where it has the shape,
    agrees to 1e-5 at the image size of the pre-training.

    Args:
        backbone: the intact network.
        size: one of its sizes.
        folder: is made if need be.
        img_size: side of the image that operations are counted for; the backbone's ``img_size`` by default.

    Raises:
        ValueError: the family has no such size.
    """
    size = backbone.resolve(size)
    network = backbone.extract(size)
    state = timm_state_dict(network)
    side = img_size or backbone.img_size
    model, arguments = timm_recipe(network) or ("", {})
    extracted = Extracted(
        name=backbone.size_name(size),
        family=backbone.family,
        width=size.width,
        depth=size.depth,
        parameters=sum(tensor.numel() for tensor in state.values()),
        flops=count_flops(network, side),
        img_size=side,
        arguments=network.alone_arguments(network.intact),
        timm_model=model,
        timm_arguments=arguments,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = dataclasses.asdict(extracted)
    metadata = {key: str(facts[key]) for key in ("name", "width", "depth", "parameters", "flops")}
    metadata |= {"format": "pt", METADATA_KEY: json.dumps(facts)}
    save_file(state, folder / f"{extracted.name}.safetensors", metadata)
    return extracted


def read_extracted(path: str | Path) -> Extracted:
    """What a file of :func:`save_extracted` says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not written by :func:`save_extracted`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file; `zoo export` writes one per size")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} is not an extracted network: `zoo export` writes such files")
    facts = json.loads(metadata[METADATA_KEY])
    depth = facts["depth"]
    return Extracted(**{**facts, "depth": depth if isinstance(depth, int) else tuple(depth)})


def load_extracted(path: str | Path, **changes: Any) -> ElasticBackbone:
    """The network of a file of :func:`save_extracted`; its only size is its own.

    ``create_backbone("sizes/vit_small.safetensors")`` does the same, and so ``--model.backbone`` takes a file. The
    mask token is not exported and is 0.

    Args:
        path: the file.
        **changes: constructor arguments that do not change its tensors, such as ``drop_path_rate``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not written by :func:`save_extracted`, or its tensors do not fit the arguments.
    """
    extracted = read_extracted(path)
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    network = FAMILIES[extracted.family](**{**extracted.arguments, **changes})
    load_timm_state_dict(network, state, str(path))
    return network


def timm_call(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which ``timm.create_model(name, **arguments)`` builds and loads the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: timm has no network of that shape, or the file is none of :func:`save_extracted`.
    """
    extracted = read_extracted(path)
    if not extracted.timm_model:
        raise ValueError(f"timm has no network of the shape of {path}: use zoo.extraction.load_extracted")
    return extracted.timm_model, {**extracted.timm_arguments, "checkpoint_path": str(path)}


def count_flops(network: ElasticBackbone, img_size: int) -> int:
    """Floating-point operations of one forward of one image, as torch counts them (matrices, convolutions, attention).

    Nothing is computed: the network's shapes alone are run.
    """
    with torch.device("meta"):
        shapes = type(network)(**network.alone_arguments(network.intact)).eval()
        shapes.to("meta")
        image = torch.empty(1, network.in_chans, img_size, img_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes.forward_tokens(image)
    return counter.get_total_flops()


def export_sizes(
    backbone: ElasticBackbone, sizes: Iterable[Size], folder: str | Path, img_size: int | None = None
) -> list[Extracted]:
    """Write each size, and the table of them all as ``sizes.csv`` and ``sizes.md``; one network is held at a time.

    Args:
        backbone: the intact network, for POA the teacher's.
        sizes: which of its sizes.
        folder: is made if need be.
        img_size: see :func:`save_extracted`.
    """
    folder = Path(folder)
    found = [save_extracted(backbone, size, folder, img_size) for size in sizes]
    write_tables(found, folder)
    return found


def write_tables(found: Sequence[Extracted], folder: Path) -> None:
    """``sizes.csv`` with plain numbers, ``sizes.md`` for people."""
    rows = [
        {
            "name": e.name,
            "width": e.width,
            "depth": e.depth if isinstance(e.depth, int) else "-".join(map(str, e.depth)),
            "parameters": e.parameters,
            "flops": e.flops,
            "img_size": e.img_size,
            "timm": e.timm_model,
            "file": f"{e.name}.safetensors",
        }
        for e in found
    ]
    with (folder / "sizes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "| network | width | depth | parameters (M) | GFLOPs | image | timm |",
        "|---|" + "---:|" * 5 + "---|",
    ]
    lines += [
        f"| {row['name']} | {row['width']} | {row['depth']} | {e.parameters / 1e6:.2f} | {e.flops / 1e9:.2f} | "
        f"{e.img_size} | {row['timm'] or '-'} |"
        for row, e in zip(rows, found, strict=True)
    ]
    (folder / "sizes.md").write_text("\n".join(lines) + "\n")
