"""Rivals that take turns in rotating order, whatever library they come from, all timed alike.

Training loops run each in a process of its own, over a :class:`Meter`, a loader that waits for its turn; the parent
(:func:`take_turns`) gives turns. Pieces of a step are functions, called in turns in one process (:func:`in_turns`). On
the CPU times are those of the process, not the clock's, of one thread: other jobs of the machine stretch them, but
alike for all who take turns, so ratios of one round count, and their median.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


def in_turns(
    pieces: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    least: float = 0.02,
    before: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of one call of each piece, by name and round; in rotating order, after two calls each to warm up.

    Args:
        pieces: what is timed.
        rounds: turns of each.
        device: ``cpu`` or ``cuda``.
        least: seconds a turn lasts at least; short pieces are called several times.
        before: called before every turn, untimed.
    """
    calls: dict[str, int] = {}
    for name, piece in pieces.items():
        piece()
        start = now(device)
        piece()
        calls[name] = min(1000, max(1, math.ceil(least / max(now(device) - start, 1e-6))))
    seconds: dict[str, list[float]] = {name: [] for name in pieces}
    names = list(pieces)
    for index in range(rounds):
        first = index % len(names)
        for name in (*names[first:], *names[:first]):
            if before is not None:
                before()
            start = now(device)
            for _ in range(calls[name]):
                pieces[name]()
            seconds[name].append((now(device) - start) / calls[name])
    return seconds


def over(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """Each piece's seconds over those of ``base`` in the same round, with the median milliseconds of a call."""
    return {
        name: spread([own / other for own, other in zip(turns, seconds[base], strict=True)])
        | {"ms": 1000 * statistics.median(turns)}
        for name, turns in seconds.items()
    }


class Dispatches(TorchDispatchMode):
    """Counts calls of ATen operators: exact, and the same on every device."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def dispatches(piece: Callable[[], object]) -> int:
    """Calls into ATen of one call of ``piece``."""
    with Dispatches() as counted:
        piece()
    return counted.calls


def options(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """What every command of pieces takes: ``--device``, ``--rounds`` and ``--json``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser


def machine(device: str) -> dict[str, Any]:
    """Where the numbers are from."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if device == "cpu" and cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(": ")[2] if models else name
    return {"device": name, "cores": os.cpu_count(), "torch": torch.__version__}


def keep(path: Path | None, device: str, record: Mapping[str, Any]) -> None:
    """Write the numbers, and where they are from, where ``--json`` says; of a file that is there, replace its part."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else {}
        whole = _completed(known, {"machine": machine(device), **record})
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def _completed(known: Any, new: Any) -> Any:
    if not (isinstance(known, dict) and isinstance(new, Mapping)):
        return new
    return known | {key: _completed(known.get(key), value) for key, value in new.items()}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def standard_error(values: Sequence[float]) -> float:
    """Of the median, from the quartiles, as of a normal distribution: outliers count no more than others."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(values))


def shown(ratios: dict[str, float], places: int = 2) -> str:
    """``1.03 (0.99 to 1.08)``."""
    median, least, most = (f"{ratios[key]:.{places}f}" for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
