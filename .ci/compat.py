"""The suite on the oldest and the newest libraries that pyproject.toml allows: `make compat`.

One environment for every pair of Python and libraries, kept in `.venv-compat/`: the newest libraries on every Python
that is found, the oldest on the oldest Python. An environment that exists is used again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def oldest() -> list[str]:
    """``name==version`` for the lower bound of every library that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = {"ruff", "mypy", "codespell", "pytest", "pytest-xdist", "hypothesis", "hatchling"}
    lines = [*project["dependencies"], *(line for name in extras if name != "all" for line in extras[name])]
    bounds = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", line) for line in lines)
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound and bound[1] not in tools})


def pythons() -> Iterator[tuple[str, str]]:
    """Version and path of every supported Python on the PATH or installed by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    for version in PYTHONS:
        kept = sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
        found = [shutil.which(f"python{version}"), *map(str, reversed(kept))]
        runs = [path for path in found if path and _version(path) == version]
        if runs:
            yield version, runs[0]


def _version(python: str) -> str:
    """What a Python says of itself: one that pyenv has not switched on exists and does not run."""
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def environment(python: str, folder: Path, constraints: list[str]) -> Path:
    """The interpreter of an environment with the package, editable, and all that its tests need."""
    interpreter = folder / "bin" / "python"
    if (folder / "installed").exists():
        return interpreter
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    pins = folder / "constraints.txt"
    pins.write_text("\n".join(constraints) + "\n", encoding="utf-8")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "hatchling"], check=True)
    subprocess.run([*pip, "--no-build-isolation", "-c", pins, "--editable", f"{ROOT}[dev]"], check=True)
    (folder / "installed").touch()
    return interpreter


def main() -> int:
    """Run what was asked for and return 0 if every suite passed."""
    parser = argparse.ArgumentParser(prog="make compat", description=__doc__)
    parser.add_argument("--only", choices=("oldest", "newest"), help="libraries; default: both")
    parser.add_argument("--python", choices=PYTHONS, help="default: all that are found")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-compat")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --; default: -n auto")
    given = parser.parse_args()

    found = {version: path for version, path in pythons() if given.python in (None, version)}
    if not found:
        parser.error(f"no Python {given.python or ' or '.join(PYTHONS)} was found")
    runs = [(version, "newest") for version in found]
    if next(iter(found)) == PYTHONS[0]:
        runs.insert(0, (PYTHONS[0], "oldest"))
    outcome = {}
    for version, libraries in runs:
        if given.only not in (None, libraries):
            continue
        name = f"python{version}-{libraries}"
        folder = given.folder / name
        python = environment(found[version], folder, oldest() if libraries == "oldest" else [])
        suite = [python, "-m", "pytest", "-q", *(given.pytest or ["-n", "auto", "--maxprocesses", "8"])]
        outcome[name] = subprocess.run(suite, cwd=ROOT, check=False).returncode
    for name, code in outcome.items():
        print(f"{name}: {'passed' if code == 0 else f'failed ({code})'}")
    return int(not outcome or any(outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
