"""A checkpoint against what was typed: typed options win and are told, or are refused where they cannot."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints.files import DAMAGED_ZIP, CheckpointError, is_zip, read_plain
from zoo.class_paths import resolve_class
from zoo.config_files import UsageError
from zoo.method import TRAINING_PARTS

NAMES = ("best", "last", "hpc")  # of checkpoints in a run's folder
# Of a method's `optim`, what a resumed run may change; the rest lies in the optimiser's state.
SCHEDULE = {
    f"optim.{name}"
    for name in (
        *("schedule", "power", "final_lr", "warmup_steps", "warmup_epochs", "warmup_ratio", "total_steps"),
        *("cosine_share", "final_weight_decay", "frozen_steps", "frozen_epochs", "freeze_by"),
        *("clip_norm", "clip_by"),
    )
}
MISFIT_REMEDY = "take the model from the checkpoint, or start a new run with --model.init_from"
# Where weights would start if the checkpoint did not bring all of them.
STARTS = ("pretrained", "init_from")


class Trained:
    """How a checkpoint was trained; empty where no file is named.

    Lightning 2.6 lets the hyper-parameters of ``--ckpt_path`` override what was typed, without a word. Here
    they come below it, like a config file: :meth:`as_options` goes before the typed options.

    Args:
        ckpt_path: value of ``--ckpt_path``: a file, or ``best``, ``last`` or ``hpc`` of ``run_dir``.
        run_dir: value of ``--run_dir``.
        resumes: training goes on, so that the optimiser's state comes from the checkpoint.

    Attributes:
        path: the file that is meant; ``None`` to start from the beginning.
        passed_over: damaged files that were found on the way to it, with what is wrong.

    Raises:
        UsageError: there is no such file, or it is no checkpoint that can be loaded safely.
    """

    def __init__(self, ckpt_path: str | None, run_dir: str | None = None, resumes: bool = False) -> None:
        self.passed_over: list[str] = []
        self.checkpoint: dict[str, Any] = {}
        self.path = ckpt_path or None
        if ckpt_path in NAMES:
            self.path, self.checkpoint = self._named(ckpt_path, run_dir, resumes)
        elif self.path and not Path(self.path).is_dir():
            self.checkpoint = _whole(self.path)
        self.waits = None if self.path else ckpt_path
        self.options: dict[str, Any] = dict(self.checkpoint.get("hyper_parameters", {}))
        self.options.pop("_instantiator", None)
        self.class_path: str | None = self.options.pop("_class_path", None)

    def as_options(self) -> list[str]:
        """The model as a config on the command line; nothing if the checkpoint was not written by `zoo`."""
        if self.class_path is None:
            return []
        try:
            model = json.dumps({"model": {"class_path": self.class_path, "init_args": self.options}})
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"--ckpt_path {self.path} holds hyper-parameters that are no plain values ({error})"
            ) from error
        return ["--config", model]

    def compare(self, model: Mapping[str, Any], resumes: bool) -> list[str]:
        """Tell in which options the resolved ``model`` differs from the checkpoint.

        Args:
            model: ``class_path`` and ``init_args``, as plain values.
            resumes: training goes on, so that the optimiser's state comes from the checkpoint.

        Raises:
            UsageError: a difference that would not take effect: another class, other optimiser settings,
                other weights to start from.
        """
        if self.class_path and resolve_class(self.class_path) is not resolve_class(model["class_path"]):
            raise UsageError(
                f"--ckpt_path holds a {self.class_path}, the command asks for a {model['class_path']}: "
                "leave the model to the checkpoint, choose another checkpoint, or start a run of its own from the "
                "checkpoint's weights with --model.init_from"
            )
        notes = [f"{damaged}: passed over for {self.path}" for damaged in self.passed_over]
        for key, (before, now) in differences(self.options, model.get("init_args", {})).items():
            if key in STARTS:
                notes += self._start(key, before, now, resumes)
                continue
            if resumes and key.partition(".")[0] == "optim" and key not in SCHEDULE:
                raise UsageError(
                    f"model.{key} is {now!r}, but resuming restores the optimiser of the checkpoint, trained "
                    f"with {before!r}: leave it out, or start a run of its own without --ckpt_path"
                )
            notes.append(f"model.{key} is {now!r} as you asked; the checkpoint was trained with {before!r}")
        if self.waits:
            notes.append(
                f"--ckpt_path {self.waits}: the run has none yet, so training starts from the beginning"
            )
        if self.checkpoint and resumes and not self.holds_random_state():
            notes.append(
                "the checkpoint holds no random state: the resumed run draws other samples than an unbroken one"
            )
        if resumes and (pending := max((s.get("pending", 0) for s in self._callback_states()), default=0)):
            notes.append(
                f"the checkpoint was written {pending} micro-batches into an optimiser step, whose gradient it does "
                "not hold: the resumed run differs from an unbroken one"
            )
        return notes

    @staticmethod
    def _start(key: str, before: Any, now: Any, resumes: bool) -> list[str]:
        """Weights to start from cannot win over a checkpoint that brings all of them."""
        if resumes:
            raise UsageError(
                f"model.{key} is {now!r}, but --ckpt_path brings all weights, of a run that started with {before!r}: "
                f"set model.{key} to that, or leave out --ckpt_path to start from {now!r}"
            )
        return [
            f"model.{key} is {now!r} without effect: the checkpoint, which started with {before!r}, is evaluated"
        ]

    def holds_random_state(self) -> bool:
        """Lightning stores none; a callback that does so keeps it under ``rng_state``."""
        return any(isinstance(state, Mapping) and "rng_state" in state for state in self._callback_states())

    def refuse_other_networks(self, wanted: Mapping[str, Tensor]) -> None:
        """See that the tensors of a method, ``wanted``, are those of the checkpoint, before anything is written.

        Raises:
            UsageError: they are not, by name or shape.
        """
        held = self.checkpoint.get("state_dict")
        if held is not None and (odd := misfit(wanted, held)):
            raise UsageError(f"--ckpt_path {self.path} does not fit: {odd}; {MISFIT_REMEDY}")

    def _callback_states(self) -> list[Mapping[str, Any]]:
        return list(self.checkpoint.get("callbacks", {}).values())

    def _named(self, name: str, run_dir: str | None, resumes: bool) -> tuple[str | None, dict[str, Any]]:
        """The file that ``best``, ``last`` or ``hpc`` stands for; ``None`` where a run has no last one yet.

        Lightning would look for it when the run starts, unchecked, and train from the beginning if it finds none.
        """
        if not run_dir:
            raise UsageError(
                f"--ckpt_path {name} is the {name} checkpoint of a run folder: add --run_dir, or name the file itself"
            )
        run = Path(run_dir)
        named = {
            "best": [run / "checkpoints" / "best.ckpt"],
            "last": [*run.glob("checkpoints/*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")],
            "hpc": [
                *run.glob("hpc_ckpt_*.ckpt")
            ],  # written by Lightning when a cluster is about to end the job
        }
        files = [path for path in named[name] if path.is_file()]
        if (newest := self._newest(files)) is not None:
            return newest
        if self.passed_over:
            raise UsageError(
                f"--ckpt_path {name}: none of the run's checkpoints can be used. {'; '.join(self.passed_over)}. Start "
                "from the beginning without --ckpt_path"
            )
        if resumes and name == "last":
            return None, {}
        missing = {"best": "checkpoints/best.ckpt", "last": "checkpoints/last.ckpt", "hpc": "hpc_ckpt_1.ckpt"}
        raise UsageError(f"--ckpt_path {name}: the run has no {run / missing[name]}")

    def _newest(self, files: Iterable[Path]) -> tuple[str, dict[str, Any]] | None:
        """The undamaged file of most steps, of the latest where several are equal; damaged ones are remembered."""
        steps: list[tuple[int, float, str]] = []
        for path in map(str, files):
            with self._remembering():
                steps.append((_read(path).get("global_step", 0), Path(path).stat().st_mtime, path))
        for _, _, path in sorted(steps, reverse=True):
            with self._remembering():
                return path, _whole(path)
        return None

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Remember what is wrong with a file, and go on."""
        try:
            yield
        except UsageError as error:
            self.passed_over.append(str(error).removeprefix("--ckpt_path "))


def misfit(wanted: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> str:
    """In which tensors a checkpoint's ``held`` are not a method's ``wanted``, by name and shape; empty if in none.

    State of callbacks is not compared: without them it is left out.
    """
    known = {name for name in held if not name.startswith(f"{TRAINING_PARTS}.")}
    shared = wanted.keys() & known
    parts = {
        "lacks": wanted.keys() - known,
        "has besides": known - wanted.keys(),
        "has of another shape": {name for name in shared if wanted[name].shape != held[name].shape},
    }
    return "; ".join(f"{what} {len(names)}, e.g. {min(names)}" for what, names in parts.items() if names)


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


def _whole(path: str) -> dict[str, Any]:
    """Read a checkpoint after comparing its content with its checksums: torch does not when it maps a file."""
    if is_zip(path):  # reading what is none will tell
        with zipfile.ZipFile(path) as archive:
            try:
                damaged = archive.testzip()
            except DAMAGED_ZIP as error:
                damaged = str(error)
            if damaged:
                raise UsageError(
                    f"--ckpt_path {path} is damaged ({damaged} in it does not have the checksum it was written "
                    "with): use another checkpoint of the run"
                )
    return _read(path)


def _read(path: str) -> dict[str, Any]:
    """Read a checkpoint, of which tensors stay on disk."""
    try:
        checkpoint = read_plain(path)
    except CheckpointError as error:
        raise UsageError(
            f"--ckpt_path {path} is not a Lightning checkpoint that can be read: {error}"
        ) from error
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "hyper_parameters", "callbacks"} & checkpoint.keys()
        or any(not isinstance(checkpoint.get(key, {}), Mapping) for key in ("hyper_parameters", "callbacks"))
    ):
        raise UsageError(
            f"--ckpt_path {path} is not a Lightning checkpoint but other weights: start from them with "
            "--model.pretrained or --model.init_from"
        )
    return checkpoint
