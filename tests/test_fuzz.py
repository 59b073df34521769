"""Whatever is in a file, its reader returns or complains in its own words: `make fuzz` tries more."""

from __future__ import annotations

import collections
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datamodules.cache import _is_intact
from zoo.broken_batch import BrokenBatch
from zoo.checkpoints.files import CheckpointError, read_plain
from zoo.config_files import UsageError, read_sources, replaced_lists
from zoo.resume import Trained

EXAMPLES = int(os.environ.get("SELFZOO_FUZZ", "25"))
outcomes: collections.Counter[str] = collections.Counter()

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
keys = st.sampled_from(
    [
        "model",
        "class_path",
        "init_args",
        "trainer",
        "state_dict",
        "hyper_parameters",
        "callbacks",
        "_class_path",
    ]
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True, scope="module")
def _report() -> Iterator[None]:
    yield
    if EXAMPLES >= 1000:
        print("\n" + "\n".join(f"{name}: {count}" for name, count in sorted(outcomes.items())))


@fuzz
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | trees.map(lambda tree: yaml.safe_dump(tree).encode())
)
def test_configs(content: bytes) -> None:
    Path("c.yaml").write_bytes(content)
    try:
        replaced_lists(read_sources(["--config", "c.yaml", "--trainer.max_steps=1"]))
        outcomes["config: read"] += 1
    except UsageError:
        outcomes["config: refused"] += 1


@fuzz
@given(st.binary(max_size=40) | trees.map(lambda tree: json.dumps(tree, default=str).encode()))
def test_manifests(content: bytes) -> None:
    folder = Path("cache")
    folder.mkdir(exist_ok=True)
    (folder / "a").write_bytes(b"a")
    (folder / "manifest.json").write_bytes(content)
    outcomes[f"manifest: intact {_is_intact(folder)}"] += 1
    (folder / "manifest.json").write_text(json.dumps({"a": zlib.crc32(b"a")}))
    assert _is_intact(folder)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


WHOLE = saved({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": {"x": 1}, "callbacks": {}, "epoch": 0})


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A checkpoint with some bytes changed, which may also be cut short."""
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@fuzz
@given(damaged() | st.binary(max_size=80) | trees.map(saved))
@example(b"\x8d" + (2**56).to_bytes(8, "little"))  # a text that claims to be 64 PiB long
def test_checkpoints(content: bytes) -> None:
    Path("c.ckpt").write_bytes(content)
    readers: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: read_plain("c.ckpt"),
        "resume": lambda: Trained("c.ckpt", resumes=True).as_options(),
        "broken batch": lambda: BrokenBatch.load("c.ckpt"),
    }
    for name, read in readers.items():
        try:
            read()
            outcomes[f"{name}: read"] += 1
        except (CheckpointError, UsageError):
            outcomes[f"{name}: refused"] += 1
