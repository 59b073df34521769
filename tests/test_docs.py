"""Code in README and docs runs, tables are those of the cards, docstring examples hold."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from zoo.registry import list_methods, method_card

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of a language; every fence is matched, so that pairs stay pairs."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in fenced if name == language]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_blocks_run_in_order(page: Path) -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, f"{page.name}", "exec"), scope)
    assert scope["trainer" if page.name == "README.md" else "method"] is not None


def test_tables_are_those_of_the_cards() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generate.regenerated(text) == text
    for name in list_methods():
        assert f"`{name}`" in text
    for name, where in {
        "streetshift": "made on first use",
        "optdigits": "shipped with scikit-learn",
        "omni_volumes": "bring your own",
        "volume_folders": "bring your own",
    }.items():
        assert re.search(rf"^\| `{name}`: .*\| {where} \|$", text, re.MULTILINE), name


def test_commands_in_readme_and_docs_exist() -> None:
    from zoo.config_files import find_config

    makefile = (ROOT / "Makefile").read_text()
    commands = [line for block in blocks(ROOT / "README.md", "") for line in block.splitlines() if line]
    assert {"make quickstart", "make test"} <= set(commands)
    for line in commands:
        tool, *rest = shlex.split(line)
        if tool == "make":
            assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE), line
    for page in PAGES:
        plain = "".join(blocks(page, "")).replace("\\\n", " ")
        for line in [line for line in plain.splitlines() if line.startswith("zoo ")]:
            for option, value in itertools.pairwise(shlex.split(line)):
                if option == "--config" and not value.startswith("runs/"):
                    assert find_config(value).is_file(), f"{page.name}: {line}"


def test_every_card_names_a_class_whose_docstring_says_where_it_is_from() -> None:
    for name in list_methods():
        card = method_card(name)
        cls = getattr(importlib.import_module(card.module), card.class_name)
        assert cls.__doc__
        assert "Args:" in cls.__doc__ or cls.__init__ is cls.__mro__[1].__init__
