"""What SSAST puts in place of masked patches: spoken words by voices it never heard, as a picture.

Reads the joint run of `python -m benchmarks.learning.ssast`. A row is a test clip: its spectrogram, what the network
sees, and what the generative head fills in. The numbers are errors over all test clips and masked cells, in
squared standard deviations: of the head, and of what needs no network at all: the mean of the visible cells of the
same frame (of all visible cells where it has none), and the mean of the training data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from benchmarks.learning.ssast import pretraining
from datamodules import SpokenKeywords
from zoo import SSAST
from zoo.nn import AudioFeatures

WORDS = ("yes", "stop", "left", "go")


def unheard(features: AudioFeatures) -> tuple[Tensor, Tensor]:
    """Spectrograms ``[N, T, mels]`` and words ``[N]`` of the test clips."""
    data = SpokenKeywords(features=features, eval_batch_size=80)
    data.prepare_data()
    data.setup("test")
    made = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    return torch.cat([batch["spectrogram"] for batch in made]), torch.cat([batch["label"] for batch in made])


def visible_means(spectrogram: Tensor, masked: Tensor) -> Tensor:
    """Mean of each frame's visible cells, ``[B, 1, T]``; where none is visible, of all visible cells."""
    seen = (~masked).float()
    count, total = seen.sum(1, keepdim=True), (spectrogram * seen).sum(1, keepdim=True)
    overall = total.sum(2, keepdim=True) / count.sum(2, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1), overall)


def errors(spectrogram: Tensor, filled: Tensor, masked: Tensor) -> dict[str, float]:
    """Mean squared error over masked cells, in squared standard deviations (features are scaled to 0.5 of one)."""
    guesses = {
        "SSAST": filled,
        "mean of the visible cells of the same frame": visible_means(spectrogram, masked).expand_as(filled),
        "mean of the training data": torch.zeros_like(filled),
    }
    return {name: 4 * float((guess - spectrogram)[masked].square().mean()) for name, guess in guesses.items()}


def draw(rows: list[tuple[str, Tensor, Tensor, Tensor]], path: Path) -> None:
    """One row a clip: name, spectrogram, reconstruction and mask, ``[mels, T]`` each."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(rows), 3, figsize=(8.4, 1.7 * len(rows)), sharex=True, sharey=True)
    for line, (name, spectrogram, filled, masked) in zip(panels, rows, strict=True):
        low, high = np.percentile(spectrogram.numpy(), [1, 99])
        seen = np.ma.masked_array(spectrogram.numpy(), masked.numpy())
        colours = plt.get_cmap("magma").with_extremes(bad="#9aa5ad")
        for panel, cells in zip(line, (spectrogram.numpy(), seen, filled.numpy()), strict=True):
            panel.imshow(cells, origin="lower", aspect="auto", cmap=colours, vmin=low, vmax=high)
            panel.set(xticks=[0, 48, 95], yticks=[0, 64, 127])
        line[0].set_ylabel(f"“{name}”\ntriangle", fontsize=8)
    for panel, title in zip(panels[0], ("clip", "half of it masked", "filled in"), strict=True):
        panel.set_title(title, fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("frame (10 ms)", fontsize=8)
    for panel in panels.flat:
        panel.tick_params(labelsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/ssast"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/ssast_reconstruction.png"))
    arguments = parser.parse_args()
    checkpoint = arguments.folder / pretraining("joint", arguments.seed).folder / "checkpoints" / "last.ckpt"
    method = SSAST.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    spectrogram, label = unheard(method.front_end)
    parts = method.reconstruct({"spectrogram": spectrogram})
    clip, filled, masked = parts["original"], parts["reconstructed"], parts["masked"].isnan()
    print(
        json.dumps({name: round(error, 3) for name, error in errors(clip, filled, masked).items()}, indent=1)
    )

    first = [int((label == SpokenKeywords.classes.index(word)).nonzero()[0]) for word in WORDS]
    draw(
        [(w, clip[i], filled[i], masked[i]) for w, i in zip(WORDS, first, strict=True)],
        arguments.figure,
    )


if __name__ == "__main__":
    main()
