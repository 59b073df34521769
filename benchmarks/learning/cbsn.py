"""Does C-BSN see through noise that neighbours share? Three seeds on packaged photographs it was not trained on.

Every seed trains three networks of equal size on equally many crops of six noisy photographs: C-BSN; its blind mode
alone on images as they are (a plain blind spot, which can guess a pixel's noise from its neighbours'); and its blind
mode alone on phases, where neighbours are five pixels away. What is printed is the PSNR of two other photographs, which
chose nothing; settings (cbsn/embedded) were chosen on a third. Finished runs are kept, so it can be interrupted. Needs
the extra denoising.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.report import listed, proof_parser, spread, verdict
from benchmarks.training import kept, run_seeds, scores, settings, trainer
from datamodules import PackagedPhotographs
from zoo.methods.image.cbsn import CBSN

CONFIG = settings("cbsn/embedded")
STEPS: int = CONFIG["steps"]
PLAIN, PHASES, OURS = "blind spot, stride 1", "blind spot, phases of stride 5", "C-BSN"
#: The three as options of one method.
ROWS: dict[str, dict[str, Any]] = {
    OURS: {},
    PLAIN: {"blind_only": True, "blind_stride": 1},
    PHASES: {"blind_only": True},
}


def data() -> PackagedPhotographs:
    return PackagedPhotographs(**CONFIG["data"])


def method(row: str, **options: Any) -> CBSN:
    return CBSN(**{**CONFIG["model"], **ROWS[row], **options})


def train(row: str, seed: int, checkpoint: Path, split: str = "test", **options: Any) -> dict[str, float]:
    """Train one of the three; PSNR of denoised and of noisy images in dB, SSIM, and CPU seconds."""
    L.seed_everything(seed, verbose=False)
    start, trained, run = time.process_time(), method(row, **options), trainer(STEPS)
    run.fit(trained, datamodule=data())
    run.save_checkpoint(checkpoint)
    found = {name: round(value, 4) for name, value in scores(trained, data(), split).items()}
    return {**found, "cpu_seconds": round(time.process_time() - start)}


def one_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """All runs of a seed."""
    found: dict[str, dict[str, float]] = {}
    for number, row in enumerate(ROWS):
        done = folder / f"seed{seed}-{number}.json"
        found[row] = kept(done, partial(train, row, seed, done.with_suffix(".ckpt")))
    return found


def table(by_seed: dict[int, dict[str, dict[str, float]]]) -> str:
    """Test scores over seeds."""
    lines = ["| run | steps | test PSNR, dB | per seed | SSIM | CPU s |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        values = [found[row]["psnr"] for found in by_seed.values()]
        ssim, cpu = (
            statistics.mean(found[row][key] for found in by_seed.values()) for key in ("ssim", "cpu_seconds")
        )
        lines.append(
            f"| {row} | {STEPS} | {spread(values, 2)} | {listed(values, 2)} | {ssim:.3f} | {cpu:.0f} |"
        )
    noisy = next(iter(by_seed.values()))[OURS]["noisy_psnr"]
    return "\n".join([*lines, f"| noisy input | | {noisy:.2f} | | | |"])


def main() -> None:
    parser = proof_parser(__doc__, "cbsn")
    parser.add_argument("--json", type=Path, help="where to write the scores of all seeds")
    by_seed = run_seeds(one_seed, parser.parse_args())
    print(table(by_seed))
    gains: dict[str, dict[int, float]] = {}
    for seed, found in by_seed.items():
        rivals = {
            PLAIN: found[PLAIN]["psnr"],
            PHASES: found[PHASES]["psnr"],
            "noisy": found[OURS]["noisy_psnr"],
        }
        for name, psnr in rivals.items():
            gains.setdefault(f"{OURS} - {name}, dB", {})[seed] = found[OURS]["psnr"] - psnr
    verdict(gains, digits=2)


if __name__ == "__main__":
    main()
