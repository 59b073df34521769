"""Many runs by one command: `zoo fit --seeds 0 1 2 --backbones resnet18 resnet50`."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.config_files import UsageError
from zoo.config_hash import config_hash

#: Option → the option of a single run that takes one of its values.
VARIED = {"--seeds": "--seed_everything", "--backbones": "--model.backbone"}
#: Every run gets these by itself.
OWN = {
    "--run_dir": "every run has a folder of its own",
    "--ckpt_path": "unfinished runs are resumed by themselves",
}

Resolve = Callable[[Sequence[str]], tuple[dict[str, Any], str, str]]
"""Options of ``fit`` → the resolved config, the method's and the benchmark's name; raises UsageError."""


def is_series(argv: Sequence[str]) -> bool:
    """Whether ``argv`` (verb first) asks for more than one run."""
    return argv[0] == "fit" and any(token.partition("=")[0] in VARIED for token in argv)


def run_series(argv: Sequence[str], resolve: Resolve) -> int:
    """Run ``fit`` for every combination of seeds and backbones, each in a process and folder of its own.

    Combinations of which a finished run exists (equal config hash and seed) are skipped; an unfinished one with a
    checkpoint is resumed where it is. A run that fails does not stop the others.

    Args:
        argv: ``fit`` and its options.
        resolve: finds out what a run would be; everything is resolved before anything starts.

    Returns:
        0, or 1 if a run failed.

    Raises:
        UsageError: an option without values, an option that is set by the series itself, or a wrong setting.
    """
    common, lists = split_series(argv[1:])
    combinations = [[*zip(lists, chosen, strict=True)] for chosen in itertools.product(*lists.values())]
    planned = []
    for combination in combinations:
        options = [*common, *(word for option, value in combination for word in (VARIED[option], value))]
        name = ", ".join(f"{option[2:-1]} {value}" for option, value in combination)
        planned.append((name, options, Earlier.find(*resolve(options))))
    failed = []
    for number, (name, options, earlier) in enumerate(planned, 1):
        print(f"zoo: {number} of {len(planned)}: {name}: {earlier.told}", file=sys.stderr)
        if earlier.starts and start(["fit", *options, *earlier.options]) != 0:
            failed.append(name)
    if failed:
        print(f"zoo: {len(failed)} of {len(planned)} failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def start(argv: Sequence[str]) -> int:
    """Run ``zoo`` in a process of its own, so that nothing of a run is left to the next; the exit code."""
    return subprocess.run([sys.executable, "-m", "zoo", *argv], check=False).returncode


def split_series(options: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Options that all runs share, and the values of those that vary.

    Raises:
        UsageError: see :func:`run_series`.
    """
    common: list[str] = []
    lists: dict[str, list[str]] = {}
    current: list[str] | None = None
    for token in options:
        if not token.startswith("-"):
            (common if current is None else current).append(token)
            continue
        option, equals, value = token.partition("=")
        if option in OWN or option in {VARIED[name] for name in lists}:
            why = OWN.get(option, "its values are those of the series")
            raise UsageError(f"{option} and {' or '.join(VARIED)} exclude each other: {why}")
        if option not in VARIED:
            current = None
            common.append(token)
            continue
        current = lists.setdefault(option, [])
        current += [value] if equals else []
    for option, values in lists.items():
        if not values:
            raise UsageError(f"{option} needs one or more values, as in {option} {_EXAMPLES[option]}")
        if repeated := {value for value in values if values.count(value) > 1}:
            raise UsageError(f"{option} names {sorted(repeated)[0]} twice")
        if any(VARIED[option] == token.partition("=")[0] for token in common):
            raise UsageError(f"{option} and {VARIED[option]} exclude each other: leave one of them out")
    if wrong := [seed for seed in lists.get("--seeds", []) if not re.fullmatch(r"\d+", seed)]:
        raise UsageError(f"--seeds takes whole numbers from 0 on, found {wrong[0]!r}")
    return common, lists


_EXAMPLES = {"--seeds": "0 1 2", "--backbones": "resnet18 resnet50"}


class Earlier:
    """What is there already of a run.

    Attributes:
        starts: whether there is anything to do.
        options: what the command needs to go on where the earlier run stopped.
        told: in words.
    """

    def __init__(self, starts: bool, told: str, options: Sequence[str] = ()) -> None:
        self.starts, self.told, self.options = starts, told, options

    @classmethod
    def find(cls, config: Mapping[str, Any], method: str, benchmark: str) -> Earlier:
        """Look through ``runs/<method>/<benchmark>`` for a run of equal config hash and seed."""
        wanted = (config_hash(config), config["seed_everything"])
        cards = {path.parent: _read(path) for path in Path("runs", method, benchmark).glob("*/run_card.json")}
        same = {
            folder: card
            for folder, card in sorted(cards.items())
            if card.get("verb") == "fit" and (card.get("config_hash"), card.get("seed")) == wanted
        }
        for folder, card in same.items():
            if card["status"] == "finished":
                return cls(False, f"skipped, finished in {folder}")
            if card["status"] == "running" and _is_alive(card):
                return cls(False, f"skipped, is running as process {card['process']} in {folder}")
        for folder in reversed(same):
            if (folder / "checkpoints" / "last.ckpt").is_file():
                return cls(True, f"resumed in {folder}", ["--run_dir", str(folder), "--ckpt_path", "last"])
        return cls(True, "started")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _is_alive(card: Mapping[str, Any]) -> bool:
    """Whether the process of a card still runs; of another machine nobody knows."""
    if card["hardware"]["host"] != socket.gethostname():
        return False
    try:
        os.kill(card["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
