"""What a POA step costs: over its own parts timed alone, over a DINOv2 step, and in memory.

* floor: whole steps in a Trainer, over the sum of their parts (forwards, backwards, losses, optimiser, teacher), each
  timed alone on a second network at the same sizes and masks;
* arithmetic: floating-point operations of a POA step over those of a DINOv2 step of the intact backbone, counted for
  every size and averaged as sizes are drawn;
* measured: the same ratio in time, steps of both in turns, beside the arithmetic of the very sizes that were drawn;
* memory: most of it during a step, with one backward for both students and with two.

``--arithmetic`` counts only, which the published families take half a minute for: nothing is computed.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.paired import STRICT_MALLOC, Meter, Worker, markdown, now, shown, spread, take_turns
from zoo import POA, DINOv2
from zoo.methods.image.base import SelfDistillation
from zoo.nn.elastic import Size
from zoo.nn.masking import Masks
from zoo.optim import build_optimizer, clip_gradients

PUBLISHED: dict[str, dict[str, Any]] = {
    "vit": {"backbone": "elastic_vit_large", "width_emphasis": 3.0, "depth_emphasis": 3.0},
    "swin": {"backbone": "elastic_swin_base", "width_emphasis": 2.0, "depth_emphasis": 2.0},
    "resnet": {"backbone": "elastic_resnet152", "width_emphasis": 1.0, "depth_emphasis": 2.0},
}
#: Families of the same build that one core trains: up to ViT-S, a quarter of Swin-B and of the ResNet.
SMALL: dict[str, dict[str, Any]] = {
    "vit": {"img_size": 96, "widths": list(range(144, 385, 48)), "depths": list(range(6, 13)), "head_dim": 48},
    "swin": {"widths": [48, 56, 64], "depths": [[2], [2], [2, 3, 4, 5, 6], [2]], "head_dim": 8, "window_size": 3},
    "resnet": {
        "widths": [32, 48, 64], "depths": [[2], [2, 3, 4], list(range(2, 11)), [2]], "stem_width": 32, "groups": 16
    },
}  # fmt: skip
SCALES: dict[str, dict[str, Any]] = {
    "small": {"crops": (96, 48), "local": 6, "prototypes": [1024, 2048], "hidden": 1024},
    "published": {"crops": (224, 96), "local": 8, "prototypes": [8192, 16384, 32768, 65536], "hidden": 2048},
}


def build(options: dict[str, Any], name: str) -> SelfDistillation:
    """POA, or DINOv2 with the intact backbone and one head of the largest of POA's."""
    scale, recipe = SCALES[options["scale"]], dict(PUBLISHED[options["family"]])
    common = {
        "backbone": recipe.pop("backbone"),
        "backbone_args": SMALL[options["family"]] if options["scale"] == "small" else {},
        "head_args": {"hidden_dim": scale["hidden"]},
        "teacher_temp_epochs": 0,
    }
    if name == "dinov2":
        return DINOv2(**common, prototypes=max(scale["prototypes"]), targets="sinkhorn", patch_temp_epochs=0)
    separate = name != "poa, one backward"
    return POA(
        **common, **recipe, prototypes=scale["prototypes"], mask_start_epochs=0, separate_backward=separate
    )


def random_batch(options: dict[str, Any], device: str) -> dict[str, Any]:
    B, scale = options["batch"], SCALES[options["scale"]]
    counts = {"global": 2 * B, "local": scale["local"] * B}
    return {
        "views": {
            kind: torch.rand(count, 3, side, side, device=device)
            for (kind, count), side in zip(counts.items(), scale["crops"], strict=True)
        }
    }


class Parts:
    """Times what the last steps were made of, part by part, on a network of its own."""

    def __init__(self, method: POA, options: dict[str, Any]) -> None:
        self.twin, self.device = build(options, "poa").to(options["device"]), options["device"]
        self.autocast = options["precision"] == "bf16-mixed"
        self.optimizer = build_optimizer(self.twin.trained_modules(), self.twin.optim)
        self.batch = random_batch(options, self.device)
        self.sizes: list[Size] = []
        self.masks: list[Masks] = []
        method.draw_size = _noting(method.draw_size, self.sizes)  # type: ignore[method-assign]
        method.draw_masks = _noting(method.draw_masks, self.masks)  # type: ignore[method-assign]

    def __call__(self, steps: int) -> dict[str, Any]:
        spent: dict[str, list[float]] = {}
        drawn = [(self.sizes.pop(0), self.masks.pop(0)) for _ in range(steps)]
        for size, masks in drawn:
            self.step(size, masks, spent)
        return {
            "parts": {part: sum(times) / steps for part, times in spent.items()},
            "sizes": [s for s, _ in drawn],
        }

    def step(self, size: Size, masks: Masks, spent: dict[str, list[float]]) -> None:
        twin, batch = self.twin, {**self.batch, "masks": masks}

        def timed(part: str, call: Callable[[], Any]) -> Any:
            start = now(self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                result = call()
            spent.setdefault(part, []).append(now(self.device) - start)
            return result

        teacher = timed("teacher", lambda: twin.teach(batch["views"]["global"], masks))
        said = {}
        for student, of in (("intact", None), ("elastic", size)):
            outputs = timed(f"{student} forward", lambda of=of: twin.says(batch, of))
            flat = [outputs.cls, *outputs.views, *outputs.patches]
            said[student] = [x.detach().requires_grad_() for x in flat]
            upstream = [torch.randn_like(x) for x in flat]
            timed(f"{student} backward", lambda f=flat, u=upstream: torch.autograd.backward(f, u))
        timed("losses", lambda: self.losses({**batch, "teacher": teacher}, said))
        timed(
            "optimiser", lambda: (clip_gradients(twin.trained_modules(), twin.optim), self.optimizer.step())
        )
        self.optimizer.zero_grad()
        timed("teacher's move", lambda: twin.teacher.update(twin.student, 0.99))

    def losses(self, batch: dict[str, Any], said: dict[str, list[torch.Tensor]]) -> None:
        """The method's own terms, forward and backward, of logits without a network behind them."""
        heads = len(batch["teacher"]["cls"])
        intact, elastic = (type("Said", (), {}) for _ in range(2))
        for outputs, (cls, *logits) in ((intact, said["intact"]), (elastic, said["elastic"])):
            outputs.cls, outputs.views, outputs.patches = cls, logits[:heads], logits[heads:]
        answers = iter((intact, elastic))
        says, early = self.twin.says, self.twin.separate_backward
        self.twin.says, self.twin.separate_backward = (lambda *_: next(answers)), False  # type: ignore[assignment]
        torch.stack(list(self.twin.losses(batch).values())).sum().backward()
        self.twin.says, self.twin.separate_backward = says, early  # type: ignore[method-assign]


def _noting(draw: Callable[..., Any], drawn: list[Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        drawn.append(draw(*args))
        return drawn[-1]

    return noted


def train(options: dict[str, Any]) -> None:
    """The process of one method: steps of a Trainer when it is its turn."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    method, device = build(options, options["worker"]), options["device"]
    parts = Parts(method, options) if options["parts"] else None
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu" if device == "cpu" else "gpu", devices=1, precision=options["precision"],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, Meter(random_batch(options, device), device, parts))


class Arithmetic:
    """Floating-point operations of steps, forward and backward, backbones and heads (matrices, convolutions)."""

    def __init__(self, options: dict[str, Any]) -> None:
        with torch.device("meta"):
            self.poa, self.dinov2 = build(options, "poa"), build(options, "dinov2")
        self.poa.koleo_weight = self.dinov2.koleo_weight = (
            0.0  # next to nothing, and not for tensors without data
        )
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
        choices = [
            sorted(set(stage)) for stage in zip(*map(_stages, self.poa.student.backbone.depths), strict=True)
        ]
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


def _stages(depth: int | tuple[int, ...]) -> tuple[int, ...]:
    return (depth,) if isinstance(depth, int) else tuple(depth)


def _size(width: int, depths: list[int]) -> Size:
    return Size(width, depths[0] if len(depths) == 1 else tuple(depths))


def measure(options: dict[str, Any], arithmetic: Arithmetic, rounds: int, steps: int) -> dict[str, Any]:
    def worker(name: str, parts: bool = False, environment: dict[str, str] | None = None) -> Worker:
        asked = json.dumps({**options, "worker": name, "parts": parts})
        return Worker(name, [sys.executable, "-m", "benchmarks.speed.poa", "--worker", asked], environment)

    told = take_turns([worker("poa", parts=True), worker("dinov2")], rounds, steps)
    floors = [sum(turn["parts"].values()) for turn in told["poa"]]
    networks = [floor - turn["parts"]["losses"] for floor, turn in zip(floors, told["poa"], strict=True)]
    record: dict[str, Any] = {
        "parts": {
            part: statistics.median(t["parts"][part] for t in told["poa"]) for part in told["poa"][0]["parts"]
        },
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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return train(json.loads(arguments.worker))
    options = {key: getattr(arguments, key) for key in ("family", "scale", "batch", "device", "precision")}
    arithmetic = Arithmetic(options)
    record: dict[str, Any] = {**options, "arithmetic": arithmetic.expected()}
    print(
        f"arithmetic: {record['arithmetic']:.3f} x DINOv2 over the cycle of {len(arithmetic.poa.cycle.deck)} sizes"
    )
    if not arguments.arithmetic:
        record |= measure(options, arithmetic, arguments.rounds, arguments.steps)
        print(", ".join(f"{part} {1000 * s:.0f}" for part, s in record["parts"].items()), "ms")
        memory = {name: f"{m['above rest'] / 2**20:.0f} MiB" for name, m in record["memory"].items()}
        header = [
            "family",
            "step / parts",
            "without losses",
            "/ DINOv2",
            "its arithmetic",
            "of the law",
            *memory,
        ]
        ratios = [shown(record[key]) for key in ("floor", "floor without losses", "over dinov2")]
        expected = [f"{record[key]:.2f}" for key in ("arithmetic of the draws", "arithmetic")]
        print(markdown(header, [[arguments.family, *ratios, *expected, *memory.values()]]))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
