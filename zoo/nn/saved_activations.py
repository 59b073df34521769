"""Memory-saving training: what autograd keeps for backward is kept in few bits (Mesa, arXiv 2111.11124).

The forward pass is exact. Hooks on autograd's saved tensors put 8-bit (or 4-bit) codes in the place of activations
and decode them when the backward pass asks, so that every layer works without being rewritten: linear layers get
their weight's gradient from decoded inputs, GELU its derivative at them, softmax and fused attention theirs from
decoded outputs, as the paper's layers do. Weights, integers, masks and statistics (means of norms, the
log-sum-exp of attention) are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from zoo.nn.quantise import (
    Codes,
    Overflow,
    OwnRange,
    RunningRange,
    decode,
    encode,
    fitting_groups,
    rounding_noise,
)

Rounding = Literal["stochastic", "nearest"]
RangesOf = Literal["groups", "tokens"]
#: Codes, and the shape that autograd knows.
Packed = tuple[Codes, torch.Size]
#: A saved tensor with at most this share of its layer's input elements is a statistic, kept exactly.
STATISTIC = 1 / 8


@dataclass
class Call:
    """A forward of a layer that is running."""

    name: str
    module: nn.Module
    batch: int
    elements: int
    exact: bool
    saved: int = 0


class SavedActivations:
    """Keeps what the layers of some modules save for backward in few bits.

    ::

        saved = SavedActivations({"student": network})
        with saved.compress():
            loss = network(image).mean()
        loss.backward()
        saved.kept_bytes / saved.exact_bytes

    A range is kept per place: the n-th tensor that a layer saves. A layer that runs several times in a step (crops
    of two sizes, a look-ahead) moves its ranges each time. Double backward is not supported.

    Args:
        modules: networks by name; the layers in them are named ``<name>.<path>``.
        bits: 8 or 4; 32 only counts bytes.
        groups: channel groups with a range of their own; ``heads`` takes the attention heads of the block that a
            layer is in (the paper's setting), 1 where there are none. Layers with fewer channels, or an indivisible
            number, use the greatest common divisor.
        decay: of the running ranges.
        rounding: ``stochastic`` makes gradients of linear layers unbiased.
        overflow: what becomes of values above the running range: ``clip`` (the paper) or ``wrap`` (the released
            kernel, which has no upper bound).
        ranges_of: channel ``groups`` (the paper's), or ``tokens``: every row of the last dimension has its own range,
            at 8 bytes a row, and nothing runs.
        exact: patterns of layer names that are left alone. Projection heads should be: they save their
            normalised prototypes, which are computed from weights.

    Attributes:
        layers: names of the layers whose activations are compressed.
        ranges: place → its range.
        exact_bytes: bytes that autograd would have kept of these layers in the last :meth:`compress`; a tensor
            saved twice counts once, weights do not count.
        kept_bytes: bytes that were kept instead.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        bits: Literal[4, 8, 32] = 8,
        groups: int | Literal["heads"] = "heads",
        decay: float = 0.9,
        rounding: Rounding = "stochastic",
        overflow: Overflow = "clip",
        ranges_of: RangesOf = "groups",
        exact: Sequence[str] = (),
    ) -> None:
        if bits not in (4, 8, 32) or not 0 <= decay < 1 or (groups != "heads" and groups < 1):
            raise ValueError(
                "bits must be 4, 8 or 32, decay within [0, 1) and groups 'heads' or at least 1; "
                f"got {bits}, {decay} and {groups}"
            )
        choices = {
            "rounding": (rounding, Rounding),
            "overflow": (overflow, Overflow),
            "ranges_of": (ranges_of, RangesOf),
        }
        for argument, (value, choice) in choices.items():
            if value not in get_args(choice):
                raise ValueError(f"{argument} must be one of {', '.join(get_args(choice))}; got {value!r}")
        self.modules, self.bits, self.groups, self.decay = dict(modules), bits, groups, decay
        self.rounding, self.overflow, self.ranges_of = rounding, overflow, ranges_of
        self.layers: list[str] = []
        self.ranges: dict[str, RunningRange] = {}
        self.exact_bytes = self.kept_bytes = 0
        self._calls: list[Call] = []
        self._active = False
        self._seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}
        self._weights: set[int] = set()  # addresses
        self._seen: dict[tuple[Any, ...], tuple[StorageWeakRef, Codes | None]] = {}
        self._heads: dict[str, int] = {}
        self._channels_last: set[str] = set()
        self._handles: list[RemovableHandle] = []
        for root, network in self.modules.items():
            self._attach(root, network, exact)

    def _attach(self, root: str, network: nn.Module, exact: Sequence[str]) -> None:
        heads, channels_last = _heads_of_blocks(network), _channels_last(network)
        for path, module in network.named_modules():
            name = f"{root}.{path}".rstrip(".")
            if path in channels_last:
                self._channels_last.add(name)
            left_alone = any(fnmatchcase(name, pattern) for pattern in exact)
            self._heads[name] = heads[path]
            if not left_alone:
                self.layers.append(name)

            def enter(
                module: nn.Module, inputs: tuple[Any, ...], name: str = name, exact: bool = left_alone
            ) -> None:
                if self._active:
                    x = next((x for x in inputs if isinstance(x, Tensor)), None)
                    batch, elements = (len(x), x.numel()) if x is not None and x.ndim else (0, 0)
                    self._calls.append(Call(name, module, batch, elements, exact))

            def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                if self._active:
                    self._calls.pop()

            self._handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def detach(self) -> None:
        """Take the hooks off the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def compress(self, seed: int = 0) -> Iterator[None]:
        """Forwards within it save few bits; their backward may run within it or after it.

        Args:
            seed: of stochastic rounding; another one in every step. Its random numbers are its own, so that dropout
                and augmentation draw what they would without.
        """
        self.exact_bytes = self.kept_bytes = 0
        tensors = [t for m in self.modules.values() for t in (*m.parameters(), *m.buffers())]
        self._weights = {t.untyped_storage().data_ptr() for t in tensors}
        self._active, self._seed, self._generators = True, seed, {}
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            self._active, self._calls, self._seen = False, [], {}

    def _pack(self, tensor: Tensor) -> Tensor | Packed:
        """What is kept of a tensor; never itself, which would tie the graph into a cycle."""
        if not self._calls or tensor.untyped_storage().data_ptr() in self._weights:
            return tensor.detach()
        call = self._calls[-1]
        call.saved += 1  # counted whatever becomes of the tensor, so that a place always means the same one
        storage = StorageWeakRef(tensor.untyped_storage())
        key = (storage.cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version)
        known = self._seen.get(key)
        if known is None or known[0].expired():  # a freed tensor's address may come back
            codes = self._encode(tensor, call) if self._is_activation(tensor, call) else None
            known = self._seen[key] = storage, codes
            self.exact_bytes += tensor.nbytes
            self.kept_bytes += tensor.nbytes if codes is None else codes.nbytes
        codes = known[1]
        return tensor.detach() if codes is None else (codes, tensor.shape)

    def _is_activation(self, tensor: Tensor, call: Call) -> bool:
        if (
            call.exact
            or self.bits == 32
            or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16)
        ):
            return False
        if tensor.ndim < 2 or tensor.numel() <= STATISTIC * call.elements:
            return False
        # Low-precision copies that autocast makes of weights have a storage of their own.
        weights = [parameter.shape for parameter in call.module.parameters(recurse=False)]
        return tensor.shape not in weights and tensor.shape[::-1] not in weights

    def _encode(self, x: Tensor, call: Call) -> Codes:
        groups = self._heads[call.name] if self.groups == "heads" else self.groups
        if x.ndim == 3 and groups > 1 and len(x) == call.batch * groups:
            x = x.unflatten(
                0, (call.batch, groups)
            )  # plain products of queries and keys save [B heads, N, D]
        if x.ndim == 4 and call.name in self._channels_last:
            x = x.flatten(1, 2)  # the maps of Swin
        groups = fitting_groups(x.shape, groups)
        if self.ranges_of == "tokens":
            return encode(x, 1, OwnRange(), self.bits, self.overflow, self._noise(x))
        # Narrower steps of an elastic layer have other groups, and so ranges of their own.
        running = self.ranges.setdefault(f"{call.name}:{call.saved}:{groups}", RunningRange(self.decay))
        return encode(x, groups, running, self.bits, self.overflow, self._noise(x))

    def _noise(self, x: Tensor) -> Tensor | None:
        if self.rounding == "nearest":
            return None
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device).manual_seed(self._seed)
        return rounding_noise(x, self._generators[x.device])


def _unpack(kept: Tensor | Packed) -> Tensor:
    return kept if isinstance(kept, Tensor) else decode(kept[0]).view(kept[1])


def _heads_of_blocks(network: nn.Module) -> dict[str, int]:
    """Path of every module → attention heads of the nearest block around it; 1 where there is no attention.

    A module's block is the smallest module around it that has attention in it.
    """
    found: dict[str, int] = {}
    for path, module in network.named_modules():
        if isinstance(heads := getattr(module, "num_heads", None), int):
            around = path
            found[path] = heads
            while around:
                around = around.rpartition(".")[0]
                found.setdefault(around, heads)
    heads = {}
    for path, _ in network.named_modules():
        around = path
        while around and around not in found:
            around = around.rpartition(".")[0]
        heads[path] = found.get(around, 1)
    return heads


def _channels_last(network: nn.Module) -> set[str]:
    """Paths of modules that work on the last axis: layer norms, and what stands among linear layers (an MLP's GELU)."""
    found = {path for path, module in network.named_modules() if isinstance(module, nn.LayerNorm)}
    for path, module in network.named_modules():
        parts = dict(module.named_children())
        is_mlp = any(isinstance(part, nn.Linear) for part in parts.values()) and not hasattr(
            module, "num_heads"
        )
        if is_mlp and not any(isinstance(part, _ConvNd) for part in module.modules()):
            found |= {path, *(f"{path}.{name}".lstrip(".") for name in parts)}
    return found
