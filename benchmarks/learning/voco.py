"""Do few labels go further after VoCo? Pre-training on torsos without labels, then fine-tuning, three seeds.

Every seed pre-trains the encoder of a residual U-Net on the 80 training torsos of both scanners, without labels. Then
the whole network is fine-tuned on three labelled torsos of the sharp scanner, from the pre-trained encoder and from
scratch: the same volumes, windows, steps, rate and schedule; which torsos are labelled changes with the seed. What is
printed is Dice on the test torsos of both scanners, of which the blurred one has no labels. Settings were chosen on
validation torsos. Finished seeds are kept, so it can be interrupted.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.report import proof_parser, spread, verdict
from benchmarks.training import kept, run_seeds, scores, trainer
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
    return {style: dice(method, style, split) for style in SCANNERS}


def dice(method: VolumeSegmenter, style: str, split: str) -> dict[str, float]:
    """Dice of every organ and their mean."""
    found = scores(method, torsos(style), split)
    return {name.removeprefix("dice").removeprefix("_") or "mean": value for name, value in found.items()}


def one_seed(seed: int, folder: Path) -> dict[str, Any]:
    """All runs of a seed."""
    return kept(folder / f"seed{seed}.json", partial(all_runs, seed, folder))


def all_runs(seed: int, folder: Path) -> dict[str, Any]:
    start, checkpoint = time.process_time(), folder / f"voco-seed{seed}.ckpt"
    if not checkpoint.is_file():
        pretrain(seed, checkpoint)
    found: dict[str, Any] = {"scratch": finetune(seed, None), "VoCo": finetune(seed, checkpoint)}
    return {**found, "cpu_seconds": round(time.process_time() - start)}


def table(by_seed: dict[int, dict[str, Any]]) -> str:
    """Dice per organ, by scanner and start, over seeds."""
    organs = list(next(iter(by_seed.values()))["VoCo"]["A"])
    lines = [f"| scanner | start | {' | '.join(organs)} |", f"|---|---|{'---|' * len(organs)}"]
    for style, title in SCANNERS.items():
        for start in STARTS:
            cells = [spread(found[start][style][organ] for found in by_seed.values()) for organ in organs]
            lines.append(f"| {title} | {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = proof_parser(__doc__, "voco")
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    for data in (pretraining_data(), torsos("A"), torsos("B")):
        data.prepare_data()
    by_seed = run_seeds(one_seed, arguments)
    print(table(by_seed))
    verdict(
        {
            f"VoCo - scratch, {title}": {
                s: found["VoCo"][style]["mean"] - found["scratch"][style]["mean"]
                for s, found in by_seed.items()
            }
            for style, title in SCANNERS.items()
        }
    )


if __name__ == "__main__":
    main()
