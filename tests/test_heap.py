"""Freed memory stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.cli_toy import zoo_run

SCRIPT = """
import resource
from zoo.heap import keep_freed_memory

done = {done}

def faults():
    blocks = [bytes([n]) * (16 << 20) for n in range(8)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del blocks
    blocks = [bytes([n]) * (16 << 20) for n in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(done, faults())
"""


def run(done: str, **environment: str) -> tuple[bool, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", SCRIPT.format(done=done)]
    told = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    found, faults = told.stdout.split()
    return found == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_what_was_freed_is_there_again_without_new_pages() -> None:
    """128 MiB, in pages of 4 KiB or huge ones, are mapped anew by default, and not once the heap is kept."""
    assert run("keep_freed_memory()")[0]
    assert 10 * run("keep_freed_memory()")[1] < run("None")[1]


def test_the_environment_wins() -> None:
    assert run("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")[0] is False


def test_training_on_a_cpu_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("zoo.cli.keep_freed_memory", lambda: asked.append("kept"))
    assert zoo_run("fit", steps=1) == 0
    assert asked == ["kept"]
