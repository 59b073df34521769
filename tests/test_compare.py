"""`zoo compare`: which runs count, what is the same, and what the files and the page show."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.__main__ import main
from zoo.comparison.page import as_html
from zoo.comparison.runs import find_runs
from zoo.comparison.statistics import paired_difference
from zoo.comparison.table import compare, published
from zoo.comparison.writers import as_latex, as_markdown
from zoo.config_hash import config_hash

GTA = "gta5_cityscapes"


def write_run(
    folder: str,
    method: str = "fst",
    values: Sequence[float] = (50.0, 60.0, 59.0),
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
    **changes: Any,
) -> Path:
    """A run folder as `zoo fit` leaves it; validated every 100 steps."""
    path = Path(folder)
    path.mkdir(parents=True)
    model = {"class_path": method, "init_args": {"backbone": "mit_b5", **(settings or {})}}
    config = {"model": model, "data": {"class_path": "D"}, "trainer": {"max_steps": 300}}
    best = {"step": 200, "metrics": {"val/mIoU": max(values)}}
    last = {"step": 300, "metrics": {"val/mIoU": values[-1], "test/mIoU": values[-1] - 1}}
    card = {
        **{"verb": "fit", "status": "finished", "reason": None, "method": method, "benchmark": GTA},
        **{"backbone": "mit_b5", "seed": seed, "config": config, "config_hash": config_hash(config)},
        **{"monitor": "val/mIoU", "monitor_mode": "max", "best": best, "last": last, "started": "2025-01-01"},
        **{"steps": 300, "seconds": 3725.0, "samples_per_second": 12.5},
        **{"peak_memory": {"device": None, "host": 2**31}},
    }
    (path / "run_card.json").write_text(json.dumps(card | changes))
    rows = [f"{100 * (i + 1)},{value}" for i, value in enumerate(values)]
    (path / "metrics.csv").write_text("\n".join(["step,val/mIoU", *rows]) + "\n")
    if scores:
        (path / "sample_scores.csv").write_text(
            "\n".join(["name,score", *(f"{name},{score}" for name, score in scores.items())])
        )
    (path / "pictures").mkdir()
    Image.new("RGB", (6, 4), (seed, 0, 0)).save(path / "pictures" / "val-step000300.png")
    return path


def three_runs() -> str:
    """Three methods, three seeds: the first two cannot be told apart, the third is worse."""
    for seed, (a, b, c) in enumerate([(60.0, 59.9, 50.0), (62.0, 62.3, 52.0), (61.0, 60.5, 50.5)]):
        write_run(f"runs/fst/{seed}", "fst", (50.0, a, a - 1), seed)
        write_run(f"runs/st/{seed}", "self_training", (40.0, b, b - 1), seed)
        write_run(f"runs/so/{seed}", "source_only", (30.0, c, c - 1), seed)
    return "runs"


@pytest.fixture
def three() -> str:
    return three_runs()


# -- statistics ------------------------------------------------------------------------------------------


def test_bootstrap_against_every_resample() -> None:
    """Three pairs have 27 resamples: the quantiles of their means are known."""
    first, second = {"a": 1.0, "b": 5.0, "c": 3.0}, {"a": 0.0, "b": 2.0, "c": 5.0, "d": 9.0}
    differences = np.array([1.0, 3.0, -2.0])
    means = sorted(np.mean([differences[i] for i in pick]) for pick in np.ndindex(3, 3, 3))
    found = paired_difference(first, second, "seeds")
    assert found is not None
    assert (found.mean, found.pairs, found.over) == (pytest.approx(2 / 3), 3, "seeds")
    assert (found.low, found.high) == (pytest.approx(means[0]), pytest.approx(means[-1]))
    assert not found.is_real
    assert str(found) == "+0.67 [-2.00, +3.00] over 3 seeds"


def test_bootstrap_interval_of_many_pairs_is_the_normal_one() -> None:
    noise = np.random.default_rng(1).normal(0.2, 1.0, 400)
    scores = {str(index): float(value) for index, value in enumerate(noise)}
    found = paired_difference(scores, dict.fromkeys(scores, 0.0), "samples")
    assert found is not None
    half = 1.96 * noise.std() / np.sqrt(400)
    assert found.low == pytest.approx(noise.mean() - half, abs=0.01)
    assert found.high == pytest.approx(noise.mean() + half, abs=0.01)
    assert found.is_real
    swapped = paired_difference(dict.fromkeys(scores, 0.0), scores, "samples")
    assert swapped is not None
    assert swapped.high == pytest.approx(-found.low, abs=0.01)


def test_nothing_is_claimed_of_two_pairs() -> None:
    assert paired_difference({"0": 1.0, "1": 1.0, "2": 1.0}, {"0": 0.0, "1": 0.0}, "seeds") is None


# -- the table -------------------------------------------------------------------------------------------


def test_rows_are_ranked_averaged_and_marked(three: str) -> None:
    (table,) = compare(find_runs([three]))
    assert (table.benchmark, table.metric, table.mode) == (GTA, "val/mIoU", "max")
    assert [(row.method, row.mark) for row in table.rows] == [
        *[("fst", "best"), ("self_training", "same"), ("source_only", "worse")]
    ]
    fst, other, _ = table.rows
    assert fst.values == {"0": 60.0, "1": 62.0, "2": 61.0}
    assert (fst.mean, fst.std) == (61.0, 1.0)
    assert other.std == pytest.approx(np.std([59.9, 62.3, 60.5], ddof=1))
    assert other.difference is not None
    assert other.difference.over == "seeds"
    assert (fst.published, table.rows[2].published) == ("69.56", "")
    assert (fst.average("seconds"), fst.memory) == (3725.0, (2**31, "host"))
    assert [row.variant for row in table.rows] == ["", "", ""]


def test_last_step_another_metric_and_the_other_direction(three: str) -> None:
    runs = find_runs([three])
    (last,) = compare(runs, at="last")
    assert last.rows[0].values["0"] == 59.0
    (test,) = compare(runs, metric="test/mIoU")
    assert test.rows[0].values["0"] == 58.0
    (lowest,) = compare(runs, mode="min")
    assert lowest.rows[0].method == "source_only"
    assert lowest.rows[0].is_best


def test_settings_make_rows_of_their_own() -> None:
    write_run("a", settings={"depth": 1, "optim": {"lr": 1.0}})
    write_run("b", settings={"depth": 3, "optim": {"lr": 1}}, values=(1.0, 70.0))
    (table,) = compare(find_runs(["a", "b"]))
    assert [row.label for row in table.rows] == ["fst mit_b5 depth=3", "fst mit_b5 depth=1"]
    assert [row.mark for row in table.rows] == ["best", "?"]


def test_newer_run_of_a_seed_counts() -> None:
    write_run("old", values=(99.0,), started="2024-01-01")
    write_run("new", values=(50.0,), started="2025-01-01")
    (table,) = compare(find_runs(["old", "new"]))
    assert table.rows[0].values == {"0": 50.0}
    assert table.notes == ["old is left out: new is newer and of the same seed"]


def test_unfinished_runs_are_left_out_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("good")
    write_run("bad", "source_only", status="failed", reason="RuntimeError: out of memory", values=(80.0,))
    assert main(["compare", "good", "bad"]) == 0
    shown = capsys.readouterr().out
    assert "bad is left out: failed (RuntimeError: out of memory)" in shown
    assert "source_only" not in shown
    assert main(["compare", "good", "bad", "--unfinished"]) == 0
    assert "source_only" in capsys.readouterr().out


def test_samples_are_better_evidence_than_seeds() -> None:
    rng = np.random.default_rng(0)
    easy = rng.uniform(0, 100, 200)
    for seed in range(2):  # too few seeds to say anything
        good = {f"image{i}": value for i, value in enumerate(easy)}
        write_run(f"a/{seed}", values=(61.0,), seed=seed, scores=good)
        worse = {name: score - rng.uniform(0, 2) for name, score in good.items()}
        write_run(f"b/{seed}", "source_only", values=(60.0,), seed=seed, scores=worse)
    (table,) = compare(find_runs(["a", "b"]))
    found = table.rows[1].difference
    assert found is not None
    assert (found.over, found.pairs) == ("samples", 200)
    assert found.mean == pytest.approx(1.0, abs=0.1)
    assert table.rows[1].mark == "worse"


def test_published_numbers_fit_method_backbone_benchmark_and_metric() -> None:
    assert published("fst", "mit_b5", GTA, "val/mIoU") == "69.56"
    assert published("fst", "mit_b5", "synthia_cityscapes", "val/mIoU") == "62.26"  # mIoU16
    assert published("fst", "mit_b5", GTA, "val/accuracy") == ""
    assert published("fst", "resnet18", GTA, "val/mIoU") == ""
    assert published("my_own", "mit_b5", GTA, "val/mIoU") == ""


def test_benchmarks_have_tables_of_their_own() -> None:
    write_run("a")
    write_run("b", benchmark="streetshift", monitor="val/loss", monitor_mode="min", last={
        "step": 1, "metrics": {"val/loss": 2.0}}, best=None)  # fmt: skip
    tables = compare(find_runs(["a", "b"]))
    assert [(t.benchmark, t.metric, t.mode) for t in tables] == [
        *[(GTA, "val/mIoU", "max"), ("streetshift", "val/loss", "min")]
    ]


# -- differences of settings -----------------------------------------------------------------------------


def test_differing_settings_of_two_rows(three: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run("runs/new", settings={"depth": 3})
    assert main(["compare", three, "--diff", "runs/new", "runs/so/1"]) == 0
    lines = capsys.readouterr().out.partition("setting ")[2].splitlines()
    found = {line.split()[0]: line.split()[1:] for line in lines[2:] if line}
    assert found == {"model.class_path": ["fst", "source_only"], "model.depth": ["3", "-"]}
    assert main(["compare", three, "--diff", "self_training mit_b5", "nothing"]) == 2
    assert "--diff nothing: no such row or run; the rows are" in capsys.readouterr().err


# -- files -----------------------------------------------------------------------------------------------


def test_files_hold_the_table(three: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", three, "--out", "out"]) == 0
    names = {path.name for path in Path("out").iterdir()}
    pictures = {f"{GTA}-curves.png", f"{GTA}-bars.png"}
    assert names == pictures | {f"compare.{suffix}" for suffix in ("md", "csv", "tex", "html")}
    for name in pictures:
        pixels = np.asarray(Image.open(Path("out", name)).convert("RGB"))
        assert pixels.std() > 10  # something is drawn
    with Path("out/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["mean"]), row["mark"]) for row in rows] == [
        *[
            ("fst", 61.0, "best"),
            ("self_training", 60.9, "same"),
            ("source_only", pytest.approx(50.833333), "worse"),
        ]
    ]
    markdown = Path("out/compare.md").read_text()
    assert (
        "| fst | mit_b5 | **61.00 ± 1.00** | 62.00 | 3 | 69.56 | 300 | 1 h 02 min | 12 | 2.00 GiB (host) | - |"
        in markdown
    )
    assert "60.90 ± 1.25 ~" in markdown
    latex = Path("out/compare.tex").read_text()
    assert r"fst & mit\_b5 & $\mathbf{61.00 \pm 1.00}$ & 69.56 \\" in latex
    assert r"self\_training & mit\_b5 & $\underline{60.90 \pm 1.25}$" in latex
    assert "61.00 ± 1.00 *" in capsys.readouterr().out


def test_special_characters_do_not_break_the_formats() -> None:
    write_run("a", "a_b&c|<i>", settings={"x": "</script>"})
    tables = compare(find_runs(["a"]))
    assert r"a\_b\&c|<i>" in as_latex(tables)
    assert r"a_b&c\|<i>" in as_markdown(tables)
    page = as_html(tables)
    assert "a_b&amp;c|&lt;i&gt;" in page
    assert "</script>" not in page.partition('type="application/json">')[2].partition("</script>")[0]
    assert json.loads(Page(page).settings[0])[0]["model.x"] == "</script>"


class Page(HTMLParser):
    """What a page shows and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.values: list[list[str | None]] = []
        self.links: list[str] = []
        self.settings: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "tr":
            self.rows.append([])
            self.values.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.values[-1].append(given.get("data-value"))
        self._inside = "settings" if given.get("class") == "settings" else tag

    def handle_data(self, data: str) -> None:
        if self._inside == "td":
            self.rows[-1][-1] += data
        elif self._inside == "settings":
            self.settings.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def test_page_needs_nothing_else(three: str) -> None:
    page = Page(as_html(compare(find_runs([three]))))
    # Bars, curves, and a prediction panel a row.
    assert len(page.links) == 2 + 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    results = [row for row in page.rows if row]
    assert [row[0] for row in results] == ["fst", "self_training", "source_only"]
    means = [row[2] for row in page.values if row]
    assert [float(value) for value in means if value] == pytest.approx([61.0, 60.9, 50.8333], abs=1e-3)
    assert json.loads(page.settings[0])[2]["model.class_path"] == "source_only"


SCRIPT = """<script>
  const names = () => [...document.querySelectorAll("table.results tbody tr")].map(r => r.cells[0].textContent);
  const click = i => document.querySelectorAll("table.results th")[i].querySelector("button").click();
  const shown = () => [...document.querySelectorAll("table.differences tr")].map(
    r => [...r.cells].map(c => c.textContent));
  const log = {before: names(), differences: shown()};
  click(2); log.up = names(); click(2); log.down = names();
  const choices = document.querySelectorAll("select");
  choices[1].value = 2; choices[1].dispatchEvent(new Event("change")); log.chosen = shown();
  choices[1].value = 0; choices[1].dispatchEvent(new Event("change")); log.equal = shown();
  log.pictures = [...document.images].every(i => i.complete && i.naturalWidth > 0);
  document.body.textContent = "LOG" + JSON.stringify(log) + "END";
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_page_in_a_browser(three: str) -> None:
    Path("page.html").write_text(as_html(compare(find_runs([three]))).replace("</body>", SCRIPT))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    page = subprocess.run(
        [*command, Path("page.html").resolve().as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    log = json.loads(page.partition("LOG")[2].partition("END")[0])
    ranked = ["fst", "self_training", "source_only"]
    assert (log["before"], log["up"], log["down"]) == (ranked, ranked[::-1], ranked)
    assert log["differences"] == [["model.class_path", '"fst"', '"self_training"']]
    assert log["chosen"] == [["model.class_path", '"fst"', '"source_only"']]
    assert log["equal"] == []
    assert log["pictures"]
