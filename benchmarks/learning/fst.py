"""Does FST learn, and does the look-ahead help? Three seeds on StreetShift, at equal steps and at equal compute.

Settings were chosen on the validation seeds of StreetShift; what is printed comes from the test seeds, which no
setting was chosen on. `make bench` runs this; finished runs are kept, so it can be interrupted.
"""

from __future__ import annotations

import json

from benchmarks.report import proof_parser, verdict
from benchmarks.runner import Job, finished, leads, run_jobs, summary
from datamodules import StreetShift

STEPS, MIX_START = 800, 150


def runs_until(depth: int) -> int:
    """Forward-backward runs of FST with ``depth`` virtual steps: what a plain run may take at equal compute."""
    return MIX_START + (STEPS - MIX_START) * (depth + 1)


def jobs(seed: int) -> list[Job]:
    def job(name: str, config: str, *overrides: str, steps: int = STEPS) -> Job:
        return Job(name, config, seed, steps, overrides)

    return [
        job("FST-D K=3", "fst/embedded", "--model.depth", "3"),
        job("FST-W N=3", "fst/embedded_wide"),
        job("FST-D K=1", "fst/embedded"),
        job("self-training, compute of K=1", "self_training/embedded", steps=runs_until(1)),
        job("source + jitter, compute of K=1", "source_only/embedded_jitter", steps=runs_until(1)),
        job("self-training", "self_training/embedded"),
        job("source-only", "source_only/embedded"),
        job("source + jitter", "source_only/embedded_jitter"),
        job("oracle", "source_only/embedded_oracle"),
        job("self-training, compute of K=3", "self_training/embedded", steps=runs_until(3)),
    ]


ORDER = [
    "source-only", "source + jitter", "self-training", "FST-D K=1", "FST-D K=3", "FST-W N=3", "oracle",
    "source + jitter, compute of K=1", "self-training, compute of K=1", "self-training, compute of K=3",
]  # fmt: skip


def main() -> None:
    parser = proof_parser(__doc__, "fst")
    parser.add_argument("--report", action="store_true", help="only the table, of the runs that are finished")
    arguments = parser.parse_args()
    todo = [job for seed in arguments.seeds for job in jobs(seed)]
    todo.sort(key=lambda job: job.steps > runs_until(1))  # the longest runs of all seeds come last
    if arguments.report:
        results = [result for job in todo if (result := finished(job, arguments.folder)) is not None]
        print(summary(results, ORDER, arguments.seeds))
        return
    StreetShift(batch_size=8).prepare_data()
    results = run_jobs(todo, arguments.folder, arguments.workers)
    print(summary(results, ORDER, arguments.seeds))
    (arguments.folder / "results.json").write_text(json.dumps([vars(result) for result in results], indent=1))
    verdict(
        leads(results, "self-training", "source + jitter"),
        reported=leads(results, "FST-D K=1", "self-training"),
    )


if __name__ == "__main__":
    main()
