"""Do unlabelled images help, and does the look-ahead? Semi-supervised StreetShift with thirty labels, three seeds."""

from __future__ import annotations

import json

from benchmarks.report import proof_parser, verdict
from benchmarks.runner import Job, leads, run_jobs, summary
from datamodules import StreetShiftSemi

CONFIGS = {
    "FST semi, K=3": "fst_semi/embedded",
    "mean teacher": "semi_mean_teacher/embedded",
    "labelled images alone": "source_only/embedded_semi",
}


def main() -> None:
    parser = proof_parser(__doc__, "fst_semi")
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    StreetShiftSemi().prepare_data()
    jobs = [
        Job(name, config, seed, arguments.steps)
        for seed in arguments.seeds
        for name, config in CONFIGS.items()
    ]
    results = run_jobs(jobs, arguments.folder, arguments.workers)
    print(summary(results, list(CONFIGS)[::-1], arguments.seeds))
    (arguments.folder / "results.json").write_text(json.dumps([vars(result) for result in results], indent=1))
    verdict(leads(results, "mean teacher", "labelled images alone"))


if __name__ == "__main__":
    main()
