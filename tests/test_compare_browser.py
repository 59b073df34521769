"""The page of `zoo compare` in a real browser: its script sorts the table and shows what differs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_compare import write_run
from zoo.__main__ import main

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
@pytest.mark.slow
def test_table_sorts_and_settings_are_compared() -> None:
    for seed in range(3):
        write_run(f"runs/a/{seed}", values=(40.0, 61.0 + seed), seed=seed)
        write_run(f"runs/b/{seed}", "source_only", values=(5.0, 8.0 + seed), seed=seed)
    assert main(["compare", "runs", "--out", "out"]) == 0
    page = Path("out/compare.html").read_text()
    assert shown(page) == ["fst", "source_only"]
    click = "<script>document.querySelectorAll('table.results th button')[2].click()</script>"
    # 9.00 stands before 62.00 by number, and behind it by text.
    assert shown(page.replace("</body>", click + "</body>")) == ["source_only", "fst"]
    assert shown(page.replace("</body>", 2 * click + "</body>")) == ["fst", "source_only"]


def shown(page: str) -> list[str]:
    """Methods in the order in which the browser shows them."""
    assert "</body>" in page
    Path("page.html").write_text(page)
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        Path("page.html").absolute().as_uri(),
    ]
    document = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (body,) = re.findall(r'<table class="results">.*?<tbody>(.*?)</tbody>', document, re.DOTALL)
    (differences,) = re.findall(r'<table class="differences"><tbody>(.*?)</tbody>', document, re.DOTALL)
    assert "model.class_path" in differences  # written by the script alone
    return re.findall(r"<tr[^>]*><td[^>]*>(\w+)</td>", body)
