"""Which classes a config, a command or a checkpoint may name: importing a module runs its code."""

from __future__ import annotations

from collections.abc import Sequence
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
"""Packages whose classes may be named."""
REFUSED = (
    *("torch.hub", "torch.load", "torch.serialization", "torch.package", "torch.jit", "torch.export"),
    *("torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.distributed", "monai.bundle", "torch.ops"),
)
"""Parts of them that load or run what they are given."""
FLAG = "--allow-imports"

_allowed: set[str] = set(PACKAGES)


def allow(*packages: str) -> None:
    """Allow further packages for the rest of the process, and have the parser of configs refuse all others.

    Raises:
        UsageError: that is no name of a package.
    """
    from jsonargparse import set_parsing_settings

    for package in packages:
        if not package.replace(".", "_").isidentifier():
            raise UsageError(f"{FLAG} {package}: name a package, such as my_package")
    _allowed.update(packages)
    set_parsing_settings(
        import_path_denylist=["*", *REFUSED],
        import_path_allowlist=sorted(_allowed),
        instantiate_subclass_spec_in_any=False,
    )


def take_allowed(argv: Sequence[str]) -> list[str]:
    """Allow what follows every ``--allow-imports`` and return the other tokens."""
    rest: list[str] = []
    packages: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        flag, equals, package = token.partition("=")
        if flag == FLAG:
            packages.append(package if equals else next(tokens, ""))
        else:
            rest.append(token)
    allow(*packages)
    return rest


def refusal(class_path: str) -> str:
    """The message about a class that may not be named."""
    package = class_path.partition(".")[0]
    if package in _allowed:
        return f"{class_path} may not be named in a config: it loads or runs what it is given"
    return (
        f"{class_path} may not be named: importing {package} runs its code, and classes may come from "
        f"{', '.join(sorted(_allowed))} only. If you trust it, add {FLAG} {package}"
    )


def resolve_class(class_path: str) -> Any:
    """The class of an allowed package; nothing of another one is imported.

    Raises:
        UsageError: it belongs to another package, or does not exist.
    """
    parts = class_path.split(".")
    prefixes = {".".join(parts[: end + 1]) for end in range(len(parts))}
    if ":" in class_path or not prefixes & _allowed or prefixes & set(REFUSED):
        raise UsageError(refusal(class_path))
    try:
        return resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"there is no class {class_path}: {error}") from error
