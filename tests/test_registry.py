"""Cards, names and what may be imported when."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

import zoo
from datamodules.base import BenchmarkDataModule
from zoo import registry
from zoo.__main__ import main
from zoo.cards import BenchmarkCard, CardError, MethodCard
from zoo.method import Method

CARD = {
    "name": "toy",
    "class": "tests.toy.ToyMethod",
    "title": "A toy",
    "modality": "image",
    "task": "classification",
    "paper": {"title": "Toys", "authors": "A, B", "venue": "ICTOY", "year": 2020, "url": "https://toy"},
    "configs": ["toy/embedded"],
    "published": [{"benchmark": "toys", "backbone": "mlp", "metric": "accuracy", "value": 90}],
    "ours": [{"benchmark": "toys", "metric": "accuracy", "mean": 91.26, "std": 0.5, "seeds": 3, "run": "r1"}],
}


def write(folder: Path, card: object, name: str = "toy.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(card))
    return path


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


# -- the cards that ship ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.list_methods())
def test_method_card_names_a_method(name: str) -> None:
    card = registry.method_card(name)
    cls = registry.get_method(name)
    assert issubclass(cls, Method)
    assert card.configs
    assert card.path.parent == Path(inspect.getfile(cls)).parent


@pytest.mark.parametrize("name", registry.list_benchmarks())
def test_benchmark_card_names_a_datamodule(name: str) -> None:
    assert issubclass(registry.get_benchmark(name), BenchmarkDataModule)
    assert registry.benchmark_card(name).splits


def test_lists_take_patterns() -> None:
    assert "fst" in registry.list_methods()
    assert registry.list_methods("fst*") == [n for n in registry.list_methods() if n.startswith("fst")]
    assert registry.list_methods("nothing") == []
    assert "streetshift" in registry.list_benchmarks("street*")


# -- reading cards ---------------------------------------------------------------------------------------


def test_card_is_read_with_its_types(tmp_path: Path) -> None:
    card = registry.read_cards(MethodCard, [write(tmp_path, CARD)])["toy"]
    assert (card.module, card.class_name) == ("tests.toy", "ToyMethod")
    assert card.paper.year == 2020
    assert card.published[0].value == 90.0
    assert isinstance(card.published[0].value, float)
    assert card.configs == ("toy/embedded",)
    assert card.differences == ()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"title": None}, "title: expected str, found nothing"),
        ({"paper": {**CARD["paper"], "year": "2020"}}, "paper: year: expected int, found str '2020'"),
        ({"paper": {"title": "x"}}, "paper: the field 'authors' is missing"),
        ({"published": {"value": 1}}, "published: expected a list, found dict"),
        (
            {"published": [{**CARD["published"][0], "value": True}]},
            "published[0]: value: expected float, found bool",
        ),
        ({"published": [{**CARD["published"][0], "unit": 1}]}, "published[0]: unknown field 'unit'"),
        ({"class": "ToyMethod"}, "class: expected a dotted path, found 'ToyMethod'"),
        ({"defaults": [1]}, "defaults: expected a mapping, found list"),
        ({"journal": "x"}, "unknown field 'journal'; a MethodCard has name, class, title"),
    ],
)
def test_malformed_card_names_file_and_field(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    path = write(tmp_path, CARD | change)
    with pytest.raises(CardError) as error:
        registry.read_cards(MethodCard, [path])
    assert f"{path}: {complaint}" in str(error.value)


def test_missing_field_and_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="the field 'class' is missing"):
        registry.read_cards(MethodCard, [write(tmp_path, {k: v for k, v in CARD.items() if k != "class"})])
    with pytest.raises(CardError, match="a card is a mapping of fields, found list"):
        registry.read_cards(BenchmarkCard, [write(tmp_path, [1, 2])])


def test_one_name_one_card(tmp_path: Path) -> None:
    first, second = write(tmp_path, CARD, "a.yaml"), write(tmp_path, CARD, "b.yaml")
    with pytest.raises(CardError, match=r"b\.yaml: name: 'toy' is taken by .*a\.yaml"):
        registry.read_cards(MethodCard, [second, first])


# -- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("look_up", "message"),
    [
        (lambda: registry.method_card("fts"), r"unknown method 'fts': did you mean fst.*`zoo list methods`"),
        (lambda: registry.get_method("qqqqq"), r"unknown method 'qqqqq': there is nothing like it\."),
        (
            lambda: registry.benchmark_card("StreetShft"),
            "unknown benchmark 'StreetShft': did you mean streetshift",
        ),
        (lambda: registry.create_backbone("resnt18"), "unknown backbone 'resnt18': did you mean resnet18"),
    ],
)
def test_unknown_name_suggests_the_nearest(look_up: object, message: str) -> None:
    assert callable(look_up)
    with pytest.raises(registry.UnknownNameError, match=message):
        look_up()


def test_suggest_ignores_case_and_orders_by_nearness() -> None:
    assert registry.suggest("fst", ["FST", "FSTSemi", "SourceOnly"])[0] == "FST"
    assert registry.suggest("max_stps", ["max_epochs", "max_steps"])[0] == "max_steps"
    assert registry.suggest("zzz", ["FST"]) == []


# -- backbones -------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A backbone ``toy_net`` for one test, and the arguments it was built with."""
    monkeypatch.setattr(registry, "_backbones", dict(registry._own_backbones()))
    calls: list[dict[str, object]] = []

    @registry.register_backbone("toy_net")
    def toy_net(**kwargs: object) -> nn.Module:
        calls.append(kwargs)
        return nn.Identity()

    return calls


def test_own_backbone_goes_before_timm(registered: list[dict[str, object]]) -> None:
    assert isinstance(registry.create_backbone("toy_net", in_chans=1, depth=2), nn.Identity)
    assert registered == [{"pretrained": False, "in_chans": 1, "depth": 2}]
    assert registry.list_backbones("toy_*") == ["toy_net"]
    with pytest.raises(ValueError, match="backbone 'toy_net' is already registered"):
        registry.register_backbone("toy_net")(nn.Identity)


def test_timm_backbones_work_by_their_own_name() -> None:
    vits = registry.list_backbones("*vit*")
    assert "vit_tiny_patch16_224" in vits
    assert vits == sorted(vits)
    assert "resnet18" not in vits
    backbone = zoo.create_backbone("resnet18", in_chans=1)
    assert backbone.in_chans == 1
    assert len(backbone.channels) == len(backbone.strides)


# -- lazy imports ----------------------------------------------------------------------------------------


HEAVY = "print(sorted({'torch', 'lightning', 'timm', 'numpy', 'rich'} & set(sys.modules)))"


@pytest.mark.parametrize(
    "command", [["list", "methods"], ["list", "benchmarks"], ["list"], ["--help"], ["--version"]]
)
def test_looking_around_imports_nothing_heavy(command: list[str]) -> None:
    printed = python(f"import sys; from zoo.__main__ import main; assert main({command!r}) == 0; {HEAVY}")
    assert printed.splitlines()[-1] == "[]"
    assert len(printed.splitlines()) > 1


def test_importing_zoo_imports_nothing_heavy() -> None:
    assert python(f"import sys, zoo, zoo.registry; zoo.list_methods(); {HEAVY}").strip() == "[]"


def test_zoo_serves_every_method_class() -> None:
    for name in registry.list_methods():
        cls = registry.get_method(name)
        assert getattr(zoo, cls.__name__) is cls
        assert cls.__name__ in dir(zoo)
    assert zoo.Method is Method
    with pytest.raises(AttributeError, match=r"no attribute 'FTS'; it has .*FST"):
        _ = zoo.FTS


def test_names_for_type_checkers_are_the_names_served() -> None:
    tree = ast.parse(Path(zoo.__file__).read_text())
    checked = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    names = {a.asname: n.module for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert {*names} == {*dir(zoo)} - {"__version__"}
    for name, module in names.items():
        assert getattr(zoo, name).__module__ == module


# -- zoo list --------------------------------------------------------------------------------------------


def test_list_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "fst"]) == 0
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["method", "modality", "task", "paper", "config", "published", "ours"]
    assert row.split()[:2] == ["fst", "image"]
    card = registry.method_card("fst")
    for column, cell in (
        ("paper", "NeurIPS 2022"),
        ("config", card.configs[0]),
        ("published", f"{card.published[0].value:g} {card.published[0].metric}"),
    ):
        assert row[header.index(column) :].startswith(cell)
    assert [*map(len, rule.split())][:2] == [len("method"), len("modality")]


def test_own_number_is_mean_and_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.listing import method_row

    monkeypatch.setattr(
        registry, "_method_cards", lambda: registry.read_cards(MethodCard, [write(tmp_path, CARD)])
    )
    assert method_row("toy")["ours"] == "91.3 ± 0.5 accuracy toys, 3 seeds"


def test_list_json_holds_the_whole_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in printed["methods"]] == registry.list_methods()
    assert [card["name"] for card in printed["benchmarks"]] == registry.list_benchmarks()
    fst = next(card for card in printed["methods"] if card["name"] == "fst")
    assert fst["class"] == registry.method_card("fst").class_path
    assert fst["paper"]["year"] == 2022
    assert "path" not in fst


def test_list_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backbones", "resnet1*"]) == 0
    assert "resnet18" in capsys.readouterr().out.split()


def test_list_without_a_match_says_what_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "sorce_only"]) == 1
    assert "no methods match 'sorce_only'; nearest: source_only" in capsys.readouterr().err


def test_the_speed_of_every_loader_is_measured() -> None:
    """By itself, or by one that reads the same kind of file by the same code."""
    from benchmarks.speed.input import ALIKE, SETS

    measured = {name.partition(",")[0] for name in SETS}
    assert measured | set(ALIKE) == set(registry.list_benchmarks())
    assert not measured & set(ALIKE)
    assert set(ALIKE.values()) <= measured
