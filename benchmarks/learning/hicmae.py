"""Does pre-training on faces and voices save labels, and does it take both to tell a feeling? Three seeds.

A small HiCMAE is pre-trained on all training clips of TalkingBlobs, without their labels. Then it is fine-tuned on few
labelled clips: with both senses, with the video alone, with the sound alone; and with both from scratch. Steps,
rates and labelled clips are the same for all (configs ``hicmae/embedded`` and ``hicmae_classifier/embedded``); which
clips are labelled changes with the seed. Accuracy (WAR) is that of clips of people whom nobody saw. One sense alone
tells two classes from the other two, so that it is right half of the time at best.

Settings were chosen on validation people. Finished seeds are kept, so it can be interrupted.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.report import listed, proof_parser, spread, verdict
from benchmarks.training import kept, run_seeds, scores, settings, trainer
from datamodules import TalkingBlobs
from zoo.methods.audio_visual.classifier import HiCMAEClassifier
from zoo.methods.audio_visual.hicmae import HiCMAE

PRETRAINED, SCRATCH = "HiCMAE, both senses", "from scratch, both senses"
#: Row → what is looked at, and whether it starts from the pre-training run.
ROWS = {
    PRETRAINED: ("both", True),
    "HiCMAE, video alone": ("video", True),
    "HiCMAE, sound alone": ("audio", True),
    SCRATCH: ("both", False),
}


def pretrain(seed: int, checkpoint: Path) -> None:
    L.seed_everything(seed, verbose=False)
    of = settings("hicmae/embedded")
    run = trainer(of["steps"])
    run.fit(HiCMAE(**of["model"]), datamodule=TalkingBlobs(**of["data"]))
    run.save_checkpoint(checkpoint)


def finetune(seed: int, row: str, checkpoint: Path, split: str) -> dict[str, float]:
    """Fine-tune; scores in percent."""
    modalities, pretrained = ROWS[row]
    L.seed_everything(seed, verbose=False)
    of = settings("hicmae_classifier/embedded")
    start = str(checkpoint) if pretrained else None
    method = HiCMAEClassifier(**{**of["model"], "modalities": modalities, "init_from": start})
    data = TalkingBlobs(**of["data"], split_seed=seed)
    trainer(of["steps"]).fit(method, datamodule=data)
    return {name: round(value, 2) for name, value in scores(method, data, split).items()}


def one_seed(seed: int, folder: Path, split: str) -> dict[str, Any]:
    """All runs of a seed."""
    return kept(folder / f"{split}-seed{seed}.json", partial(all_runs, seed, folder, split))


def all_runs(seed: int, folder: Path, split: str) -> dict[str, Any]:
    checkpoint, start = folder / f"hicmae-seed{seed}.ckpt", time.process_time()
    found: dict[str, Any] = {}
    if not checkpoint.is_file():
        pretrain(seed, checkpoint)
        found["pretraining_cpu_seconds"] = round(time.process_time() - start)
    for row in ROWS:
        found[row] = finetune(seed, row, checkpoint, split)
        print(f"{split}, seed {seed}, {row}: {found[row]['WAR']:.1f}", flush=True)
    return {**found, "cpu_seconds": round(time.process_time() - start)}


def table(by_seed: dict[int, dict[str, Any]]) -> str:
    """A Markdown row per run: accuracy and mean recall over seeds."""
    lines = ["| run | WAR, % | UAR, % | WAR per seed |", "|---|---|---|---|"]
    for row in ROWS:
        war, uar = ([found[row][metric] for found in by_seed.values()] for metric in ("WAR", "UAR"))
        lines.append(f"| {row} | {spread(war)} | {spread(uar)} | {listed(war)} |")
    return "\n".join(lines)


def main() -> None:
    parser = proof_parser(__doc__, "hicmae")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings by")
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    by_seed = run_seeds(one_seed, arguments, arguments.split)
    print(table(by_seed))
    rivals = list(ROWS)[1:]
    verdict(
        {
            f"{PRETRAINED} - {row}": {
                s: found[PRETRAINED]["WAR"] - found[row]["WAR"] for s, found in by_seed.items()
            }
            for row in rivals
        }
    )


if __name__ == "__main__":
    main()
