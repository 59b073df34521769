"""Do pairs of one person find what a person keeps? Three seeds on generated pulse waves of generated people.

A small encoder is trained in three ways: by pairs of segments of one participant; by pairs of augmented views of one
segment (SimCLR's pair; all else is equal); and, as a supervised baseline, by the labels of an eighth of the people, on
the same augmented segments, with a rate of its own and stopped where it does best on validation people. A last row has
random weights (its batch norms have seen the training people). Each encoder is frozen; a ridge probe is
fitted to the averaged embeddings of the labelled people (others for each seed) and asked whether the arteries of 192
other people are stiff: area under the curve, in percent. The supervised network is asked itself as well: the mean of
its classifier over a person's segments. Exits non-zero unless the first beats both baselines, probe and classifier,
on every seed.

Settings were chosen on validation people (``--validate``). Finished runs are kept, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from benchmarks.runner import Result
from callbacks import NoMonitors, ParticipantProbe, RankMe
from callbacks.participant_probe import averaged
from datamodules import PulsePeople
from zoo.config_files import package_configs
from zoo.method import Batch
from zoo.methods.signal.wearable_biosignals import WearableContrast
from zoo.nn import SignalAugment

CONFIG, PEOPLE, LABELLED, METRIC = "wearable_biosignals/embedded", 96, 0.125, "high_auc"
OURS, SEGMENT, SUPERVISED, RANDOM = "participant pairs", "segment pairs", "supervised", "random weights"
ORDER = [OURS, SEGMENT, SUPERVISED, RANDOM]
#: The supervised baseline has a constant rate, and is looked at every so many steps of so many.
SUPERVISED_RATE, LOOK, SUPERVISED_STEPS = 2e-3, 40, 160
#: Epochs that random weights see, for the statistics of their batch norms.
STATISTICS_EPOCHS = 8
MEASURES = ("stiffness_mae", "pulse_mae", "retrieval", "dispersion", "rankme")


class Supervised(WearableContrast):
    """The same encoder, trained to tell from a segment whether its person's arteries are stiff.

    Args:
        **arguments: see :class:`WearableContrast`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._said: list[dict[str, Tensor]] = []
        self.classifier = torch.nn.Linear(self.student.backbone.embed_dim, 1)

    def trained_modules(self) -> list[torch.nn.Module]:
        return [self.student.backbone, self.classifier]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of both segments; the first trait is the label."""
        logits = self.classifier(self.student.backbone.embed(batch["pair"].flatten(0, 1)))[:, 0]
        wanted = batch["trait"][:, 0].repeat_interleave(2)
        return {"classification": F.binary_cross_entropy_with_logits(logits, wanted)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the classifier says of each segment."""
        said = {"features": self.classifier(self.features(batch["signal"]))}
        self._said.append({**said, **{key: batch[key] for key in ("participant", "index", "trait")}})

    def on_validation_epoch_end(self) -> None:
        """Log ``val/classifier_auc``, in percent."""
        self._log_classifier("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/classifier_auc``."""
        self._log_classifier("test")

    def _log_classifier(self, stage: str) -> None:
        logits, traits = averaged(
            {key: torch.cat([part[key] for part in self._said]) for key in self._said[0]}
        )
        self._said = []
        score = binary_auroc(logits[:, 0].sigmoid(), traits[:, 0].long())
        self.log(f"{stage}/classifier_auc", 100.0 * score.float())


def run(name: str, seed: int, steps: int | None, folder: Path, reports: bool) -> Result:
    """Train one encoder with the settings of the config, and probe it on people it never saw.

    Args:
        name: one of ``ORDER``.
        seed: of weights, draws, and of the choice of labelled people.
        steps: of pairs, other than the config's; the supervised baseline has its own.
        folder: keeps the result.
        reports: probe the test people as well; without it nobody looks at them.
    """
    settings = yaml.safe_load((package_configs() / f"{CONFIG}.yaml").read_text())
    arguments, data_arguments = settings["model"]["init_args"], settings["data"]["init_args"]
    steps, labels = steps or settings["trainer"]["max_steps"], name == SUPERVISED
    if labels:
        steps = SUPERVISED_STEPS
        arguments["optim"] |= {"lr": SUPERVISED_RATE, "schedule": "constant", "warmup_steps": 0}
        # All labelled people in each step.
        data_arguments["batch_size"] = round(LABELLED * PEOPLE)
    elif name == RANDOM:
        steps = 0
    done = folder / f"{name}-seed{seed}{'' if reports else '-validation'}.json"
    command = [name, json.dumps(settings, sort_keys=True), str(seed), str(steps), f"{LABELLED} of {PEOPLE}"]
    if done.is_file() and (kept := Result(**json.loads(done.read_text()))).command == command:
        return kept
    L.seed_everything(seed, verbose=False)
    data = PulsePeople(
        num_train=PEOPLE,
        batch_size=data_arguments["batch_size"],
        views=SignalAugment(),
        pairs="segment" if name == SEGMENT else "participant",
        traits=("high", "stiffness", "pulse"),
        labelled_fraction=LABELLED,
        labelled_only=labels,
        split_seed=seed,
    )
    data.prepare_data()
    method = (Supervised if labels else WearableContrast)(**arguments)
    (alphas,) = [c["init_args"]["alphas"] for c in settings["trainer"]["callbacks"] if "init_args" in c]
    best = ModelCheckpoint(folder / f"{name}-seed{seed}", monitor=f"val/{METRIC}", mode="max")
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=labels,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if labels else 0,
        val_check_interval=LOOK,
        check_val_every_n_epoch=None,
        callbacks=[ParticipantProbe(alphas), RankMe(), NoMonitors(), *([best] if labels else [])],
    )
    start, cpu = time.monotonic(), time.process_time()
    if steps:
        trainer.fit(method, data)
    else:
        fill_statistics(method, data)
    if labels:
        kept_weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
        method.load_state_dict(kept_weights)
    trainer.limit_val_batches = 1.0
    spent = round(time.monotonic() - start, 1), round(time.process_time() - cpu, 1)
    val = trainer.validate(method, data, verbose=False)[0]
    test = trainer.test(method, data, verbose=False)[0] if reports else {}
    result = Result(name, seed, steps, command, str(done), dict(test), METRIC, val[f"val/{METRIC}"], *spent)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(vars(result), indent=1))
    print(f"{name}, seed {seed}: validation {result.val_score:.1f}, {spent[1]:.0f} CPU s", flush=True)
    return result


@torch.no_grad()
def fill_statistics(method: WearableContrast, data: PulsePeople) -> None:
    """Show untrained weights the training pairs: with statistics 0 and 1 their embeddings would all but vanish."""
    data.setup("fit")
    method.student.train()
    for _ in range(STATISTICS_EPOCHS):
        for batch in data.train_dataloader():
            method.student(data.on_after_batch_transfer(batch, 0)["pair"].flatten(0, 1))


def table(results: list[Result]) -> str:
    """A Markdown row per way of training."""
    head = [
        "stiff: AUC, %",
        "per seed",
        "stiffness: error",
        "pulse: error",
        "retrieval, %",
        "dispersion",
        "rank",
    ]
    lines = [f"| training | {' | '.join(head)} | CPU s |", "|---" * (len(head) + 2) + "|"]
    for name in ORDER:
        rows = [result for result in results if result.name == name]
        scores = [row.score for row in rows]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        mean = [statistics.mean(row.test[f"test/{key}"] for row in rows) for key in MEASURES]
        lines.append(
            f"| {name} | {statistics.mean(scores):.1f} ± {spread:.1f} | {' '.join(f'{s:.1f}' for s in scores)} | "
            f"{mean[0]:.3f} | {mean[1]:.1f} | {mean[2]:.1f} | {mean[3]:.2f} | {mean[4]:.1f} | "
            f"{statistics.mean(row.cpu_seconds for row in rows):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/wearable_biosignals"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of both kinds of pairs, other than the config's")
    parser.add_argument("--json", type=Path, help="results; results.json of the folder, where not given")
    parser.add_argument("--validate", action="store_true", help="probe validation people alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.json = arguments.json or arguments.folder / "results.json"
    folder, seeds = arguments.folder, arguments.seeds
    results = [
        run(name, seed, arguments.steps, folder, not arguments.validate) for seed in seeds for name in ORDER
    ]
    if arguments.validate:
        return
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps([result.record() for result in results], indent=1) + "\n")
    print(table(results))
    own = {result.seed: result.test["test/classifier_auc"] for result in results if result.name == SUPERVISED}
    print("the supervised classifier itself: " + ", ".join(f"seed {seed} {own[seed]:.1f}" for seed in seeds))
    by, failed = {(result.name, result.seed): result.score for result in results}, []
    for over in (SEGMENT, SUPERVISED):
        gains = {seed: by[OURS, seed] - by[over, seed] for seed in seeds}
        print(f"{OURS} - {over}: " + ", ".join(f"seed {seed} {gain:+.1f}" for seed, gain in gains.items()))
        failed += [f"{over} on seed {seed}" for seed, gain in gains.items() if gain <= 0]
    failed += [f"the supervised classifier on seed {seed}" for seed in seeds if by[OURS, seed] <= own[seed]]
    if failed:
        raise SystemExit(f"{OURS} did not beat {', '.join(failed)}")


if __name__ == "__main__":
    main()
