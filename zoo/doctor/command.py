"""`zoo doctor [--config ...]`: one line per check, pictures, and an exit code that says go or stop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from zoo.doctor.checks import Report
from zoo.doctor.environment import environment

DESCRIPTION = """\
Check what a run needs before it starts. Without options: libraries, devices, memory and disk. With the options of
a run (`zoo fit --help` lists them): also its config, data, labels, weights, a few timed steps, and what the whole
run will take. Exit code 0: go; 1: stop; 2: wrong usage.
"""


def main(argv: Sequence[str]) -> int:
    """Run the checks; 0 for go, 1 for stop."""
    parser = argparse.ArgumentParser(prog="zoo doctor", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of the pictures (default: runs/<method>/<benchmark>/doctor)",
    )
    parser.add_argument("--steps", type=int, default=5, help="how many steps are timed (default: 5)")
    parser.add_argument("--warm_up", type=int, default=2, help="how many come before them (default: 2)")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    own, options = parser.parse_known_args(argv)
    if own.steps < 1 or own.warm_up < 0:
        parser.error(
            f"--steps must be at least 1 and --warm_up at least 0, got {own.steps} and {own.warm_up}"
        )
    report = Report(own.json)
    report.add(*environment())
    if options and not report.stops:
        from zoo.doctor.examination import Examination  # imports everything

        # What libraries print must not get into the JSON.
        with redirect_stdout(sys.stderr) if own.json else nullcontext():
            Examination(report, own.out, own.warm_up, own.steps, own.traceback).run(options)
    return report.finish()
