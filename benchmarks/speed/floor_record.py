"""Which networks a training step calls, with what, and how long each of these calls takes alone."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.paired import now
from zoo.method import TRAINING_PARTS, Method

OF_ALL_MODULES = frozenset(dir(nn.Module)) - {"forward"}


@dataclasses.dataclass
class Call:
    """One call of a network from outside of it.

    Args:
        name: path of the module and its function: ``student.forward``.
        function: bound to the module, as it is without a :class:`Recorder`.
        args: its arguments, cut off from what made them; tensors that carried a gradient want one here, too.
        kwargs: the same.
        modules: the module and all within it, whose modes are noted.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modules: Sequence[nn.Module]

    def __post_init__(self) -> None:
        self.training = [module.training for module in self.modules]
        self.grad = torch.is_grad_enabled()
        self.device = next(leaf.device.type for leaf in leaves((self.args, self.kwargs)))
        self.autocast = torch.is_autocast_enabled(self.device)
        self.autocast_type = torch.get_autocast_dtype(self.device)
        #: Gradients that came back, by the position of the tensor among the output's.
        self.gradients: dict[int, Tensor] = {}
        self.random: dict[torch.Generator | None, Tensor] = {}

    def keep_random_state(self) -> None:
        """So that a replay draws the same dropout and the same noise."""
        self.random = {None: _random_state(self.device)}
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, torch.Generator):
                self.random[value] = value.get_state()

    def watched(self, output: Any) -> Any:
        """The output, whose gradients will be noted when they come.

        Of several tensors one may have been made of another: hooks are on aliases, lest gradients that flow within the
        network count as coming from outside.
        """
        several = sum(1 for _ in leaves(output)) > 1
        positions = itertools.count()

        def watch(tensor: Tensor) -> Tensor:
            position = next(positions)
            if not tensor.requires_grad:
                return tensor
            tensor = tensor.view_as(tensor) if several else tensor
            tensor.register_hook(self._noting(position))
            return tensor

        return replaced(output, watch)

    def _noting(self, position: int) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            self.gradients[position] = gradient

        return note

    def replay(self, device: str) -> tuple[float, float]:
        """Seconds of the forward and of the backward, which adds up in ``.grad`` as in the step."""
        args, kwargs = replaced((self.args, self.kwargs), _fresh)
        with self._modes(), torch.set_grad_enabled(self.grad):
            start = now(device)
            with torch.autocast(self.device, self.autocast_type, enabled=self.autocast):
                output = self.function(*args, **kwargs)
            forward = now(device) - start
            tensors = list(leaves(output))
            wanted = sorted(self.gradients)
            start = now(device)
            if wanted:
                torch.autograd.backward([tensors[i] for i in wanted], [self.gradients[i] for i in wanted])
            return forward, now(device) - start

    def same_random_state(self) -> None:
        """Put random generators where they were at the call."""
        for generator, state in self.random.items():
            if generator is None:
                _set_random_state(self.device, state)
            else:
                generator.set_state(state)

    @contextmanager
    def _modes(self) -> Iterator[None]:
        before = [module.training for module in self.modules]
        _set_modes(self.modules, self.training)
        try:
            yield
        finally:
            _set_modes(self.modules, before)


class Recorder:
    """Notes calls of a method's networks.

    Networks are the children of the method that own parameters: student, teachers, frozen judges. What is noted is
    the outermost call of any function of any of their modules that takes tensors and returns some; what such a call
    makes of further modules belongs to it. Losses, targets, mixing, augmentation and the moves of teachers own no
    parameters or run no network: they are not noted.

    Args:
        method: the method.
    """

    def __init__(self, method: Method) -> None:
        self.networks = {
            name: child
            for name, child in method.named_children()
            if name != TRAINING_PARTS and next(child.parameters(), None) is not None
        }
        self.calls: list[Call] = []
        self.exact = False
        self._within = self._pausing = False
        self._wrapped: list[tuple[nn.Module, str]] = []

    def watch_everything(self) -> None:
        """Watch all functions of all modules: slow, finds out which are called from outside."""
        self.exact = True
        for root, network in self.networks.items():
            for path, module in network.named_modules(prefix=root):
                for name in functions_of(module):
                    self._wrap(path, module, name)

    def watch_found(self) -> None:
        """From here on watch only what was called from outside."""
        found = {call.name for call in self.calls}
        self.stop()
        self.exact = False
        modules = {p: m for root, net in self.networks.items() for p, m in net.named_modules(prefix=root)}
        for name in sorted(found):
            path, _, function = name.rpartition(".")
            self._wrap(path, modules[path], function)

    def stop(self) -> None:
        """Leave all modules as they were."""
        while self._wrapped:
            delattr(*self._wrapped.pop())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing for a while."""
        self._pausing = True
        try:
            yield
        finally:
            self._pausing = False

    def missing(self, calls: Sequence[Call], parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """Parameters whose gradients the calls, made again, do not give → the share of the norm that is missing.

        Gradients must be those of the step, its weights not yet moved. They are left as they are.
        """
        real = {name: parameter.grad for name, parameter in parameters.items()}
        device = next(iter(parameters.values())).device.type
        before = _random_state(device)
        set_gradients(parameters.values(), [None] * len(parameters))
        with self.paused():
            for call in calls:
                call.same_random_state()
                call.replay(device)
        _set_random_state(device, before)
        gaps = {}
        for name, parameter in parameters.items():
            wanted, found = real[name], parameter.grad
            if wanted is not None and bool(wanted.any()):
                gap = wanted if found is None else wanted - found
                gaps[name] = float(gap.norm() / wanted.norm())
        set_gradients(parameters.values(), list(real.values()))
        return gaps

    def _wrap(self, path: str, module: nn.Module, name: str) -> None:
        original = getattr(module, name)
        modules = list(module.modules())

        def watched(*args: Any, **kwargs: Any) -> Any:
            idle = self._within or self._pausing or torch._C._current_graph_task_id() != -1  # in a backward
            if idle or next(leaves((args, kwargs)), None) is None:
                return original(*args, **kwargs)
            inputs, named = replaced((args, kwargs), _cut_off)
            call = Call(f"{path}.{name}", original, inputs, named, modules)
            if self.exact:
                call.keep_random_state()
            self._within = True
            try:
                output = original(*args, **kwargs)
            finally:
                self._within = False
            if next(leaves(output), None) is None:
                return output
            self.calls.append(call)
            return call.watched(output)

        setattr(module, name, watched)
        self._wrapped.append((module, name))


def functions_of(module: nn.Module) -> list[str]:
    """Public functions of a module's class that not every module has, and ``forward``."""
    kind = type(module)
    names = (name for name in dir(kind) if not name.startswith("_") and name not in OF_ALL_MODULES)
    return [name for name in names if inspect.isfunction(inspect.getattr_static(kind, name))]


def leaves(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)


def replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [replaced(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [replaced(part, change) for part in value]
    if isinstance(value, Mapping):
        return {key: replaced(part, change) for key, part in value.items()}
    return value


def set_gradients(parameters: Iterable[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Give parameters their gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _cut_off(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _fresh(tensor: Tensor) -> Tensor:
    """Another leaf on the same values, so that no gradient adds up in it."""
    return _cut_off(tensor)


def _set_modes(modules: Sequence[nn.Module], training: Sequence[bool]) -> None:
    for module, mode in zip(modules, training, strict=True):
        module.training = mode


def _random_state(device: str) -> Tensor:
    return torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()


def _set_random_state(device: str, state: Tensor) -> None:
    if device == "cuda":
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)
