"""Many linear classifiers of the same features, trained together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.ranks import mean_over_ranks


class LinearGrid(nn.Module):
    """One linear classifier for every kind of features and every learning rate.

    SGD with momentum 0.9, no weight decay, cosine to 0; weights drawn from N(0, 0.01), biases 0: the linear
    evaluation of DINOv2 and POA. Classifiers do not influence each other; those of one kind of features are one
    matrix product.

    Args:
        dims: kind of features → number of dimensions D.
        num_classes: number of classes C.
        learning_rates: of the L classifiers of each kind.
        steps: length of the schedule.
        seed: of the initial weights, which are equal on all ranks.

    Raises:
        ValueError: there is no learning rate.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        learning_rates: Sequence[float],
        steps: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(
                f"learning rates must be one or more positive numbers, got {list(learning_rates)}"
            )
        self.num_classes, self.learning_rates = num_classes, list(learning_rates)
        generator = torch.Generator().manual_seed(seed)
        self.kinds = list(dims)
        self.weights = nn.ModuleList(
            nn.ParameterList(
                0.01 * torch.randn(num_classes, dims[kind], generator=generator) for _ in learning_rates
            )
            for kind in self.kinds
        )
        self.biases = nn.ModuleList(
            nn.ParameterList(torch.zeros(num_classes) for _ in learning_rates) for _ in self.kinds
        )
        groups = [
            {"params": [parameters[number] for parameters in (*self.weights, *self.biases)], "lr": rate}
            for number, rate in enumerate(self.learning_rates)
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1)))
        )

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits ``[B, L, C]`` of every kind of features ``[B, D]``."""
        return {
            kind: F.linear(
                features[kind].float(),
                torch.cat(list(weights.parameters())),
                torch.cat(list(biases.parameters())),
            ).unflatten(1, (-1, self.num_classes))
            for kind, weights, biases in zip(self.kinds, self.weights, self.biases, strict=True)
        }

    def fit(self, features: dict[str, Tensor], label: Tensor) -> None:
        """Take one step on a batch: features ``[B, D]`` of every kind, classes int64 ``[B]``.

        Gradients are averaged over the ranks, which may have different batches.
        """
        with torch.enable_grad():
            logits = torch.stack(list(self(features).values()))
            # A sum over classifiers gives each its own mean over the batch as gradient.
            loss = F.cross_entropy(
                logits.flatten(0, -2),
                self._repeated(label, len(self.kinds)),
                reduction="sum",
            ) / len(label)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.grad = mean_over_ranks(parameter.grad)
        self.optimizer.step()
        self.schedule.step()

    def _repeated(self, label: Tensor, kinds: int) -> Tensor:
        """The label of every logit row: images are outer to learning rates, kinds outer to both."""
        return label[None, :, None].expand(kinds, -1, len(self.learning_rates)).flatten()

    @torch.no_grad()
    def correct(self, features: dict[str, Tensor], label: Tensor) -> Tensor:
        """How many images of a batch each classifier gets right, int64 ``[kinds, L]``."""
        logits = torch.stack(list(self(features).values()))
        return (logits.argmax(-1) == label[None, :, None]).sum(1)
