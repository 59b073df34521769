"""Does predicting codes add to telling them apart? w2v-BERT against its contrastive part alone, three seeds.

A conformer of four layers is pre-trained on phrases of the 840 spoken keywords of the training voices, without labels:
with two contrastive and two predicting layers (w2v-BERT), or with four contrastive ones (wav2vec 2.0 with conformers);
equally many steps, the same rate and codebook. As in the paper, all of it is then fine-tuned: to name single words,
from 101 labelled clips that are drawn twice for each seed, with equal settings. Accuracy is that of 480 clips by
four voices that nobody heard. It is an error unless w2v-BERT is ahead of the contrastive part on each seed.

A second table, which nothing hangs on, leaves the networks frozen: logistic regression on the mean over time of one
layer, from all 840 labels or from 101. Layer and regularisation are those that are best on the validation voices.

Settings are chosen with ``--voices further``: the same, but tested by twelve other voices. Finished runs are kept, so
it can be interrupted. Needs the Debian packages espeak-ng and flite, and scikit-learn.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.report import listed, proof_parser, spread, verdict
from benchmarks.runner import Job, finished, run_jobs
from benchmarks.training import kept, run_seeds, scores, settings, trainer
from datamodules import SpokenKeywords
from zoo.methods.audio.base import as_image
from zoo.methods.audio.classifier import AudioClassifier
from zoo.methods.audio.w2v_bert import W2vBERT

STEPS, TUNING_STEPS = 600, 200
OURS, RIVAL, SCRATCH = "w2v-BERT", "contrastive alone", "from scratch"
CONFIGS = {OURS: "w2v_bert/embedded", RIVAL: "w2v_bert/embedded_contrastive"}
TUNED, ALL, FEW = "fine-tuned, 101 labels", "frozen, 840 labels", "frozen, 101 labels"
DRAWS = 2  # of the few labels, for each seed
STRENGTHS = (0.01, 0.1, 1.0)
VOICES: dict[str, Literal["espeak", "espeak_further"]] = {"test": "espeak", "further": "espeak_further"}


class Clips(NamedTuple):
    """Vectors ``[N, D]`` of clips behind every layer, and their words ``[N]``."""

    layers: list[Tensor]
    labels: Tensor


def pretraining(name: str, seed: int) -> Job:
    """A run on clips without labels."""
    return Job(name, CONFIGS[name], seed, STEPS, (), "code_perplexity")


def fine_tuned(checkpoint: Path | None, voices: str, draw: int) -> dict[str, float]:
    """Accuracy in percent on validation and test clips, after fine-tuning on a draw of labels."""
    L.seed_everything(draw, verbose=False)
    of = settings("audio_classifier/embedded_conformer")
    method = AudioClassifier(**of["model"], init_from=None if checkpoint is None else str(checkpoint))
    data = SpokenKeywords(**of["data"], synthesiser=VOICES[voices], split_seed=draw)
    trainer(TUNING_STEPS).fit(method, datamodule=data)
    return {split: scores(method, data, split)["accuracy"] for split in ("val", "test")}


def clips(method: W2vBERT, voices: str, splits: tuple[str, ...], draw: int = 0) -> dict[str, Clips]:
    """Single words of some splits, by the pipeline of pre-training; ``labelled`` are others for each draw."""
    data = SpokenKeywords(
        synthesiser=VOICES[voices], labelled_fraction=0.12, split_seed=draw, eval_batch_size=120,
        features=method.front_end,
    )  # fmt: skip
    data.setup()
    shown = {}
    for split in splits:
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.subset_dataloader(split)]
        spectrograms = torch.cat([batch["spectrogram"] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
        shown[split] = Clips(vectors(method, spectrograms), labels)
    return shown


@torch.no_grad()
def vectors(method: W2vBERT, spectrograms: Tensor) -> list[Tensor]:
    """Mean of the steps behind every layer, ``[N, D]``."""
    method.eval()
    parts = [method.student.backbone.forward_blocks(as_image(part)) for part in spectrograms.split(120)]
    return [torch.cat([steps.mean(1) for steps in layer]) for layer in zip(*parts, strict=True)]


def probed(method: W2vBERT, voices: str, draws: range) -> dict[str, float]:
    """Test accuracy in percent of the frozen network, from all and from few labels."""
    shown = clips(method, voices, ("train", "val", "test"))
    few = [clips(method, voices, ("labelled",), draw)["labelled"] for draw in draws]
    return {
        ALL: accuracy(shown["train"], shown),
        FEW: statistics.mean(accuracy(labelled, shown) for labelled in few),
    }


def accuracy(taught: Clips, shown: dict[str, Clips]) -> float:
    """On test clips, of the layer and regularisation that are best on validation clips."""
    best, score = -1.0, 0.0
    for layer, features in enumerate(taught.layers):
        for strength in STRENGTHS:
            model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
            model.fit(features, taught.labels)
            val, test = (100 * model.score(shown[s].layers[layer], shown[s].labels) for s in ("val", "test"))
            if val > best:
                best, score = val, test
    return score


def untrained(method: W2vBERT, seed: int) -> W2vBERT:
    """The same network with first weights."""
    torch.manual_seed(seed)
    network = W2vBERT(**method.hparams)
    network.front_end = method.front_end
    return network


def one_seed(seed: int, folder: Path, voices: str) -> dict[str, Any]:
    """Accuracies of every network, those of each draw, and the runs of pre-training."""
    draws = range(DRAWS * seed, DRAWS * (seed + 1))
    runs = {name: finished(pretraining(name, seed), folder) for name in CONFIGS}
    found: dict[str, Any] = {"pretraining": {name: run.record() for name, run in runs.items() if run}}
    for name in (*CONFIGS, SCRATCH):
        checkpoint = folder / f"{OURS if name == SCRATCH else name}-seed{seed}" / "checkpoints" / "last.ckpt"
        start = None if name == SCRATCH else checkpoint
        done = folder / f"accuracies-{voices}" / f"{name}-seed{seed}"
        done.mkdir(parents=True, exist_ok=True)
        tuned = [kept(done / f"draw{draw}.json", partial(fine_tuned, start, voices, draw)) for draw in draws]
        method = W2vBERT.from_pretrained(checkpoint)
        network = untrained(method, seed) if name == SCRATCH else method
        frozen = kept(done / "frozen.json", partial(probed, network, voices, draws))
        found[name] = {TUNED: statistics.mean(of["test"] for of in tuned), **frozen, "draws": tuned}
    return found


def table(by_seed: dict[int, dict[str, Any]]) -> str:
    """A Markdown row per network."""
    titles = (TUNED, ALL, FEW)
    lines = [f"| network | {' | '.join(f'{title} | per seed' for title in titles)} |", "|---|" + 6 * "---|"]
    for name in (*CONFIGS, SCRATCH):
        each = [[found[name][title] for found in by_seed.values()] for title in titles]
        lines.append(f"| {name} | {' | '.join(f'{spread(v)} | {listed(v)}' for v in each)} |")
    return "\n".join(lines)


def main() -> None:
    parser = proof_parser(__doc__, "w2v_bert")
    parser.add_argument(
        "--voices", choices=VOICES, default="test", help="who is tested; further: to choose settings"
    )
    parser.add_argument("--json", type=Path, help="where to write the scores of all runs")
    arguments = parser.parse_args()
    SpokenKeywords(synthesiser=VOICES[arguments.voices]).prepare_data()
    jobs = [pretraining(name, seed) for seed in arguments.seeds for name in CONFIGS]
    for run in run_jobs(jobs, arguments.folder, arguments.workers):
        print(f"{run.name}, seed {run.seed}: code perplexity {run.score:.1f}, {run.cpu_seconds:.0f} CPU s")
    by_seed = run_seeds(one_seed, arguments, arguments.voices)
    print(table(by_seed))
    gains = {
        title: {seed: found[OURS][title] - found[RIVAL][title] for seed, found in by_seed.items()}
        for title in (TUNED, ALL, FEW)
    }
    verdict({TUNED: gains[TUNED]}, reported=gains)


if __name__ == "__main__":
    main()
