"""A network as a graph: ONNX for other runtimes, a ``torch.export`` program for torch without the zoo."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.files import CheckpointError
from zoo.checkpoints.write import written_whole
from zoo.export.card import output_names
from zoo.export.checks import check_close, without_gradients
from zoo.extras import require

CARD_FILE = "selfzoo.json"
"""Name of the card among the extra files of a program."""


@without_gradients
def trace(module: nn.Module, examples: Sequence[Tensor]) -> Any:
    """The module as a ``torch.export`` program for batches of any number of the examples' sizes.

    Args:
        module: plain tensors in and out, in evaluation mode.
        examples: what it takes, batches of two.

    Raises:
        CheckpointError: it cannot be written as a graph.
    """
    try:
        with _quiet():
            batch = torch.export.Dim("batch", min=1, max=1024)
            shapes = tuple({0: batch} for _ in examples)
            return torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch answers with errors of many kinds
        raise _no_graph(module, "a graph", error) from error


@without_gradients
def save_program(
    program: Any, module: nn.Module, examples: Sequence[Tensor], path: Path, card: dict[str, Any]
) -> Path:
    """Write a file that ``torch.export.load(path).module()`` runs; reloaded, it must agree with the network.

    Args:
        program: of :func:`trace`.
        module: that was traced.
        examples: what it was traced with.
        path: ``.pt2``.
        card: goes into the file as ``selfzoo.json``.

    Raises:
        CheckpointError: the file computes something else, or cannot be written.
    """
    with _quiet(), written_whole(path) as temporary:
        torch.export.save(program, temporary, extra_files={CARD_FILE: json.dumps(card)})
        again: Any = torch.export.load(temporary).module()
        for probe in _probes(examples):
            _compare(_as_list(again(*probe)), _as_list(module(*probe)), "the reloaded program")
    return path


@without_gradients
def save_onnx(
    program: Any,
    module: nn.Module,
    examples: Sequence[Tensor],
    path: Path,
    card: dict[str, Any],
    input_names: Sequence[str] = ("image",),
) -> Path:
    """Write an ONNX model, and check with onnxruntime that it agrees with the network.

    Args:
        program: of :func:`trace`.
        module: that was traced; the model's outputs have the names in its ``outputs``.
        examples: what it was traced with.
        path: ``.onnx``.
        card: goes into the model's metadata, key ``selfzoo``.
        input_names: of the model's inputs.

    Raises:
        CheckpointError: there is no such ONNX model, onnxruntime computes something else, or the file cannot be
            written.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    onnx: Any = require("onnx", "export", "exporting ONNX")
    require("onnxscript", "export", "exporting ONNX")
    runtime: Any = require("onnxruntime", "export", "checking ONNX")
    names: dict[str, Any] = {"input_names": list(input_names), "output_names": list(output_names(module))}
    with _quiet(), written_whole(path) as temporary:
        try:
            converted: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        except Exception as error:
            raise _no_graph(module, "ONNX", error) from error
        model = converted.model_proto
        onnx.helper.set_model_props(model, {"selfzoo": json.dumps(card)})
        onnx.save(model, str(temporary))
        try:
            session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            pairs = []
            for probe in _probes(examples):
                given = {name: part.cpu().numpy() for name, part in zip(input_names, probe, strict=True)}
                pairs.append((session.run(None, given), module(*probe)))
        except Exception as error:  # onnxruntime has no common class of errors
            raise _no_graph(module, "ONNX", error) from error
        for found, wanted in pairs:
            _compare([torch.from_numpy(f) for f in found], _as_list(wanted), "onnxruntime")
    return path


def _probes(examples: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Batches that the graph was not traced with: other values, and another number of them."""
    yield [torch.cat((example, example.flip(-1)))[1:] for example in examples]
    yield [example[:1] for example in examples]


def _compare(found: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> None:
    if len(found) != len(wanted):
        raise CheckpointError(f"{what} gives {len(found)} outputs, torch {len(wanted)}")
    for one, other in zip(found, wanted, strict=True):
        check_close(one, other, what)


def _as_list(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _no_graph(module: nn.Module, what: str, error: Exception) -> CheckpointError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return CheckpointError(
        f"{type(module).__name__} cannot be written as {what}: {reason.strip()[:300]}. Try another --input_size, the "
        "backbone alone, or safetensors"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
