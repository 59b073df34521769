"""Where VoCo thinks crops lie: predicted against true position maps of unseen torsos, as a picture and a table.

Reads the pre-trained runs of `python -m benchmarks.learning.voco`. A map has a cell for every base crop; the true one
says how much of the cell the random crop covers, the predicted one how similar their projections are. Networks before
training answer for comparison. Crops are those of the test torsos, drawn with a fixed seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from benchmarks.learning.voco import pretraining_data
from benchmarks.report import proof_parser, spread
from zoo.methods.medical.voco import VoCo
from zoo.nn.positions import overlap_labels

ROWS = 4
"""Crops that the picture shows, each of another torso."""


def unseen_crops() -> dict[str, Tensor]:
    """Volumes, crops and boxes of all test torsos, not augmented but for brightness."""
    data = pretraining_data()
    data.prepare_data()
    data.setup("test")
    volume = torch.cat([batch["volume"].float() for batch in data.test_dataloader()])
    torch.manual_seed(0)
    views: Any = data.views
    return views(volume)  # type: ignore[no-any-return]


@torch.no_grad()
def answer(method: VoCo, batch: dict[str, Tensor]) -> Tensor:
    """Predicted overlaps ``[B, n, m]``; the projector's norm couples a batch, so all are asked at once."""
    return method.eval().positions(batch)


def judged(predicted: Tensor, label: Tensor) -> tuple[float, float]:
    """Percent of crops whose most similar base is one they overlap most, and the mean absolute error of the maps."""
    chosen = label.gather(-1, predicted.argmax(-1, keepdim=True))[..., 0]
    accuracy = (chosen == label.amax(-1)).float().mean()
    return 100.0 * accuracy.item(), (predicted - label).abs().mean().item()


def draw(batch: dict[str, Tensor], maps: dict[str, Tensor], grid: tuple[int, int], path: Path) -> None:
    """One row per crop: the slice it was cut from, and its maps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(ROWS, 1 + len(maps), figsize=(10, 2.0 * ROWS), constrained_layout=True)
    volume, boxes = batch["volume"][:, 0], batch["crop_box"]
    middle = volume.shape[-1] // 2
    for row in range(ROWS):
        # Axes run to the right and the front: shown as radiologists look, from the feet, the front on top.
        seen = np.flip(volume[row, :, :, middle].numpy().T, (0, 1))
        width, height = volume.shape[1], volume.shape[2]
        axes[row, 0].imshow(seen, cmap="gray", vmin=0, vmax=1)
        x0, y0, _, x1, y1, _ = boxes[row, 0].tolist()
        box = Rectangle(
            (width - x1 - 0.5, height - y1 - 0.5), x1 - x0, y1 - y0, fill=False, color="tab:red", lw=2
        )
        axes[row, 0].add_patch(box)
        for axis, (title, values) in zip(axes[row, 1:], maps.items(), strict=True):
            cells = np.flip(values[row, 0].view(grid).numpy().T, (0, 1))
            axis.imshow(cells, cmap="viridis", vmin=0, vmax=1, aspect=(height / grid[1]) / (width / grid[0]))
            for (y, x), value in np.ndenumerate(cells):
                color = "black" if value > 0.6 else "white"
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
            if row == 0:
                axis.set_title(title, fontsize=10)
    axes[0, 0].set_title("test torso and crop", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = proof_parser(__doc__, "voco", workers=False)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/voco_positions.png"))
    arguments = parser.parse_args()
    batch = unseen_crops()
    label = overlap_labels(batch["crop_box"], batch["base_box"])
    rows: dict[str, list[tuple[float, float]]] = {"before training": [], "VoCo": []}
    for seed in arguments.seeds:
        file = arguments.folder / f"voco-seed{seed}.ckpt"
        trained = VoCo.load_from_checkpoint(file, map_location="cpu")
        torch.manual_seed(seed)
        untrained = VoCo(**{key: value for key, value in trained.hparams.items() if key != "optim"})
        answers = {"before training": answer(untrained, batch), "VoCo": answer(trained, batch)}
        for name, predicted in answers.items():
            rows[name].append(judged(predicted, label))
        if seed == arguments.seeds[0]:
            grid = pretraining_data().views.grid[:2]  # type: ignore[union-attr, index]
            draw(batch, {"true overlap": label, **answers}, grid, arguments.figure)  # type: ignore[arg-type]
    print("| network | most similar base is the right one, % | error of the maps |\n|---|---|---|")
    for name, values in rows.items():
        accuracies, errors = zip(*values, strict=True)
        print(f"| {name} | {spread(accuracies)} | {spread(errors, 3)} |")


if __name__ == "__main__":
    main()
