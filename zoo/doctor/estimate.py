"""From a few steps to the whole run: time, memory, disk."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from zoo.doctor.checks import Check, duration, gib
from zoo.doctor.environment import host_memory
from zoo.doctor.trial import Trial

#: Shares of memory and disk from which on it is worth a word.
TIGHT = 0.9


@dataclasses.dataclass(frozen=True)
class Plan:
    """What of a run's settings decides about its cost.

    Args:
        settings: arguments of the Trainer.
        samples: of a step on one device: ``batch_size`` times accumulated batches.
        loading: seconds that one process takes to load a batch.
        workers: loader processes.
        monitor: metric by which the best checkpoint is kept, if any.
        folder: where runs are kept.
    """

    settings: Mapping[str, Any]
    samples: int
    loading: float
    workers: int
    monitor: str | None
    folder: Path


def estimate(trial: Trial, plan: Plan) -> Iterator[Check]:
    """Time, memory and disk of the run."""
    yield time(trial, plan)
    yield device_memory(trial)
    yield checkpoints(trial, plan)


def time(trial: Trial, plan: Plan) -> Check:
    """How long the run takes: steps and validations, without probes."""
    ranks = world_size(plan.settings)
    accumulated = plan.settings["accumulate_grad_batches"] or 1
    loaded = accumulated * plan.loading / plan.workers if plan.workers else 0.0
    step = max(trial.step_seconds, loaded)
    steps = run_steps(trial, plan.settings, ranks)
    rate = plan.samples * ranks / step
    parts = [f"{_short(step)} a step ({rate:.3g} samples/s, median of {trial.steps} after warm-up)"]
    remedy = ""
    if loaded > trial.step_seconds:
        parts.append(f"of which loading sets the pace: the network needs {_short(trial.step_seconds)}")
        remedy = f"raise data.num_workers above {plan.workers}"
    elif not plan.workers and plan.loading > trial.step_seconds / 2:
        parts.append(f"loading takes {_short(plan.loading)} of it")
        remedy = "raise data.num_workers above 0"
    if math.isinf(steps):
        found = "; ".join([*parts, "nothing ends the run"])
        return Check("time", "note", found, "set trainer.max_steps or trainer.max_epochs")
    total = steps * step
    parts.append(f"{steps:,.0f} steps: {duration(total)}")
    if trial.validation_seconds is not None:
        batches = math.ceil(trial.validation_batches / ranks)
        count = validations(steps * accumulated, trial.batches / ranks, plan.settings)
        spent = count * batches * trial.validation_seconds
        total += spent
        each = _short(trial.validation_seconds)
        parts.append(
            f"{count} validations of {batches} batches at {each}, probes left out: {duration(spent)}"
        )
    parts.append(f"together about {duration(total)}")
    if ranks > 1:
        parts.append(f"measured on one device, divided among {ranks}")
    details = {
        **{"step_seconds": step, "steps": steps, "seconds": total, "samples_per_second": rate},
        **{"loading_seconds": plan.loading, "validation_seconds": trial.validation_seconds},
    }
    return Check("time", "note" if remedy else "ok", "; ".join(parts), remedy, details)


def run_steps(trial: Trial, settings: Mapping[str, Any], ranks: int) -> float:
    """Optimiser steps of the run; the trial has counted epochs as one device passes through them."""
    most = settings["max_steps"]
    epochs = settings["max_epochs"]
    if epochs in (None, -1):
        if most == -1 and epochs is None and settings["max_time"] is None:
            epochs = 1000  # Lightning's own end
        else:
            return math.inf if most == -1 else most
    per_epoch = math.ceil(trial.batches / ranks / (settings["accumulate_grad_batches"] or 1))
    return epochs * per_epoch if most == -1 else min(most, epochs * per_epoch)


def validations(batches: float, epoch: float, settings: Mapping[str, Any]) -> int:
    """How often a run of so many micro-batches validates; 0 where it goes by the clock."""
    interval, every = settings["val_check_interval"], settings["check_val_every_n_epoch"]
    interval = 1.0 if interval is None else interval
    if isinstance(interval, (str, dict, timedelta)):
        return 0
    if every is None:
        return int(batches // interval) if isinstance(interval, int) else int(batches / (interval * epoch))
    within = epoch // interval if isinstance(interval, int) else round(1 / interval)
    return int(batches // epoch // every * within) if math.isfinite(epoch) else int(batches // interval)


def world_size(settings: Mapping[str, Any]) -> int:
    """Devices of the run, over all nodes."""
    devices, accelerator = settings["devices"], settings["accelerator"]
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    if devices in ("auto", "-1"):
        devices = -1
    elif isinstance(devices, str):
        devices = int(devices) if devices.isdigit() else devices.split(",")
    count = len(devices) if isinstance(devices, list) else (gpus or 1) if devices == -1 else devices
    return count * settings["num_nodes"]


def device_memory(trial: Trial) -> Check:
    """What steps and validation used at most, against what there is."""
    on_device, host = trial.memory["device"], trial.memory["host"]
    details = {"device": on_device, "host": host}
    if on_device is not None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        found = f"{gib(on_device)} of {gib(total)} of the GPU's memory at most"
        if on_device > TIGHT * total:
            return Check("peak", "note", found, "lower data.batch_size: larger batches may come", details)
        return Check("peak", "ok", found, details=details)
    if host is None:
        return Check("peak", "note", "this system does not tell the memory of a process")
    _, there = host_memory()
    found = f"{gib(host)} of the host's memory at most"
    if there is not None and host > TIGHT * there:
        return Check("peak", "note", f"{found}, of {gib(there)}", "lower data.batch_size", details)
    return Check("peak", "ok", found, details=details)


def checkpoints(trial: Trial, plan: Plan) -> Check:
    """Size of the checkpoints that the run keeps at once, against the room there is."""
    number = kept_checkpoints(plan.settings["callbacks"], plan.monitor, plan.settings)
    needed = number * trial.checkpoint
    there = plan.folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    found = f"{gib(trial.checkpoint)} each, {number} kept: {gib(needed)}; {gib(free)} free below {there}"
    details = {"bytes": trial.checkpoint, "kept": number, "free": free}
    if needed + trial.checkpoint > free:  # the new one is written before the old one goes
        return Check("checkpoints", "stop", found, "make room, or set --run_dir to another disk", details)
    tight = needed > TIGHT * free
    return Check("checkpoints", "note" if tight else "ok", found, "make room" if tight else "", details)


def kept_checkpoints(callbacks: list[Callback], monitor: str | None, settings: Mapping[str, Any]) -> int:
    """``last`` and, where there is a metric, ``best``; or what the config's own callbacks keep."""
    if settings["enable_checkpointing"] is False:
        return 0
    own = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if not own:
        return 1 if monitor is None else 2
    return sum(max(1, c.save_top_k) + bool(c.save_last) for c in own)


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
