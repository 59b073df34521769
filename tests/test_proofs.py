"""What learning proofs share: means, gains, verdicts, and results that are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import listed, proof_parser, spread, verdict
from benchmarks.runner import Result, leads
from benchmarks.training import kept, settings
from zoo.nn import SignalAugment
from zoo.optim import Optim


def result(name: str, seed: int, score: float) -> Result:
    return Result(name, seed, 1, [], "", {"test/mIoU": score}, "mIoU", 0.0, 0.0, 0.0)


def test_means_over_seeds() -> None:
    assert spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert spread((value for value in [2.5]), digits=2) == "2.50 ± 0.00"
    assert listed([1.0, 2.26]) == "1.0 2.3"


def test_a_proof_fails_where_a_wanted_gain_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        result(*row) for row in (("ours", 0, 5.0), ("ours", 1, 5.0), ("theirs", 0, 4.0), ("theirs", 1, 6.5))
    ]
    gains = leads(results, "ours", "theirs")
    assert gains == {"ours - theirs": {0: 1.0, 1: -1.5}}
    verdict({"a - b": {0: 0.1}}, reported=gains)
    assert capsys.readouterr().out.splitlines() == [
        "a - b: seed 0 +0.1",
        "ours - theirs: seed 0 +1.0, seed 1 -1.5",
    ]
    for wanted in (gains, {"ours - theirs": {0: 1.0, 1: 0.0}}, {"ours - theirs": {0: 1.0, 1: float("nan")}}):
        with pytest.raises(SystemExit, match=r"no gain: ours - theirs, seed 1$"):
            verdict(wanted)


def test_results_are_kept(tmp_path: Path) -> None:
    file, made = tmp_path / "seed0.json", []

    def make() -> dict[str, float]:
        made.append(0)
        return {"score": 1.5}

    assert kept(file, make) == kept(file, make) == {"score": 1.5}
    assert len(made) == 1


def test_configs_are_read_with_their_objects() -> None:
    of = settings("wearable_biosignals/embedded")
    assert isinstance(of["data"]["views"], SignalAugment)
    assert isinstance(of["model"]["optim"], Optim)
    assert of["model"]["backbone_args"] == {"embed_dim": 144, "expansion": 1, "kernel_size": 5}
    assert of["steps"] == 240
    assert settings("audio_classifier/embedded_conformer")["model"]["optim"].lr == 1e-3  # YAML 1.1: a word


def test_every_proof_can_be_put_elsewhere() -> None:
    arguments = proof_parser("why", "fst").parse_args(["--seeds", "3", "4", "--workers", "1"])
    assert (arguments.folder, arguments.seeds, arguments.workers) == (Path("runs/learning/fst"), [3, 4], 1)
    assert not hasattr(proof_parser("why", "fst", workers=False).parse_args([]), "workers")
