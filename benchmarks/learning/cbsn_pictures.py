"""Tiles of unseen photographs, noisy and as the networks of `python -m benchmarks.learning.cbsn` see them.

Reads the checkpoints of seed 0 and writes the picture of docs/cbsn.md; numbers are PSNR of the tile in dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from benchmarks.learning.cbsn import OURS, PHASES, PLAIN, ROWS, data
from zoo.methods.image.cbsn import CBSN, psnr

TILES = (1, 6, 9, 12)
"""Of the 14 test tiles: two of each photograph."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/cbsn"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/cbsn_denoised.png"))
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    test = data()
    test.setup("test")
    tiles = [test.datasets["test"][n] for n in TILES]
    noisy, clean = (torch.stack([tile[key] for tile in tiles]).float() / 255 for key in ("image", "clean"))
    columns: dict[str, Tensor] = {"noisy": noisy}
    with torch.no_grad():
        for row in (PLAIN, PHASES, OURS):
            number = list(ROWS).index(row)
            columns[row] = CBSN.from_pretrained(arguments.folder / f"seed0-{number}.ckpt")(noisy)
    columns["clean"] = clean
    figure, axes = plt.subplots(len(tiles), len(columns), figsize=(9, 7.4), constrained_layout=True)
    for column, (title, images) in enumerate(columns.items()):
        ratios = psnr(images, clean).tolist()
        for axis, image, ratio in zip(axes[:, column], images, ratios, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel("" if title == "clean" else f"{ratio:.1f}", fontsize=8)
        axes[0, column].set_title(title.replace(", ", "\n"), fontsize=9)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
