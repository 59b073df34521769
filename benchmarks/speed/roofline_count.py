"""What a training step asks of a device, counted; and what the device can do at most, measured."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.speed.floor_record import leaves
from benchmarks.speed.paired import ROOT, in_turns

aten = torch.ops.aten


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


def _convolution_backward(
    grad: Tensor, image: Tensor, weight: Tensor, *rest: Any, out_val: tuple[Tensor | None, ...], **__: Any
) -> int:
    """Gradients of image and weight cost what the forward does; torch's counter multiplies by groups once more."""
    transposed = rest[4]  # after the bias' sizes, stride, padding and dilation
    x, w, out = (list(tensor.shape) for tensor in (image, weight, grad))
    forward = conv_flop_count(x, w, out, transposed)
    return forward * sum(gradient is not None for gradient in out_val[:2])


#: Operator → floating-point operations: those of torch's counter, corrected, and a CPU's attention, which it lacks.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
#: Beside views: they hand out memory and touch none.
UNTOUCHED = {
    aten._unsafe_view,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
#: With a mask for an index the result's shape depends on values.
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
COPIES = {aten._to_copy, aten.copy_}
SYNCHRONISES = "called a synchronizing CUDA operation"
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
OF_THE_ZOO = tuple(f"{ROOT / name}/" for name in ("zoo", "callbacks", "datamodules"))


class Call(NamedTuple):
    """One call of an operator: floating-point operations, and bytes of all operands and results."""

    name: str
    flops: int
    bytes: int


class Operators(TorchDispatchMode):
    """Notes every call of an ATen operator, and where the host needs a value that the device has.

    Operations are those of matrix products, convolutions and attention, as
    :class:`torch.utils.flop_counter.FlopCounterMode` counts them (but for gradients of grouped weights, of which it
    counts too many); recomputed activations count again. Bytes are those
    of operands and results once each: more than memory moves where caches keep them from one operator to the next or
    an operand is written only, less where a kernel goes over its operands twice.

    Args:
        device: ``cpu`` or ``cuda``; values of tensors elsewhere are no wait. On the CPU, where everything is on the
            host, the waits are what a GPU would wait for at most.
        hosted: tensors that are on the host whatever the device is.
    """

    def __init__(self, device: str, hosted: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device, self.hosted = device, {id(tensor) for tensor in hosted}
        self.calls: list[Call] = []
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        packet = func._overloadpacket
        formula = FORMULAS.get(packet)
        flops = formula(*args, **kwargs, out_val=found) if formula else 0
        touched = (
            0 if func.is_view or packet in UNTOUCHED else sum(map(nbytes, leaves((args, kwargs, found))))
        )
        self.calls.append(Call(str(packet), int(flops), touched))
        if self._waits(func, packet, args, kwargs, found):
            self.waits[f"{site(sys._getframe(1))}: {packet}"] += 1
        return found

    def _waits(self, func: Any, packet: Any, args: Any, kwargs: Any, found: Any) -> bool:
        tensors = [tensor for tensor in leaves((args, kwargs)) if id(tensor) not in self.hosted]
        on_device = any(tensor.device.type == self.device for tensor in tensors)
        if packet in INDEXED:
            return on_device and any(t.dtype in (torch.bool, torch.uint8) for t in leaves(args[1]))
        if packet in COPIES:
            return on_device and found.device.type == "cpu" != self.device
        return on_device and not VALUES.isdisjoint(func.tags)

    @property
    def flops(self) -> int:
        """Of all calls."""
        return sum(call.flops for call in self.calls)

    @property
    def bytes(self) -> int:
        """Of all calls."""
        return sum(call.bytes for call in self.calls)

    def bound(self, rate: float, bandwidth: float) -> float:
        """Seconds if each call computed at ``rate`` or moved its bytes at ``bandwidth``, whichever takes longer."""
        return sum(max(call.flops / rate, call.bytes / bandwidth) for call in self.calls)


def nbytes(tensor: Tensor) -> int:
    """Of its elements; expanded ones are in memory once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def site(frame: FrameType | None) -> str:
    """File and line of the zoo that called."""
    while frame is not None and not frame.f_code.co_filename.startswith(OF_THE_ZOO):
        frame = frame.f_back
    if frame is None:
        return "outside of the zoo"
    return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"


@contextmanager
def synchronisations() -> Iterator[Counter[str]]:
    """Where CUDA made the host wait, and how often.

    Explicit ``torch.cuda.synchronize()`` is not among them.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warned() as found:
            yield found
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def warned() -> Iterator[Counter[str]]:
    """Where torch warned of a synchronisation, and how often."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if SYNCHRONISES in str(message):
            found[site(sys._getframe(1))] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield found


def busiest(profile: Any, device: str, count: int = 10) -> dict[str, Any]:
    """Of a profiled step: the operators that took longest, with their share; on a GPU its launches and busy seconds."""
    averages = profile.key_averages()
    cpu = device == "cpu"

    def spent(event: Any) -> float:
        return event.self_cpu_time_total if cpu else event.self_device_time_total

    operators = [event for event in averages if event.device_type == DeviceType.CPU and spent(event) > 0]
    total = sum(map(spent, operators))
    top = sorted(operators, key=spent, reverse=True)[:count]
    found: dict[str, Any] = {
        "top": [{"name": e.key, "share": spent(e) / total, "calls": e.count} for e in top],
    }
    if not cpu:
        kernels = [event for event in averages if event.device_type == DeviceType.CUDA]
        found["busy"] = sum(map(spent, kernels)) / 1e6
        found["launches"] = sum(event.count for event in averages if event.key.startswith(LAUNCHES))
    return found


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Best floating-point operations a second of square matrix products."""
    best = 0.0
    for side in (512, 1024, 2048) if device == "cpu" else (2048, 4096, 8192, 16384):
        left, right, found = (torch.rand(side, side, device=device).to(dtype) for _ in range(3))
        product = partial(torch.mm, left, right, out=found)
        best = max(best, 2 * side**3 / min(in_turns({"": product}, 5, device)[""]))
    return best


def copy_bandwidth(device: str) -> float:
    """Best bytes a second, read and written, of copies far larger than caches."""
    source = torch.zeros(2**28 if device == "cpu" else 2**32, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / min(in_turns({"": lambda: target.copy_(source)}, 5, device)[""])
