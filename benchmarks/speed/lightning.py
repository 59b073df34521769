"""What the Trainer adds to a step: a Method in its usual setting over the same losses and optimiser in a raw loop.

Beside it a LightningModule of the same network in a bare Trainer, which keeps and shows nothing, and in the common
setting: each of the five terms logged in every step, Lightning's bar, a CSV log every 50 steps.

The usual setting is that of ``zoo fit``: the method's default callbacks and monitors, five loss terms, a CSV log every
50 steps, checkpoints, exact resuming, and the bar drawn once a second (into the void). Rounds of all alternate in one
process; a round's clock runs from one request for a batch to another, over whole steps, after some to warm up.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from benchmarks.speed.paired import keep, markdown, now, options, shown, spread
from benchmarks.training import quiet
from callbacks import ExactResume, RunProgress
from callbacks.defaults import default_monitors
from callbacks.interrupts import Interrupts
from zoo.method import Method
from zoo.optim import Optim, build_optimizer
from zoo.run_folder import run_checkpoints

SIZES = {"nano": (0, 8, 60, 300), "large": (4, 64, 4, 12)}
"""Hidden layers of 2048 units, samples a batch, steps before the clock and on it (``nano`` logs six times in these)."""


class Classifier(Method):
    """A perceptron with five loss terms."""

    def __init__(self, layers: int) -> None:
        super().__init__(Optim(name="sgd", lr=1e-3, weight_decay=0.0, schedule="constant"))
        widths = [48, *[2048] * layers]
        hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        self.student = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 10))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.student(batch["image"]), batch["label"])
        return {f"term{number}": loss / 5 for number in range(5)}

    def default_callbacks(self) -> list[Callback]:
        return default_monitors(self)


class Clocked:
    """Gives one batch again and again, and tells when those were asked for between which steps are counted."""

    def __init__(self, batch: dict[str, Tensor], warm_up: int, steps: int, device: str) -> None:
        self.batch, self.warm_up, self.steps, self.device = batch, warm_up, steps, device
        self.marks: list[float] = []

    def __len__(self) -> int:
        return self.warm_up + self.steps + 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in range(len(self)):
            if number in (self.warm_up, self.warm_up + self.steps):
                self.marks.append(now(self.device))
            yield dict(self.batch)

    def seconds(self) -> float:
        """Of one step."""
        start, end = self.marks
        return (end - start) / self.steps


def raw(method: Classifier, loader: Clocked) -> None:
    """The same losses, backward and optimiser."""
    optimizer = build_optimizer(method.trained_modules(), method.optim)
    method.to(loader.device).train()
    for batch in loader:
        torch.stack(list(method.losses(batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(method: Classifier, loader: Clocked) -> None:
    """In the Trainer, in the usual setting."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as void:
        callbacks = [
            RunProgress(interactive=True), ExactResume(), Interrupts(), *run_checkpoints(Path(folder), None, "max")
        ]  # fmt: skip
        with contextlib.redirect_stderr(void), contextlib.redirect_stdout(void):
            trainer = L.Trainer(
                accelerator="gpu" if loader.device == "cuda" else "cpu", devices=1, max_steps=len(loader),
                logger=CSVLogger(folder), log_every_n_steps=50, callbacks=callbacks, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(method, loader)


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


def plain(method: Classifier, loader: Clocked, logs: bool) -> None:
    """Lightning without the zoo."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        void = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stderr(void))
        stack.enter_context(contextlib.redirect_stdout(void))
        trainer = L.Trainer(
            accelerator="gpu" if loader.device == "cuda" else "cpu", devices=1, max_steps=len(loader),
            logger=CSVLogger(folder) if logs else False, log_every_n_steps=50, enable_checkpointing=logs,
            default_root_dir=folder, enable_progress_bar=logs, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Plain(method, logs), loader)


FORMS: dict[str, Callable[[Classifier, Clocked], None]] = {
    "zoo, usual setting": trained,
    "Lightning, bare": lambda method, loader: plain(method, loader, logs=False),
    "Lightning, common setting": lambda method, loader: plain(method, loader, logs=True),
}


def measured(size: str, device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step in both, what the Trainer adds, and the ratio."""
    layers, batch_size, *steps = SIZES[size]
    torch.manual_seed(0)
    batch = {"image": torch.rand(batch_size, 3, 4, 4), "label": torch.randint(10, (batch_size,))}
    batch = {key: value.to(device) for key, value in batch.items()}
    forms = {"raw": raw, **FORMS}
    took: dict[str, list[float]] = {name: [] for name in forms}
    for index in range(rounds):
        first = index % len(forms)
        for name in (*list(forms)[first:], *list(forms)[:first]):
            loader = Clocked(batch, *steps, device)
            forms[name](Classifier(layers), loader)
            took[name].append(1000 * loader.seconds())
    record: dict[str, Any] = {"raw_ms": spread(took["raw"])}
    for name in FORMS:
        pairs = list(zip(took[name], took["raw"], strict=True))
        record[name] = {
            "added_ms": spread([own - bare for own, bare in pairs]),
            "ratio": spread([own / bare for own, bare in pairs]),
        }
    return record


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    quiet()
    record = {size: measured(size, arguments.device, arguments.rounds) for size in arguments.sizes}
    rows = [
        [size, shown(r["raw_ms"]), name, shown(r[name]["added_ms"]), shown(r[name]["ratio"])]
        for size, r in record.items()
        for name in FORMS
    ]
    print(markdown(["step", "raw, ms", "setting", "added, ms", "/ raw"], rows))
    keep(arguments.json, arguments.device, {"steps": record})


if __name__ == "__main__":
    main()
