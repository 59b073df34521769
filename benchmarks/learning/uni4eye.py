"""Does pre-training with Uni4Eye save labels in both dimensions? Three seeds.

Every seed pre-trains one network on generated photographs and OCT scans of eyes, which alternate step by step, without
labels. Then, as the paper evaluates it, the encoder and a linear layer on its class token are fine-tuned on few
labelled photographs, and likewise on few labelled scans: from the pre-trained weights, and from those that
pre-training began with. Labelled eyes, steps and the rates to choose from are the same for both. Each start has the
rate and the step that are best on validation eyes; what is printed is the accuracy on test eyes there.

Settings were chosen on validation eyes. Finished seeds are kept, so it can be interrupted. Ends with an error unless
pre-training wins in every seed and dimension.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn

from benchmarks.report import listed, proof_parser, spread, verdict
from benchmarks.training import kept, run_seeds, scores, settings, trainer
from datamodules import EyePhotographs, EyeScans, TakingTurns
from zoo.backbones import UnifiedViT
from zoo.methods.medical.eye_classifier import EyeClassifier
from zoo.methods.medical.uni4eye import Uni4Eye
from zoo.nn import VolumeFlips

PRETRAINING = "uni4eye/embedded"
TUNING = {"photographs": "eye_classifier/embedded", "scans": "eye_classifier/embedded_volumes"}
#: How often validation eyes are looked at in fine-tuning, and the rates to choose from.
LOOK_EVERY, RATES = 20, (5e-4, 1e-3, 2e-3)
EYES = {
    "photographs": {"num_train": 800, "num_val": 200, "num_test": 400},
    "scans": {"num_train": 400, "num_val": 200, "num_test": 400},
}
#: Labelled training eyes of each dimension.
LABELLED = 20
STARTS = ("from scratch", "Uni4Eye")


class Mirrored(nn.Module):
    """Augment labelled scans as pre-training does: mirrored within their plane."""

    def __init__(self) -> None:
        super().__init__()
        self.flips = VolumeFlips((0.0, 0.5, 0.5), noise_probability=0.0)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with other volumes."""
        return {**batch, **self.flips(batch["volume"])}


class Best(L.Callback):
    """Keep the weights that are best on validation eyes."""

    def __init__(self) -> None:
        self.score, self.step = -1.0, 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the accuracy with the best so far."""
        score = float(trainer.callback_metrics["val/accuracy"])
        if score > self.score:
            self.score, self.step = score, trainer.global_step
            self.weights = copy.deepcopy(pl_module.state_dict())


def pretraining_data() -> TakingTurns:
    """Images and volumes step by step in turn; scans are not turned upside down."""
    views = VolumeFlips((0.0, 0.5, 0.5), noise_probability=0.0)
    images = EyePhotographs(**EYES["photographs"], batch_size=64, crop_scale=None)
    return TakingTurns(images, EyeScans(**EYES["scans"], batch_size=32, views=views), turns="steps")


def labelled_data(kind: str, seed: int) -> EyePhotographs | EyeScans:
    """Few labelled eyes, others in every seed, all of them in each step."""
    few: dict[str, Any] = {
        "labelled_fraction": LABELLED / EYES[kind]["num_train"],
        "split_seed": seed,
        "batch_size": LABELLED,
    }
    if kind == "photographs":
        return EyePhotographs(**EYES[kind], **few, crop_scale=None)
    return EyeScans(**EYES[kind], **few, augment=Mirrored())


def pretrain(seed: int) -> dict[str, UnifiedViT]:
    """The encoder before and after training."""
    L.seed_everything(seed, verbose=False)
    of = settings(PRETRAINING)
    method = Uni4Eye(**of["model"])
    before = copy.deepcopy(method.student.backbone)
    trainer(of["steps"]).fit(method, datamodule=pretraining_data())
    return dict(zip(STARTS, (before, method.student.backbone), strict=True))


def finetune(kind: str, start: UnifiedViT, seed: int, split: str) -> dict[str, float]:
    """Accuracy in percent on validation and ``split`` eyes of the rate and step that are best on validation."""
    of, weights, found = settings(TUNING[kind]), start.state_dict(), []
    look = {"val_check_interval": LOOK_EVERY, "check_val_every_n_epoch": None, "limit_val_batches": 1.0}
    for rate in RATES:
        L.seed_everything(seed, verbose=False)
        data = labelled_data(kind, seed)
        method = EyeClassifier(**{**of["model"], "optim": replace(of["model"]["optim"], lr=rate)})
        backbone = method.student.backbone
        backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
        best = Best()
        trainer(of["steps"], callbacks=[best], num_sanity_val_steps=0, **look).fit(method, datamodule=data)
        method.load_state_dict(best.weights)
        found.append((best.score, {"rate": rate, "step": best.step}, method, data))
    score, chosen, method, data = max(found, key=lambda run: run[0])
    judged = score if split == "val" else scores(method, data, split)["accuracy"]
    return {"val": round(score, 2), split: round(judged, 2), **chosen}


def one_seed(seed: int, folder: Path, split: str) -> dict[str, Any]:
    """All runs of a seed."""

    def run() -> dict[str, Any]:
        begin, encoders = time.process_time(), pretrain(seed)
        found: dict[str, Any] = {"pretraining_cpu_seconds": round(time.process_time() - begin)}
        for kind in EYES:
            found[kind] = {start: finetune(kind, encoder, seed, split) for start, encoder in encoders.items()}
            print(f"seed {seed}, {kind}: {found[kind]}", flush=True)
        return {**found, "cpu_seconds": round(time.process_time() - begin)}

    return kept(folder / f"{split}-seed{seed}.json", run)  # type: ignore[no-any-return]


def table(by_seed: dict[int, dict[str, Any]], split: str) -> str:
    """Accuracy by dimension and start: mean, deviation, and each seed."""
    lines = [f"| eyes | start | {split} accuracy | per seed |", "|---|---|---|---|"]
    for kind in EYES:
        for start in STARTS:
            values = [found[kind][start][split] for found in by_seed.values()]
            lines.append(f"| {kind} | {start} | {spread(values)} | {listed(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = proof_parser(__doc__, "uni4eye")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="val: to choose settings")
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    pretraining_data().prepare_data()
    by_seed = run_seeds(one_seed, arguments, arguments.split)
    print(table(by_seed, arguments.split))
    gains = {
        kind: {
            seed: found[kind]["Uni4Eye"][arguments.split] - found[kind]["from scratch"][arguments.split]
            for seed, found in by_seed.items()
        }
        for kind in EYES
    }
    verdict(gains)


if __name__ == "__main__":
    main()
