"""Do pairs of one person find what a person keeps? Three seeds on generated pulse waves of generated people.

A small encoder is trained in three ways: by pairs of segments of one participant; by pairs of augmented views of one
segment (SimCLR's pair; all else is equal); and, as a supervised baseline, by the labels of an eighth of the people, on
the same augmented segments, with a rate of its own and stopped where it does best on validation people. A last row has
random weights (its batch norms have seen the training people). Each encoder is frozen; a logistic probe is fitted to
the averaged embeddings of the labelled people and asked whether the arteries of 384 other people are stiff: area under
the curve, in percent. The supervised network is asked itself as well, stopped where its own answers were best: the mean
of its classifier over a person's segments.

Which twelve people have labels decides much, and is nothing that a method can help: every seed is the mean over four
draws of them, the same for all rows; the supervised network is trained anew for each. Exits non-zero unless the first
beats both baselines, probe and classifier, on every seed. Ridge probes are shown beside.

Settings were chosen on validation people (``--split val``, which shows no test people). Trained networks are kept, so
that it can be interrupted.
"""

from __future__ import annotations

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
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from benchmarks.report import listed, proof_parser, spread, verdict
from benchmarks.training import run_seeds, trainer
from callbacks import NoMonitors, ParticipantProbe
from callbacks.participant_probe import Embedded, averaged, same_person, trait_scores
from callbacks.probe import batch_features
from datamodules import PulsePeople
from datamodules.signal_sets import SegmentReader, SegmentsInOrder
from zoo.config_files import find_config
from zoo.method import Batch
from zoo.methods.signal.wearable_biosignals import WearableContrast
from zoo.nn import SignalAugment
from zoo.nn.effective_rank import rankme

CONFIG = "wearable_biosignals/embedded"
PEOPLE, LABELLED, DRAWS, TEST_PEOPLE = 96, 12, 4, 384
OURS, SEGMENT, SUPERVISED, RANDOM = "participant pairs", "segment pairs", "supervised", "random weights"
ROWS = (OURS, SEGMENT, SUPERVISED, RANDOM)
#: The supervised baseline has a constant rate, takes as many steps at most, and is looked at every so many.
SUPERVISED_RATE, LOOK = 2e-3, 20
#: Epochs that random weights see, for the statistics of their batch norms.
STATISTICS_EPOCHS = 8
SCORE, OWN = "high_auc", "classifier_auc"
RIDGE = "ridge probe: AUC, %"
#: Further columns of the table, and their digits.
FURTHER = {RIDGE: 1, "stiffness_mae": 3, "pulse_mae": 1, "retrieval": 1, "dispersion": 2, "rankme": 1}
Record = dict[str, Any]


class Supervised(WearableContrast):
    """The same encoder, trained to tell from a segment whether its person's arteries are stiff.

    Args:
        **arguments: see :class:`WearableContrast`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._said: list[Embedded] = []
        self.classifier = torch.nn.Linear(self.student.backbone.embed_dim, 1)

    def trained_modules(self) -> list[torch.nn.Module]:
        return [self.student.backbone, self.classifier]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of both segments; the first trait is the label."""
        logits = self.classifier(self.student.backbone.embed(batch["pair"].flatten(0, 1)))[:, 0]
        wanted = batch["trait"][:, 0].repeat_interleave(2)
        return {"classification": F.binary_cross_entropy_with_logits(logits, wanted)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the embedding of each segment."""
        embedded = {"features": batch_features(self, batch)["features"]}
        self._said.append({**embedded, **{key: batch[key] for key in ("participant", "index", "trait")}})

    def on_validation_epoch_end(self) -> None:
        """Log ``val/classifier_auc``, in percent."""
        seen = {key: torch.cat([part[key] for part in self._said]) for key in self._said[0]}
        self._said = []
        self.log(f"val/{OWN}", self.auc(seen))

    @torch.no_grad()
    def auc(self, seen: Embedded) -> Tensor:
        """Area under the curve of the classifier's mean over a person's segments, in percent."""
        logits, traits = averaged({**seen, "features": self.classifier(seen["features"])})
        return 100.0 * binary_auroc(logits[:, 0].sigmoid(), traits[:, 0].long()).float()


def settings(name: str, steps: int | None) -> Record:
    """Arguments of method and data, penalties of the probe and steps of one row."""
    config = yaml.safe_load(find_config(CONFIG).read_text())
    method, data = (config[part]["init_args"] for part in ("model", "data"))
    (alphas,) = [c["init_args"]["alphas"] for c in config["trainer"]["callbacks"] if "init_args" in c]
    if name == SUPERVISED:
        method["optim"] |= {"lr": SUPERVISED_RATE, "schedule": "constant", "warmup_steps": 0}
        # All labelled people in each step.
        data["batch_size"] = LABELLED
    return {
        "method": method,
        "batch_size": data["batch_size"],
        "alphas": alphas,
        "steps": 0 if name == RANDOM else steps or config["trainer"]["max_steps"],
    }


def people(name: str, draw: int, batch_size: int) -> PulsePeople:
    """The data of a row; ``draw`` says whose labels are known."""
    data = PulsePeople(
        num_train=PEOPLE,
        num_test=TEST_PEOPLE,
        batch_size=batch_size,
        views=SignalAugment(),
        pairs="segment" if name == SEGMENT else "participant",
        traits=("high", "stiffness", "pulse"),
        labelled_fraction=LABELLED / PEOPLE,
        labelled_only=name == SUPERVISED,
        split_seed=draw,
    )
    data.prepare_data()
    return data


def network(name: str, of: Record, file: str | None = None) -> Any:
    """The method of a row, with first weights or with those of a file, in evaluation mode then."""
    method = (Supervised if name == SUPERVISED else WearableContrast)(**of["method"])
    if file is None:
        return method
    method.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    return method.eval()


def trained(name: str, seed: int, draw: int, steps: int | None, folder: Path) -> Record:
    """Train one network; settings, CPU seconds, and files with its weights.

    Args:
        name: one of ``ROWS``.
        seed: of weights and draws.
        draw: whose labels are known, which the supervised network alone is told.
        steps: other than what was chosen.
        folder: keeps the network, unless settings change.
    """
    of, labels = settings(name, steps), name == SUPERVISED
    stem = f"{name}-seed{seed}-draw{draw}"
    known = {"name": name, "settings": of, "seed": seed, "draw": draw, "look": LOOK, "people": PEOPLE}
    done = folder / f"{stem}.json"
    if done.is_file() and (kept := json.loads(done.read_text()))["known"] == known:
        return dict(kept)
    start = time.process_time()
    L.seed_everything(draw if labels else seed, verbose=False)
    data, method = people(name, draw, of["batch_size"]), network(name, of)
    if not of["steps"]:
        fill_statistics(method, data)
    elif not labels:
        trainer(of["steps"], callbacks=[NoMonitors()]).fit(method, data)
    else:
        best = [
            ModelCheckpoint(folder / stem, f"{m}-{{step}}", monitor=f"val/{m}", mode="max")
            for m in (SCORE, OWN)
        ]
        looking = {
            "limit_val_batches": 1.0, "val_check_interval": min(LOOK, of["steps"]), "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0, "enable_checkpointing": True,
        }  # fmt: skip
        probe = ParticipantProbe(of["alphas"], classifier="logistic")
        trainer(of["steps"], callbacks=[probe, NoMonitors(), *best], **looking).fit(method, data)
    files = [found.best_model_path for found in best] if labels else [str(folder / f"{stem}.ckpt")]
    if not labels:
        torch.save({"state_dict": method.state_dict()}, files[0])
    record = {"known": known, "files": files, "cpu_seconds": round(time.process_time() - start, 1)}
    done.write_text(json.dumps(record, indent=1))
    print(f"{stem}: {record['cpu_seconds']:.0f} CPU s", flush=True)
    return record


@torch.no_grad()
def fill_statistics(method: WearableContrast, data: PulsePeople) -> None:
    """Show untrained weights the training pairs: with statistics 0 and 1 their embeddings would all but vanish."""
    data.setup("fit")
    method.student.train()
    for _ in range(STATISTICS_EPOCHS):
        for batch in data.train_dataloader():
            method.student(data.on_after_batch_transfer(batch, 0)["pair"].flatten(0, 1))


@torch.no_grad()
def embedded(method: WearableContrast, reader: SegmentReader) -> Embedded:
    """Embeddings of segments, whose they are, and these people's traits."""
    parts = [
        {
            "features": method.features(batch["signal"]),
            **{key: batch[key] for key in ("participant", "trait")},
        }
        for batch in DataLoader(SegmentsInOrder(reader), 128)
    ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def judged(record: Record, draws: list[int], split: str) -> list[dict[str, float]]:
    """What the people of a split say of a trained network, by draw of labelled people."""
    name, of = record["known"]["name"], record["known"]["settings"]
    method = network(name, of, record["files"][0])
    data = people(name, draws[0], of["batch_size"])
    others, found = embedded(method, data.reader(split)), []
    same = {**same_person(others["features"], others["participant"]), "rankme": rankme(others["features"])}
    for draw in draws:
        known = embedded(method, people(name, draw, of["batch_size"]).labelled_reader())
        logistic, ridge = (
            trait_scores(known, others, data.traits, of["alphas"], c) for c in ("logistic", "ridge")
        )
        found.append({**same, **logistic, RIDGE: ridge[SCORE]})
    if name == SUPERVISED:
        method = network(name, of, record["files"][1])
        found[0][OWN] = method.auc(embedded(method, data.reader(split)))
    return [{key: round(float(value), 4) for key, value in one.items()} for one in found]


def one_seed(seed: int, folder: Path, steps: int | None, split: str) -> dict[str, Record]:
    """All rows of a seed: settings, measures of every draw of labelled people, and CPU seconds of a training."""
    draws, rows = [DRAWS * seed + number for number in range(DRAWS)], {}
    for name in ROWS:
        runs = {
            draw: trained(name, seed, draw, steps, folder)
            for draw in (draws if name == SUPERVISED else draws[:1])
        }
        found = [
            one
            for draw, run in runs.items()
            for one in judged(run, [draw] if len(runs) > 1 else draws, split)
        ]
        spent = statistics.mean(run["cpu_seconds"] for run in runs.values())
        rows[name] = {"settings": settings(name, steps), "draws": found, "cpu_seconds": round(spent, 1)}
        print(f"{split}, seed {seed}, {name}: {listed(one[SCORE] for one in found)}", flush=True)
    return rows


def mean(row: Record, measure: str) -> float:
    """Over the draws of a seed."""
    return statistics.mean(one[measure] for one in row["draws"])


def table(by_seed: dict[int, dict[str, Record]]) -> str:
    """A Markdown row per way of training."""
    lines = [
        f"| training | AUC, % | per seed | {' | '.join(FURTHER)} | CPU s |",
        f"|---|---|---|{'---|' * len(FURTHER)}---|",
    ]
    for name, title, score in [*((row, row, SCORE) for row in ROWS), (SUPERVISED, "its classifier", OWN)]:
        rows = [found[name] for found in by_seed.values()]
        scores = [mean(row, score) for row in rows]
        means = {of: statistics.mean(mean(row, of) for row in rows) for of in FURTHER}
        cells = [f"{means[of]:.{digits}f}" if score == SCORE else "" for of, digits in FURTHER.items()]
        spent = statistics.mean(row["cpu_seconds"] for row in rows)
        lines.append(f"| {title} | {spread(scores)} | {listed(scores)} | {' | '.join(cells)} | {spent:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = proof_parser(__doc__, "wearable_biosignals")
    parser.add_argument("--steps", type=int, help="of every training, other than what was chosen")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings by")
    parser.add_argument("--json", type=Path, help="where to write the measures of all seeds")
    arguments = parser.parse_args()
    people(OURS, 0, 2)  # rendered once, before several processes ask for them
    by_seed = run_seeds(one_seed, arguments, arguments.steps, arguments.split)
    print(table(by_seed))
    rivals = {SEGMENT: (SEGMENT, SCORE), SUPERVISED: (SUPERVISED, SCORE), "its classifier": (SUPERVISED, OWN)}
    verdict(
        {
            f"{OURS} - {title}": {
                s: mean(found[OURS], SCORE) - mean(found[row], of) for s, found in by_seed.items()
            }
            for title, (row, of) in rivals.items()
        }
    )


if __name__ == "__main__":
    main()
