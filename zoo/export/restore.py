"""A trained method from a file: nothing that the file names is called, nothing is loaded in part."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from zoo.checkpoints.files import CheckpointError, read_plain, read_weights
from zoo.checkpoints.rules import unwrapped
from zoo.checkpoints.sources import Source, fetch
from zoo.export.card import read_card
from zoo.export.weights import WEIGHTS, header_of
from zoo.method import Method
from zoo.pretrained import restoring
from zoo.registry import get_method, list_methods, method_card

Kind = TypeVar("Kind")
STATE = "state_dict"


def restore(cls: type[Kind], source: str | Path, map_location: Any, changes: Mapping[str, Any]) -> Kind:
    """See :meth:`zoo.Method.from_pretrained`."""
    path, title = located(str(source))
    method: Any
    if path.suffix == ".safetensors":
        method = _from_export(cls, path, title, changes)
    else:
        method = _from_checkpoint(cls, path, title, changes)
    method.has_started = True
    return method.to(map_location or "cpu").eval()


def located(source: str) -> tuple[Path, str]:
    """The file that a source means, on this machine, and what to call it.

    Raises:
        CheckpointError: there is none.
    """
    parsed = Source.parse(source)
    if parsed.location.startswith("timm:"):
        raise CheckpointError(f"{source} are weights of a backbone, no method: give them as pretrained=")
    path = fetch(parsed)
    if path.is_dir():
        path = path / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{source} is a folder without {WEIGHTS}: name the file")
    elif not path.exists():
        hint = f"; from the hub: hf-hub:{source}" if source.count("/") == 1 and not path.suffix else ""
        raise CheckpointError(f"{source}: there is no such file{hint}")
    return path, source


def _from_checkpoint(cls: type[Any], path: Path, title: str, changes: Mapping[str, Any]) -> Method:
    content = read_plain(path, title)
    if not isinstance(content, dict) or not isinstance(content.get(STATE), dict):
        raise CheckpointError(
            f"{title} is no Lightning checkpoint but other weights: build a method, and load_pretrained(method, "
            f"{title!r}) starts it from them"
        )
    hyper = dict(content.get("hyper_parameters", {}))
    hyper.pop("_instantiator", None)  # a function that Lightning would call
    typed = hyper.pop("_class_path", "")  # of the command line
    kind = class_of(cls, content.get("class_path", typed), title)
    method = _built(kind, hyper, changes, title)
    method.on_load_checkpoint(content)
    fill(method, content[STATE], title)
    return method


def _from_export(cls: type[Any], path: Path, title: str, changes: Mapping[str, Any]) -> Method:
    header = header_of(path, title)
    if "card" not in header:
        raise CheckpointError(
            f"{title} holds weights alone, of no method that `zoo export` or save_pretrained wrote: build a method, "
            f"and load_pretrained(method, {title!r}) starts it from them"
        )
    card = read_card(header["card"], title)
    if card["part"] != "whole":
        raise CheckpointError(
            f"{title} holds the backbone alone, no whole {card['class'].rpartition('.')[2]}: start a method from it "
            "with pretrained="
        )
    kind = class_of(cls, card["class"], title)
    method = _built(kind, card["hyper_parameters"], changes, title)
    method.on_load_checkpoint({**card["kept"], STATE: {}})
    fill(method.student, read_weights(path, title).tensors, title)
    for callback in method.default_callbacks():  # teachers were left out: they start where the network is
        if getattr(callback, "family", None) == "ema_teacher":
            teacher: Any = method.get_submodule(callback.teacher)  # type: ignore[attr-defined]
            teacher.copy_from(method.get_submodule(callback.student))  # type: ignore[attr-defined]
    return method


def class_of(cls: type[Any], class_path: str, title: str) -> type[Method]:
    """The class to build; of classes that a file names only registered ones are imported.

    Raises:
        CheckpointError: the file is of another method than ``cls``, or of one that is not known here.
    """
    if class_path in ("", f"{cls.__module__}.{cls.__qualname__}"):
        if cls is Method:
            raise CheckpointError(
                f"{title} does not say of which method it is: call from_pretrained of its class"
            )
        return cls
    for card in map(method_card, list_methods()):
        # the command line names classes by the module they were imported from
        same = class_path.rpartition(".")[2] == card.class_name
        if same and class_path.startswith("zoo."):
            kind: Any = get_method(card.name)
            if issubclass(kind, cls):
                return kind
            raise CheckpointError(
                f"{title} holds a {card.class_name}, not a {cls.__name__}: use {card.class_name}.from_pretrained, or "
                "load_pretrained to start from its weights"
            )
    if cls is not Method and class_path.rpartition(".")[2] == cls.__name__:
        return cls  # your own, in another module than when it was trained
    raise CheckpointError(
        f"{title} holds a {class_path}, which is no registered method: call from_pretrained of that class itself"
    )


def _built(kind: type[Method], stored: Mapping[str, Any], changes: Mapping[str, Any], title: str) -> Method:
    """The method with fresh weights; of what was stored, arguments that a class fixes for its base are left out."""
    parameters = inspect.signature(kind.__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        stored = {name: value for name, value in stored.items() if name in parameters}
    try:
        with restoring():  # the file brings all weights
            return kind(**{**stored, **changes})
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise CheckpointError(
            f"{title}: {kind.__name__} cannot be built with its arguments: {' '.join(str(error).split())}"
        ) from error


def fill(module: nn.Module, state: Mapping[str, Tensor], title: str) -> None:
    """Load all of a module's tensors, and nothing else.

    Raises:
        CheckpointError: a name or shape differs; nothing was loaded.
    """
    wanted = module.state_dict()
    if state.keys() != wanted.keys():  # compiled, or trained in parallel
        state = unwrapped(dict(state), containers=False)
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {list(state[name].shape)}, wanted {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = [
        f"{kind}: {', '.join(names[:3])}{f', ... ({len(names)})' if len(names) > 3 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if told:
        raise CheckpointError(
            f"{title} is not a whole {type(module).__name__} of these arguments, so nothing was loaded; "
            + "; ".join(told)
        )
    module.load_state_dict(dict(state))
