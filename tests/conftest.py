"""Every test runs offline, on one thread, in a folder of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest
import torch

from tests.tiny import cityscapes_tree, gta5_tree
from zoo.class_paths import allow

allow("tests")  # configs of tests name classes of tests

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Render the embedded data once for the session, under xdist once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["SELFZOO_CACHE"] = str(shared / "selfzoo-cache")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test writes without a path of its own lands in its temporary folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _signals() -> Iterator[None]:
    """Lightning ignores SIGINT once it has seen one, and shells do for what runs in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Any]:
    """Source 36×64, four images; target 32×64, five training and three validation images."""
    return {
        "source_root": str(gta5_tree(tmp_path / "gta")),
        "target_root": str(cityscapes_tree(tmp_path / "city")),
    }
