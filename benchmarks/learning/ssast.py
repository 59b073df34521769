"""Does masked patch modelling save labels? Three seeds on spoken keywords, fine-tuned from about 100 labelled clips.

A tiny SSAST is pre-trained on all 840 training clips without labels (seven voices), by both losses or by one of
them. Each result, and the same network from scratch, is then trained on 101 labelled clips for equally many steps
with equal settings; the rate is the one that was best for the network from scratch. Another row trains from scratch
for as many steps as pre-training and fine-tuning take together. Accuracy is that of 480 test clips by four voices
that nobody heard. Which clips are labelled changes with the seed.

Settings were chosen on validation voices. Finished runs are kept, so it can be interrupted. Needs the Debian packages
espeak-ng and flite.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmarks.report import proof_parser, verdict
from benchmarks.runner import Job, finished, leads, run_jobs, summary
from datamodules import SpokenKeywords

PRETRAINING, FINE_TUNING = 1000, 400
TASKS = ("joint", "discriminative", "generative")
SCRATCH, LONGER = "from scratch", f"from scratch, {PRETRAINING + FINE_TUNING} steps"
ORDER = [*(f"SSAST {task}" for task in TASKS), SCRATCH, LONGER]


def pretraining(task: str, seed: int) -> Job:
    """A run on clips without labels."""
    metric = "generative" if task == "generative" else "masked_accuracy"
    return Job(f"pretraining {task}", "ssast/embedded", seed, PRETRAINING, ("--model.task", task), metric)


def fine_tuning(name: str, seed: int, folder: Path) -> Job:
    """A run on labelled clips, which start from the pre-training run of the same seed, or from nothing."""
    config, steps, overrides = (
        "audio_classifier/embedded_scratch",
        FINE_TUNING,
        ["--data.split_seed", str(seed)],
    )
    if name == LONGER:
        steps = PRETRAINING + FINE_TUNING
    elif name != SCRATCH:
        config = "audio_classifier/embedded"
        start = folder / pretraining(name.removeprefix("SSAST "), seed).folder / "checkpoints" / "last.ckpt"
        overrides += ["--model.init_from", str(start)]
    return Job(name, config, seed, steps, tuple(overrides), "accuracy")


def main() -> None:
    parser = proof_parser(__doc__, "ssast")
    parser.add_argument("--report", action="store_true", help="only the table, of the runs that are finished")
    arguments = parser.parse_args()
    folder, seeds = arguments.folder, arguments.seeds
    first = [pretraining(task, seed) for seed in seeds for task in TASKS]
    second = [fine_tuning(name, seed, folder) for seed in seeds for name in ORDER]
    if arguments.report:
        results = [result for job in second if (result := finished(job, folder)) is not None]
        print(summary(results, ORDER, seeds))
        return
    SpokenKeywords().prepare_data()
    before = run_jobs(first, folder, arguments.workers)
    results = run_jobs(second, folder, arguments.workers)
    record = json.dumps([vars(result) for result in (*before, *results)], indent=1)
    (folder / "results.json").write_text(record)
    spent = statistics.mean(result.cpu_seconds for result in before)
    print(f"{summary(results, ORDER, seeds)}\n\npre-training: {spent:.0f} CPU s each, on average")

    others = [over for over in ORDER[1:] if over != SCRATCH]
    verdict(leads(results, ORDER[0], SCRATCH), reported=leads(results, ORDER[0], *others))


if __name__ == "__main__":
    main()
