"""What :mod:`benchmarks.speed.poa` measures: methods at two scales, their training process, and POA's parts alone.

``python -m benchmarks.speed.poa_process OPTIONS`` is the process of one method.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import lightning as L
import torch

from benchmarks.speed.paired import Meter, now
from benchmarks.training import quiet
from zoo import POA, DINOv2
from zoo.methods.image.base import SelfDistillation
from zoo.methods.image.poa import Said
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
        said = []
        for student, of in (("intact", None), ("elastic", size)):
            outputs = timed(f"{student} forward", lambda of=of: twin.says(batch, of))
            flat = [outputs.cls, *outputs.views, *outputs.patches]
            cls, *logits = (x.detach().requires_grad_() for x in flat)
            said.append(Said(cls, logits[: len(outputs.views)], logits[len(outputs.views) :]))
            upstream = [torch.randn_like(x) for x in flat]
            timed(f"{student} backward", lambda f=flat, u=upstream: torch.autograd.backward(f, u))
        timed("losses", lambda: self.losses({**batch, "teacher": teacher}, said))
        timed(
            "optimiser", lambda: clip_gradients(twin.trained_modules(), twin.optim) or self.optimizer.step()
        )
        self.optimizer.zero_grad()
        timed("teacher's move", lambda: twin.teacher.update(twin.student, 0.99))

    def losses(self, batch: dict[str, Any], said: list[Said]) -> None:
        """The method's own terms, forward and backward, of logits without a network behind them."""
        answers = iter(said)
        with patch.multiple(self.twin, says=lambda *_: next(answers), separate_backward=False):
            torch.stack(list(self.twin.losses(batch).values())).sum().backward()


def _noting(draw: Callable[..., Any], drawn: list[Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        drawn.append(draw(*args))
        return drawn[-1]

    return noted


def train(options: dict[str, Any]) -> None:
    """The process of one method: steps of a Trainer when it is its turn."""
    quiet()
    L.seed_everything(0, verbose=False)
    method, device = build(options, options["worker"]), options["device"]
    parts = Parts(method, options) if options["parts"] else None
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu" if device == "cpu" else "gpu", devices=1, precision=options["precision"],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, Meter(random_batch(options, device), device, parts))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
