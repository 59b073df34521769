"""The main job in minutes: source-only, self-training, FST and the oracle on the embedded benchmark.

Trains through the real command line, prints mIoU per class, draws a panel, and reloads FST from disk to show
that the number is in the file. `make quickstart` runs this.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib
import torch

from benchmarks.report import default_workers
from benchmarks.runner import Job, Result, run_jobs
from benchmarks.training import quiet, scores
from datamodules import StreetShift
from zoo import FST, SourceOnly

matplotlib.use("Agg")
import matplotlib.pyplot as plt

JOBS = [  # longest first, so that the two workers finish together
    Job("FST", "fst/embedded"),
    Job("self-training", "self_training/embedded"),
    Job("source-only", "source_only/embedded"),
    Job("source + jitter", "source_only/embedded_jitter"),
    Job("oracle", "source_only/embedded_oracle"),
]
ORDER = ["source-only", "source + jitter", "self-training", "FST", "oracle"]


def table(results: dict[str, Result]) -> str:
    """Aligned text: a row per method, mIoU and the IoU of every class in percent."""
    classes = [key.removeprefix("test/iou_") for key in results["FST"].test if key.startswith("test/iou_")]
    head = ["method", "mIoU", *classes, "CPU s"]
    rows = [
        [
            name,
            f"{results[name].test['test/mIoU']:.1f}",
            *(f"{results[name].test[f'test/iou_{label}']:.0f}" for label in classes),
            f"{results[name].cpu_seconds:.0f}",
        ]
        for name in ORDER
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )


def reload_and_test(result: Result, data: StreetShift) -> tuple[FST, float]:
    """Load the checkpoint as a user would and test it again in this process."""
    method = FST.load_from_checkpoint(Path(result.folder) / "checkpoints" / "last.ckpt", map_location="cpu")
    return method, scores(method, data, "test")["mIoU"]


@torch.no_grad()
def panel(fst: FST, source_only: SourceOnly, data: StreetShift, path: Path, rows: int = 4) -> None:
    """Image, truth, source-only, FST and the confidence of the teacher's pseudo-label."""
    from callbacks.pictures import colorize

    batch = next(iter(data.test_dataloader()))
    image, truth = batch["image"][:rows].float() / 255, batch["label"][:rows]
    fst.eval()
    source_only.eval()
    confidence = fst.teacher(image).softmax(1).amax(1)
    columns = {
        "target image": [picture.permute(1, 2, 0).numpy() for picture in image],
        "truth": [colorize(label, data.palette) for label in truth],
        "source-only": [colorize(label, data.palette) for label in source_only(image).argmax(1)],
        "FST": [colorize(label, data.palette) for label in fst(image).argmax(1)],
        "pseudo-label confidence": list(confidence.numpy()),
    }
    figure, axes = plt.subplots(rows, len(columns), figsize=(3.2 * len(columns), 1.7 * rows), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=10)
        for row in range(rows):
            shown = axes[row, column].imshow(pictures[row], vmin=0, vmax=1, cmap="magma")
            axes[row, column].axis("off")
    figure.colorbar(shown, ax=axes[:, -1], fraction=0.05)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--steps", type=int, default=800, help="optimiser steps of every run")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="runs side by side, one thread each"
    )
    arguments = parser.parse_args()
    quiet()
    start = time.monotonic()
    data = StreetShift(batch_size=8)
    data.prepare_data()  # once, before two processes ask for it
    jobs = [Job(job.name, job.config, steps=arguments.steps) for job in JOBS]
    results = {result.name: result for result in run_jobs(jobs, arguments.folder, arguments.workers)}

    print(f"\nStreetShift (shift 0.9), {arguments.steps} steps, target test images, IoU in percent\n")
    print(table(results))
    data.setup("test")
    fst, again = reload_and_test(results["FST"], data)
    printed = results["FST"].test["test/mIoU"]
    if again != printed:
        raise SystemExit(f"the reloaded checkpoint gives mIoU {again!r}, the table says {printed!r}")
    print(
        f"\nFST reloaded from {results['FST'].folder}/checkpoints/last.ckpt: mIoU {again:.4f}, equal to the table's"
    )
    source_only = SourceOnly.load_from_checkpoint(
        Path(results["source-only"].folder) / "checkpoints" / "last.ckpt", map_location="cpu"
    )
    panel(fst, source_only, data, arguments.folder / "panel.png")
    record = {
        "results": [vars(result) for result in results.values()],
        "wall_seconds": round(time.monotonic() - start, 1),
    }
    (arguments.folder / "results.json").write_text(json.dumps(record, indent=1))
    print(f"panel: {arguments.folder}/panel.png   numbers: {arguments.folder}/results.json")
    runs = sorted({path.parent for path in arguments.folder.glob("*/wandb/offline-run-*/*.wandb")})
    print(
        f"W&B offline runs ({len(runs)}): upload with `wandb sync {arguments.folder}/*/wandb/offline-run-*`"
    )
    print(f"wall time {record['wall_seconds']:.0f} s with {arguments.workers} runs side by side")


if __name__ == "__main__":
    main()
