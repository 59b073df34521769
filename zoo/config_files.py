"""Configs by name: `--config fst/embedded` finds a file in the working directory or in the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo.registry import suggest

FLAGS = ("--config", "-c")


class UsageError(Exception):
    """The command itself is wrong: one line for the user, exit code 2."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where settings were typed: a config file, or the command line.

    Args:
        name: how to call it in a message.
        values: dotted key (``init_args`` left out, as on the command line) → value.
    """

    name: str
    values: Mapping[str, Any]


def package_configs() -> Path:
    """Folder of the zoo's own configs: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str) -> Path:
    """The file a config name stands for: the working directory goes before the package.

    Raises:
        UsageError: there is none; says which names are near and what exists.
    """
    given = Path(name).expanduser()
    candidates = [folder / given for folder in (Path(), Path("configs"), package_configs())]
    for candidate in candidates:
        for path in (candidate, Path(f"{candidate}.yaml")):
            if path.is_file():
                return path
    known = known_configs()
    near = suggest(name.removesuffix(".yaml"), known)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"--config {name}: no such file here and no such config in the package; {hint}"
        f"known: {', '.join(known)}"
    )


def known_configs() -> list[str]:
    """Names of the configs in ``configs/`` of the working directory and in the package."""
    folders = (Path("configs"), package_configs())
    files = ((folder, path) for folder in folders for path in folder.rglob("*.yaml"))
    return sorted({path.relative_to(folder).with_suffix("").as_posix() for folder, path in files})


def resolve_configs(argv: Sequence[str]) -> list[str]:
    """Replace the name after every ``--config`` by the path of its file."""
    resolved: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        flag, equals, name = token.partition("=")
        if flag not in FLAGS or not (name := name if equals else next(tokens, "")):
            resolved.append(token)  # a --config without a name is left for the parser to refuse
        else:
            resolved += ["--config", str(find_config(name))]
    return resolved


def read_sources(argv: Sequence[str]) -> list[Source]:
    """What was typed where, the later the stronger: the config files in order, then the command line."""
    options = list(_options(argv))
    files = [Path(value) for key, value in options if key == "config" and value]
    return [*map(_read_source, files), Source("the command line", dict(options))]


def _read_source(path: Path) -> Source:
    try:
        content = dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # bytes, dates, keys, loops
        raise UsageError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    return Source(path.name, content)


def last_value(sources: Sequence[Source], key: str) -> Any:
    """The value that counts for ``key``; ``None`` where nobody typed it."""
    return next((source.values[key] for source in reversed(sources) if key in source.values), None)


def replaced_lists(sources: Sequence[Source]) -> list[str]:
    """One sentence for every list of a config file of which a later source left nothing; sizes are meant to go."""
    notes = []
    for index, source in enumerate(sources):
        for key, value in source.values.items():
            if not isinstance(value, list) or all(isinstance(entry, int | float) for entry in value):
                continue
            later = next((other for other in sources[index + 1 :] if key in other.values), None)
            if later is not None and later.values[key] != value:
                notes.append(
                    f"{key} of {later.name} replaces the list of {source.name} ({len(value)} entries); "
                    f"write {key.rpartition('.')[2]}+ to append instead"
                )
    return notes


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``--key value`` and ``--key=value`` as pairs."""
    key = None
    for token in argv:
        if token.startswith("--"):
            if key is not None:
                yield key, ""
            key, equals, value = token[2:].partition("=")
            if equals:
                yield key, value
                key = None
        elif key is not None:
            yield key, token
            key = None
    if key is not None:
        yield key, ""


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted key; lists are leaves."""
    if not isinstance(values, Mapping):
        yield prefix, values
        return
    for key, value in values.items():
        yield from flatten(value, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
