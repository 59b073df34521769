"""What the contrast does to feature space: pixels of unseen target images before and after SePiCo, as a picture.

Reads the runs of `python -m benchmarks.learning.sepico`. Every panel shows the same labelled cells of target test
images in the features that the decode head reads: the backbone's maps, upsampled to the finest and concatenated.
The plane is that of linear discriminant analysis, fitted on the panel's own source features, so no panel is
favoured by its axes. Two numbers say how separate the classes are, on the target:

* nearest centroid: share of target cells that lie nearest (cosine) to the *source* centroid of their own class;
* Fisher ratio: scatter between classes over scatter within them, both of target cells as unit vectors.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from benchmarks.learning.sepico import CONFIGS
from benchmarks.report import proof_parser, spread
from datamodules import StreetShift
from datamodules.streetshift import Domain, render
from zoo.nn import label_of_cells
from zoo.registry import get_method

RUNS = [name for name in ("source + jitter", "self-training", "SePiCo") if name in CONFIGS]
METHODS = {"source + jitter": "source_only", "self-training": "self_training", "SePiCo": "sepico"}
CELLS = 300
"""Cells of one class that a panel takes, drawn with a fixed seed."""


def scenes(domain: Domain, first: int, count: int = 100) -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, H, W]`` in [0, 1] and labels of StreetShift scenes; the target ones are its test images."""
    pairs = [render(seed, domain) for seed in range(first, first + count)]
    images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return images.permute(0, 3, 1, 2).float() / 255, labels.long()


@torch.no_grad()
def cells(
    network: torch.nn.Module, images: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Unit features ``[N, D]`` and classes ``[N]`` of all feature cells that show one class."""
    features: list[Tensor] = []
    for image in images.split(20):
        maps = network.backbone(network.normalize(image))[1:]
        size = maps[0].shape[-2:]
        merged = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
        features.append(F.normalize(torch.cat(merged, 1)))
    embedding = torch.cat(features)
    label = label_of_cells(labels, embedding, num_classes, 0.75, 255)
    known = label != 255
    return embedding.permute(0, 2, 3, 1)[known], label[known]


def balanced(features: Tensor, label: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """At most :data:`CELLS` cells of every class."""
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[label[order] == c][:CELLS] for c in label.unique()])
    return features[chosen], label[chosen]


def centroids(features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Classes that occur and their mean features."""
    classes = label.unique()
    return classes, torch.stack([features[label == c].mean(0) for c in classes])


def nearest_centroid(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> float:
    """Percent of target cells whose nearest source centroid is that of their class; every class counts alike."""
    classes, means = centroids(*source)
    features, label = target
    nearest = classes[(features @ F.normalize(means, dim=1).T).argmax(1)]
    return 100.0 * float(
        torch.stack([(nearest[label == c] == c).float().mean() for c in label.unique()]).mean()
    )


def fisher_ratio(features: Tensor, label: Tensor) -> float:
    """Trace of the scatter between classes over that within them; every class weighs alike."""
    classes, means = centroids(features, label)
    within = torch.stack(
        [(features[label == c] - mean).square().sum(1).mean() for c, mean in zip(classes, means, strict=True)]
    )
    return float((means - means.mean(0)).square().sum(1).mean() / within.mean())


def main() -> None:
    parser = proof_parser(__doc__, "sepico", workers=False)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/sepico_features.png"))
    arguments = parser.parse_args()

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = StreetShift(batch_size=8, shift=0.9)
    source, target = scenes("source", first=0), scenes("target", first=400_000)
    figure, axes = plt.subplots(1, len(RUNS), figsize=(5 * len(RUNS), 4.6), constrained_layout=True)
    rows: dict[str, dict[str, list[float]]] = {name: {"nearest": [], "fisher": []} for name in RUNS}
    for name, axis in zip(RUNS, axes, strict=True):
        for seed in arguments.seeds:
            run = arguments.folder / f"{name}-seed{seed}"
            config = yaml.safe_load((run / "config.yaml").read_text())
            method = get_method(METHODS[name]).load_from_checkpoint(
                run / "checkpoints/last.ckpt", map_location="cpu"
            )
            network = method.eval().evaluated()
            classes = config["model"]["init_args"]["num_classes"]
            known, unseen = (balanced(*cells(network, *part, classes)) for part in (source, target))
            rows[name]["nearest"].append(nearest_centroid(known, unseen))
            rows[name]["fisher"].append(fisher_ratio(*unseen))
            if seed == arguments.seeds[0]:
                plane = LinearDiscriminantAnalysis(n_components=2).fit(*(part.numpy() for part in known))
                points = plane.transform(unseen[0].numpy())
                colors = np.asarray(data.palette)[unseen[1].numpy()] / 255
                axis.scatter(*points.T, s=5, c=colors, linewidths=0)
                for c in unseen[1].unique().tolist():
                    middle = np.median(points[unseen[1].numpy() == c], axis=0)
                    axis.annotate(data.classes[c], middle, fontsize=8, ha="center", weight="bold")
        mean = {key: float(np.mean(values)) for key, values in rows[name].items()}
        axis.set(xticks=[], yticks=[])
        axis.set_title(
            f"{name}: nearest centroid {mean['nearest']:.1f} %, Fisher {mean['fisher']:.2f}", fontsize=10
        )
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.figure, dpi=80)
    print(
        "| run | target cells nearest to their source centroid, % | Fisher ratio on the target |\n|---|---|---|"
    )
    for name, row in rows.items():
        print(f"| {name} | {spread(row['nearest'], 2)} | {spread(row['fisher'], 2)} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
