"""Pieces of a step by the code that SePiCo's authors released, read from a checkout.

Nothing of it lies in this repository: ``git clone https://github.com/BIT-DA/SePiCo`` brings it. Of mmcv and kornia,
which its files import, the pieces use nothing, so empty modules take their names where they are not installed. On a
machine without a GPU ``Tensor.cuda`` gives the tensor itself while a piece runs, since the code asks for GPUs by name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "released_sepico"  # as a package; its own name is that of a library


class Released:
    """The authors' functions.

    Args:
        root: the checkout.

    Raises:
        FileNotFoundError: it is none.
    """

    def __init__(self, root: Path) -> None:
        models = root / "mmseg" / "models"
        if not (models / "losses" / "contrastive_loss.py").is_file():
            raise FileNotFoundError(
                f"--released {root} is no checkout of SePiCo: mmseg/models/losses is missing"
            )
        for library in ("mmcv", "kornia"):
            if importlib.util.find_spec(library) is None:
                sys.modules[library] = types.ModuleType(library)
        for package, folder in {
            NAME: models,
            f"{NAME}.losses": models / "losses",
            f"{NAME}.utils": models / "utils",
        }.items():
            module = sys.modules[package] = types.ModuleType(package)
            module.__path__ = [str(folder)]
        builder: Any = types.ModuleType(f"{NAME}.builder")
        builder.LOSSES = types.SimpleNamespace(register_module=lambda: lambda loss: loss)
        sys.modules[builder.__name__] = builder
        self.losses: Any = importlib.import_module(f"{NAME}.losses.contrastive_loss")
        self.mixing: Any = importlib.import_module(f"{NAME}.utils.dacs_transforms")
        self.estimator: Any = importlib.import_module(f"{NAME}.utils.proto_estimator")

    def distribution_loss(
        self, q: Tensor, cells: Tensor, mean: Tensor, variance: Tensor, tau: float
    ) -> Tensor:
        """With its regulariser, on labels of the map's size."""
        return self.losses.dist_contrastive(
            q,
            cells[:, None],
            mean=mean,
            covariance=variance,
            contrast_temp=tau,
            num_classes=len(mean),
            reg_weight=1.0,
        )

    def bank_loss(self, q: Tensor, cells: Tensor, bank: Tensor, mean: Tensor, tau: float) -> Tensor:
        """With its regulariser; the bank as the estimator keeps it, a queue of rows a class."""
        queues = [deque(entries.split(1)) for entries in bank]
        return self.losses.bank_contrastive(
            q,
            cells[:, None],
            bank=queues,
            mean=mean,
            contrast_temp=tau,
            num_classes=len(mean),
            reg_weight=1.0,
        )

    def statistics(self, state: Sequence[Tensor], features: Tensor, cells: Tensor) -> Sequence[Tensor]:
        """Count, mean and variance after a batch, rows laid out and chosen as its training loop does."""
        with gpus_or_not():
            estimator = self.estimator.ProtoEstimator(dim=features.shape[1], class_num=len(state[0]))
            estimator.Amount, estimator.Ave, estimator.CoVariance = state
            rows, classes = self.losses.contrast_preparations(
                features, cells[:, None], True, 0.75, len(state[0]), 255
            )
            estimator.update_proto(features=rows, labels=classes)
        return estimator.Amount, estimator.Ave, estimator.CoVariance

    def cell_label(self, label: Tensor, factor: int, num_classes: int, least: float) -> Tensor:
        """Majority of each cell."""
        return self.losses.downscale_label_ratio(label[:, None], factor, least, num_classes)[:, 0]

    def class_mix(
        self, image: Tensor, label: Tensor, target: Tensor, pseudo: Tensor, weight: Tensor, seed: int
    ) -> Sequence[Tensor]:
        """Masks from numpy's draws after ``seed``, then images with labels and weights, sample by sample."""
        np.random.seed(seed)  # noqa: NPY002
        nothing = {
            "color_jitter": 0.0,
            "color_jitter_s": 0.2,
            "color_jitter_p": 1.0,
            "mean": None,
            "std": None,
            "blur": 0.0,
        }
        images, labels, weights = [], [], []
        for index, mask in enumerate(self.mixing.get_class_masks(label[:, None])):
            mixed = self.mixing.strong_transform(
                {"mix": mask, **nothing},
                data=torch.stack((image[index], target[index])),
                target=torch.stack((label[index], pseudo[index])),
            )
            ones = torch.ones_like(weight[index])
            _, mixed_weight = self.mixing.strong_transform(
                {"mix": mask, **nothing}, target=torch.stack((ones, weight[index]))
            )
            for kept, part in zip((images, labels, weights), (*mixed, mixed_weight), strict=True):
                kept.append(part)
        return (
            torch.cat(images),
            torch.cat(labels).view_as(label),
            torch.cat(weights).view_as(weight),
        )


def drawn(label: Tensor, seed: int) -> Tensor:
    """Bool ``[B, 256]``: the classes that the released mixing draws after ``seed``."""
    generator = np.random.RandomState(seed)
    classes = torch.unique(label)
    chosen = torch.zeros(len(label), 256, dtype=torch.bool, device=label.device)
    for row in chosen:
        draw = generator.choice(len(classes), (len(classes) + 1) // 2, replace=False)
        row[classes[torch.as_tensor(draw, device=label.device)]] = True
    return chosen


@contextlib.contextmanager
def gpus_or_not() -> Iterator[None]:
    """Let ``Tensor.cuda`` give the tensor itself where there is no GPU."""
    if torch.cuda.is_available():
        yield
        return
    asked: Callable[..., Any] = Tensor.cuda
    Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Tensor.cuda = asked  # type: ignore[method-assign]
