"""Log-mel features of a batch: ours at once against torchaudio's Kaldi form clip by clip, and how they differ.

Times are CPU seconds of this process on one thread (on a GPU, the clock's, against the per-clip form on the same
GPU); the ratio of each pair counts, and its median.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from benchmarks.speed.paired import markdown, now, shown, spread
from zoo.nn import LogMel


def clip_by_clip(waveform: Tensor) -> Tensor:
    """As loaders of the released code compute it."""
    options = {"window_type": "hanning", "num_mel_bins": 128, "htk_compat": True, "dither": 0.0}
    return torch.stack([fbank(clip[None], sample_frequency=16_000, **options) for clip in waveform])


def seconds(function: Callable[[Tensor], Tensor], waveform: Tensor, repeats: int) -> float:
    start = now(waveform.device.type)
    for _ in range(repeats):
        function(waveform)
    return (now(waveform.device.type) - start) / repeats


@torch.no_grad()
def measure(clips: int, length: float, pairs: int, device: str) -> dict[str, Any]:
    """Milliseconds a clip of either form, the ratio of pairs, and the differences of cells."""
    rng = torch.Generator().manual_seed(0)
    waveform = (0.1 * torch.randn(clips, int(16_000 * length), generator=rng)).to(device)
    bank, repeats = LogMel().to(device), max(1, int(160 / (clips * length)))
    apart = (bank(waveform) - clip_by_clip(waveform)).abs()
    times = []
    for pair in range(pairs):
        forms = [bank, clip_by_clip][:: 1 if pair % 2 else -1]
        taken = {form: seconds(form, waveform, repeats) for form in forms}
        times.append((taken[bank], taken[clip_by_clip]))
    ours, theirs = (1000 * min(column) / clips for column in zip(*times, strict=True))
    return {
        "batch": f"{clips} x {length:g} s",
        "ms a clip, at once": ours,
        "ms a clip, clip by clip": theirs,
        "ratio": spread([one / other for one, other in times]),
        "largest difference": float(apart.max()),
        "cells apart by more than 1e-4": float((apart > 1e-4).float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(1, 10.0), (16, 10.0), (32, 1.0), (128, 1.0)]
    found = [measure(*size, arguments.pairs, arguments.device) for size in sizes]
    rows = [
        [shown(v) if k == "ratio" else v if k == "batch" else f"{v:.2g}" for k, v in row.items()]
        for row in found
    ]
    print(markdown(list(found[0]), rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
