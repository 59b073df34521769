"""What makes two runs the same experiment: a short name of a resolved config. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

#: Parts of a resolved config that decide what is computed; the rest says where and how it is reported.
PARTS = ("model", "data", "trainer")
REPORTING = {
    *("logger", "default_root_dir", "log_every_n_steps", "profiler"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
}


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal for equal experiments, whatever the order of keys.

    Left out are the seed (runs that differ by it alone share the hash and are averaged), what only reports
    (folder, loggers, progress bar), the number of loader processes, and where the data lie (``root`` and
    ``<name>_root``): draws depend on none of them. ``1`` and ``1.0`` are the same number.

    Args:
        config: a resolved config: ``model`` and ``data`` (``class_path`` and ``init_args``) and ``trainer``.
    """
    settings = {key: value for key, value in settings_of(config) if not _is_place(key)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def settings_of(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted key → plain value of everything that decides what is computed; ``init_args`` is left out."""
    for part in PARTS:
        yield from _leaves(part, config.get(part))


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (value in ``one``, value in ``other``) where two configs differ; None where one lacks it."""
    first, second = dict(settings_of(one)), dict(settings_of(other))
    keys = sorted(first.keys() | second.keys())
    return {k: (first.get(k), second.get(k)) for k in keys if first.get(k) != second.get(k)}


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(key if name == "init_args" else f"{key}.{name}", inner)
    else:
        yield key, _plain(value)


def _plain(value: Any) -> Any:
    """Whole numbers as integers, at every depth; a mapping inside a list keeps its keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_place(key: str) -> bool:
    part, _, name = key.partition(".")
    if part == "trainer":
        return name.partition(".")[0] in REPORTING
    return part == "data" and (name in ("root", "num_workers") or name.endswith("_root"))
