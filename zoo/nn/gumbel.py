"""Learned product quantisation by straight-through Gumbel softmax (wav2vec 2.0, section 2; Jang et al., 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

#: Smallest number whose logarithm Gumbel noise takes.
_TINY = torch.finfo(torch.float32).tiny


class Codes(NamedTuple):
    """What a quantiser makes of vectors ``[..., D]``.

    Attributes:
        vectors: ``[..., code_dim]``, the chosen entries side by side; gradients as if they were weighted by their
            probabilities.
        chosen: int64 ``[..., G]``, the entry of every group that ``vectors`` holds: sampled in training.
        ids: int64 ``[..., G]``, the most probable entry.
        probability: ``[..., G, V]``, softmax of the logits without noise.
    """

    vectors: Tensor
    chosen: Tensor
    ids: Tensor
    probability: Tensor


class GumbelQuantiser(nn.Module):
    """G codebooks of V entries each, chosen by a linear layer.

    In training an entry is sampled at ``temperature``, and the gradient is that of the softmax; in evaluation it is the
    most probable one. Entries start uniform in [0, 1).

    Args:
        dim: D, channels of what is quantised.
        code_dim: channels of the result; divisible by ``groups``.
        groups: G.
        entries: V.
        logits_std: of the linear layer's first weights; 1 as wav2vec 2.0 was released. Of inputs of D values around 1
            the logits' is ``sqrt(D)`` times that: where it is far above the noise's 1.3, entries are as good as chosen
            before training, and those that lose everywhere get hardly any gradient.

    Raises:
        ValueError: ``code_dim`` cannot be divided, fewer than two entries, or ``logits_std`` not positive.
    """

    def __init__(
        self, dim: int, code_dim: int, groups: int = 1, entries: int = 1024, logits_std: float = 1.0
    ) -> None:
        super().__init__()
        if groups < 1 or code_dim % groups:
            raise ValueError(f"groups={groups} must divide the {code_dim} channels of a code")
        if entries < 2:
            raise ValueError(f"entries={entries}: a codebook has at least two")
        if logits_std <= 0:
            raise ValueError(f"logits_std={logits_std} must be positive")
        self.groups, self.entries = groups, entries
        self.logits = nn.Linear(dim, groups * entries)
        nn.init.normal_(self.logits.weight, std=logits_std)
        nn.init.zeros_(self.logits.bias)
        self.codebook = nn.Parameter(torch.rand(groups, entries, code_dim // groups))

    def forward(self, x: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Codes:
        """Quantise ``[..., D]``; see :class:`Codes`.

        Args:
            x: vectors.
            temperature: of the Gumbel softmax.
            generator: of its noise.
        """
        logits = self.logits(x).unflatten(-1, (self.groups, self.entries)).float()
        ids = logits.argmax(-1)
        if not self.training:
            weight, chosen = torch.zeros_like(logits).scatter_(-1, ids[..., None], 1.0), ids
        else:
            uniform = torch.rand(logits.shape, device=logits.device, generator=generator)
            noise = -(-uniform.clamp(min=_TINY).log()).clamp(min=_TINY).log()
            soft = ((logits + noise) / temperature).softmax(-1)
            chosen = soft.argmax(-1)
            weight = torch.zeros_like(soft).scatter_(-1, chosen[..., None], 1.0) + soft - soft.detach()
        vectors = torch.einsum("...gv,gvd->...gd", weight, self.codebook.float()).flatten(-2)
        return Codes(vectors, chosen, ids, logits.softmax(-1))


def mean_usage(probability: Tensor, weight: Tensor) -> Tensor:
    """Average of ``[B, S, G, V]`` over the steps that ``weight`` ``[B, S]`` counts → ``[G, V]``."""
    return torch.einsum("bs,bsgv->gv", weight.float(), probability) / weight.sum().clamp(min=1)


def perplexity(usage: Tensor) -> Tensor:
    """``exp(entropy)`` of every group's usage ``[G, V]``: from 1, one entry serves all, to V, all serve alike."""
    return (-torch.xlogy(usage, usage).sum(-1)).exp()


def diversity_loss(usage: Tensor) -> Tensor:
    """``(V - perplexity) / V``, the mean over groups of ``[G, V]``: 0 where all entries are used alike."""
    return 1.0 - (perplexity(usage) / usage.shape[-1]).mean()


def one_hot_usage(ids: Tensor, entries: int, weight: Tensor) -> Tensor:
    """How often each entry is the most probable one, ``[G, V]``; ids are ``[B, S, G]``, weights ``[B, S]``."""
    counted = weight[..., None].expand(ids.shape).flatten(0, 1).float()
    counts = counted.new_zeros(ids.shape[-1], entries)
    return counts.scatter_add_(1, ids.flatten(0, 1).T, counted.T.contiguous()) / weight.sum().clamp(min=1)
