"""What Mesa saves and costs: bytes kept for backward, gradients against exact ones, CPU or GPU time of a step.

ViT-S inside POA (teacher and both students, six local crops, projection heads exact) and AST-small inside SSAST, both
fresh. Steps (forward and backward) of every setting take turns; bytes are those that the watched layers keep.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.paired import markdown, now, shown, spread
from benchmarks.speed.poa_process import build, random_batch
from zoo import SSAST
from zoo.method import Method
from zoo.nn.saved_activations import SavedActivations


def poa(batch: int, device: str) -> tuple[Method, Callable[[], dict[str, Tensor]]]:
    """POA with a ViT that is at most ViT-S, images of 96 pixels; textured ones, or every gradient is noise."""
    options = {"scale": "small", "family": "vit", "batch": batch, "device": device}
    method = build(options, "poa").to(device)
    views = {
        kind: F.interpolate(torch.rand(len(images), 3, 6, 6), images.shape[-1], mode="bicubic").to(device)
        for kind, images in random_batch(options, "cpu")["views"].items()
    }
    grid = method.student.backbone.grid(*views["global"].shape[-2:])
    masks = method.masking(2 * batch, grid, Random(0)).to(torch.device(device))
    return method, lambda: method.losses({"views": views, "masks": masks})


def ssast(batch: int, device: str) -> tuple[Method, Callable[[], dict[str, Tensor]]]:
    """SSAST with AST-small on five seconds of smooth noise, 150 of 256 patches masked."""
    method = SSAST("ast_small", {"frames": 512}, masked=150).to(device)
    spectrogram = F.interpolate(torch.randn(batch, 1, 40, 16), (512, 128), mode="bicubic")[:, 0].to(device)
    return method, lambda: method.losses({"spectrogram": spectrogram})


SETTINGS: dict[str, dict[str, Any]] = {
    "8 bits": {},
    "8 bits, nearest": {"rounding": "nearest"},
    "8 bits, tokens": {"ranges_of": "tokens"},
    "8 bits, tokens, nearest": {"ranges_of": "tokens", "rounding": "nearest"},
    "4 bits, tokens": {"bits": 4, "ranges_of": "tokens"},
}


def measure(name: str, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Setting → times fewer bytes, cosine to the exact gradient, time of a step over that of an exact one."""
    torch.manual_seed(0)
    method, losses = {"poa": poa, "ssast": ssast}[name](batch, device)
    backbone = {"student.backbone": method.student.backbone}

    def step(options: dict[str, Any] | None) -> tuple[float, Tensor, SavedActivations | None]:
        torch.manual_seed(0)  # the same masks and sub-networks
        method.zero_grad()
        saved = None if options is None else SavedActivations(backbone, **options)
        start = now(device)
        with nullcontext() if saved is None else saved.compress():
            total = torch.stack(list(losses().values())).sum()
        total.backward()
        seconds = now(device) - start
        if saved is not None:
            saved.detach()
        gradient = [p.grad.flatten() for p in method.student.parameters() if p.grad is not None]
        return seconds, torch.cat(gradient).double(), saved

    _, exact, _ = step(None)
    found: dict[str, Any] = {setting: {"ratios": []} for setting in SETTINGS}
    for index in range(rounds):
        plain = step(None)[0]
        first = index % len(SETTINGS)
        for setting in (*list(SETTINGS)[first:], *list(SETTINGS)[:first]):
            seconds, gradient, saved = step(SETTINGS[setting])
            assert saved is not None
            found[setting]["ratios"].append(seconds / plain)
            found[setting]["cosine"] = float(F.cosine_similarity(gradient, exact, 0))
            found[setting]["exact_mb"] = saved.exact_bytes / 2**20
            found[setting]["fewer"] = saved.exact_bytes / saved.kept_bytes
    for row in found.values():
        row["time"] = spread(row.pop("ratios"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        name: measure(name, arguments.batch, arguments.device, arguments.rounds) for name in ("poa", "ssast")
    }
    rows = [
        [
            name, setting, f"{row['exact_mb']:.0f}", f"{row['fewer']:.2f}", f"{row['cosine']:.6f}", shown(row["time"]),
        ]
        for name, found in record.items() for setting, row in found.items()
    ]  # fmt: skip
    print(
        markdown(["method", "setting", "exact MB", "times fewer", "gradient cosine", "time of a step"], rows)
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
