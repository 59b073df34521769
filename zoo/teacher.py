"""The teacher: a network that is never trained by gradients, only moved towards a student."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from zoo.nn.magnitudes import magnitudes

Mode = Literal["eval", "train_no_dropout", "train"]
Buffers = Literal["none", "copy", "average"]
Init = Literal["copy", "independent"]


def _tracks_statistics(module: nn.Module) -> bool:
    """Whether ``module`` normalises with batch statistics (any batch or instance norm, timm's included)."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or hasattr(module, "running_mean")


class Frozen(nn.Module):
    """A network that is never trained and always in evaluation mode (an ImageNet encoder to stay close to).

    Args:
        network: a deep copy of it is taken.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network without gradients."""
        with torch.no_grad():
            return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the surrounding module switches to."""
        return super().train(False)


class Teacher(nn.Module):
    """A no-grad network that follows a student by exponential moving average.

    Registered as a submodule of a method it is in every checkpoint, follows the device and is broadcast by
    DDP; its parameters have ``requires_grad=False`` and so never reach an optimiser. *When* it moves is the
    business of :class:`callbacks.EMATeacher`.

    Args:
        network: with ``init="copy"`` the student, of which a deep copy is taken; with ``init="independent"``
            a network of its own that is adopted as it is.
        init: ``copy`` teachers start as the student stands when training starts (not when it was built: a
            checkpoint may be loaded in between); ``independent`` ones keep their own initial weights.
        mode: how the network runs. ``eval``: running statistics. ``train_no_dropout``: normalisation layers
            use and track the statistics of the teacher's own batches while everything stochastic (dropout,
            drop path) is off, as in DACS, FST and SePiCo. ``train``: everything on. A method's own
            ``train()`` / ``eval()`` calls never change it.
        buffers: what an update does with floating-point buffers: ``none`` leaves the teacher its own
            statistics, ``copy`` takes the student's, ``average`` averages them like parameters. Integer
            buffers (counters) are copied by ``copy`` and ``average``; averaging would truncate them.

    Raises:
        ValueError: an unknown option, or an ``independent`` network that shares parameters with a student.
    """

    step: Tensor

    def __init__(
        self,
        network: nn.Module,
        init: Init = "copy",
        mode: Mode = "eval",
        buffers: Buffers = "none",
    ) -> None:
        super().__init__()
        for argument, value, allowed in (
            ("init", init, ("copy", "independent")),
            ("mode", mode, ("eval", "train_no_dropout", "train")),
            ("buffers", buffers, ("none", "copy", "average")),
        ):
            if value not in allowed:
                raise ValueError(f"Teacher({argument}={value!r}): expected one of {', '.join(allowed)}")
        self.init, self.mode, self.buffer_rule = init, mode, buffers
        self.network = copy.deepcopy(network) if init == "copy" else network
        self.network.requires_grad_(False)
        # The ramp counter lives beside the weights: a restored teacher with a fresh counter would be
        # overwritten by the student within a few steps.
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._host_step: int | None = 0
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
        self.register_load_state_dict_post_hook(_forget_host_step)
        self.train()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network in its own mode, without gradients."""
        with torch.no_grad():
            return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Restore the teacher's own mode, whatever the surrounding module switches to."""
        self.training = mode
        self._apply_mode(self.mode)
        return self

    def _apply_mode(self, mode: Mode) -> None:
        self.network.train(mode == "train")
        if mode == "train_no_dropout":
            # Switching single normalisation layers on, not dropout layers off, also silences functional
            # dropout inside attention blocks, which looks at its parent's flag.
            for module in self.network.modules():
                if _tracks_statistics(module):
                    module.training = True

    @contextmanager
    def using(self, mode: Mode) -> Iterator[Self]:
        """Run the teacher in another mode for the length of a ``with`` block."""
        self._apply_mode(mode)
        try:
            yield self
        finally:
            self._apply_mode(self.mode)

    # -- the ramp counter -------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """How many training runs the teacher has seen; read from the device once after a load."""
        if self._host_step is None:
            self._host_step = int(self.step)
        return self._host_step

    def advance(self, runs: int = 1) -> None:
        """Count ``runs`` further training runs (real or, where the method says so, virtual)."""
        self._host_step = self.steps + runs
        self.step.add_(runs)

    # -- moving -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Move in place: ``teacher <- decay * teacher + (1 - decay) * student`` for every parameter.

        One fused foreach call for the parameters, no temporaries, no host synchronisation. Parameters are
        paired by name; tied weights are moved once; where both are equal (a frozen layer) nothing changes.

        Args:
            student: the network to follow; same architecture as the teacher's.
            decay: share of the teacher that stays; 0 copies the student.

        Raises:
            ValueError: the two networks do not match, with the first names that differ.
        """
        _move(*self._parameter_pairs(student), decay)
        if self.buffer_rule != "none":
            floats, integers = self._buffer_pairs(student)
            _move(*floats, decay if self.buffer_rule == "average" else 0.0)
            _move(*integers, 0.0)

    @torch.no_grad()
    def copy_from(self, student: nn.Module) -> None:
        """Make parameters and buffers equal to the student's."""
        for pairs in (self._parameter_pairs(student), *self._buffer_pairs(student)):
            _move(*pairs, 0.0)

    def parameters_finite(self) -> Tensor:
        """One boolean on the device: whether every parameter is finite."""
        return magnitudes(self.network.parameters()).isfinite().all()

    @torch.no_grad()
    def distance(self, student: nn.Module) -> Tensor:
        """Norm of teacher minus student over all parameters, as a share of the student's norm; on the device.

        Raises:
            ValueError: the two networks do not match.
        """
        own, other = self._parameter_pairs(student)
        gaps, norms = (torch._foreach_norm(tensors) for tensors in (torch._foreach_sub(own, other), other))
        gap, norm = (torch.stack([n.float() for n in found]).norm() for found in (gaps, norms))
        return gap / norm

    def checksum(self) -> Tensor:
        """A number on the device that changes when the parameters do (float64 sum of their 1-norms)."""
        sums = torch._foreach_norm(list[Tensor](self.network.parameters()), 1)
        return torch.stack([norm.double() for norm in sums]).sum()

    def _parameter_pairs(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Own and student parameters in one order; cached while the student's tensors stay in place."""
        student = _unwrap(student)
        first = next(student.parameters(), None)
        if self._pairs is None or self._pairs[1][0] is not first:
            own, other = dict(self.network.named_parameters()), dict(student.named_parameters())
            _check_match(own, other)
            if shared := [name for name, parameter in own.items() if parameter is other[name]]:
                raise ValueError(f"the teacher shares {shared[0]!r} with its student: build it from a copy")
            self._pairs = [own[name] for name in other], list(other.values())
        return self._pairs

    def _buffer_pairs(self, student: nn.Module) -> tuple[tuple[list[Tensor], list[Tensor]], ...]:
        """Floating-point and integer pairs; looked up each time, since moving a module replaces buffers."""
        own, other = dict(self.network.named_buffers()), dict(_unwrap(student).named_buffers())
        _check_match(own, other)
        floats = [name for name, buffer in own.items() if buffer.is_floating_point()]
        integers = [name for name, buffer in own.items() if not buffer.is_floating_point()]
        return tuple(([own[n] for n in names], [other[n] for n in names]) for names in (floats, integers))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cached pairing out of copies and pickles: it would drag the student along."""
        return {**self.__dict__, "_pairs": None}


def _unwrap(module: nn.Module) -> nn.Module:
    """The module itself, also when ``torch.compile`` wrapped it out of place."""
    return getattr(module, "_orig_mod", module)


def _forget_host_step(module: nn.Module, _: Any) -> None:
    """After a load, read the ramp counter from its buffer again."""
    module._host_step = None  # type: ignore[assignment]


def _move(own: list[Tensor], other: list[Tensor], decay: float) -> None:
    """``own <- decay * own + (1 - decay) * other`` in place; a decay of 0 is an exact copy of any type."""
    if not own:
        return
    if decay == 0.0:
        torch._foreach_copy_(own, other)
    else:
        torch._foreach_lerp_(own, other, 1.0 - decay)


def _check_match(own: dict[str, Any], other: dict[str, Any]) -> None:
    missing = [name for name in own if name not in other]
    extra = [name for name in other if name not in own]
    shapes = [name for name in own if name in other and own[name].shape != other[name].shape]
    if missing or extra or shapes:
        raise ValueError(
            "teacher and student are not the same network: "
            f"only the teacher has {missing[:3]}, only the student has {extra[:3]}, "
            f"other shapes: {[(n, tuple(own[n].shape), tuple(other[n].shape)) for n in shapes[:3]]}. "
            "Build the teacher with Teacher(student), or give both the same architecture."
        )
