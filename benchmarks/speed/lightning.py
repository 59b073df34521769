"""What the Trainer adds to a step: a Method in its usual setting over the same losses and optimiser in a raw loop.

Beside it a LightningModule of the same network in a bare Trainer, which keeps and shows nothing, and in the common
setting: each of the five terms logged in every step, Lightning's bar, a CSV log every 50 steps.

The usual setting is that of ``zoo fit``: the method's default callbacks and monitors, five loss terms, a CSV log every
50 steps, checkpoints, exact resuming, and the bar drawn once a second. Each loop is a process of its own and goes on
through the whole measurement, turn by turn: a turn of ``nano`` steps holds one that is logged; one of ``large`` steps
is short, so that what slows the machine down slows all four alike. Told are medians over the rounds of differences from
the raw loop and ratios to it, with the standard error of each. A large step works on matrices that fit the caches, so
that its own time varies little.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from benchmarks.speed.paired import Meter, Worker, keep, markdown, options, spread, standard_error, take_turns
from benchmarks.training import quiet
from callbacks import ExactResume, RunProgress
from callbacks.defaults import default_monitors
from callbacks.interrupts import Interrupts
from zoo.heap import keep_freed_memory
from zoo.method import Method
from zoo.optim import Optim, build_optimizer
from zoo.run_folder import run_checkpoints

SIZES = {"nano": (0, 0, 8, 60, 50), "large": (3, 512, 2048, 4, 2)}
"""Hidden layers, their units, samples a batch; steps before the first turn, and of a turn."""
LOG_EVERY = 50
TARGETS = {"nano": 1.0, "large": 1.03}
"""Milliseconds that a step of the zoo may cost more, and its ratio to the raw one."""


class Classifier(Method):
    """A perceptron with five loss terms."""

    def __init__(self, layers: int, units: int) -> None:
        super().__init__(Optim(name="sgd", lr=1e-3, weight_decay=0.0, schedule="constant"))
        widths = [48, *[units] * layers]
        hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        self.student = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 10))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.student(batch["image"]), batch["label"])
        return {f"term{number}": loss / 5 for number in range(5)}

    def default_callbacks(self) -> list[Callback]:
        return default_monitors(self)


def raw(method: Classifier, loader: Meter) -> None:
    """The same losses, backward and optimiser."""
    optimizer = build_optimizer(method.trained_modules(), method.optim)
    method.to(loader.device).train()
    for batch in loader:
        torch.stack(list(method.losses(batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def fit(module: L.LightningModule, loader: Meter, **options: Any) -> None:
    """Train in a Trainer that keeps its files in the process's own folder."""
    trainer = L.Trainer(
        accelerator="gpu" if loader.device == "cuda" else "cpu", devices=1, max_epochs=1, log_every_n_steps=LOG_EVERY,
        default_root_dir=Path.cwd(), enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, loader)


def trained(method: Classifier, loader: Meter) -> None:
    """In the Trainer, in the usual setting."""
    callbacks = [
        RunProgress(interactive=True), ExactResume(), Interrupts(), *run_checkpoints(Path.cwd(), None, "max")
    ]  # fmt: skip
    fit(method, loader, logger=CSVLogger(Path.cwd()), callbacks=callbacks)


class Plain(L.LightningModule):
    """The same without the zoo, as Lightning's documentation has it."""

    def __init__(self, method: Classifier, logs: bool) -> None:
        super().__init__()
        self.network, self.logs = method.student, logs

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch["image"]), batch["label"])
        terms = {f"term{number}": loss / 5 for number in range(5)}
        if self.logs:
            for name, term in terms.items():
                self.log(f"train/{name}", term, prog_bar=True)
        return torch.stack(list(terms.values())).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def plain(method: Classifier, loader: Meter, logs: bool) -> None:
    """Lightning without the zoo."""
    fit(
        Plain(method, logs), loader, logger=CSVLogger(Path.cwd()) if logs else False, enable_checkpointing=logs,
        enable_progress_bar=logs,
    )  # fmt: skip


RAW = "raw"
FORMS: dict[str, Callable[[Classifier, Meter], None]] = {
    RAW: raw,
    "zoo, usual setting": trained,
    "Lightning, bare: no logs, bar or checkpoints": lambda method, loader: plain(method, loader, logs=False),
    "Lightning, common: five `self.log` a step, its bar, CSV every 50 steps, checkpoints": lambda method, loader: (
        plain(method, loader, logs=True)
    ),
}


def work(form: str, size: str, device: str) -> None:
    """The process of one loop."""
    quiet()
    if device == "cpu":
        keep_freed_memory()  # as `zoo fit` does: page faults of a step are no work of a Trainer
    layers, units, samples, *_ = SIZES[size]
    torch.manual_seed(0)
    batch = {"image": torch.rand(samples, 3, 4, 4), "label": torch.randint(10, (samples,))}
    loader = Meter({key: value.to(device) for key, value in batch.items()}, device)
    FORMS[form](Classifier(layers, units), loader)


def measured(size: str, device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of the raw loop and, of the others, what they add and the ratio, with standard errors."""
    *_, warm_up, steps = SIZES[size]
    command = [sys.executable, "-m", "benchmarks.speed.lightning", "--worker"]
    workers = [Worker(form, [*command, json.dumps([form, size, device])]) for form in FORMS]
    told = take_turns(workers, rounds, steps, warm_up)
    took = {form: [1000 * turn["step"] for turn in turns] for form, turns in told.items()}
    record: dict[str, Any] = {"raw_ms": spread(took[RAW]), "rounds": rounds, "steps": steps}
    for form in list(FORMS)[1:]:
        pairs = list(zip(took[form], took[RAW], strict=True))
        added, ratios = [own - bare for own, bare in pairs], [own / bare for own, bare in pairs]
        record[form] = {
            "added_ms": spread(added) | {"error": standard_error(added)},
            "ratio": spread(ratios) | {"error": standard_error(ratios)},
        }
    return record


def table(record: dict[str, Any]) -> str:
    """That of ``docs/performance.md``."""
    heads = {"nano": "added to a step of {} ms, ms", "large": "a step of {} ms / the raw one"}
    header = ["setting"]
    for size, found in record.items():
        header.append(heads[size].format(f"{found['raw_ms']['median']:.3g}"))
    rows = []
    for index, form in enumerate(list(FORMS)[1:]):
        row = [form]
        for size, found in record.items():
            value = found[form]["added_ms" if size == "nano" else "ratio"]
            digits = 2 if size == "nano" else 3
            row.append(f"{value['median']:.{digits}f} ± {value['error']:.{digits}f}")
            if index == 0:
                met = "" if value["median"] <= TARGETS[size] else " missed"
                row[-1] += f", target {TARGETS[size]:g}{met}"
        rows.append(row)
    return markdown(header, rows)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(*json.loads(sys.argv[2]))
        return
    parser = options(__doc__, rounds=40)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    record = {size: measured(size, arguments.device, arguments.rounds) for size in arguments.sizes}
    print(table(record))
    keep(arguments.json, arguments.device, {"steps": record})


if __name__ == "__main__":
    main()
