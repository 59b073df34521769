"""torch.compile in place: the networks are compiled where a step calls them, and checkpoints keep their keys."""

from __future__ import annotations

import importlib.util
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.hooks import RemovableHandle

from callbacks.checkpointing import GradientCheckpointing
from callbacks.mesa import Mesa
from callbacks.networks import networks, refuse
from zoo.method import Method, trainer_callbacks


class Compile(Callback):
    """Compile student, teachers and frozen networks with ``module.compile()``.

    The first batch of a run is trained as ever, to see which modules the step calls from outside; these are compiled
    from the second on. A whole network is one such module, or, where a method calls parts of it (a backbone, then a
    head), these parts are. Every shape, and training against evaluation, may be compiled anew.

    Args:
        mode: of ``torch.compile``: ``default``, ``reduce-overhead``, ``max-autotune``.
        dynamic: None lets the second shape that occurs be compiled for all; False compiles each shape for itself.
        backend: of ``torch.compile``; ``inductor`` needs a C++ compiler on CPUs and Triton on GPUs.
    """

    family = "compile"
    step_order = -3  # before look-aheads, whose steps tell what is called as well

    def __init__(self, mode: str = "default", dynamic: bool | None = None, backend: str = "inductor") -> None:
        self._options = {"mode": None if mode == "default" else mode, "dynamic": dynamic, "backend": backend}
        self.compiled: list[nn.Module] = []  #: what is compiled, once the first batch has been trained
        self._calls = _OutsideCalls()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that it can work.

        Raises:
            MisconfigurationException: the method says why it cannot, another callback changes the same networks, or
                there is no compiler.
        """
        assert isinstance(pl_module, Method)
        if stage != "fit":
            return
        refuse(pl_module, self.family)
        for other in trainer_callbacks(trainer):
            if isinstance(other, Mesa | GradientCheckpointing):
                raise MisconfigurationException(
                    f"callbacks.Compile and callbacks.{type(other).__name__} both change how networks are called: "
                    "take one of them"
                )
        if self._options["backend"] == "inductor" and (missing := _missing_compiler(trainer)):
            raise MisconfigurationException(f"callbacks.Compile: {missing}")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the first batch."""
        assert isinstance(pl_module, Method)
        if not self.compiled and not self._calls.watching:
            self._calls.watch(networks(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compile what the first batch called.

        Raises:
            MisconfigurationException: it called no module of the networks.
        """
        if not self._calls.watching:
            return
        self.compiled = self._calls.stop()
        if not self.compiled:
            raise MisconfigurationException(
                f"callbacks.Compile: a step of {type(pl_module).__name__} calls none of its networks, so there is "
                "nothing to compile: leave it out"
            )
        for module in self.compiled:
            module.compile(**self._options)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the networks as they were; also after an error."""
        self._calls.stop()
        for module in self.compiled:
            module._compiled_call_impl = None
        self.compiled = []


class _OutsideCalls:
    """Which modules are called while no other module that is watched is running."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._called: dict[nn.Module, None] = {}
        self._depth = 0

    @property
    def watching(self) -> bool:
        return bool(self._handles)

    def watch(self, watched: list[nn.Module]) -> None:
        self._called, self._depth = {}, 0
        for module in dict.fromkeys(part for network in watched for part in network.modules()):
            self._handles.append(module.register_forward_pre_hook(self._enter))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def stop(self) -> list[nn.Module]:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return [module for module in self._called if any(True for _ in module.parameters())]

    def _enter(self, module: nn.Module, _: Any) -> None:
        if self._depth == 0:
            self._called[module] = None
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1


def _missing_compiler(trainer: L.Trainer) -> str | None:
    """Why torch's own backend cannot work here; None where it can."""
    if trainer.strategy.root_device.type != "cpu":
        there = importlib.util.find_spec("triton") is not None
        return None if there else "torch.compile needs Triton on GPUs (pip install triton)"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on CPUs (install g++ or clang, or set CXX)"
    return None
