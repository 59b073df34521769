"""One POA run against many: are the networks cut out of it as good as ones trained alone? Three seeds on Optdigits.

Weighted k-NN accuracy (k = 20) of frozen class tokens on the 400 test digits, with the training digits as bank, of
every size of the family:

* cut out of one POA run by `zoo export`, and read back from the files;
* trained alone, by DINOv2's losses (those of POA with one student) at equal steps;
* sliced in the same way out of the largest network that was trained alone.

Nothing is trained on labels, and no setting was chosen on the test digits. Finished runs are kept, so it can be
interrupted. Writes a table, and a figure of accuracy against parameters.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.raw_pixels import raw_pixel_row
from benchmarks.runner import Job, default_workers, run_jobs
from datamodules import Optdigits
from zoo.backbones.elastic import ElasticBackbone
from zoo.extraction import export_sizes, load_extracted
from zoo.nn.elastic import Size
from zoo.nn.knn import knn_scores
from zoo.registry import create_backbone, get_method
from zoo.size_plot import plot_accuracy

STEPS, K = 600, 20
FAMILY = {
    "img_size": 16, "patch_size": 4, "widths": [32, 48, 64], "depths": [2, 4], "head_dim": 16, "layer_scale": 1.0,
    "init_std": None,
}  # fmt: skip
ROWS = ["one POA run", "trained alone", "sliced from the largest"]


def family() -> ElasticBackbone:
    """The elastic backbone of `poa/embedded`."""
    return create_backbone("elastic_vit_tiny", **FAMILY)


def job(name: str, config: str, seed: int, widths: list[int], depths: list[int]) -> Job:
    arguments = json.dumps({**FAMILY, "widths": widths, "depths": depths})
    overrides = ("--model.backbone", "elastic_vit_tiny", "--model.backbone_args", arguments)
    return Job(name, config, seed, STEPS, overrides, metric=f"knn{K}")


def jobs(seed: int, sizes: list[Size]) -> list[Job]:
    alone = [
        job(f"alone {size.width}x{size.depth}", "dinov2/embedded_alone", seed, [size.width], [size.depth])  # type: ignore[list-item]
        for size in sizes
    ]
    return [job("POA", "poa/embedded", seed, FAMILY["widths"], FAMILY["depths"]), *alone]  # type: ignore[arg-type]


def trained(name: str, run: Path) -> ElasticBackbone:
    """The teacher's backbone of a finished run."""
    method = get_method(name).load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
    return method.eval().teacher.network.backbone  # type: ignore[no-any-return]


@torch.no_grad()
def accuracy(backbone: ElasticBackbone, size: Size | None, data: Optdigits) -> float:
    """Percent of test digits that their neighbours among the training digits classify rightly."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (backbone.mean, backbone.std))

    def features(subset: str) -> tuple[Tensor, Tensor]:
        batches = list(data.subset_dataloader(subset))
        images = torch.cat([batch["image"] for batch in batches]).float() / 255
        tokens = backbone.forward_tokens((images - mean) / std, size=size)
        return tokens.cls, torch.cat([batch["label"] for batch in batches])

    (bank, labels), (query, truth) = features("train"), features("test")
    scores = knn_scores(query, bank, labels, data.num_classes, [K])[K]
    return 100.0 * float((scores.argmax(1) == truth).float().mean())


def judge(seed: int, folder: Path, sizes: list[Size], data: Optdigits) -> dict[str, dict[str, float]]:
    """Row → size → accuracy, of the finished runs of one seed."""
    poa, names = trained("poa", folder / f"POA-seed{seed}"), [family().size_name(size) for size in sizes]
    files = folder / f"sizes-seed{seed}"
    export_sizes(poa, sizes, files)
    intact = trained("dinov2", folder / f"alone {sizes[-1].width}x{sizes[-1].depth}-seed{seed}")
    whole = family().eval()
    whole.load_state_dict(intact.state_dict())
    found: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    for name, size in zip(names, sizes, strict=True):
        alone = trained("dinov2", folder / f"alone {size.width}x{size.depth}-seed{seed}")
        extracted = load_extracted(files / f"{name}.safetensors").eval()
        for row, backbone, cut in zip(ROWS, (extracted, alone, whole), (None, None, size), strict=True):
            found[row][name] = accuracy(backbone, cut, data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/poa"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/poa_sizes.png"))
    arguments = parser.parse_args()
    sizes = family().sizes()
    run_jobs(
        [job for seed in arguments.seeds for job in jobs(seed, sizes)], arguments.folder, arguments.workers
    )

    data = Optdigits(batch_size=64, image_size=FAMILY["img_size"])  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    by_seed = {seed: judge(seed, arguments.folder, sizes, data) for seed in arguments.seeds}
    names = list(by_seed[arguments.seeds[0]][ROWS[0]])
    print(f"| {K}-NN accuracy, % | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for row in ROWS:
        cells = []
        for name in names:
            values = [by_seed[seed][row][name] for seed in arguments.seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        print(f"| {row} | {' | '.join(cells)} |")
    raw = raw_pixel_row(data)
    print(f"raw pixels: {raw.weighted_knn:.1f} weighted k-NN, {raw.logistic:.1f} logistic regression")
    (arguments.folder / "results.json").write_text(json.dumps(by_seed, indent=1))

    accuracies = arguments.folder / "accuracies.csv"
    with accuracies.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "accuracy"])
        for name in names:
            writer.writerow([name, statistics.mean(found[ROWS[0]][name] for found in by_seed.values())])
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    table = arguments.folder / f"sizes-seed{arguments.seeds[0]}" / "sizes.csv"
    plot_accuracy(table, accuracies, arguments.figure, "One POA run on Optdigits")

    for row in ROWS[1:]:
        gains = {
            seed: statistics.mean(found[ROWS[0]][name] - found[row][name] for name in names)
            for seed, found in by_seed.items()
        }
        print(f"{ROWS[0]} - {row}, mean over sizes: " + ", ".join(f"{gain:+.1f}" for gain in gains.values()))
        if losers := [seed for seed, gain in gains.items() if gain <= 0]:
            raise SystemExit(f"POA's networks are not better than {row!r} on seeds {losers}")


if __name__ == "__main__":
    main()
