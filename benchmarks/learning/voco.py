"""Do few labels go further after VoCo? Pre-training on torsos without labels, then fine-tuning, three seeds.

Every seed pre-trains the encoder of a residual U-Net on the 80 training torsos of both scanners, without labels. Then
the whole network is fine-tuned on three labelled torsos of the sharp scanner, from the pre-trained encoder and from
scratch: the same volumes, windows, steps, rate and schedule; which torsos are labelled changes with the seed. What is
printed is Dice on the test torsos of both scanners, of which the blurred one has no labels. Settings were chosen on
validation torsos. Finished seeds are kept, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.runner import default_workers
from datamodules import TorsoPhantom
from datamodules.volume_augment import VolumeAugment
from datamodules.volume_processing import Processing
from zoo.methods.medical.segmenter import VolumeSegmenter
from zoo.methods.medical.voco import VoCo
from zoo.nn import SlidingWindow, VolumeCrops
from zoo.optim import Optim

NETWORK: dict[str, Any] = {"backbone": "residual_unet", "backbone_args": {"widths": [16, 32, 64]}}
#: Torsos at half their resolution, 32×24×16 voxels: a step takes a tenth of a second on one core.
PROCESSING = Processing(spacing=(4.0, 4.0, 5.0), window=(-1000.0, 500.0), crop_foreground=False)
PRETRAINING_STEPS, STEPS = 600, 300
PRETRAINING_RATE, RATE = 4e-3, 3e-3
TRAINING_TORSOS, LABELLED = 80, 3
STARTS = ("scratch", "VoCo")
SCANNERS = {"A": "sharp (labelled)", "B": "blurred (no labels)"}


def torsos(style: str = "A", **options: Any) -> TorsoPhantom:
    """80 training and 6 validation and test volumes; of one scanner, or of both by turns."""
    return TorsoPhantom(style=style, num_train=TRAINING_TORSOS, processing=PROCESSING, **options)  # type: ignore[arg-type]


def trainer(steps: int = 1) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def rate(value: float, warmup: int, decay: float, **options: Any) -> Optim:
    return Optim(
        "adamw", lr=value, weight_decay=decay, schedule="warmup_cosine", warmup_steps=warmup, warmup_ratio=0.0,
        options=options,
    )  # fmt: skip


def pretraining_data() -> TorsoPhantom:
    """Torsos of both scanners with twelve base crops of 8×8×16 voxels and four random ones.

    Not mirrored or turned: a torso has a left and a right, and 600 steps are few.
    """
    views = VolumeCrops((8, 8, 16), (4, 3, 1), 4, flip=0.0, rotate=0.0)
    return torsos("both", batch_size=4, views=views)


def pretrain(seed: int, checkpoint: Path) -> None:
    L.seed_everything(seed, verbose=False)
    optim = rate(PRETRAINING_RATE, 50, 0.01, amsgrad=True)
    method = VoCo(**NETWORK, hidden_dim=256, projection_dim=256, row_dropout=0.0, optim=optim)
    run = trainer(PRETRAINING_STEPS)
    run.fit(method, datamodule=pretraining_data())
    run.save_checkpoint(checkpoint)


def finetune(seed: int, checkpoint: Path | None, split: str = "test") -> dict[str, Any]:
    """Fine-tune; scores by scanner in percent."""
    L.seed_everything(seed, verbose=False)
    method = VolumeSegmenter(
        **NETWORK, num_classes=9, inference=SlidingWindow((32, 24, 16)), hausdorff="never",
        optim=rate(RATE, 20, 1e-5), init_from=None if checkpoint is None else str(checkpoint),
    )  # fmt: skip
    augment = VolumeAugment(flip=0.0, rotate=0.0)
    data = torsos(
        labelled_fraction=LABELLED / TRAINING_TORSOS, split_seed=seed, batch_size=2, augment=augment
    )
    run = trainer(STEPS)
    run.fit(method, datamodule=data)
    return {style: scores(method, style, split) for style in SCANNERS}


def scores(method: VolumeSegmenter, style: str, split: str) -> dict[str, float]:
    """Dice of every organ and their mean."""
    judge = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    run = judge.test if split == "test" else judge.validate
    (found,) = run(method, datamodule=torsos(style), verbose=False)
    return {name.partition("/dice")[2].removeprefix("_") or "mean": value for name, value in found.items()}


def one_seed(seed: int, folder: Path) -> dict[str, Any]:
    """All runs of a seed."""
    done = folder / f"seed{seed}.json"
    if done.is_file():
        return json.loads(done.read_text())  # type: ignore[no-any-return]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start, checkpoint = time.process_time(), folder / f"voco-seed{seed}.ckpt"
    if not checkpoint.is_file():
        pretrain(seed, checkpoint)
    found: dict[str, Any] = {"scratch": finetune(seed, None)}
    found["VoCo"] = finetune(seed, checkpoint)
    found["cpu_seconds"] = round(time.process_time() - start)
    done.write_text(json.dumps(found, indent=1))
    return found


def table(by_seed: dict[int, dict[str, Any]]) -> str:
    """Dice per organ, by scanner and start, over seeds."""
    organs = list(next(iter(by_seed.values()))["VoCo"]["A"])
    lines = [f"| scanner | start | {' | '.join(organs)} |", f"|---|---|{'---|' * len(organs)}"]
    for style, title in SCANNERS.items():
        for start in STARTS:
            cells = []
            for organ in organs:
                values = [found[start][style][organ] for found in by_seed.values()]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
            lines.append(f"| {title} | {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/voco"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for data in (pretraining_data(), torsos("A"), torsos("B")):
        data.prepare_data()
    with ProcessPoolExecutor(arguments.workers) as pool:
        runs = list(pool.map(one_seed, arguments.seeds, [arguments.folder] * len(arguments.seeds)))
    by_seed = dict(zip(arguments.seeds, runs, strict=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(by_seed, indent=1))
    print(table(by_seed))
    losers = []
    for style, title in SCANNERS.items():
        gains = {
            s: found["VoCo"][style]["mean"] - found["scratch"][style]["mean"] for s, found in by_seed.items()
        }
        print(f"{title}: " + ", ".join(f"seed {seed} {gain:+.1f}" for seed, gain in gains.items()))
        losers += [f"{title}, seed {seed}" for seed, gain in gains.items() if gain <= 0]
    if losers:
        raise SystemExit(f"pre-training did not help on: {'; '.join(losers)}")


if __name__ == "__main__":
    main()
