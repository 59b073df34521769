"""What a second of training is worth, as batch, crop or backbone grow.

Self-training on StreetShift and DINOv2 on digits of 8 x 8 pixels (which DINO hardly learns), by their embedded configs
with one thing changed and schedules that need no end, train for the same CPU time (on a GPU, the clock's), all of it
counted: loading, augmentation and Trainer too. At some times training stands still, and so does its clock, while
validation data are judged: mIoU of the network that the method evaluates, accuracy of the 20 nearest neighbours of
DINOv2's teacher. Learning rates stay those of the config, whatever the batch.

Every training is kept in the file of numbers as soon as it ends; ``--resume`` leaves out what is there.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.speed.paired import MANY, keep, markdown, now, options, shown, spread
from benchmarks.training import quiet
from zoo.cli import Unstarted, import_classes
from zoo.config_files import resolve_configs
from zoo.heap import keep_freed_memory
from zoo.method import Method
from zoo.metrics import SegmentationIoU
from zoo.nn.knn import knn_scores

RESULTS = Path(__file__).parents[1] / "results" / "speed_accuracy.json"
WIDTHS = (32, 48, 96, 96)
#: Options beside the config's; a budget of time knows no number of steps.
ENDLESS: dict[str, dict[str, Any]] = {
    "self_training": {"model.optim.schedule": "constant", "model.mix_start": 50},
    "dinov2": {
        "model.optim.schedule": "constant",
        "model.momentum": 0.99,
        "model.final_momentum": 0.99,
        "model.teacher_temp_epochs": 0,
        "model.patch_temp_epochs": 0,
    },
}
#: Method → axis → point → what it changes.
AXES: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "self_training": {
        "batch": {f"{n} + {n}": {"data.batch_size": n} for n in (2, 4, 8, 16)},
        "crop": {f"{h} x {2 * h}": {"data.crop": [h, 2 * h]} for h in (32, 48, 64)},
        "backbone": {
            f"widths x {scale:g}": {
                "model.backbone_args": {"widths": [int(scale * width) for width in WIDTHS]}
            }
            for scale in (0.5, 1, 2)
        },
    },
    "dinov2": {"batch": {str(n): {"data.batch_size": n} for n in (16, 32, 64, 128)}},
}
#: The config's own points are trained once and stand on every axis.
OWN = {"8 + 8", "64 x 128", "widths x 1"}


class Budget(Callback):
    """Ends training after so much time on the device, and judges before that.

    Args:
        marks: seconds at which ``judge`` is asked, the last of them the end.
        device: ``cpu`` or ``cuda``.
        judge: returns the accuracy in percent; its time does not count.
    """

    def __init__(self, marks: Sequence[float], device: str, judge: Any) -> None:
        self.marks, self.device, self.judge = sorted(marks), device, judge
        self.found: dict[str, dict[str, float]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clock starts."""
        self.start = now(self.device)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Judge when it is time, stop when it is over."""
        spent = now(self.device) - self.start
        passed = [mark for mark in self.marks if mark <= spent and f"{mark:g}" not in self.found]
        if not passed:
            return
        accuracy = self.judge()
        for mark in passed:
            self.found[f"{mark:g}"] = {"accuracy": accuracy, "steps": trainer.global_step}
        self.start = now(self.device) - spent
        trainer.should_stop = spent >= self.marks[-1]


@torch.no_grad()
def mean_iou(method: Any, data: Any) -> float:
    """Of the network that the method evaluates, on validation images, in percent."""
    network = copy.deepcopy(method.evaluated()).eval()
    iou = SegmentationIoU(method.num_classes, method.ignore_index).to(method.device)
    iou.classes = list(data.eval_classes)
    for batch in data.val_dataloader():
        label = batch["label"].to(method.device)
        logits = network(data.on_after_batch_transfer(batch, 0)["image"].to(method.device))
        iou.update(logits.argmax(1), label)
    return 100 * float(iou.compute()["mIoU"])


@torch.no_grad()
def neighbours(method: Any, data: Any) -> float:
    """Accuracy of the 20 nearest neighbours on validation digits, in percent."""
    parts = []
    for name in ("train", "val"):
        rows = [data.subset(name)[index] for index in range(len(data.subset(name)))]
        image = torch.stack([torch.as_tensor(row["image"]) for row in rows]).float() / 255
        parts.append(
            (method.features(image.to(method.device)).cpu(), torch.tensor([row["label"] for row in rows]))
        )
    bank, (query, label) = parts
    scores = knn_scores(query, *bank, num_classes=10, k=[20])[20]
    return 100 * float((scores.argmax(1) == label).float().mean())


JUDGES = {"self_training": mean_iou, "dinov2": neighbours}


def learned(
    name: str, changed: Mapping[str, Any], marks: Sequence[float], seed: int, device: str
) -> dict[str, Any]:
    """Steps and accuracy at each mark, by its seconds."""
    settings = {"seed_everything": seed, **ENDLESS[name], **changed}
    typed = [
        word
        for key, value in settings.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    cli = Unstarted(resolve_configs(["fit", "--config", f"{name}/embedded", *typed]))
    method, data = cli.build_method(), cli.build_data()
    budget = Budget(marks, device, lambda: JUDGES[name](method, data))
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=MANY, logger=False,
        callbacks=[budget], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return {"marks": budget.found, "parameters": size(method)}


def size(method: Method) -> int:
    """Parameters of the student's backbone."""
    network: Any = method.student.backbone
    return sum(int(parameter.numel()) for parameter in network.parameters())


def start(device: str) -> None:
    """What every process of trainings begins with."""
    quiet()
    if device == "cpu":
        keep_freed_memory()  # as `zoo fit` does
    import_classes()


def point_key(point: str) -> str:
    """Under which a point is kept: the config's own are one."""
    return "as configured" if point in OWN else point


def table(record: Mapping[str, Any], marks: Sequence[float]) -> str:
    """One row a point: means and seeds' range at each mark."""
    last = f"{max(marks):g}"
    header = ["axis", "point", f"steps in {last} s", *(f"after {mark:g} s, %" for mark in sorted(marks))]
    rows = []
    for name, axes in AXES.items():
        for axis, points in axes.items():
            for point in points:
                runs = list(record.get(name, {}).get(point_key(point), {}).values())
                if not runs:
                    continue
                steps = statistics.mean(run["marks"][last]["steps"] for run in runs)
                cells = [
                    shown(spread([run["marks"][f"{mark:g}"]["accuracy"] for run in runs]), 1)
                    for mark in sorted(marks)
                ]
                rows.append([f"{name}, {axis}", point, f"{steps:.0f}", *cells])
    return markdown(header, rows)


def main() -> None:
    parser = options(__doc__, rounds=0)
    parser.add_argument("--methods", nargs="*", choices=AXES, default=list(AXES))
    parser.add_argument("--axes", nargs="*", choices=("batch", "crop", "backbone"), help="default: all")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[20.0, 60.0], help="when to judge; the last ends"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.set_defaults(json=RESULTS)
    given = parser.parse_args()
    record = json.loads(given.json.read_text()) if given.resume and given.json.exists() else {}
    wanted: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    for name in given.methods:
        for axis, points in AXES[name].items():
            for point, changed in points.items() if not given.axes or axis in given.axes else ():
                for seed in range(given.seeds):
                    known = record.get(name, {}).get(point_key(point), {}).get(str(seed), {}).get("marks", {})
                    if not all(f"{mark:g}" in known for mark in given.seconds):
                        wanted.setdefault((name, point_key(point), seed), changed)
    alone = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, alone, start, (given.device,)) as pool:
        runs = {
            pool.submit(learned, key[0], changed, given.seconds, key[2], given.device): key
            for key, changed in wanted.items()
        }
        for run in as_completed(runs):
            name, point, seed = runs[run]
            keep(given.json, given.device, {name: {point: {str(seed): run.result()}}})
            print(f"{name}, {point}, seed {seed}: {run.result()['marks']}", flush=True)
    print(table(json.loads(given.json.read_text()), given.seconds))


if __name__ == "__main__":
    main()
