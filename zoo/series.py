"""Many runs by one command: `zoo fit --seeds 0 1 2 --backbones resnet18 resnet50`, or `--folds 1 2 3 4 5`."""

from __future__ import annotations

import dataclasses
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
from zoo.folds import cross_validate

#: Option → the option of a single run that takes one of its values.
VARIED = {"--seeds": "--seed_everything", "--backbones": "--model.backbone", "--folds": "--data.fold"}
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
    """Run ``fit`` for every combination of seeds, backbones and folds, each in a process and folder of its own.

    Combinations of which a finished run exists (equal config hash and seed) are skipped; an unfinished one with a
    checkpoint is resumed where it is. A run that fails does not stop the others. The folds of every seed and backbone
    end in a table and the file ``runs/<method>/<benchmark>/folds-<config hash without the fold>-seed<seed>.json``.

    Args:
        argv: ``fit`` and its options.
        resolve: finds out what a run would be; everything is resolved before anything starts.

    Returns:
        0, or 1 if a run failed, or folds that are not all finished.

    Raises:
        UsageError: an option without values, an option that is set by the series itself, or a wrong setting.
    """
    common, lists = split_series(argv[1:])
    planned = [_plan(common, combination, resolve) for combination in _combinations(lists)]
    failed = []
    for number, run in enumerate(planned, 1):
        print(f"zoo: {number} of {len(planned)}: {run.name}: {run.earlier.told}", file=sys.stderr)
        if run.earlier.starts and start(["fit", *run.options, *run.earlier.options]) != 0:
            failed.append(run.name)
    if failed:
        print(f"zoo: {len(failed)} of {len(planned)} failed: {'; '.join(failed)}", file=sys.stderr)
    told = [_summarise_folds(group) for group in _by_experiment(planned)] if "--folds" in lists else []
    return 1 if failed or not all(told) else 0


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a series: its values of what varies, its options, what they come to, and what is there of it."""

    values: Mapping[str, str]
    options: Sequence[str]
    resolved: tuple[dict[str, Any], str, str]
    earlier: Earlier

    @property
    def name(self) -> str:
        """In words."""
        return ", ".join(f"{option[2:-1]} {value}" for option, value in self.values.items())


def _combinations(lists: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(lists, chosen, strict=True)) for chosen in itertools.product(*lists.values())]


def _plan(common: Sequence[str], values: Mapping[str, str], resolve: Resolve) -> Planned:
    options = [*common, *(word for option, value in values.items() for word in (VARIED[option], value))]
    resolved = resolve(options)
    return Planned(values, options, resolved, Earlier.find(*resolved))


def _by_experiment(planned: Sequence[Planned]) -> list[list[Planned]]:
    """Runs that differ by the fold alone."""
    groups: dict[tuple[str, ...], list[Planned]] = {}
    for run in planned:
        groups.setdefault(tuple(v for k, v in run.values.items() if k != "--folds"), []).append(run)
    return list(groups.values())


def _summarise_folds(group: Sequence[Planned]) -> bool:
    """Print and write what the folds of one experiment come to; False unless all of them are finished."""
    now = {run.values["--folds"]: Earlier.find(*run.resolved) for run in group}
    config, method, benchmark = group[0].resolved
    shared = ", ".join(
        f"{option[2:-1]} {value}" for option, value in group[0].values.items() if option != "--folds"
    )
    if missing := [fold for fold, found in now.items() if found.finished is None]:
        print(
            f"zoo: no mean over folds{shared and ' of '}{shared}: not finished: {', '.join(missing)}",
            file=sys.stderr,
        )
        return False
    result = cross_validate({fold: found.finished for fold, found in now.items() if found.finished}, start)
    name = f"folds-{_hash_without_fold(config)}-seed{config['seed_everything']}.json"
    file = Path("runs", method, benchmark, name)
    result.write(file)
    print(f"\n{method} on {benchmark}{shared and ', '}{shared}\n{result.table()}\nwritten to {file}")
    return True


def _hash_without_fold(config: Mapping[str, Any]) -> str:
    data = config["data"]
    arguments = {key: value for key, value in data["init_args"].items() if key != "fold"}
    return config_hash({**config, "data": {**data, "init_args": arguments}})


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
    if len(lists.get("--folds", ["1", "2"])) < 2:
        raise UsageError("--folds averages over folds: name two at least, or one with --data.fold")
    return common, lists


_EXAMPLES = {"--seeds": "0 1 2", "--backbones": "resnet18 resnet50", "--folds": "1 2 3 4 5"}


class Earlier:
    """What is there already of a run.

    Attributes:
        starts: whether there is anything to do.
        options: what the command needs to go on where the earlier run stopped.
        told: in words.
        finished: folder of the run if it is finished.
    """

    def __init__(
        self, starts: bool, told: str, options: Sequence[str] = (), finished: Path | None = None
    ) -> None:
        self.starts, self.told, self.options, self.finished = starts, told, options, finished

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
                return cls(False, f"skipped, finished in {folder}", finished=folder)
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
