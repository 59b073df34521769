"""Do unlabelled images help, and does the look-ahead? Semi-supervised StreetShift with thirty labels, three seeds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.runner import Job, default_workers, run_jobs, summary
from datamodules import StreetShiftSemi

CONFIGS = {
    "FST semi, K=3": "fst_semi/embedded",
    "mean teacher": "semi_mean_teacher/embedded",
    "labelled images alone": "source_only/embedded_semi",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/fst_semi"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--workers", type=int, default=default_workers())
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
    by = {(result.name, result.seed): result.score for result in results}
    losers = [s for s in arguments.seeds if by["mean teacher", s] <= by["labelled images alone", s]]
    if losers:
        raise SystemExit(f"the mean teacher did not beat the labelled images alone on seeds {losers}")


if __name__ == "__main__":
    main()
