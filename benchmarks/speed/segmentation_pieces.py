"""Pieces of a domain-adaptive segmentation step: the zoo's over the form of the papers' code, with equal results.

19 classes, batch 2, 512 × 512 pixels, embeddings of 512 channels on a 64 × 64 map; the metric counts one image of
1024 × 2048. Losses are timed with their backward pass. Results are compared before anything is timed: the largest
difference from the other form's, relative to its largest entry, must stay below the piece's tolerance. ``transient``
is the memory a call needs beyond what it is given, in a process of its own whose freed memory goes back at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import segmentation_forms as forms
from benchmarks.speed.paired import (
    ROOT,
    STRICT_MALLOC,
    dispatches,
    in_turns,
    keep,
    markdown,
    options,
    over,
    peak_bytes,
    reset_peak,
    shown,
)
from zoo.nn.augment import DACSAugment
from zoo.nn.class_statistics import ClassStatistics
from zoo.nn.contrast import bank_contrast, contrast_regulariser, distribution_contrast
from zoo.nn.losses import downscale_label
from zoo.nn.mixing import ClassMix

B, C, A, SIDE, CELL, TAU, ENTRIES = 2, 19, 512, 512, 8, 100.0, 100
Results = Sequence[Tensor]


@dataclass(frozen=True)
class Piece:
    """Two forms of one piece, each a call that gives its results; what the ratio should be at most."""

    zoo: Callable[[], Results]
    other: Callable[[], Results]
    target: float
    tolerance: float
    memory_target: float | None = None


class Given:
    """Images, labels and embeddings as a step has them: labels are coherent, some pixels are ignored."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        patches = torch.randint(C, (2 * B, 16, 16)).repeat_interleave(32, 1).repeat_interleave(32, 2)
        patches = patches.roll((5, 11), (1, 2))
        patches[:, :24] = 255
        self.label, self.pseudo = patches.to(device).split(B)
        self.cells = downscale_label(self.label, CELL, C)
        self.features = F.normalize(torch.rand(B, A, SIDE // CELL, SIDE // CELL), dim=1).to(device)
        self.mean = F.normalize(torch.rand(C, A), dim=1).to(device)
        self.variance = torch.rand(C, A).mul_(1e-2).to(device)
        self.image = torch.rand(B, 3, SIDE, SIDE).to(device)


def with_gradient(features: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[], Results]:
    """The loss and its gradient with respect to the embeddings."""

    def run() -> Results:
        leaf = features.detach().requires_grad_()
        value = loss(leaf)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    return run


class SetClasses(ClassMix):
    """Pastes classes that are given."""

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        self.chosen = chosen

    def choose(self, present: Tensor) -> Tensor:
        super().choose(present)  # the draw is part of the work
        return self.chosen & present


class SetStrengths(DACSAugment):
    """Always jitters and blurs; colours are given."""

    given = ([1.1, 0.85], [0.9, 1.2], [1.15, 0.8], [0.12, -0.17]), [[2, 0, 3, 1], [1, 3, 0, 2]]

    def coins(self) -> tuple[float, float]:
        return 1.0, 1.0

    def colours(self, count: int) -> Any:
        return *self.given[0], self.given[1]


def distribution_loss(g: Given) -> Piece:
    def own(q: Tensor) -> Tensor:
        loss = distribution_contrast(q, g.cells, g.mean, g.variance, TAU)
        return loss + contrast_regulariser(q, g.cells, g.mean, TAU)

    return Piece(
        with_gradient(g.features, own),
        with_gradient(g.features, lambda q: forms.distribution_loss(q, g.cells, g.mean, g.variance, TAU)),
        target=0.25, tolerance=1e-5,
    )  # fmt: skip


def bank_loss(g: Given) -> Piece:
    bank = F.normalize(torch.rand(C, ENTRIES, A), dim=2).to(g.mean.device)
    size = torch.full((C,), ENTRIES, device=g.mean.device)

    def own(q: Tensor) -> Tensor:
        loss = bank_contrast(q, g.cells, bank, size, TAU)
        return loss + contrast_regulariser(q, g.cells, g.mean, TAU)

    return Piece(
        with_gradient(g.features, own),
        with_gradient(g.features, lambda q: forms.bank_loss(q, g.cells, bank, g.mean, TAU)),
        target=0.15, tolerance=1e-5,
    )  # fmt: skip


def statistics_update(g: Given) -> Piece:
    statistics = ClassStatistics(C, A).to(g.mean.device)
    state = (torch.full((C,), 500.0, device=g.mean.device), g.mean, g.variance)
    held = (statistics.count, statistics.mean, statistics.variance)

    def own() -> Results:
        for buffer, value in zip(held, state, strict=True):
            buffer.copy_(value)
        statistics.update(g.features, g.cells)
        return held

    def other() -> Results:
        return forms.merged(state, *forms.batch_moments(g.features, g.cells, C))

    return Piece(own, other, target=0.03, tolerance=1e-5, memory_target=0.02)


def down_sampling(g: Given) -> Piece:
    return Piece(
        lambda: (downscale_label(g.label, CELL, C),),
        lambda: (forms.cell_label(g.label, CELL, C, 0.75),),
        target=0.1, tolerance=0.0,
    )  # fmt: skip


def class_mix(g: Given) -> Piece:
    target, weight = torch.rand_like(g.image), torch.rand(B, SIDE, SIDE).to(g.image.device)
    chosen = torch.zeros(B, 256, dtype=torch.bool, device=g.image.device)
    chosen[0, [1, 3, 4, 8, 9, 11, 13, 15, 17, 255]] = True
    chosen[1, [0, 2, 3, 5, 6, 7, 10, 12, 16, 18]] = True
    mixer = SetClasses(chosen)
    labelled = {"image": g.image, "label": g.label}
    unlabelled = {"image": target, "pseudo_label": g.pseudo, "pseudo_weight": weight}
    classes = [row.nonzero().flatten() for row in chosen]
    return Piece(
        lambda: tuple(mixer(labelled, unlabelled)[key] for key in ("image", "label", "weight")),
        lambda: forms.class_mix(g.image, g.label, target, g.pseudo, weight, classes),
        target=0.06, tolerance=0.0,
    )  # fmt: skip


def strong_augmentation(g: Given) -> Piece:
    augment = SetStrengths()
    torch.manual_seed(0)
    sigma = torch.empty(B, device=g.image.device).uniform_(*augment.sigma).tolist()
    factors = list(zip(*augment.given[0], strict=True))

    def own() -> Results:
        torch.manual_seed(0)  # for the same sigma
        return (augment(g.image),)

    return Piece(
        own,
        lambda: (forms.strong_augment(g.image, factors, augment.given[1], sigma),),
        target=0.15, tolerance=1e-5,
    )  # fmt: skip


def iou_update(g: Given) -> Piece:
    from torchmetrics.classification import MulticlassJaccardIndex

    from zoo.metrics import SegmentationIoU

    truth = torch.randint(C, (1, 32, 64)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    predicted, truth = truth.roll(7, 2).to(g.image.device), truth.to(g.image.device)
    truth[:, :40] = 255

    def counted(metric: Any, state: str) -> Callable[[], Results]:
        def update() -> Results:
            metric.reset()
            metric.update(predicted, truth)
            return (getattr(metric, state),)

        return update

    own = counted(SegmentationIoU(C).to(truth.device), "confusion")
    other = counted(MulticlassJaccardIndex(C, ignore_index=255).to(truth.device), "confmat")
    return Piece(own, other, target=0.1, tolerance=0.0)


PIECES: dict[str, Callable[[Given], Piece]] = {
    "SePiCo distribution loss": distribution_loss,
    "SePiCo bank loss, 100 a class": bank_loss,
    "class statistics update": statistics_update,
    "label down-sampling": down_sampling,
    "ClassMix": class_mix,
    "strong augmentation": strong_augmentation,
    "mIoU update": iou_update,
}


def difference(piece: Piece) -> float:
    """Largest difference of the two forms' results, relative to the largest entry.

    Raises:
        AssertionError: it is above the tolerance.
    """
    worst = 0.0
    for own, other in zip(piece.zoo(), piece.other(), strict=True):
        gap = (own.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
        worst = max(worst, float(gap))
    if worst > piece.tolerance:
        raise AssertionError(f"results differ by {worst:.1e}, tolerance {piece.tolerance:.0e}")
    return worst


def transient(call: Callable[[], object], device: str) -> int:
    """Bytes that a call needs beyond those in use before it."""
    call()
    reset_peak(device)
    rest = peak_bytes(device)
    call()
    return peak_bytes(device) - rest


def timed(piece: Piece, device: str, rounds: int) -> dict[str, Any]:
    """The ratio, after the comparison of results."""
    gap = difference(piece)
    found = over(in_turns({"zoo": piece.zoo, "other": piece.other}, rounds, device), "other")
    return {
        "ratio": found["zoo"],
        "other_ms": found["other"]["ms"],
        "target": piece.target,
        "difference": gap,
        "tolerance": piece.tolerance,
        "calls": {"zoo": dispatches(piece.zoo), "other": dispatches(piece.other)},
    }


def remembered(piece: Piece, device: str) -> dict[str, Any]:
    """Transient bytes of both forms."""
    found = {"zoo": transient(piece.zoo, device), "other": transient(piece.other, device)}
    return {"transient": found, "memory_target": piece.memory_target}


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--pieces", nargs="*", default=[""], help="some, by the beginnings of their names")
    parser.add_argument("--measure", nargs="*", choices=("time", "memory"), default=["time", "memory"])
    arguments = parser.parse_args()
    if "memory" in arguments.measure and any(os.environ.get(k) != v for k, v in STRICT_MALLOC.items()):
        options_given = (
            sys.argv[1:] if arguments.measure == ["memory"] else [*sys.argv[1:], "--measure", "memory"]
        )
        command = [sys.executable, "-m", "benchmarks.speed.segmentation_pieces", *options_given]
        subprocess.run(command, env={**os.environ, **STRICT_MALLOC, "PYTHONPATH": str(ROOT)}, check=True)
        arguments.measure = [kind for kind in arguments.measure if kind != "memory"]
    torch.set_num_threads(1)
    given = Given(arguments.device)
    chosen = {k: build(given) for k, build in PIECES.items() if k.startswith(tuple(arguments.pieces))}
    if "time" in arguments.measure:
        record = {name: timed(piece, arguments.device, arguments.rounds) for name, piece in chosen.items()}
        header = ["piece", "target", "zoo / other form", "difference", "calls"]
        lines = [
            [
                name, f"{r['target']:g}", shown(r["ratio"], 3), f"{r['difference']:.0e} (≤ {r['tolerance']:.0e})",
                f"{r['calls']['zoo']} / {r['calls']['other']}",
            ]
            for name, r in record.items()
        ]  # fmt: skip
        print(markdown(header, lines), flush=True)
        keep(arguments.json, arguments.device, {"pieces": record})
    if "memory" in arguments.measure:
        record = {name: remembered(piece, arguments.device) for name, piece in chosen.items()}
        held = [
            [name, *(f"{r['transient'][form] / 1e6:.1f}" for form in ("zoo", "other"))]
            for name, r in record.items()
        ]
        print(markdown(["piece", "zoo, MB", "other, MB"], held), flush=True)
        keep(arguments.json, arguments.device, {"pieces": record})


if __name__ == "__main__":
    main()
