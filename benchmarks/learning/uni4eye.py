"""Does Uni4Eye learn features in both dimensions? Joint pre-training, then linear probes, three seeds.

Every seed pre-trains one network on generated photographs and OCT scans of eyes in turn, without labels. Then the
encoder is frozen: a linear classifier learns four kinds of photographs, and another four kinds of scans, from its
class token and mean patch token side by side; likewise from those of the same network with its first weights. The
classifier's weight decay is the best on validation eyes, for each by itself; what is printed is the accuracy on
test eyes. Finished seeds are kept, so it can be interrupted. Ends with an error unless pre-training wins in every
seed and dimension.
"""

from __future__ import annotations

import argparse
import copy
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
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.runner import default_workers
from datamodules import EyePhotographs, EyeScans, TakingTurns
from datamodules.volume_sets import WholeVolumes
from zoo.backbones import UnifiedViT
from zoo.methods.medical.uni4eye import Uni4Eye
from zoo.nn import VolumeFlips
from zoo.optim import Optim

ENCODER: dict[str, Any] = {
    "embed_dim": 96, "depth": 4, "num_heads": 4, "img_size": 32, "volume_size": [32, 16, 32], "patch": 4,
    "volume_patch": 8,
}  # fmt: skip
PRETRAINING: dict[str, Any] = {
    "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 4, "mask_ratio": 0.75, "background": "zero",
}  # fmt: skip
STEPS = 600
RATE = 2e-3
#: Of the linear classifiers.
DECAYS = (1e-4, 1e-3, 1e-2)
EYES = {
    "photographs": {"num_train": 800, "num_val": 100, "num_test": 400},
    "scans": {"num_train": 400, "num_val": 100, "num_test": 400},
}
STARTS = ("first weights", "Uni4Eye")


def photographs(**options: Any) -> EyePhotographs:
    return EyePhotographs(**EYES["photographs"], **options)


def scans(**options: Any) -> EyeScans:
    return EyeScans(**EYES["scans"], **options)


def pretraining_data() -> TakingTurns:
    """Images and volumes in turn; scans are not turned upside down."""
    views = VolumeFlips((0.0, 0.5, 0.5))
    return TakingTurns(photographs(batch_size=64), scans(batch_size=32, views=views))


def trainer(steps: int = 1) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def rate(value: float, warmup: int, **options: Any) -> Optim:
    return Optim(
        "adamw", lr=value, weight_decay=0.05, no_decay=["*.bias", "*norm*"], schedule="warmup_cosine",
        warmup_steps=warmup, warmup_ratio=0.0, options=options,
    )  # fmt: skip


def pretrain(seed: int) -> dict[str, UnifiedViT]:
    """The encoder before and after training."""
    L.seed_everything(seed, verbose=False)
    optim = rate(RATE, STEPS // 10, betas=[0.9, 0.95])
    method = Uni4Eye("unified_vit_small", ENCODER, optim=optim, **PRETRAINING)
    before = copy.deepcopy(method.student.backbone)
    trainer(STEPS).fit(method, datamodule=pretraining_data())
    return dict(zip(STARTS, (before, method.student.backbone), strict=True))


@torch.no_grad()
def features(backbone: UnifiedViT, data: Any, split: str) -> tuple[Tensor, Tensor]:
    """Class and mean patch token of every eye of a split, ``[N, 2 D]``, and its class."""
    backbone.eval()
    found, labels = [], []
    loader = DataLoader(data.datasets[split], 50, collate_fn=type(data).collate)
    for raw in loader:
        batch = data.on_after_batch_transfer({k: v for k, v in raw.items() if k != "draw"}, 0)
        tokens = backbone.forward_tokens(batch["image"] if "image" in batch else batch["volume"])
        found.append(torch.cat((tokens.cls, tokens.patches.mean(1)), 1))
        labels.append(batch["label"])
    return torch.cat(found), torch.cat(labels)


def probe(backbone: UnifiedViT, data: Any) -> dict[str, float]:
    """Accuracy in percent on validation and test eyes of the classifier that is best on validation."""
    sets = {split: features(backbone, data, split) for split in ("train", "val", "test")}
    x, label = sets["train"]
    mean, std = x.mean(0), x.std(0) + 1e-6
    scores = []
    for decay in DECAYS:
        layer = torch.nn.Linear(x.shape[1], 4)
        torch.nn.init.zeros_(layer.weight)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def loss(layer: Any = layer, decay: float = decay, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(layer((x - mean) / std), label) + decay * layer.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        right = {
            split: 100.0 * (layer((of - mean) / std).argmax(1) == true).float().mean().item()
            for split, (of, true) in sets.items()
        }
        scores.append((right["val"], right["test"]))
    val, test = max(scores)
    return {"val": round(val, 2), "test": round(test, 2)}


def one_seed(seed: int, folder: Path) -> dict[str, Any]:
    """All runs of a seed."""
    done = folder / f"seed{seed}.json"
    if done.is_file():
        return json.loads(done.read_text())  # type: ignore[no-any-return]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    begin, encoders, found = time.process_time(), pretrain(seed), {}
    for kind, data in (
        ("photographs", photographs(crop_scale=None, flip=0.0)),
        ("scans", scans(augment=False)),
    ):
        data.prepare_data()
        data.setup()
        # evaluation shows training eyes whole, each once
        whole = (
            data.subset("train") if kind == "photographs" else WholeVolumes(data.datasets["train"].records)
        )
        data.datasets["train"] = whole
        found[kind] = {start: probe(encoder, data) for start, encoder in encoders.items()}
    found["cpu_seconds"] = round(time.process_time() - begin)
    done.write_text(json.dumps(found, indent=1))
    return found


def table(by_seed: dict[int, dict[str, Any]], split: str) -> str:
    """Accuracy by dimension and encoder: mean, deviation, and each seed."""
    lines = [f"| eyes | encoder | {split} accuracy | per seed |", "|---|---|---|---|"]
    for kind in EYES:
        for start in STARTS:
            values = [found[kind][start][split] for found in by_seed.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            each = " ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {kind} | {start} | {statistics.mean(values):.1f} ± {spread:.1f} | {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/uni4eye"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("val", "test"), default="test", help="val: to choose settings")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pretraining_data().prepare_data()
    with ProcessPoolExecutor(arguments.workers) as pool:
        runs = list(pool.map(one_seed, arguments.seeds, [arguments.folder] * len(arguments.seeds)))
    by_seed = dict(zip(arguments.seeds, runs, strict=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(by_seed, indent=1))
    print(table(by_seed, arguments.split))
    gains = {
        f"{kind}, seed {seed}": found[kind]["Uni4Eye"][arguments.split]
        - found[kind]["first weights"][arguments.split]
        for seed, found in by_seed.items()
        for kind in EYES
    }
    print("gains: " + "; ".join(f"{where} {gain:+.1f}" for where, gain in gains.items()))
    if losers := [where for where, gain in gains.items() if gain <= 0]:
        raise SystemExit(f"pre-training did not help on: {'; '.join(losers)}")


if __name__ == "__main__":
    main()
