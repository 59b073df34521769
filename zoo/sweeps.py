"""`zoo sweep CONFIG`: a W&B sweep made from a config."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

import yaml

from zoo.config_files import UsageError, find_config


def main(argv: Sequence[str]) -> int:
    """``zoo sweep CONFIG``: print the YAML of a W&B sweep; 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="zoo sweep", description="Print a W&B sweep made from a config.")
    parser.add_argument("config", help="a file, or the name of a config of the package")
    parser.add_argument("--method", choices=["grid", "random", "bayes"], default="bayes")
    parser.add_argument(
        "--runs", type=int, default=30, help="stop after so many (default: 30; grid ends by itself)"
    )
    parser.add_argument(
        "--vary",
        nargs="+",
        metavar="KEY=VALUES",
        help="key=a,b,c (choices) or key=low..high (range; logarithmic, if it spans a factor of ten); default: "
        "a factor of ten around model.optim.lr",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds that are varied, too")
    arguments = parser.parse_args(argv)
    try:
        sweep = make_sweep(
            arguments.config, arguments.method, arguments.runs, arguments.vary, arguments.seeds
        )
    except UsageError as error:
        print(f"zoo sweep: error: {error}", file=sys.stderr)
        return 2
    print(
        "# save as sweep.yaml, then: wandb sweep sweep.yaml, and on every machine: wandb agent <what it prints>"
    )
    print(yaml.safe_dump(sweep, sort_keys=False), end="")
    return 0


def make_sweep(
    config: str, method: str, runs: int, vary: Sequence[str] | None, seeds: Sequence[int]
) -> dict[str, Any]:
    """A W&B sweep over a config, by the metric that its method monitors.

    Raises:
        UsageError: no such config or key; values that the key does not take; a range in a grid; nothing to vary by
            default; a method that monitors nothing.
    """
    from zoo.cli import resolve  # imports torch

    options = ["--config", str(find_config(config))]
    resolved, _, _ = resolve(options)
    if vary is None:
        lr = (resolved["model"]["init_args"].get("optim") or {}).get("lr")
        if lr is None:
            raise UsageError(f"{config} sets no model.optim.lr: say with --vary what to try")
        vary = [f"model.optim.lr={float(lr) / 10:g}..{float(lr) * 10:g}"]
    parameters = dict(map(_parameter, vary))
    for key, parameter in parameters.items():
        for value in parameter.get("values", [parameter.get("min")]):
            resolve([*options, f"--{key}={value}"])  # refuses unknown keys and wrong values
        if method == "grid" and "values" not in parameter:
            raise UsageError(f"--method grid needs choices: write {key}=a,b,c instead of a range")
    monitor, mode = _monitor(resolved["model"]["class_path"])
    command = ["${env}", "zoo", "fit", "--config", config, "${args}"]
    stop = {} if method == "grid" else {"run_cap": runs}
    return {
        **{"program": "zoo", "command": command, "method": method, **stop},
        "metric": {"name": monitor, "goal": "maximize" if mode == "max" else "minimize"},
        "parameters": {**parameters, "seed_everything": {"values": [*seeds]}},
    }


def _monitor(class_path: str) -> tuple[str, str]:
    cls = resolve_name(class_path)
    if cls.monitor is None:
        raise UsageError(f"{cls.__name__} monitors no metric that a sweep could go by")
    return cls.monitor, cls.monitor_mode


def _parameter(text: str) -> tuple[str, dict[str, Any]]:
    """``key=a,b`` or ``key=low..high`` as a parameter of a sweep."""
    key, _, values = text.partition("=")
    if not key or not values:
        raise UsageError(
            f"--vary {text}: expected key=a,b,c or key=low..high, as in model.optim.lr=1e-4..1e-2"
        )
    if ".." not in values:
        return key, {"values": [_scalar(value) for value in values.split(",")]}
    low, high = (_scalar(end) for end in values.split("..", 1))
    if not all(isinstance(end, (int, float)) for end in (low, high)) or low >= high:
        raise UsageError(f"--vary {text}: a range goes from a smaller to a larger number")
    whole = isinstance(low, int) and isinstance(high, int)
    logarithmic = low > 0 and high >= 10 * low
    kind = "q_log_uniform_values" if whole and logarithmic else "int_uniform" if whole else ""
    kind = kind or ("log_uniform_values" if logarithmic else "uniform")
    return key, {"distribution": kind, "min": low, "max": high}


def _scalar(text: str) -> Any:
    """A number where it is one (YAML takes ``1e-3`` for text), else what YAML says."""
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        return yaml.safe_load(text)
