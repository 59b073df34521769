"""Does training with 8-bit saved activations end where exact training ends? Three seeds each.

An AST learns spoken keywords from few labels, and POA digits, with and without Mesa; nothing else differs. Finished
runs are kept, so it can be interrupted.
"""

from __future__ import annotations

import json
import statistics

from benchmarks.report import proof_parser
from benchmarks.runner import Job, Result, run_jobs, summary

CASES = {
    "AST": ("audio_classifier/embedded_scratch", 400, "accuracy", {}),
    "POA": ("poa/embedded", 300, "knn20", {"ranges_of": "tokens"}),
}


def jobs(case: str, seeds: list[int]) -> list[Job]:
    config, steps, metric, options = CASES[case]
    mesa = json.dumps({"class_path": "callbacks.Mesa", "init_args": options})
    kinds = {f"{case}, exact": (), f"{case}, Mesa": ("--trainer.callbacks+", mesa)}
    return [Job(name, config, seed, steps, extra, metric) for name, extra in kinds.items() for seed in seeds]


def compare(case: str, results: list[Result], seeds: list[int]) -> str:
    """The mean difference against the spread between seeds."""
    score = {(result.name, result.seed): result.score for result in results}
    gaps = [score[f"{case}, Mesa", seed] - score[f"{case}, exact", seed] for seed in seeds]
    spread = statistics.stdev(score[f"{case}, exact", seed] for seed in seeds) if len(seeds) > 1 else 0.0
    each = " ".join(f"{gap:+.1f}" for gap in gaps)
    return f"{case}: Mesa - exact {statistics.mean(gaps):+.1f} ({each}); seeds of exact training spread by {spread:.1f}"


def main() -> None:
    parser = proof_parser(__doc__, "mesa")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    for case in arguments.cases:
        results = run_jobs(jobs(case, arguments.seeds), arguments.folder, arguments.workers)
        print(summary(results, [f"{case}, exact", f"{case}, Mesa"], arguments.seeds))
        print(compare(case, results, arguments.seeds))


if __name__ == "__main__":
    main()
