"""One POA run against many: are the networks cut out of it as good as ones trained alone? Three seeds on Optdigits.

Weighted k-NN accuracy (k = 20) of frozen class tokens on the 400 test digits, with the training digits as bank, of
every size of the family:

* cut out of one POA run by `zoo export`, and read back from the files;
* trained alone at equal steps, by DINO, and with ``--rivals DINO DINOv2`` also by DINOv2's losses, which are POA's with
  one student: the stronger baseline;
* sliced in the same way out of the largest network that was trained alone.

Nothing is trained on labels, and no setting was chosen on the test digits. Finished runs are kept, so it can be
interrupted. Writes a table, the numbers of every seed, and a figure of accuracy against parameters; ends with an error
where POA is not better.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.raw_pixels import raw_pixel_row
from benchmarks.runner import Job, default_workers, run_jobs
from datamodules import Optdigits
from zoo.backbones.elastic import ElasticBackbone
from zoo.extraction import export_sizes, load_extracted
from zoo.nn.elastic import Size
from zoo.registry import create_backbone, get_method
from zoo.size_accuracy import K, SizeJudge
from zoo.size_plot import plot_accuracy, write_accuracies

STEPS = 600
FAMILY = {
    "img_size": 16, "patch_size": 4, "widths": [32, 48, 64], "depths": [2, 4], "head_dim": 16, "layer_scale": 1.0,
    "init_std": None,
}  # fmt: skip
POA = "one POA run"
#: Who trains every size alone, and its config.
RIVALS = {"DINO": "dino/embedded_alone", "DINOv2": "dinov2/embedded_alone"}
Found = dict[str, dict[str, float]]


def family() -> ElasticBackbone:
    """The elastic backbone of `poa/embedded`."""
    return create_backbone("elastic_vit_tiny", **FAMILY)


def job(name: str, config: str, seed: int, widths: list[int], depths: list[int]) -> Job:
    arguments = json.dumps({**FAMILY, "widths": widths, "depths": depths})
    overrides = ("--model.backbone", "elastic_vit_tiny", "--model.backbone_args", arguments)
    return Job(name, config, seed, STEPS, overrides, metric=f"knn{K}")


def jobs(seed: int, sizes: list[Size], rivals: list[str]) -> list[Job]:
    alone = [
        job(f"{rival} {size.width}x{size.depth}", RIVALS[rival], seed, [size.width], [size.depth])  # type: ignore[list-item]
        for rival in rivals
        for size in sizes
    ]
    return [job("POA", "poa/embedded", seed, FAMILY["widths"], FAMILY["depths"]), *alone]  # type: ignore[arg-type]


def trained(name: str, run: Path) -> ElasticBackbone:
    """The teacher's backbone of a finished run."""
    method = get_method(name).load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
    return method.eval().teacher.network.backbone  # type: ignore[no-any-return]


def judge(seed: int, folder: Path, sizes: list[Size], rivals: list[str], test: SizeJudge) -> Found:
    """Row → size → accuracy, of the finished runs of one seed."""
    poa, files = trained("poa", folder / f"POA-seed{seed}"), folder / f"sizes-seed{seed}"
    export_sizes(poa, sizes, files)
    found: Found = {POA: {}}
    for size in sizes:
        name = poa.size_name(size)
        found[POA][name] = test.accuracy(load_extracted(files / f"{name}.safetensors").eval())
    for rival in rivals:
        alone = {s: trained(rival.lower(), folder / f"{rival} {s.width}x{s.depth}-seed{seed}") for s in sizes}
        whole = family().eval()
        whole.load_state_dict(alone[sizes[-1]].state_dict())
        found[f"{rival}, each alone"] = {poa.size_name(s): test.accuracy(alone[s]) for s in sizes}
        found[f"{rival}, sliced"] = {poa.size_name(s): test.accuracy(whole, s) for s in sizes}
    return found


def report(by_seed: dict[int, Found]) -> str:
    """A table of means and deviations, and for each baseline POA's lead by seed and size."""
    first = next(iter(by_seed.values()))
    names = list(first[POA])
    lines = [f"| {K}-NN accuracy, % | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in first:
        cells = []
        for name in names:
            values = [found[row][name] for found in by_seed.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    for row in [row for row in first if row != POA]:
        lines += ["", f"| POA - {row} | {' | '.join(names)} | mean |", f"|---|{'---|' * (len(names) + 1)}"]
        for seed, found in by_seed.items():
            leads = [found[POA][name] - found[row][name] for name in names]
            cells = [f"{lead:+.1f}" for lead in (*leads, statistics.mean(leads))]
            lines.append(f"| seed {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/poa"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=["DINO"])
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/poa_sizes.png"))
    arguments = parser.parse_args()
    sizes, folder = family().sizes(), arguments.folder
    asked = [job for seed in arguments.seeds for job in jobs(seed, sizes, arguments.rivals)]
    run_jobs(asked, folder, arguments.workers)

    data = Optdigits(batch_size=64, image_size=FAMILY["img_size"])  # type: ignore[arg-type]
    data.prepare_data()
    test = SizeJudge(data, "test")
    by_seed = {seed: judge(seed, folder, sizes, arguments.rivals, test) for seed in arguments.seeds}
    (folder / "results.json").write_text(json.dumps(by_seed, indent=1))
    print(report(by_seed))
    raw = raw_pixel_row(data)
    print(f"\nraw pixels: {raw.weighted_knn:.1f} weighted k-NN, {raw.logistic:.1f} logistic regression")

    found = list(by_seed.values())
    means = {name: statistics.mean(f[POA][name] for f in found) for name in found[0][POA]}
    write_accuracies(means, folder / "accuracies.csv")
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    table = folder / f"sizes-seed{arguments.seeds[0]}" / "sizes.csv"
    plot_accuracy(table, folder / "accuracies.csv", arguments.figure, "One POA run on Optdigits")

    lost = [
        f"{name} against {row!r} on seed {seed}"
        for seed, rows in by_seed.items()
        for row in rows
        for name in means
        if row != POA and rows[POA][name] <= rows[row][name]
    ]
    if lost:
        raise SystemExit("POA's network is not the better one: " + ", ".join(lost))


if __name__ == "__main__":
    main()
