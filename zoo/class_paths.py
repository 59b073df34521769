"""Which classes a config or a file may name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

from zoo.config_files import UsageError

PACKAGES = (
    "zoo",
    "datamodules",
    "callbacks",
    "torch",
    "lightning",
    "torchvision",
    "timm",
    "monai",
    "torchmetrics",
)
"""Top-level packages whose classes may be named; importing them is what running the zoo does anyway."""

PATH_KEYS = ("class_path",)


class ForeignClassError(UsageError):
    """A class of a package that nobody allowed; nothing of it was imported."""


def resolve_class(class_path: str) -> Any:
    """The class of an allowed package.

    Raises:
        ForeignClassError: it belongs to another package.
    """
    check_class_path(class_path, "the file")
    return resolve_name(class_path)


def check_class_path(class_path: str, source: str) -> None:
    """Refuse a class of another package.

    Raises:
        ForeignClassError: it names what is refused and how to allow it.
    """
    package = class_path.partition(".")[0].partition(":")[0]
    if "." in class_path and package not in PACKAGES:
        raise ForeignClassError(
            f"{source} names the class {class_path}, and importing {package} runs its code: classes may come from "
            f"{', '.join(PACKAGES)}. If you trust it, add --allow-imports"
        )


def class_paths(value: Any) -> Iterator[str]:
    """Every class that nested settings name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str) and key.rpartition(".")[2] in PATH_KEYS and isinstance(inner, str):
                yield inner
            else:
                yield from class_paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from class_paths(inner)
