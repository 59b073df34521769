"""Does SePiCo's pixel contrast help self-training, and does the look-ahead help SePiCo? Three seeds on StreetShift.

All runs take the same steps. Settings were chosen on the validation seeds of StreetShift; what is printed comes
from the test seeds. Finished runs are kept, so it can be interrupted.
"""

from __future__ import annotations

from benchmarks.report import proof_parser, verdict
from benchmarks.runner import Job, finished, leads, run_jobs, summary
from datamodules import StreetShift

STEPS = 800
CONFIGS = {
    "SePiCo": "sepico/embedded",
    "self-training": "self_training/embedded",
    "source + jitter": "source_only/embedded_jitter",
    "SePiCo + FST-D K=1": "sepico/embedded_future",
}
ORDER = ["source + jitter", "self-training", "SePiCo", "SePiCo + FST-D K=1"]


def main() -> None:
    parser = proof_parser(__doc__, "sepico")
    parser.add_argument("--report", action="store_true", help="only the table, of the runs that are finished")
    arguments = parser.parse_args()
    jobs = [Job(name, config, seed, STEPS) for name, config in CONFIGS.items() for seed in arguments.seeds]
    if arguments.report:
        results = [result for job in jobs if (result := finished(job, arguments.folder)) is not None]
        print(summary(results, ORDER, arguments.seeds))
        return
    StreetShift(batch_size=8).prepare_data()
    results = run_jobs(jobs, arguments.folder, arguments.workers)
    print(summary(results, ORDER, arguments.seeds))
    verdict(leads(results, "SePiCo", "self-training"))


if __name__ == "__main__":
    main()
