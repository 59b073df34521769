"""Do pairs of one person find what a person keeps? Three seeds on generated pulse waves of generated people.

A small encoder is trained on 96 people in three ways for equally many steps: by pairs of segments of one participant;
by pairs of augmented views of one segment (SimCLR's pair; all else is equal); and, as a supervised baseline, by the
labels of the labelled people, on the same augmented segments. A last row has random weights. Each encoder is frozen; a
ridge probe is fitted to the averaged embeddings of the labelled people (others for each seed) and asked whether the
arteries of 96 people are stiff with whom nothing was trained: area under the curve, in percent. Exits non-zero unless
the first beats both baselines on every seed.

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
from torch import Tensor

from benchmarks.runner import Result
from callbacks import NoMonitors, ParticipantProbe, RankMe
from datamodules import PulsePeople
from zoo.config_files import package_configs
from zoo.method import Batch
from zoo.methods.signal.wearable_biosignals import WearableContrast
from zoo.nn import SignalAugment

CONFIG, LABELLED, METRIC = "wearable_biosignals/embedded", 0.25, "high_auc"
OURS, SEGMENT, SUPERVISED, RANDOM = "participant pairs", "segment pairs", "supervised", "random weights"
ORDER = [OURS, SEGMENT, SUPERVISED, RANDOM]
MEASURES = ("stiffness_mae", "pulse_mae", "retrieval", "dispersion", "rankme")


class Supervised(WearableContrast):
    """The same encoder, trained to tell from a segment whether its person's arteries are stiff.

    Args:
        **arguments: see :class:`WearableContrast`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.classifier = torch.nn.Linear(self.student.backbone.embed_dim, 1)

    def trained_modules(self) -> list[torch.nn.Module]:
        return [self.student.backbone, self.classifier]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of both segments; the first trait is the label."""
        logits = self.classifier(self.student.backbone.embed(batch["pair"].flatten(0, 1)))[:, 0]
        wanted = batch["trait"][:, 0].repeat_interleave(2)
        return {"classification": F.binary_cross_entropy_with_logits(logits, wanted)}


def run(name: str, seed: int, steps: int | None, folder: Path) -> Result:
    """Train one encoder with the settings of the config, and probe it on validation and test people.

    Args:
        name: one of ``ORDER``.
        seed: of weights, draws, and of the choice of labelled people.
        steps: other than the config's.
        folder: keeps the result.
    """
    settings = yaml.safe_load((package_configs() / f"{CONFIG}.yaml").read_text())
    steps = 0 if name == RANDOM else steps or settings["trainer"]["max_steps"]
    done = folder / f"{name}-seed{seed}.json"
    command = [name, json.dumps(settings, sort_keys=True), str(seed), str(steps)]
    if done.is_file() and (kept := Result(**json.loads(done.read_text()))).command == command:
        return kept
    L.seed_everything(seed, verbose=False)
    labels, batch = name == SUPERVISED, settings["data"]["init_args"]["batch_size"]
    data = PulsePeople(
        # All labelled people in each step.
        batch_size=round(LABELLED * 96) if labels else batch,
        views=SignalAugment(),
        pairs="segment" if name == SEGMENT else "participant",
        traits=("high", "stiffness", "pulse"),
        labelled_fraction=LABELLED,
        labelled_only=labels,
        split_seed=seed,
    )
    data.prepare_data()
    method = (Supervised if labels else WearableContrast)(**settings["model"]["init_args"])
    (alphas,) = [c["init_args"]["alphas"] for c in settings["trainer"]["callbacks"] if "init_args" in c]
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0 if steps else 1.0,
        callbacks=[ParticipantProbe(alphas), RankMe(), NoMonitors()],
    )
    start, cpu = time.monotonic(), time.process_time()
    if steps:
        trainer.fit(method, data)
        trainer.limit_val_batches = 1.0
    spent = round(time.monotonic() - start, 1), round(time.process_time() - cpu, 1)
    val, test = trainer.validate(method, data, verbose=False)[0], trainer.test(method, data, verbose=False)[0]
    result = Result(name, seed, steps, command, str(done), dict(test), METRIC, val[f"val/{METRIC}"], *spent)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(vars(result), indent=1))
    print(f"{name}, seed {seed}: validation {result.val_score:.1f}, {spent[1]:.0f} CPU s", flush=True)
    return result


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
    parser.add_argument("--steps", type=int, help="other than the config's")
    parser.add_argument("--validate", action="store_true", help="show validation people's scores alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, seeds = arguments.folder, arguments.seeds
    results = [run(name, seed, arguments.steps, folder) for seed in seeds for name in ORDER]
    if arguments.validate:
        return
    (folder / "results.json").write_text(json.dumps([vars(result) for result in results], indent=1))
    print(table(results))
    by, failed = {(result.name, result.seed): result.score for result in results}, []
    for over in (SEGMENT, SUPERVISED):
        gains = {seed: by[OURS, seed] - by[over, seed] for seed in seeds}
        print(f"{OURS} - {over}: " + ", ".join(f"seed {seed} {gain:+.1f}" for seed, gain in gains.items()))
        failed += [f"{over} on seed {seed}" for seed, gain in gains.items() if gain <= 0]
    if failed:
        raise SystemExit(f"{OURS} did not beat {', '.join(failed)}")


if __name__ == "__main__":
    main()
