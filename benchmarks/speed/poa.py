"""What a POA step costs: over its own parts timed alone, over a DINOv2 step, and in memory.

* floor: whole steps in a Trainer, over the sum of their parts (forwards, backwards, losses, optimiser, teacher), each
  timed alone on a second network at the same sizes and masks;
* arithmetic: floating-point operations of a POA step over those of a DINOv2 step of the intact backbone, counted for
  every size and averaged as sizes are drawn: whole steps, and backbones without heads;
* measured: the same ratio in time, steps of both in turns, beside the arithmetic of the very sizes that were drawn;
* memory: most of it during a step, with one backward for both students and with two.

``--arithmetic`` counts only: nothing is computed, so that the published families need no memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.paired import STRICT_MALLOC, Worker, markdown, shown, spread, take_turns
from benchmarks.speed.poa_process import PUBLISHED, SCALES, build, random_batch
from zoo.methods.image.base import SelfDistillation
from zoo.nn.elastic import Size


class Arithmetic:
    """Floating-point operations of steps, forward and backward, backbones and heads (matrices, convolutions)."""

    def __init__(self, options: dict[str, Any]) -> None:
        with torch.device("meta"):
            self.poa, self.dinov2 = build(options, "poa"), build(options, "dinov2")
        # KoLeo is next to nothing, and not for tensors without data.
        self.poa.koleo_weight = self.dinov2.koleo_weight = 0.0
        self.batch = random_batch(options, "meta")
        grid = self.poa.student.backbone.grid(*self.batch["views"]["global"].shape[-2:])
        self.batch["masks"] = self.poa.masking(2 * options["batch"], grid, Random(0)).to(torch.device("meta"))
        self.base = self.count(self.dinov2)
        self.found: dict[Size, int] = {}

    def count(self, method: SelfDistillation) -> int:
        with FlopCounterMode(display=False) as counter:
            torch.stack(list(method.losses(self.batch).values())).sum().backward()
        return counter.get_total_flops()

    def with_size(self, size: Size) -> int:
        if size not in self.found:
            self.poa.draw_size = lambda: size  # type: ignore[method-assign]
            self.found[size] = self.count(self.poa)
        return self.found[size]

    def ratio(self, size: Size) -> float:
        """A POA step whose elastic student is of that size, over a DINOv2 step.

        Linear in the blocks of every stage: counted with the fewest, and with more in one stage alone.
        """
        depths = map(_stages, self.poa.student.backbone.depths)
        choices = [sorted(set(stage)) for stage in zip(*depths, strict=True)]
        fewest = [stage[0] for stage in choices]
        total = least = self.with_size(_size(size.width, fewest))
        for s, (few, *more) in enumerate(choices):
            if more:
                steeper = self.with_size(_size(size.width, [*fewest[:s], more[0], *fewest[s + 1 :]]))
                total += (steeper - least) * (_stages(size.depth)[s] - few) // (more[0] - few)
        return total / self.base

    def expected(self) -> float:
        """Mean over the cycle of sizes that training draws from."""
        return statistics.mean(map(self.ratio, self.poa.cycle.deck))

    def backbones(self, whole: float) -> float:
        """The mean ratio ``whole`` without the heads, whose cost depends on nothing but the width."""
        deck = self.poa.cycle.deck
        by_width = {size.width: self.heads(self.poa, size) for size in deck}
        heads = statistics.mean(by_width[size.width] for size in deck)
        return (whole * self.base - heads) / (self.base - self.heads(self.dinov2))

    def heads(self, method: SelfDistillation, elastic: Size | None = None) -> int:
        """Operations of the heads in a step: the teacher's forward, each student's forward and backward."""
        backbone, views = self.poa.student.backbone, self.batch["views"]
        masked, rows = len(self.batch["masks"].weight), len(views["global"])
        narrow = backbone.family != "resnet" and elastic is not None  # its last maps are never elastic
        widths = [backbone.embed_dim]
        if elastic is not None:
            widths.append(int(backbone.embed_dim / backbone.alpha(elastic)) if narrow else backbone.embed_dim)
        with FlopCounterMode(display=False) as counter:
            with torch.no_grad():
                method.student.head(torch.empty(rows + masked, widths[0], device="meta"))
            for width in widths:
                tokens = torch.empty(
                    rows + len(views["local"]) + masked, width, device="meta", requires_grad=True
                )
                logits = method.student.head(tokens)
                torch.cat([logits] if isinstance(logits, torch.Tensor) else logits, 1).sum().backward()
        return counter.get_total_flops()


def _stages(depth: int | tuple[int, ...]) -> tuple[int, ...]:
    return (depth,) if isinstance(depth, int) else tuple(depth)


def _size(width: int, depths: list[int]) -> Size:
    return Size(width, depths[0] if len(depths) == 1 else tuple(depths))


def measure(options: dict[str, Any], arithmetic: Arithmetic, rounds: int, steps: int) -> dict[str, Any]:
    def worker(name: str, parts: bool = False, environment: dict[str, str] | None = None) -> Worker:
        asked = json.dumps({**options, "worker": name, "parts": parts})
        return Worker(name, [sys.executable, "-m", "benchmarks.speed.poa_process", asked], environment)

    told = take_turns([worker("poa", parts=True), worker("dinov2")], rounds, steps)
    floors = [sum(turn["parts"].values()) for turn in told["poa"]]
    networks = [floor - turn["parts"]["losses"] for floor, turn in zip(floors, told["poa"], strict=True)]
    parts = {part: [turn["parts"][part] for turn in told["poa"]] for part in told["poa"][0]["parts"]}
    record: dict[str, Any] = {
        "parts": {part: statistics.median(times) for part, times in parts.items()},
        "step": statistics.median(turn["step"] for turn in told["poa"]),
    }
    for name, base in (("floor", floors), ("floor without losses", networks)):
        record[name] = spread([turn["step"] / b for turn, b in zip(told["poa"], base, strict=True)])
    pairs = list(zip(told["poa"], told["dinov2"], strict=True))
    record["over dinov2"] = spread([poa["step"] / dinov2["step"] for poa, dinov2 in pairs])
    sizes = [
        Size(w, tuple(d) if isinstance(d, list) else d) for turn in told["poa"] for w, d in turn["sizes"]
    ]
    record["arithmetic of the draws"] = statistics.mean(map(arithmetic.ratio, sizes))
    record["memory"] = {}
    for name in ("poa", "poa, one backward", "dinov2"):
        (turn,) = take_turns([worker(name, environment=STRICT_MALLOC)], 1, 2)[name]
        record["memory"][name] = {"peak": turn["peak"], "above rest": turn["peak"] - turn["rest"]}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=PUBLISHED, default="vit")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument(
        "--batch", type=int, default=4, help="images; each has two global and the local views"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each method a round")
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = {key: getattr(arguments, key) for key in ("family", "scale", "batch", "device", "precision")}
    arithmetic = Arithmetic(options)
    record: dict[str, Any] = {**options, "arithmetic": arithmetic.expected()}
    record["arithmetic of the backbones"] = arithmetic.backbones(record["arithmetic"])
    print(
        f"arithmetic: {record['arithmetic']:.3f} x DINOv2 over the cycle of {len(arithmetic.poa.cycle.deck)} sizes, "
        f"{record['arithmetic of the backbones']:.3f} without heads"
    )
    if not arguments.arithmetic:
        record |= measure(options, arithmetic, arguments.rounds, arguments.steps)
        print(", ".join(f"{part} {1000 * s:.0f}" for part, s in record["parts"].items()), "ms")
        memory = {name: f"{m['above rest'] / 2**20:.0f} MiB" for name, m in record["memory"].items()}
        header = ["family", "step / parts", "without losses", "/ DINOv2", "its arithmetic", "of the law"]
        ratios = [shown(record[key]) for key in ("floor", "floor without losses", "over dinov2")]
        expected = [f"{record[key]:.2f}" for key in ("arithmetic of the draws", "arithmetic")]
        print(markdown([*header, *memory], [[arguments.family, *ratios, *expected, *memory.values()]]))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
