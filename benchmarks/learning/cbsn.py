"""Does C-BSN see through noise that neighbours share? Three seeds on packaged photographs it was not trained on.

Every seed trains three networks of equal size on equally many crops of six noisy photographs: C-BSN; its blind mode
alone on images as they are (a plain blind spot, which can guess a pixel's noise from its neighbours'); and its blind
mode alone on phases, where neighbours are five pixels away. What is printed is the PSNR of two other photographs, which
chose nothing; settings (cbsn/embedded) were chosen on a third. Finished runs are kept, so it can be interrupted. Needs
the extra denoising.
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
import yaml

from benchmarks.runner import default_workers
from datamodules import PackagedPhotographs
from zoo.config_files import find_config
from zoo.methods.image.cbsn import CBSN

CONFIG: dict[str, Any] = yaml.safe_load(find_config("cbsn/embedded").read_text())
STEPS: int = CONFIG["trainer"]["max_steps"]
PLAIN, PHASES, OURS = "blind spot, stride 1", "blind spot, phases of stride 5", "C-BSN"
#: The three as options of one method.
ROWS: dict[str, dict[str, Any]] = {
    OURS: {},
    PLAIN: {"blind_only": True, "blind_stride": 1},
    PHASES: {"blind_only": True},
}


def data() -> PackagedPhotographs:
    return PackagedPhotographs(**CONFIG["data"]["init_args"])


def method(row: str, **options: Any) -> CBSN:
    return CBSN(**{**CONFIG["model"]["init_args"], **ROWS[row], **options})


def trainer(steps: int = 1) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def scores(trained: CBSN, split: str) -> dict[str, float]:
    """PSNR of denoised and of noisy images in dB, SSIM."""
    judge = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    run = judge.test if split == "test" else judge.validate
    (found,) = run(trained, datamodule=data(), verbose=False)
    return {name.partition("/")[2]: round(value, 4) for name, value in found.items()}


def train(row: str, seed: int, checkpoint: Path, split: str = "test", **options: Any) -> dict[str, float]:
    """Train one of the three; its scores and CPU seconds."""
    L.seed_everything(seed, verbose=False)
    start, trained, run = time.process_time(), method(row, **options), trainer(STEPS)
    run.fit(trained, datamodule=data())
    run.save_checkpoint(checkpoint)
    return {**scores(trained, split), "cpu_seconds": round(time.process_time() - start)}


def one_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """All runs of a seed."""
    quiet()
    found: dict[str, dict[str, float]] = {}
    for number, row in enumerate(ROWS):
        done = folder / f"seed{seed}-{number}.json"
        if not done.is_file():
            done.write_text(json.dumps(train(row, seed, done.with_suffix(".ckpt")), indent=1))
        found[row] = json.loads(done.read_text())
    return found


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def table(by_seed: dict[int, dict[str, dict[str, float]]]) -> str:
    """Test scores over seeds."""
    lines = ["| run | steps | test PSNR, dB | per seed | SSIM | CPU s |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        values = [found[row]["psnr"] for found in by_seed.values()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " ".join(f"{value:.2f}" for value in values)
        ssim, cpu = (
            statistics.mean(found[row][key] for found in by_seed.values()) for key in ("ssim", "cpu_seconds")
        )
        lines.append(
            f"| {row} | {STEPS} | {statistics.mean(values):.2f} ± {spread:.2f} | {each} | {ssim:.3f} | {cpu:.0f} |"
        )
    noisy = next(iter(by_seed.values()))[OURS]["noisy_psnr"]
    return "\n".join([*lines, f"| noisy input | | {noisy:.2f} | | | |"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning/cbsn"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        runs = list(pool.map(one_seed, arguments.seeds, [arguments.folder] * len(arguments.seeds)))
    by_seed = dict(zip(arguments.seeds, runs, strict=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(by_seed, indent=1) + "\n")
    print(table(by_seed))
    losers = []
    for seed, found in by_seed.items():
        ours = found[OURS]["psnr"]
        rivals = {
            PLAIN: found[PLAIN]["psnr"],
            PHASES: found[PHASES]["psnr"],
            "noisy": found[OURS]["noisy_psnr"],
        }
        print(
            f"seed {seed}: "
            + ", ".join(f"{ours - other:+.2f} dB over {name}" for name, other in rivals.items())
        )
        losers += [f"{name}, seed {seed}" for name, other in rivals.items() if ours <= other]
    if losers:
        raise SystemExit(f"C-BSN did not beat: {'; '.join(losers)}")


if __name__ == "__main__":
    main()
