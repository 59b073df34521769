"""Pieces of a domain-adaptive segmentation step: the zoo's over the form of the papers' code, with equal results.

19 classes, batch 2, 512 × 512 pixels, embeddings of 512 channels on a 64 × 64 map; the metric counts one image of
1024 × 2048. Losses are timed with their backward pass. Results are compared before anything is timed: the largest
difference from the other form's, relative to its largest entry, must stay below the piece's tolerance. ``transient``
is the memory a call needs beyond what it is given, in a process of its own whose freed memory goes back at once.

The other form is written anew from the equations and often faster than what was released. ``--released DIR`` measures
against SePiCo's own code as well, in a checkout that you bring (:mod:`benchmarks.speed.released_sepico`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from benchmarks.speed.released_sepico import Released, drawn
from zoo.nn.augment import DACSAugment
from zoo.nn.class_statistics import ClassStatistics
from zoo.nn.contrast import bank_contrast, distribution_contrast
from zoo.nn.losses import downscale_label
from zoo.nn.mixing import ClassMix

B, C, A, SIDE, CELL, TAU, ENTRIES = 2, 19, 512, 512, 8, 100.0, 100
Results = Sequence[Tensor]


@dataclass(frozen=True)
class Piece:
    """Forms of one piece, each a call that gives its results; what the zoo's ratio to others should be at most."""

    zoo: Callable[[], Results]
    other: Callable[[], Results]
    target: float
    tolerance: float
    memory_target: float | None = None
    released: Callable[[], Results] | None = None

    def rivals(self) -> dict[str, Callable[[], Results]]:
        return {"other": self.other} | ({"released": self.released} if self.released else {})


class Given:
    """Images, labels and embeddings as a step has them: labels are coherent, some pixels are ignored."""

    def __init__(self, device: str, released: Released | None = None) -> None:
        self.released = released
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
    r = g.released

    def own(q: Tensor) -> Tensor:
        return distribution_contrast(q, g.cells, g.mean, g.variance, TAU, regulariser=1.0)

    return Piece(
        with_gradient(g.features, own),
        with_gradient(g.features, lambda q: forms.distribution_loss(q, g.cells, g.mean, g.variance, TAU)),
        target=0.25, tolerance=1e-5,
        released=r and with_gradient(
            g.features, lambda q: r.distribution_loss(q, g.cells, g.mean, g.variance, TAU)
        ),
    )  # fmt: skip


def bank_loss(g: Given) -> Piece:
    r = g.released
    bank = F.normalize(torch.rand(C, ENTRIES, A), dim=2).to(g.mean.device)
    size = torch.full((C,), ENTRIES, device=g.mean.device)

    def own(q: Tensor) -> Tensor:
        return bank_contrast(q, g.cells, bank, size, TAU, regulariser=1.0, mean=g.mean)

    return Piece(
        with_gradient(g.features, own),
        with_gradient(g.features, lambda q: forms.bank_loss(q, g.cells, bank, g.mean, TAU)),
        target=0.15, tolerance=1e-5,
        released=r and with_gradient(g.features, lambda q: r.bank_loss(q, g.cells, bank, g.mean, TAU)),
    )  # fmt: skip


def statistics_update(g: Given) -> Piece:
    r = g.released
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

    released = r and (lambda: r.statistics(state, g.features, g.cells))
    return Piece(own, other, target=0.03, tolerance=1e-5, memory_target=0.02, released=released)


def down_sampling(g: Given) -> Piece:
    r = g.released
    return Piece(
        lambda: (downscale_label(g.label, CELL, C),),
        lambda: (forms.cell_label(g.label, CELL, C, 0.75),),
        target=0.1, tolerance=0.0,
        released=r and (lambda: (r.cell_label(g.label, CELL, C, 0.75),)),
    )  # fmt: skip


def class_mix(g: Given) -> Piece:
    target, weight = torch.rand_like(g.image), torch.rand(B, SIDE, SIDE).to(g.image.device)
    r, seed = g.released, 0
    chosen = drawn(g.label, seed)
    mixer = SetClasses(chosen)
    labelled = {"image": g.image, "label": g.label}
    unlabelled = {"image": target, "pseudo_label": g.pseudo, "pseudo_weight": weight}
    classes = [row.nonzero().flatten() for row in chosen]

    def own() -> Results:
        mixed = mixer(labelled, unlabelled)
        return mixed["image"], mixed["label"], mixed["weight"]

    return Piece(
        own,
        lambda: forms.class_mix(g.image, g.label, target, g.pseudo, weight, classes),
        target=0.06, tolerance=0.0,
        released=r and (lambda: r.class_mix(g.image, g.label, target, g.pseudo, weight, seed)),
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
    """Largest difference of the zoo's results from any other's, relative to the largest entry.

    Raises:
        AssertionError: it is above the tolerance.
    """
    worst = 0.0
    for rival in piece.rivals().values():
        for own, other in zip(piece.zoo(), rival(), strict=True):
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
    """The ratios, after the comparison of results."""
    gap = difference(piece)
    forms_of = {"zoo": piece.zoo, **piece.rivals()}
    seconds = in_turns(forms_of, rounds, device)
    rivals = {name: over(seconds, name) for name in piece.rivals()}
    return {
        "ratio": {name: found["zoo"] for name, found in rivals.items()},
        "ms": {name: rivals["other"][name]["ms"] for name in forms_of},
        "target": piece.target,
        "difference": gap,
        "tolerance": piece.tolerance,
        "calls": {name: dispatches(form) for name, form in forms_of.items()},
    }


def remembered(piece: Piece, device: str) -> dict[str, Any]:
    """Transient bytes of all forms."""
    found = {name: transient(form, device) for name, form in {"zoo": piece.zoo, **piece.rivals()}.items()}
    return {"transient": found, "memory_target": piece.memory_target}


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--pieces", nargs="*", default=[""], help="some, by the beginnings of their names")
    parser.add_argument("--measure", nargs="*", choices=("time", "memory"), default=["time", "memory"])
    parser.add_argument("--released", type=Path, help="a checkout of SePiCo, for its authors' own code")
    arguments = parser.parse_args()
    if "memory" in arguments.measure and any(os.environ.get(k) != v for k, v in STRICT_MALLOC.items()):
        options_given = (
            sys.argv[1:] if arguments.measure == ["memory"] else [*sys.argv[1:], "--measure", "memory"]
        )
        command = [sys.executable, "-m", "benchmarks.speed.segmentation_pieces", *options_given]
        subprocess.run(command, env={**os.environ, **STRICT_MALLOC, "PYTHONPATH": str(ROOT)}, check=True)
        arguments.measure = [kind for kind in arguments.measure if kind != "memory"]
    torch.set_num_threads(1)
    given = Given(arguments.device, arguments.released and Released(arguments.released))
    chosen = {k: build(given) for k, build in PIECES.items() if k.startswith(tuple(arguments.pieces))}
    if "time" in arguments.measure:
        record = {name: timed(piece, arguments.device, arguments.rounds) for name, piece in chosen.items()}
        header = ["piece", "target", "zoo / other form", "zoo / released", "difference", "calls"]
        lines = [
            [
                name, f"{r['target']:g}",
                *(shown(r["ratio"][k], 3) if k in r["ratio"] else "-" for k in ("other", "released")),
                f"{r['difference']:.0e} (≤ {r['tolerance']:.0e})", " / ".join(map(str, r["calls"].values())),
            ]
            for name, r in record.items()
        ]  # fmt: skip
        print(markdown(header, lines), flush=True)
        keep(arguments.json, arguments.device, {"pieces": record})
    if "memory" in arguments.measure:
        record = {name: remembered(piece, arguments.device) for name, piece in chosen.items()}
        held = [
            [
                name,
                *(
                    f"{r['transient'][k] / 1e6:.1f}" if k in r["transient"] else "-"
                    for k in ("zoo", "other", "released")
                ),
            ]
            for name, r in record.items()
        ]
        print(markdown(["piece", "zoo, MB", "other, MB", "released, MB"], held), flush=True)
        keep(arguments.json, arguments.device, {"pieces": record})


if __name__ == "__main__":
    main()
