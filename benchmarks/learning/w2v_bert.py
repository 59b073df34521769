"""Does predicting codes add to telling them apart? w2v-BERT against its contrastive part alone, three seeds.

A conformer of four layers is pre-trained on all 840 spoken keywords of the training voices without labels: with two
contrastive and two predicting layers (w2v-BERT), or with four contrastive ones (wav2vec 2.0 with conformers); equally
many steps, the same rate. Both results, and the same network from scratch, are then fine-tuned on 101 labelled clips
with equal settings. Accuracy is that of 480 test clips by four voices that nobody heard; the labelled clips change with
the seed.

A last run per seed trains predictions without the contrastive term: its codebook collapses, as the paper says, and with
it the task. Settings were chosen on validation voices. Finished runs are kept, so it can be interrupted. Needs the
Debian packages espeak-ng and flite.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.runner import Job, Result, default_workers, run_jobs, summary
from datamodules import SpokenKeywords

PRETRAINING, FINE_TUNING = 1000, 400
SCRATCH, COLLAPSED = "from scratch", "predictions alone"
CONFIGS = {"w2v-BERT": "w2v_bert/embedded", "contrastive alone": "w2v_bert/embedded_contrastive"}
ORDER = [*CONFIGS, SCRATCH]


def pretraining(name: str, seed: int) -> Job:
    """A run on clips without labels."""
    if name == COLLAPSED:
        weight = ("--model.contrastive_weight", "0")
        return Job(f"pretraining {name}", CONFIGS["w2v-BERT"], seed, PRETRAINING, weight, "code_perplexity")
    return Job(f"pretraining {name}", CONFIGS[name], seed, PRETRAINING, (), "code_perplexity")


def fine_tuning(name: str, seed: int, folder: Path) -> Job:
    """A run on labelled clips, which starts from the pre-training run of the same seed, or from nothing."""
    overrides = ["--data.split_seed", str(seed)]
    if name != SCRATCH:
        start = folder / pretraining(name, seed).folder / "checkpoints" / "last.ckpt"
        overrides += ["--model.init_from", str(start)]
    return Job(name, "audio_classifier/embedded_conformer", seed, FINE_TUNING, tuple(overrides), "accuracy")


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
    first = [pretraining(name, seed) for seed in seeds for name in (*CONFIGS, COLLAPSED)]
    before = run_jobs(first, folder, arguments.workers)
    results = run_jobs(
        [fine_tuning(name, seed, folder) for seed in seeds for name in ORDER], folder, arguments.workers
    )
    if arguments.json:
        record = [vars(result) for result in (*before, *results)]
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(summary(results, ORDER, seeds))
    for result in before:
        print(f"{result.name}, seed {result.seed}: code perplexity {result.score:.1f} of 64")
    losers = report(results, seeds)
    collapsed = [r.score for r in before if r.name == pretraining(COLLAPSED, 0).name]
    if max(collapsed) > min(r.score for r in before if r.name == pretraining("w2v-BERT", 0).name):
        losers.append("predictions alone kept their codes")
    if losers:
        raise SystemExit(f"w2v-BERT did not win: {'; '.join(losers)}")


def report(results: list[Result], seeds: list[int]) -> list[str]:
    """Print what w2v-BERT gains over every other row; the means it lost."""
    by = {(result.name, result.seed): result.score for result in results}
    losers = []
    for over in ORDER[1:]:
        gains = [by[ORDER[0], seed] - by[over, seed] for seed in seeds]
        shown = ", ".join(f"seed {seed} {gain:+.1f}" for seed, gain in zip(seeds, gains, strict=True))
        print(f"{ORDER[0]} - {over}: {shown}")
        if sum(gains) <= 0:
            losers.append(f"mean gain over {over} is {sum(gains) / len(gains):.1f}")
    return losers


if __name__ == "__main__":
    main()
