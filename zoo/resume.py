"""A checkpoint against what was typed: typed options win and are told, or are refused where they cannot."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from zoo.config_files import UsageError

NAMES = ("best", "last", "hpc")  # Lightning resolves these itself, when the run starts
# Of a method's `optim`, what a resumed run may change; the rest lies in the optimiser's state.
SCHEDULE = {f"optim.{name}" for name in ("schedule", "power", "warmup_steps", "warmup_ratio", "total_steps")}


class Trained:
    """How a checkpoint was trained; empty where no file is named.

    Lightning 2.6 lets the hyper-parameters of ``--ckpt_path`` override what was typed, without a word. Here
    they come below it, like a config file: :meth:`as_options` goes before the typed options.

    Args:
        path: value of ``--ckpt_path``.

    Raises:
        UsageError: there is no such file, or it is no checkpoint that can be loaded safely.
    """

    def __init__(self, path: str | None) -> None:
        self.checkpoint = _read(path)
        self.options: dict[str, Any] = dict(self.checkpoint.get("hyper_parameters", {}))
        self.options.pop("_instantiator", None)
        self.class_path: str | None = self.options.pop("_class_path", None)

    def as_options(self) -> list[str]:
        """The model as a config on the command line; nothing if the checkpoint was not written by `zoo`."""
        if self.class_path is None:
            return []
        return ["--config", json.dumps({"model": {"class_path": self.class_path, "init_args": self.options}})]

    def compare(self, model: Mapping[str, Any], resumes: bool) -> list[str]:
        """Tell in which options the resolved ``model`` differs from the checkpoint.

        Args:
            model: ``class_path`` and ``init_args``, as plain values.
            resumes: training goes on, so that the optimiser's state comes from the checkpoint.

        Raises:
            UsageError: a difference that would not take effect: another class, other optimiser settings.
        """
        if self.class_path and resolve_name(self.class_path) is not resolve_name(model["class_path"]):
            raise UsageError(
                f"--ckpt_path holds a {self.class_path}, the command asks for a {model['class_path']}: "
                "leave the model to the checkpoint, or choose another checkpoint"
            )
        notes = []
        for key, (before, now) in differences(self.options, model.get("init_args", {})).items():
            if resumes and key.partition(".")[0] == "optim" and key not in SCHEDULE:
                raise UsageError(
                    f"model.{key} is {now!r}, but resuming restores the optimiser of the checkpoint, trained "
                    f"with {before!r}: leave it out, or start a run of its own without --ckpt_path"
                )
            notes.append(f"model.{key} is {now!r} as you asked; the checkpoint was trained with {before!r}")
        if self.checkpoint and resumes and not self.holds_random_state():
            notes.append(
                "the checkpoint holds no random state: the resumed run draws other samples than an unbroken one"
            )
        return notes

    def holds_random_state(self) -> bool:
        """Lightning stores none; a callback that does so keeps it under ``rng_state``."""
        return any("rng_state" in state for state in self.checkpoint.get("callbacks", {}).values())


def differences(trained: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (value in the checkpoint, value now) for the options in which the two differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in trained.keys() & typed.keys():
        before, now = trained[key], typed[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found |= {f"{key}.{inner}": values for inner, values in differences(before, now).items()}
        elif before != now:
            found[key] = before, now
    return dict(sorted(found.items()))


def _read(path: str | None) -> dict[str, Any]:
    if not path or path in NAMES or Path(path).is_dir():
        return {}
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # tensors stay on disk
    except FileNotFoundError as error:
        raise UsageError(f"--ckpt_path {path}: there is no such file") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UsageError(f"--ckpt_path {path} is not a Lightning checkpoint of plain values") from error
