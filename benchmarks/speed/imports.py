"""What the command line costs before anything happens: seconds of fresh processes, in turns.

CPU time is the process's own, user and system; ``wall`` is the clock's, which other jobs of the machine stretch.
``lightning, torchvision, timm`` imports what ``zoo fit`` stands on and nothing of the zoo.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.speed.paired import ROOT, keep, markdown, options, shown, spread

COMMANDS = {
    "zoo list": ["-m", "zoo", "list"],
    "zoo --help": ["-m", "zoo", "--help"],
    "import zoo": ["-c", "import zoo"],
    "zoo fit --help": ["-m", "zoo", "fit", "--help"],
    "lightning, torchvision, timm": ["-c", "import lightning.pytorch, torchvision, timm"],
}
TARGETS = {"zoo list": 0.5, "zoo --help": 3.0, "import zoo": 0.5, "zoo fit --help": 3.0}


def seconds(arguments: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=Path.home(),
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, wall


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    names = arguments.commands
    for name in names:
        seconds(COMMANDS[name])  # compiles what is not compiled yet
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for index in range(arguments.rounds):
        first = index % len(names)
        for name in (*names[first:], *names[:first]):
            taken[name].append(seconds(COMMANDS[name]))
    record = {
        name: {"cpu_s": spread([cpu for cpu, _ in runs]), "wall_s": spread([wall for _, wall in runs])}
        | {"target_s": TARGETS.get(name)}
        for name, runs in taken.items()
    }
    rows = [
        [name, str(r["target_s"] or "-"), shown(r["cpu_s"]), shown(r["wall_s"])] for name, r in record.items()
    ]
    print(markdown(["command", "target, s", "CPU, s", "wall, s"], rows))
    keep(arguments.json, "cpu", {"commands": record})


if __name__ == "__main__":
    main()
