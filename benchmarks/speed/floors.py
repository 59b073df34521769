"""Every method's step, over its own forwards, backwards and optimiser steps, each timed alone at the same shapes.

A step is that of a Trainer with the callbacks of the method's recipe and without loggers: all that happens between two
requests for a batch. In it are recorded the calls of the method's networks (see
:class:`benchmarks.speed.floor_record.Recorder`): student, teachers and frozen judges, with their inputs, their modes
and the gradients that came back to their outputs. Right after it the calls are made again, one by one, each followed
by its own backward, and so is the optimiser's step, as often as it happened (look-aheads step more than once). What
the step takes beyond that sum is everything else: losses and their gradients, targets, pseudo-labels, mixing and strong
augmentation, teachers' moves, kept and restored parameters, gradient clipping, checks for nan, the Trainer.

That no call is missed is checked, not assumed: before anything is timed, the calls of a real step must give the
gradients of all its parameters once more, with the same dropout, or the command stops. The batch's own augmentation by
the datamodule comes before the step and is told beside it, where the benchmark is real.

Toy sizes are those of the embedded configs; real ones the published recipes as one core can train them
(:mod:`benchmarks.speed.floor_sizes`). Ratios are of one round; a round of toy sizes holds several steps. ``--resume``
leaves out what the file of numbers has.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.speed.floor_record import Call, Recorder, replaced, set_gradients
from benchmarks.speed.floor_sizes import REAL, parsed
from benchmarks.speed.paired import MANY, keep, markdown, now, options, shown, spread
from benchmarks.training import quiet
from zoo.heap import keep_freed_memory
from zoo.method import Method
from zoo.registry import list_methods

TARGETS = {"toy": 1.15, "real": 1.05}
ROUNDS = {"toy": (7, 3), "real": (3, 1)}
"""Rounds, and steps in each."""
EXACT = 1e-3
"""Share of a gradient's norm that a replay may miss."""
RESULTS = Path(__file__).parents[1] / "results" / "speed_floors.json"


class Floor(Callback):
    """Gives the Trainer its batches, and takes the step apart between them.

    Args:
        method: what is trained.
        batches: taken in turn; on the device.
        device: ``cpu`` or ``cuda``.
        rounds: how often everything is timed.
        steps: steps of a round.
    """

    step_order = 10**6  # after everything that prepares a batch

    def __init__(self, method: Method, batches: list[Any], device: str, rounds: int, steps: int) -> None:
        self.method, self.batches, self.device = method, batches, device
        self.rounds, self.steps = rounds, steps
        self.recorder = Recorder(method)
        self.found: list[dict[str, float]] = []
        self.networks: dict[str, int] = {}
        self.gap = 0.0
        self.optimizer_steps = self.counted = self._before_step = 0
        self._checks = False

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Any]:
        batch = (replaced(self.batches[i % len(self.batches)], lambda t: t) for i in range(MANY))
        yield next(batch)  # look-aheads and labels begin in the second step
        self.recorder.watch_everything()
        self._checks = True
        yield next(batch)
        self._checks = False
        self.recorder.watch_found()
        for index in range(-1 if self.steps > 1 else 0, self.rounds):  # one round warms short steps up
            spent: list[dict[str, float]] = []
            for _ in range(self.steps):
                self.recorder.calls, self.optimizer_steps = [], 0
                start = now(self.device)
                yield next(batch)
                spent.append({"step": now(self.device) - start, **self.alone()})
            if index >= 0:
                self.found.append({key: sum(part[key] for part in spent) / self.steps for key in spent[0]})
        self.recorder.stop()

    def alone(self) -> dict[str, float]:
        """Seconds of what the last step's networks and its optimiser take without the step around them."""
        calls, optimizer = self.recorder.calls, self.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        real = [parameter.grad for parameter in parameters]
        set_gradients(parameters, [None] * len(parameters))
        spent = {"forward": 0.0, "backward": 0.0}
        with self.recorder.paused():
            while calls:
                forward, backward = calls.pop(0).replay(self.device)
                spent["forward"] += forward
                spent["backward"] += backward
        set_gradients(parameters, real)
        self.counted = count = self.optimizer_steps
        start = now(self.device)
        self.raw_step()
        return {**spent, "optimiser": count * (now(self.device) - start)}

    # -- hooks ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the optimiser's steps, virtual ones too."""
        self.optimizer = trainer.optimizers[0]
        self.raw_step = self.optimizer.step

        def count(*_: Any) -> None:
            self.optimizer_steps += 1

        self.optimizer.register_step_post_hook(count)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here on calls are those of the real step."""
        self._before_step = len(self.recorder.calls)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check that the recorded calls give the step's gradients.

        Raises:
            RuntimeError: they do not: a part of a network was used around its module.
        """
        if not self._checks:
            return
        calls = self.recorder.calls
        trained = {name: p for name, p in self.method.named_parameters() if p.requires_grad}
        gaps = self.recorder.missing(calls[self._before_step :], trained)
        self.gap = max(gaps.values())
        if self.gap > EXACT:
            worst = {name: f"{gap:.2g}" for name, gap in gaps.items() if gap > EXACT}
            raise RuntimeError(f"{self.told(calls)} do not make the gradients of {worst}")
        self.networks = self.told(calls)

    @staticmethod
    def told(calls: list[Call]) -> dict[str, int]:
        """Names of the calls, with grad or without, and how often."""
        names = [f"{call.name}{'' if call.grad else ', no grad'}" for call in calls]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def measured(name: str, size: str, device: str, rounds: int, steps: int) -> dict[str, Any]:
    """All numbers of a method at a size."""
    cli = parsed(name, size)
    method = cli.build_method()
    augmentation = None
    if size == "real":
        batches = [REAL[name].batch(method)]
    else:
        data = cli.build_data()
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        several = loader.items() if isinstance(loader, dict) else ()
        raw = {key: next(iter(part)) for key, part in several} or next(iter(loader))

        def augmented() -> Any:
            return data.on_after_batch_transfer(_moved(raw, device), 0)

        batches = [augmented()]
        seconds = []
        for _ in range(rounds):
            start = now(device)
            augmented()
            seconds.append(now(device) - start)
        augmentation = 1000 * statistics.median(seconds)
    floor = Floor(method, [_moved(batch, device) for batch in batches], device, rounds, steps)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1, callbacks=[floor],
        precision=cli.settings.trainer.precision or "32-true" if device == "cuda" else "32-true",
        gradient_clip_val=cli.settings.trainer.gradient_clip_val, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, floor)
    parts = [
        {**found, "sum": found["forward"] + found["backward"] + found["optimiser"]} for found in floor.found
    ]
    record: dict[str, Any] = {"ratio": spread([part["step"] / part["sum"] for part in parts])}
    for key in ("step", "sum", "forward", "backward", "optimiser"):
        record[f"{key}_ms"] = 1000 * statistics.median(part[key] for part in parts)
    if augmentation is not None:
        record["augmentation_ms"] = augmentation
    record["optimiser_steps"] = floor.counted
    record["networks"], record["gradient_gap"] = floor.networks, floor.gap
    record["rounds"], record["steps"] = rounds, steps
    record["parameters"] = sum(p.numel() for p in method.student.parameters())
    return record


def _moved(batch: Any, device: str) -> Any:
    return replaced(batch, lambda tensor: tensor.to(device))


def table(size: str, record: dict[str, Any]) -> str:
    """One row a method."""
    rows = []
    for name, found in sorted(record.items()):
        missed = "" if found["ratio"]["median"] <= TARGETS[size] else ", missed"
        parts = [f"{found[f'{key}_ms']:.0f}" for key in ("forward", "backward", "optimiser")]
        beside = f"{found['augmentation_ms']:.1f}" if "augmentation_ms" in found else REAL[name].told
        rows.append([f"`{name}`", shown(found["ratio"]) + missed, f"{found['step_ms']:.0f}", *parts, beside])
    last = "augmentation before it, ms" if size == "toy" else "size"
    header = ["method", "step / its parts", "step, ms", "forwards", "backwards", "optimiser", last]
    return markdown(header, rows)


def main() -> None:
    parser = options(__doc__, rounds=0)
    parser.add_argument("--sizes", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", nargs="*", choices=list_methods(), default=list_methods())
    parser.add_argument("--steps", type=int, default=0, help="of a round")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.set_defaults(json=RESULTS)
    arguments = parser.parse_args()
    quiet()
    if arguments.device == "cpu":
        keep_freed_memory()  # as `zoo fit` does
    failed: list[str] = []
    for size in arguments.sizes:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        done = known.get(size, {}) if arguments.resume else {}
        rounds, steps = (given or usual for given, usual in zip(
            (arguments.rounds, arguments.steps), ROUNDS[size], strict=True
        ))  # fmt: skip
        for name in arguments.methods:
            if name in done:
                continue
            start = time.process_time()
            try:
                found = measured(name, size, arguments.device, rounds, steps)
            except Exception:
                traceback.print_exc()
                failed.append(f"{name} ({size})")
                continue
            keep(arguments.json, arguments.device, {size: {name: found}})
            took = time.process_time() - start
            print(
                f"{size} {name}: {shown(found['ratio'])}, {found['step_ms']:.1f} ms, took {took:.0f} s",
                flush=True,
            )
        if arguments.json.exists():
            print(
                f"\n{size}, target {TARGETS[size]}\n{table(size, json.loads(arguments.json.read_text())[size])}\n"
            )
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
