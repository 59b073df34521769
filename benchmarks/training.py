"""What learning proofs share that train in processes of their own: configs, trainers, and a run of every seed."""

from __future__ import annotations

import argparse
import json
import logging
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from zoo.config_files import find_config
from zoo.method import Method
from zoo.optim import Optim

#: A number such as 1e-3, which YAML 1.1 takes for a word.
_EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+")


def settings(config: str) -> dict[str, Any]:
    """Arguments of ``model`` and ``data`` of a config of the package, their objects built, and its ``steps``."""
    content = yaml.safe_load(find_config(config).read_text())
    arguments = {part: built(content[part]["init_args"]) for part in ("model", "data")}
    arguments["model"]["optim"] = Optim(**arguments["model"]["optim"])
    return {**arguments, "steps": content["trainer"]["max_steps"]}


def built(node: Any) -> Any:
    """A YAML node with what it describes by ``class_path`` in its place."""
    if isinstance(node, str) and _EXPONENT.fullmatch(node):
        return float(node)
    if not isinstance(node, dict):
        return node
    inner = {key: built(value) for key, value in node.items()}
    if "class_path" not in inner:
        return inner
    module, _, name = inner["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**inner.get("init_args", {}))


def trainer(steps: int = 1, **options: Any) -> L.Trainer:
    """A trainer that trains and does nothing else, on the CPU."""
    silent: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "limit_val_batches": 0,
    }  # fmt: skip
    return L.Trainer(max_steps=steps, accelerator="cpu", **{**silent, **options})


def scores(method: Method, data: L.LightningDataModule, split: str) -> dict[str, float]:
    """What ``zoo validate`` (``val``) or ``zoo test`` would say, by name without the stage."""
    judge = trainer(limit_val_batches=1.0)
    run = judge.test if split == "test" else judge.validate
    (found,) = run(method, datamodule=data, verbose=False)
    return {name.partition("/")[2]: value for name, value in found.items()}


def kept(done: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, or what it returned when ``done`` was written."""
    if not done.is_file():
        done.write_text(json.dumps(make(), indent=1))
    return json.loads(done.read_text())


def quiet() -> None:
    """One thread, and no word of Lightning's: what every worker and every measurement starts with."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def run_seeds(one_seed: Callable[..., Any], arguments: argparse.Namespace, *more: Any) -> dict[int, Any]:
    """``one_seed(seed, folder, *more)`` of all seeds, side by side.

    Args:
        one_seed: function of a module; returns what JSON can hold.
        arguments: of :func:`benchmarks.report.proof_parser`; a file ``json`` among them gets all of it.
        *more: the same for every seed.
    """
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.workers, initializer=quiet) as pool:
        runs = pool.map(one_seed, arguments.seeds, repeat(arguments.folder), *map(repeat, more))
        by_seed = dict(zip(arguments.seeds, runs, strict=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(by_seed, indent=1) + "\n")
    return by_seed
