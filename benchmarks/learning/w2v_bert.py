"""Does predicting codes add to telling them apart? w2v-BERT against its contrastive part alone, three seeds.

A conformer of four layers is pre-trained on phrases of the 840 spoken keywords of the training voices, without labels:
with two contrastive and two predicting layers (w2v-BERT), or with four contrastive ones (wav2vec 2.0 with conformers);
equally many steps, the same rate and codebook. Then it is frozen, and a logistic regression learns single words from
the mean of its steps over time, from all training clips or from 101 of them (mean of four draws, others for each seed).
Layer and regularisation are those that are best on the validation voices; accuracy is that of 480 test clips by four
voices that nobody heard. The same is done with the network before training. It is an error unless w2v-BERT is ahead
with all labels and with few.

Settings were chosen on validation voices. Finished runs are kept, so it can be interrupted. Needs the Debian packages
espeak-ng and flite, and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.runner import Job, default_workers, run_jobs
from datamodules import SpokenKeywords
from zoo.methods.audio.base import as_image
from zoo.methods.audio.w2v_bert import W2vBERT

STEPS = 600
CONFIGS = {"w2v-BERT": "w2v_bert/embedded", "contrastive alone": "w2v_bert/embedded_contrastive"}
UNTRAINED = "before training"
ALL, FEW = "840 labels", "101 labels"
DRAWS = 4  # of the few labels, for each seed
STRENGTHS = (0.01, 0.1, 1.0)


class Clips(NamedTuple):
    """Vectors ``[N, D]`` of clips behind every layer, and their words ``[N]``."""

    layers: list[Tensor]
    labels: Tensor


def pretraining(name: str, seed: int) -> Job:
    """A run on clips without labels."""
    return Job(name, CONFIGS[name], seed, STEPS, (), "code_perplexity")


def clips(method: W2vBERT, splits: tuple[str, ...], draw: int = 0) -> dict[str, Clips]:
    """Single words of some splits, by the pipeline of pre-training; ``labelled`` are others for each draw."""
    data = SpokenKeywords(
        labelled_fraction=0.12, split_seed=draw, eval_batch_size=120, features=method.front_end
    )
    data.prepare_data()
    data.setup()
    shown = {}
    for split in splits:
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.subset_dataloader(split)]
        spectrograms = torch.cat([batch["spectrogram"] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
        shown[split] = Clips(features(method, spectrograms), labels)
    return shown


@torch.no_grad()
def features(method: W2vBERT, spectrograms: Tensor) -> list[Tensor]:
    """Mean of the steps behind every layer, ``[N, D]``."""
    method.eval()
    parts = [method.student.backbone.forward_blocks(as_image(part)) for part in spectrograms.split(120)]
    return [torch.cat([steps.mean(1) for steps in layer]) for layer in zip(*parts, strict=True)]


def probed(method: W2vBERT, seed: int) -> dict[str, float]:
    """Test accuracy in percent from all and from few labels."""
    shown = clips(method, ("train", "val", "test"))
    few = [clips(method, ("labelled",), DRAWS * seed + draw)["labelled"] for draw in range(DRAWS)]
    return {
        ALL: accuracy(shown["train"], shown),
        FEW: statistics.mean(accuracy(labelled, shown) for labelled in few),
    }


def accuracy(taught: Clips, shown: dict[str, Clips]) -> float:
    """On test clips, of the layer and regularisation that are best on validation clips."""
    best, score = -1.0, 0.0
    for layer, vectors in enumerate(taught.layers):
        for strength in STRENGTHS:
            model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
            model.fit(vectors, taught.labels)
            val, test = (100 * model.score(shown[s].layers[layer], shown[s].labels) for s in ("val", "test"))
            if val > best:
                best, score = val, test
    return score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/w2v_bert"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--json", type=Path, help="where to write the scores of all runs")
    arguments = parser.parse_args()
    folder, seeds = arguments.folder, arguments.seeds
    SpokenKeywords().prepare_data()
    jobs = [pretraining(name, seed) for seed in seeds for name in CONFIGS]
    runs = run_jobs(jobs, folder, arguments.workers)
    warnings.filterwarnings("ignore")
    scores: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        method = W2vBERT.from_pretrained(folder / f"{run.name}-seed{run.seed}" / "checkpoints" / "last.ckpt")
        networks = {run.name: method}
        if run.name == "w2v-BERT":
            torch.manual_seed(run.seed)
            networks[UNTRAINED] = W2vBERT(**method.hparams)
            networks[UNTRAINED].front_end = method.front_end
        for name, network in networks.items():
            for title, score in probed(network, run.seed).items():
                scores.setdefault(name, {}).setdefault(title, []).append(round(score, 2))
    if arguments.json:
        record = {
            "seeds": seeds,
            "accuracy": scores,
            "runs": [run.record() for run in runs],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    report(scores)
    for run in runs:
        print(f"{run.name}, seed {run.seed}: code perplexity {run.score:.1f}, {run.cpu_seconds:.0f} CPU s")
    for title in (ALL, FEW):
        ours, rival = (statistics.mean(scores[name][title]) for name in CONFIGS)
        if ours <= rival:
            raise SystemExit(
                f"{title}: w2v-BERT has {ours:.1f} on average, its contrastive part alone {rival:.1f}"
            )


def report(scores: dict[str, dict[str, list[float]]]) -> None:
    """Print a Markdown table."""
    print("| network | " + " | ".join(f"{title} | per seed" for title in (ALL, FEW)) + " |")
    print("|---|" + 2 * "---|---|")
    for name, by in scores.items():
        cells = []
        for values in by.values():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(
                f"{statistics.mean(values):.1f} ± {spread:.1f} | {' '.join(f'{v:.1f}' for v in values)}"
            )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
