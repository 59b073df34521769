"""Does pre-training on faces and voices save labels, and does it take both to tell a feeling? Three seeds.

A small HiCMAE is pre-trained on all training clips of TalkingBlobs, without their labels. Then it is fine-tuned on few
labelled clips: with both senses, with the video alone, with the sound alone; and with both from scratch. Steps,
rates and labelled clips are the same for all (configs ``hicmae/embedded`` and ``hicmae_classifier/embedded``); which
clips are labelled changes with the seed. Accuracy (WAR) is that of clips of people whom nobody saw. One sense alone
tells two classes from the other two, so that it is right half of the time at best.

Settings were chosen on validation people. Finished seeds are kept, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from benchmarks.runner import default_workers
from datamodules import TalkingBlobs
from zoo.config_files import find_config
from zoo.method import Method
from zoo.methods.audio_visual.classifier import HiCMAEClassifier
from zoo.methods.audio_visual.hicmae import HiCMAE
from zoo.optim import Optim

PRETRAINED, SCRATCH = "HiCMAE, both senses", "from scratch, both senses"
#: Row → what is looked at, and whether it starts from the pre-training run.
ROWS = {
    PRETRAINED: ("both", True),
    "HiCMAE, video alone": ("video", True),
    "HiCMAE, sound alone": ("audio", True),
    SCRATCH: ("both", False),
}


def settings(config: str) -> dict[str, Any]:
    """A config of the package, its objects built."""
    content = yaml.safe_load(find_config(config).read_text())
    arguments = {part: built(content[part]["init_args"]) for part in ("model", "data")}
    arguments["model"]["optim"] = Optim(**arguments["model"]["optim"])
    return {**arguments, "steps": content["trainer"]["max_steps"]}


def built(node: Any) -> Any:
    """A YAML node with what it describes by ``class_path`` in its place."""
    if not isinstance(node, dict):
        return node
    inner = {key: built(value) for key, value in node.items()}
    if "class_path" not in inner:
        return inner
    module, _, name = inner["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**inner.get("init_args", {}))


def fitted(method: Method, data: TalkingBlobs, steps: int) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return trainer


def pretrain(seed: int, checkpoint: Path) -> None:
    L.seed_everything(seed, verbose=False)
    of = settings("hicmae/embedded")
    fitted(HiCMAE(**of["model"]), TalkingBlobs(**of["data"]), of["steps"]).save_checkpoint(checkpoint)


def finetune(seed: int, row: str, checkpoint: Path, split: str) -> dict[str, float]:
    """Fine-tune; scores in percent."""
    modalities, pretrained = ROWS[row]
    L.seed_everything(seed, verbose=False)
    of = settings("hicmae_classifier/embedded")
    start = str(checkpoint) if pretrained else None
    method = HiCMAEClassifier(**{**of["model"], "modalities": modalities, "init_from": start})
    data = TalkingBlobs(**of["data"], split_seed=seed)
    fitted(method, data, of["steps"])
    judge = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    run = judge.test if split == "test" else judge.validate
    (found,) = run(method, datamodule=data, verbose=False)
    return {name.partition("/")[2]: round(value, 2) for name, value in found.items()}


def one_seed(seed: int, folder: Path, split: str) -> dict[str, Any]:
    """All runs of a seed."""
    done = folder / f"{split}-seed{seed}.json"
    if done.is_file():
        return json.loads(done.read_text())  # type: ignore[no-any-return]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    checkpoint, start = folder / f"hicmae-seed{seed}.ckpt", time.process_time()
    found: dict[str, Any] = {}
    if not checkpoint.is_file():
        pretrain(seed, checkpoint)
        found["pretraining_cpu_seconds"] = round(time.process_time() - start)
    for row in ROWS:
        found[row] = finetune(seed, row, checkpoint, split)
        print(f"{split}, seed {seed}, {row}: {found[row]['WAR']:.1f}", flush=True)
    found["cpu_seconds"] = round(time.process_time() - start)
    done.write_text(json.dumps(found, indent=1))
    return found


def table(by_seed: dict[int, dict[str, Any]]) -> str:
    """A Markdown row per run: accuracy and mean recall over seeds."""
    lines = ["| run | WAR, % | UAR, % | WAR per seed |", "|---|---|---|---|"]
    for row in ROWS:
        cells = []
        for metric in ("WAR", "UAR"):
            values = [found[row][metric] for found in by_seed.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        each = " ".join(f"{found[row]['WAR']:.1f}" for found in by_seed.values())
        lines.append(f"| {row} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/hicmae"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings by")
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    count = len(arguments.seeds)
    with ProcessPoolExecutor(arguments.workers) as pool:
        runs = list(
            pool.map(one_seed, arguments.seeds, [arguments.folder] * count, [arguments.split] * count)
        )
    by_seed = dict(zip(arguments.seeds, runs, strict=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(by_seed, indent=1))
    print(table(by_seed))
    losers = []
    for row in list(ROWS)[1:]:
        gains = {seed: found[PRETRAINED]["WAR"] - found[row]["WAR"] for seed, found in by_seed.items()}
        print(
            f"{PRETRAINED} - {row}: " + ", ".join(f"seed {seed} {gain:+.1f}" for seed, gain in gains.items())
        )
        losers += [f"{row}, seed {seed}" for seed, gain in gains.items() if gain <= 0]
    if losers:
        raise SystemExit(f"{PRETRAINED} did not beat: {'; '.join(losers)}")


if __name__ == "__main__":
    main()
