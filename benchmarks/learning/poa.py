"""One POA run against many: are the networks cut out of it as good as ones trained alone? Three seeds, Fashion-MNIST.

Weighted k-NN accuracy (k = 20) of frozen class tokens on 2,000 test images, with 2,000 training images as bank, of
every size of the family:

* cut out of one POA run by `zoo export`'s code, and read back from the files;
* trained alone at equal steps, by DINO, and with ``--rivals DINO DINOv2`` also by DINOv2's losses, which are POA's with
  one student: the stronger baseline;
* sliced in the same way out of the largest network that was trained alone;
* not trained at all.

Teachers are judged, as the papers do. All runs see the same views with the same network and rate. Settings were chosen
on validation images, the teacher momentum for DINO by itself. Nothing is trained on labels. Finished runs are kept, so
it can be interrupted. Writes a table, the numbers of every seed, and a figure of accuracy against parameters; ends with
an error where POA is not better.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.raw_pixels import raw_pixel_row
from benchmarks.report import proof_parser, spread
from benchmarks.training import quiet, trainer
from datamodules import FashionMNIST
from zoo import POA, DINOv2
from zoo.backbones.elastic import ElasticBackbone
from zoo.extraction import export_sizes, load_extracted
from zoo.methods.image.base import SelfDistillation
from zoo.methods.image.dino import DINO
from zoo.nn import MultiCrop
from zoo.nn.elastic import Size
from zoo.optim import Optim
from zoo.registry import create_backbone
from zoo.size_accuracy import K, SizeJudge
from zoo.size_plot import plot_accuracy, write_accuracies

STEPS, BATCH, IMAGES = 300, 64, 2000
FAMILY: dict[str, Any] = {
    "img_size": 28, "patch_size": 7, "widths": [32, 64], "depths": [2, 4], "head_dim": 16, "layer_scale": 1.0,
    "init_std": None,
}  # fmt: skip
#: Mild crops: a small network that has learned nothing yet must see that two views are of one image.
VIEWS: dict[str, Any] = {
    "global_size": 28, "global_scale": (0.6, 1.0), "local_size": 14, "local_scale": (0.25, 0.6), "num_local": 2,
    "saturation": 0.0, "hue": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": (0.0, 0.0, 0.0),
}  # fmt: skip
SHARED: dict[str, Any] = {
    "head_args": {"hidden_dim": 128, "bottleneck_dim": 64, "init_std": None},
    "targets": "sinkhorn", "teacher_temp": 0.04, "teacher_temp_epochs": 0, "momentum": 0.95,
}  # fmt: skip
OPTIM: dict[str, Any] = {
    "name": "adamw", "lr": 2e-3, "weight_decay": 0.04, "final_weight_decay": 0.4, "schedule": "warmup_cosine",
    "no_decay": ["*bias", "*norm*", "*gamma*"], "warmup_steps": 60, "warmup_ratio": 0.0, "final_lr": 1e-6,
    "frozen": ["*last_layer*"], "frozen_steps": 20,
}  # fmt: skip
#: What belongs to each method; losses and weights between them are the published ones.
OWN: dict[str, tuple[type[SelfDistillation], dict[str, Any], dict[str, Any]]] = {
    "POA": (POA, {"prototypes": [64, 128], "mask_start_epochs": 0}, {"clip_norm": 1.5, "clip_by": "module"}),
    "DINO": (
        DINO, {"prototypes": 128, "momentum": 0.98},
        {"clip_norm": 3.0, "clip_by": "parameter", "freeze_by": "gradient"},
    ),
    "DINOv2": (
        DINOv2, {"prototypes": 128, "patch_temp": 0.04, "patch_temp_epochs": 0}, {"clip_norm": 1.5, "clip_by": "module"}
    ),
}  # fmt: skip
ONE_RUN, UNTRAINED = "one POA run", "not trained"
Found = dict[str, dict[str, float]]


def family(**changes: Any) -> ElasticBackbone:
    return create_backbone("elastic_vit_tiny", **{**FAMILY, **changes})


def build(name: str, size: Size | None) -> SelfDistillation:
    """A method with the whole family, or with one size of it as its only one."""
    kind, own, optim = OWN[name]
    alone = {} if size is None else {"widths": [size.width], "depths": [size.depth]}
    network = {"backbone": "elastic_vit_tiny", "backbone_args": {**FAMILY, **alone}}
    return kind(**network, **{**SHARED, **own}, optim=Optim(**OPTIM, **optim))


def file_of(folder: Path, name: str, size: Size | None, seed: int) -> Path:
    return folder / f"{name}{'' if size is None else f'-w{size.width}-d{size.depth}'}-seed{seed}.pt"


def train(folder: Path, name: str, size: Size | None, seed: int) -> tuple[str, float]:
    """Train once and keep the teacher's backbone; returns the run's name and its CPU seconds."""
    file = file_of(folder, name, size, seed)
    if not file.exists():
        L.seed_everything(seed, verbose=False)
        method, data = build(name, size), FashionMNIST(batch_size=BATCH, views=MultiCrop(**VIEWS))
        start = time.process_time()
        trainer(STEPS).fit(method, datamodule=data)
        seconds = time.process_time() - start
        weights = method.teacher.network.backbone.state_dict()
        torch.save({"seconds": seconds, "weights": weights}, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    return file.stem, torch.load(file, weights_only=True)["seconds"]


def trained(network: ElasticBackbone, file: Path) -> ElasticBackbone:
    network.load_state_dict(torch.load(file, weights_only=True)["weights"])
    return network.eval()


def judge(seed: int, folder: Path, sizes: list[Size], rivals: list[str], test: SizeJudge) -> Found:
    """Row → size → accuracy, of the finished runs of one seed."""
    poa, files = trained(family(), file_of(folder, "POA", None, seed)), folder / f"sizes-seed{seed}"
    export_sizes(poa, sizes, files)
    names = {size: poa.size_name(size) for size in sizes}
    alone = {size: {"widths": [size.width], "depths": [size.depth]} for size in sizes}
    found: Found = {
        ONE_RUN: {n: test.accuracy(load_extracted(files / f"{n}.safetensors").eval()) for n in names.values()}
    }
    for rival in rivals:
        networks = {s: trained(family(**alone[s]), file_of(folder, rival, s, seed)) for s in sizes}
        whole = trained(family(), file_of(folder, rival, sizes[-1], seed))
        found[f"{rival}, each alone"] = {names[s]: test.accuracy(networks[s]) for s in sizes}
        found[f"{rival}, sliced"] = {names[s]: test.accuracy(whole, s) for s in sizes}
    torch.manual_seed(seed)
    found[UNTRAINED] = {names[s]: test.accuracy(family(**alone[s]).eval()) for s in sizes}
    return found


def report(by_seed: dict[int, Found]) -> str:
    """A table of means and deviations, and for each baseline POA's lead by seed and size."""
    first = next(iter(by_seed.values()))
    names = list(first[ONE_RUN])
    lines = [f"| {K}-NN accuracy, % | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in first:
        cells = [spread(found[row][name] for found in by_seed.values()) for name in names]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    for row in [row for row in first if row != ONE_RUN]:
        lines += ["", f"| POA - {row} | {' | '.join(names)} | mean |", f"|---|{'---|' * (len(names) + 1)}"]
        for seed, found in by_seed.items():
            leads = [found[ONE_RUN][name] - found[row][name] for name in names]
            cells = [f"{lead:+.1f}" for lead in (*leads, statistics.mean(leads))]
            lines.append(f"| seed {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = proof_parser(__doc__, "poa")
    parser.add_argument(
        "--rivals", nargs="+", choices=[name for name in OWN if name != "POA"], default=["DINO"]
    )
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/poa_sizes.png"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/poa.json"))
    arguments = parser.parse_args()
    sizes, folder = family().sizes(), arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    runs = [("POA", None), *((rival, size) for rival in arguments.rivals for size in reversed(sizes))]
    asked = [(folder, *run, seed) for seed in arguments.seeds for run in runs]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=spawn, initializer=quiet) as pool:
        seconds = dict(pool.map(train, *zip(*asked, strict=True)))

    torch.set_num_threads(1)
    data = FashionMNIST(batch_size=BATCH)
    data.prepare_data()
    test = SizeJudge(data, "test", limit=IMAGES)
    by_seed = {seed: judge(seed, folder, sizes, arguments.rivals, test) for seed in arguments.seeds}
    print(report(by_seed))
    raw = raw_pixel_row(data, IMAGES, IMAGES)
    print(f"\nraw pixels: {raw.weighted_knn:.1f} weighted k-NN, {raw.logistic:.1f} logistic regression")
    spent = {name: round(value) for name, value in seconds.items()}
    settings = {"steps": STEPS, "batch": BATCH, "images": IMAGES, "family": FAMILY, "views": VIEWS}
    pixels = {"weighted_knn": raw.weighted_knn, "logistic": raw.logistic}
    record = {"settings": settings, "accuracy": by_seed, "raw pixels": pixels, "CPU seconds": spent}
    arguments.results.write_text(json.dumps(record, indent=1) + "\n")

    found = list(by_seed.values())
    means = {name: statistics.mean(f[ONE_RUN][name] for f in found) for name in found[0][ONE_RUN]}
    write_accuracies(means, folder / "accuracies.csv")
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    table = folder / f"sizes-seed{arguments.seeds[0]}" / "sizes.csv"
    plot_accuracy(table, folder / "accuracies.csv", arguments.figure, "One POA run on Fashion-MNIST")

    lost = [
        f"{name} against {row!r} on seed {seed}"
        for seed, rows in by_seed.items()
        for row in rows
        for name in means
        if row != ONE_RUN and rows[ONE_RUN][name] <= rows[row][name]
    ]
    if lost:
        raise SystemExit("POA's network is not the better one: " + ", ".join(lost))


if __name__ == "__main__":
    main()
