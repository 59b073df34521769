"""The projection head of self-distillation: from a token to similarities with prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.init import init_linear


class NarrowLinear(nn.Linear):
    """A linear layer that also takes the first D of its ``in_features`` channels.

    Narrow inputs meet the first D columns and are scaled by ``in_features / D``, the bias is not (the elastic
    operator of POA, ECCV 2024).
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., D]`` → ``[..., out_features]``."""
        width = input.shape[-1]
        if width == self.in_features:
            return super().forward(input)
        return F.linear(input * (self.in_features / width), self.weight[:, :width], self.bias)


class Prototypes(nn.Module):
    """Linear layer without bias whose rows have a direction and a gain: ``o_k = g_k <v_k / |v_k|, z>``.

    Args:
        in_features: channels of z.
        prototypes: K.
        train_gain: whether g is trained; at 1 otherwise.
    """

    def __init__(self, in_features: int, prototypes: int, train_gain: bool = True) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=train_gain)
        self.weight_v = nn.Parameter(torch.empty(prototypes, in_features))
        nn.init.uniform_(self.weight_v, -(in_features**-0.5), in_features**-0.5)

    def forward(self, z: Tensor) -> Tensor:
        """``[..., in_features]`` → ``[..., K]``."""
        return F.linear(z, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """MLP with GELU, L2 normalisation, prototypes. Caron et al., DINO (ICCV 2021), appendix C; no batch norm.

    Names are those of the released checkpoints: ``mlp.0``, ``mlp.2``, ``mlp.4``, ``last_layer.weight_g``,
    ``last_layer.weight_v``. Inputs narrower than ``in_dim`` are taken as :class:`NarrowLinear` says.

    Args:
        in_dim: channels of the tokens.
        prototypes: K.
        hidden_dim: channels between the linear layers.
        bottleneck_dim: channels that are normalised.
        num_layers: linear layers of the MLP.
        train_gain: whether the prototypes' gains are trained (DINOv2, POA) or stay 1 (DINO, iBOT).
        init_std: of the MLP's weights, see :func:`zoo.nn.init.init_linear`.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        train_gain: bool = True,
        init_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        if num_layers < 1 or prototypes < 1:
            raise ValueError(
                f"DINOHead needs at least one layer and one prototype, got num_layers={num_layers}, "
                f"prototypes={prototypes}"
            )
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for index in range(num_layers):
            linear = (nn.Linear if index else NarrowLinear)(widths[index], widths[index + 1])
            init_linear(linear, init_std)
            layers += [nn.GELU(), linear] if index else [linear]
        self.mlp = nn.Sequential(*layers)
        self.last_layer = Prototypes(bottleneck_dim, prototypes, train_gain)
        self.prototypes = prototypes

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., D]`` with D up to ``in_dim`` → logits ``[..., K]``."""
        return self.last_layer(self.embed(tokens))

    def embed(self, tokens: Tensor) -> Tensor:
        """Unit vectors ``[..., bottleneck_dim]`` before the prototypes."""
        return _unit(self.mlp(tokens))


class MultiHead(nn.Module):
    """Independent :class:`DINOHead` s with their own numbers of prototypes (POA, section 3.3).

    Names are those of the released POA code, without the ``.linear`` of its elastic layers: ``mlp0.0``, ...,
    ``last_layer0.weight_g``.

    Args:
        in_dim: channels of the tokens.
        prototypes: K of every head.
        hidden_dim, bottleneck_dim, num_layers, train_gain, init_std: of every head, see :class:`DINOHead`.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: Sequence[int] = (8192, 16384, 32768, 65536),
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        train_gain: bool = True,
        init_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        self.prototypes = tuple(prototypes)
        for index, count in enumerate(self.prototypes):
            head = DINOHead(in_dim, count, hidden_dim, bottleneck_dim, num_layers, train_gain, init_std)
            self.add_module(f"mlp{index}", head.mlp)
            self.add_module(f"last_layer{index}", head.last_layer)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """``[..., D]`` → the logits ``[..., K]`` of every head."""
        logits = []
        for index in range(len(self.prototypes)):
            mlp, last_layer = self.get_submodule(f"mlp{index}"), self.get_submodule(f"last_layer{index}")
            logits.append(last_layer(_unit(mlp(tokens))))
        return logits


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z, dim=-1, eps=1e-6 if z.dtype == torch.float16 else 1e-12)
