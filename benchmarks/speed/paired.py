"""Training loops that take turns: each in a process of its own, all timed alike, whatever library they come from.

A process trains over a :class:`Meter`, a loader that waits for its turn; the parent (:func:`take_turns`) gives turns in
rotating order. On the CPU times are those of the process, not the clock's, of one thread: other jobs of the machine
stretch them, but alike for all who take turns, so ratios of one round count, and their median.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
MARK = "turn: "
MANY = 1_000_000
#: Memory that is freed goes back at once, lest a high-water mark stay after its cause.
STRICT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def now(device: str = "cpu") -> float:
    """Seconds: CPU time of this process, or the clock's when a GPU has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: str) -> None:
    """Start to watch the memory anew (Linux, or a GPU)."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak_bytes(device: str) -> int:
    """Most memory in use since :func:`reset_peak`: allocated on a GPU, else resident."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Meter:
    """Loader that gives one batch as often as a line of standard input says, and tells what the steps took.

    What lies between two requests of the loop is one whole step with all its hooks. Told are the seconds of a step
    (``step``) and the bytes in use before the turn (``rest``) and at most during it (``peak``).

    Args:
        batch: on the device already.
        device: ``cpu`` or ``cuda``.
        after: called with the number of steps after each turn; adds to what is told.
    """

    def __init__(self, batch: Any, device: str = "cpu", after: Callable[[int], dict[str, Any]] | None = None):
        self.batch, self.device, self.after = batch, device, after

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Any]:
        for line in sys.stdin:
            steps = int(line)
            reset_peak(self.device)
            rest = peak_bytes(self.device)
            start = now(self.device)
            for _ in range(steps):
                yield self.batch
            seconds = (now(self.device) - start) / steps
            told = {"step": seconds, "rest": rest, "peak": peak_bytes(self.device)}
            told |= self.after(steps) if self.after else {}
            print(f"\n{MARK}{json.dumps(told)}", flush=True)


class Worker:
    """A process with a training loop over a :class:`Meter`.

    Args:
        name: for messages.
        command: arguments of the process.
        environment: variables besides those of this process.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.folder = tempfile.TemporaryDirectory()  # libraries leave files where they run
        self.errors = (Path(self.folder.name) / "errors").open("w+")
        common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            cwd=self.folder.name, env={**os.environ, **common, **(environment or {})},
        )  # fmt: skip

    def turn(self, steps: int) -> dict[str, Any]:
        """Run so many steps.

        Raises:
            RuntimeError: the process ended; the end of what it said is in the message.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words follow
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self.errors.seek(0)
        raise RuntimeError(f"{self.name} ended: {self.errors.read()[-2000:]}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.folder.cleanup()


def take_turns(
    workers: Sequence[Worker], rounds: int, steps: int, warmup: int = 2
) -> dict[str, list[dict[str, Any]]]:
    """Let each train ``steps`` steps a round, in rotating order; what each told, by name and round."""
    told: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    try:
        for worker in workers:
            worker.turn(warmup)
        for index in range(rounds):
            first = index % len(workers)
            for worker in (*workers[first:], *workers[:first]):
                told[worker.name].append(worker.turn(steps))
    finally:
        for worker in workers:
            worker.close()
    return told


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def shown(ratios: dict[str, float]) -> str:
    """``1.03 (0.99 to 1.08)``."""
    return f"{ratios['median']:.2f} ({ratios['min']:.2f} to {ratios['max']:.2f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
