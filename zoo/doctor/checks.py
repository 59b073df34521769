"""What a check found, and how it is told."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Literal

Status = Literal["ok", "note", "stop"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: what was looked at, in one word.
        status: ``ok``; ``note``, worth reading; or ``stop``: the run would fail, or not do what it says.
        found: what was found, in one line.
        remedy: what to do about it; empty where there is nothing to do.
        details: numbers, for ``--json``.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        line = f"{self.status:<5} {self.name:<11} {' '.join(self.found.split())}"
        return f"{line} -> {' '.join(self.remedy.split())}" if self.remedy else line


class Report:
    """All checks so far; each is printed as soon as it is known, or all of them as JSON at the end.

    Args:
        as_json: print one JSON object instead of lines.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.checks: list[Check] = []
        self.files: list[str] = []

    def add(self, *checks: Check) -> None:
        """Take up and tell."""
        self.checks += checks
        if not self.as_json:
            for check in checks:
                print(check, flush=True)

    @property
    def stops(self) -> list[Check]:
        """What speaks against starting."""
        return [check for check in self.checks if check.status == "stop"]

    def finish(self) -> int:
        """Tell the verdict; the exit code is 0 for go and 1 for stop."""
        verdict = "stop" if self.stops else "go"
        if self.as_json:
            content = {
                "verdict": verdict,
                "checks": [*map(dataclasses.asdict, self.checks)],
                "files": self.files,
            }
            json.dump(content, sys.stdout, indent=1, default=str)
            print()
        else:
            for file in self.files:
                print(f"      picture     {file}")
            reasons = ", ".join(dict.fromkeys(check.name for check in self.stops))
            print(f"{verdict}: {reasons}" if reasons else verdict)
        return 1 if self.stops else 0


def gib(size: float) -> str:
    """Bytes as ``1.50 GiB``, small ones as ``3.2 MiB``."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """``2 d 3 h``, ``4 h 05 min``, ``12 min 30 s`` or ``8.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
