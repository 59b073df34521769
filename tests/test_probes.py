"""Probes of features: their arithmetic against references, and their life inside training and tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from callbacks import (
    CollapseMonitor,
    DenseProbe,
    KNNProbe,
    LinearProbe,
    OnlineLinearProbe,
    RankMe,
    RawPixelProbe,
)
from callbacks.probe import evaluating
from datamodules import StreetShiftSemi
from datamodules.image_sets import balanced_choice
from tests.probe_script import ToyEncoder, probes, toy_data, toy_trainer
from tests.tiny import STREETSHIFT_SEMI
from tests.tiny_images import write_idx
from zoo.nn.effective_rank import effective_rank, rankme, relative_spread
from zoo.nn.knn import knn_scores
from zoo.nn.linear_grid import LinearGrid

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A Fashion-MNIST tree of noise, brighter in one of sixteen cells for each of five classes."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 25)):
        labels = (np.arange(count) % 5).astype(np.uint8)
        cells = rng.uniform(0, 120, (count, 4, 4))
        cells[np.arange(count), labels % 4, labels // 4] += 100
        images = cells.repeat(7, 1).repeat(7, 2).astype(np.uint8)
        write_idx(tmp_path / "tree" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "tree" / f"{prefix}-labels-idx1-ubyte", labels)
    return tmp_path / "tree"


def measured(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# Nearest neighbours.


def reference_scores(
    query: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, largest: int, temperature: float
) -> Tensor:
    """Written out: sort all similarities, softmax over the ``largest``, add up the first ``k`` votes."""
    scores = torch.zeros(len(query), classes)
    for row, one in zip(scores, query, strict=True):
        similarity = torch.stack([F.cosine_similarity(one, other, dim=0) for other in bank])
        values, order = similarity.sort(descending=True)
        votes = (values[:largest] / temperature).softmax(0)
        for vote, index in zip(votes[:k], order[:k], strict=True):
            row[labels[index]] += vote
    return scores


@pytest.mark.parametrize("chunk", [7, 50, 1000])
def test_knn_is_the_written_out_vote(chunk: int) -> None:
    torch.manual_seed(0)
    query, bank, labels = torch.randn(9, 6), 3 * torch.randn(50, 6), torch.randint(4, (50,))
    scores = knn_scores(query, bank, labels, 4, [1, 10, 30], 0.07, chunk)
    for k, found in scores.items():
        expected = reference_scores(query, bank, labels, 4, k, 30, 0.07)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_knn_agrees_with_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(1)
    labels = torch.randint(5, (300,))
    bank = torch.randn(300, 8) + 2 * F.one_hot(labels, 8)
    query = torch.randn(100, 8) + F.one_hot(torch.randint(5, (100,)), 8)
    ours = knn_scores(query, bank, labels, 5, [12], 0.07, chunk=64)[12].argmax(1)
    theirs = KNeighborsClassifier(12, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = theirs.fit(bank.numpy(), labels.numpy()).predict(query.numpy())
    assert np.array_equal(ours.numpy(), expected)


def test_k_larger_than_the_bank(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"k=51, but the bank holds 50 features: choose k between 1 and 50"):
        knn_scores(torch.randn(2, 3), torch.randn(50, 3), torch.zeros(50, dtype=torch.long), 2, [5, 51])
    with pytest.raises(ValueError, match="k=200, but the bank holds 45 features"):
        toy_trainer([KNNProbe()]).test(ToyEncoder(), datamodule=toy_data(tree), verbose=False)


# Rank and spread.


def test_rankme_is_its_formula() -> None:
    torch.manual_seed(0)
    for shape in ((40, 6), (6, 40)):
        features = torch.randn(shape) @ torch.diag(torch.linspace(0.1, 3, shape[1]))
        singular = torch.linalg.svdvals(features.double())
        p = singular / singular.sum() + 1e-7
        torch.testing.assert_close(rankme(features), torch.exp(-(p * p.log()).sum()), rtol=1e-4, atol=0)


def test_rank_and_spread_of_known_features() -> None:
    torch.manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(64, 8)).Q
    assert float(rankme(orthogonal)) == pytest.approx(8, rel=1e-4)
    line = torch.randn(100, 1) * torch.randn(1, 8) + 5
    assert float(effective_rank(line)) == pytest.approx(1, abs=0.01)
    assert float(rankme(line)) > 1.05  # not centred: the mean is a direction of its own
    assert float(effective_rank(torch.ones(20, 8))) == pytest.approx(1, abs=0.01)
    assert float(relative_spread(torch.randn(4000, 16))) == pytest.approx(1, abs=0.02)
    assert float(relative_spread(torch.ones(20, 8))) == pytest.approx(0, abs=1e-6)


# Linear classifiers.


def test_linear_grid_is_separate_sgd_runs() -> None:
    torch.manual_seed(0)
    features = {"a": torch.randn(40, 5), "b": torch.randn(40, 3)}
    label = torch.randint(4, (40,))
    rates, steps = [0.5, 0.1], 6
    grid = LinearGrid({"a": 5, "b": 3}, 4, rates, steps, seed=2)
    references = []
    for number, kind in enumerate(features):
        for which, rate in enumerate(rates):
            layer = nn.Linear(features[kind].shape[1], 4)
            layer.weight.data.copy_(grid.weights[number][which])
            nn.init.zeros_(layer.bias)
            assert 0.003 < float(layer.weight.detach().std()) < 0.03
            optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            references.append((kind, number, which, layer, optimizer, schedule))
    for step in range(steps):
        index = torch.arange(step * 6, step * 6 + 6)
        grid.fit({kind: value[index] for kind, value in features.items()}, label[index])
        for kind, _, _, layer, optimizer, schedule in references:
            optimizer.zero_grad()
            F.cross_entropy(layer(features[kind][index]), label[index]).backward()
            optimizer.step()
            schedule.step()
    right = grid.correct(features, label)
    for kind, number, which, layer, _, _ in references:
        torch.testing.assert_close(grid.weights[number][which], layer.weight, rtol=1e-4, atol=1e-6)
        assert right[number, which] == (layer(features[kind]).argmax(1) == label).sum()


def test_linear_probe_of_several_kinds_reports_the_best(tree: Path) -> None:
    class Several(ToyEncoder):
        def probe_features(self, image: Tensor) -> dict[str, Tensor]:
            useful = F.adaptive_avg_pool2d(image[:, :1], 4).flatten(1)
            return {"useless": 0 * useful, "useful": useful}

    trainer = toy_trainer([LinearProbe(epochs=30, batch_size=15, learning_rates=[1e-4, 5.0])])
    trainer.test(Several(), datamodule=toy_data(tree), verbose=False)
    metrics = measured(trainer)
    assert metrics["test/linear"] == metrics["test/linear_useful"] >= 80
    assert metrics["test/linear_useless"] == pytest.approx(20)


def test_linear_probe_with_augmentation(tree: Path) -> None:
    method = ToyEncoder()
    trainer = toy_trainer([LinearProbe([1.0], epochs=2, batch_size=9, augment=True)])
    trainer.validate(method, datamodule=toy_data(tree), verbose=False)
    assert 0 <= measured(trainer)["val/linear"] <= 100
    assert method.forwards == 2 * 5 + 2  # five batches of 45 images an epoch, two of validation


# Online and offline.


def test_probes_run_while_training_and_share_features(tree: Path) -> None:
    method = ToyEncoder()
    callbacks = [KNNProbe(k=[1, 5]), KNNProbe(k=[3], every=2), LinearProbe([0.1]), RankMe()]
    trainer = toy_trainer(callbacks, num_sanity_val_steps=2)
    trainer.fit(method, datamodule=toy_data(tree))
    metrics = measured(trainer)
    assert {"val/knn1", "val/knn5", "val/knn3", "val/linear", "val/rankme"} <= set(metrics)
    assert method.forwards == 2 * (6 + 2)  # 45 bank and 15 validation images in batches of 8, twice
    assert all(module.training for module in method.student)
    # The same by hand.
    data = toy_data(tree)
    data.setup()
    with evaluating(method), torch.no_grad():
        sets = {}
        for name in ("labelled", "val"):
            batch = data.subset(name).batch(np.arange(len(data.subset(name))))
            sets[name] = (method.features(batch["image"].float() / 255), batch["label"])
    scores = knn_scores(sets["val"][0], *sets["labelled"], 10, [1, 5])
    for k in (1, 5):
        expected = 100 * (scores[k].argmax(1) == sets["val"][1]).float().mean()
        assert metrics[f"val/knn{k}"] == pytest.approx(float(expected))
    assert metrics["val/knn1"] > 40  # five classes
    assert metrics["val/rankme"] == pytest.approx(float(rankme(sets["val"][0])), rel=1e-5)


def test_raw_pixels_are_measured_once_beside_the_probes(tree: Path) -> None:
    probe, data = RawPixelProbe(k=5, images=40), toy_data(tree)
    trainer = toy_trainer([probe])
    trainer.fit(ToyEncoder(), datamodule=data)
    metrics = measured(trainer)
    bank = data.subset("labelled")
    x = bank.batch(balanced_choice(bank.labels, 40, 0))
    y = data.subset("val").batch(np.arange(15))
    pixels, query = (batch["image"][:, 0].flatten(1).numpy() / 255 for batch in (x, y))
    expected = LogisticRegression(max_iter=1000).fit(pixels, x["label"]).score(query, y["label"])
    assert metrics["val/pixels_logistic"] == pytest.approx(100 * expected)
    scores = knn_scores(torch.tensor(query), torch.tensor(pixels), x["label"], 10, [5])[5]
    expected = (scores.argmax(1) == y["label"]).float().mean()
    assert metrics["val/pixels_knn5"] == pytest.approx(100 * float(expected))
    probe._pixels = None  # the second validation repeats what the first one measured
    trainer.validate(ToyEncoder(), datamodule=data, verbose=False)
    assert measured(trainer)["val/pixels_knn5"] == pytest.approx(100 * float(expected))
    with pytest.raises(ValueError, match=r"k=50, but the bank holds 45 features"):
        toy_trainer([RawPixelProbe(k=50)]).validate(ToyEncoder(), datamodule=data, verbose=False)


def test_every_nth_validation(tree: Path) -> None:
    method = ToyEncoder()
    toy_trainer([KNNProbe(k=[1], every=2)], max_epochs=3).fit(method, datamodule=toy_data(tree))
    assert method.forwards == 6 + 2


def test_online_probe_learns_and_is_in_checkpoints(tree: Path, tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: str | None = None) -> tuple[Any, OnlineLinearProbe]:
        method, probe = ToyEncoder(), OnlineLinearProbe(lr=0.05)
        method.student[2] = nn.Identity()  # dropout would draw anew after resuming
        trainer = toy_trainer([probe], max_epochs=epochs)
        trainer.fit(method, datamodule=toy_data(tree, crop_scale=None, flip=0.0), ckpt_path=ckpt_path)
        return trainer, probe

    whole, through = run(20)
    half, _ = run(10)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = run(20, str(tmp_path / "half.ckpt"))
    for a, b in zip(through._layer.parameters(), again._layer.parameters(), strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(a, b)
    assert measured(whole)["val/online_linear"] == measured(resumed)["val/online_linear"] > 50
    resumed.save_checkpoint(tmp_path / "whole.ckpt")
    tested = toy_trainer([OnlineLinearProbe()])
    tested.test(
        ToyEncoder(), datamodule=toy_data(tree), ckpt_path=str(tmp_path / "whole.ckpt"), verbose=False
    )
    assert measured(tested)["test/online_linear"] > 50
    with pytest.raises(MisconfigurationException, match=r"has no trained layer.*ckpt_path.*LinearProbe"):
        toy_trainer([OnlineLinearProbe()]).test(ToyEncoder(), datamodule=toy_data(tree), verbose=False)


def test_the_method_does_not_notice_an_online_probe(tree: Path) -> None:
    class Plain(ToyEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.student[2] = nn.BatchNorm1d(12)

    def weights(*callbacks: Any) -> list[Tensor]:
        torch.manual_seed(0)
        method = Plain()
        data = toy_data(tree, crop_scale=None, flip=0.0)
        toy_trainer(list(callbacks), limit_val_batches=0, log_every_n_steps=1).fit(method, datamodule=data)
        return list(method.state_dict().values())

    for a, b in zip(weights(), weights(OnlineLinearProbe(), CollapseMonitor(1, 0.0, 0.0)), strict=True):
        assert torch.equal(a, b)


def test_dense_probe_beats_features_that_see_nothing() -> None:
    class Dense(ToyEncoder):
        blind = False

        def dense_features(self, image: Tensor) -> Tensor:
            return F.avg_pool2d(image, 4) * (0.0 if self.blind else 1.0)

    scores = []
    for blind in (False, True):
        method = Dense()
        method.blind = blind
        trainer = toy_trainer([DenseProbe(part="labelled", steps=60, lr=0.05)])
        trainer.validate(method, datamodule=StreetShiftSemi(**STREETSHIFT_SEMI), verbose=False)
        scores.append(measured(trainer)["val/dense_mIoU"])
    assert 0 < scores[1] < scores[0] <= 100
    with pytest.raises(
        MisconfigurationException, match=r"part='unlabelled'\).*only \['labelled', 'unlabelled'\]"
    ):
        toy_trainer([DenseProbe(part="unlabelled")]).validate(
            Dense(), datamodule=StreetShiftSemi(**STREETSHIFT_SEMI), verbose=False
        )
    with pytest.raises(MisconfigurationException, match="ToyEncoder has no dense_features"):
        toy_trainer([DenseProbe()]).validate(
            ToyEncoder(), datamodule=StreetShiftSemi(**STREETSHIFT_SEMI), verbose=False
        )


def test_collapse_is_told_once_in_plain_words(tree: Path) -> None:
    class Collapsed(ToyEncoder):
        def features(self, image: Tensor) -> Tensor:
            return torch.ones(len(image), 12) + 1e-4 * super().features(image)[:, :1]

    with pytest.warns(
        UserWarning, match=r"(?s)Step \d+: .*directions.* and .*nearly the same.*collapsing"
    ) as said:
        toy_trainer([CollapseMonitor(every_n_steps=1, min_rank=0.2)], log_every_n_steps=1).fit(
            Collapsed(), datamodule=toy_data(tree)
        )
    assert len([w for w in said if "collapsing" in str(w.message)]) == 1
    trainer = toy_trainer([CollapseMonitor(every_n_steps=1)], log_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsing")
        trainer.fit(ToyEncoder(), datamodule=toy_data(tree))
    assert measured(trainer)["train/feature_spread"] > 0.1
    assert 0.2 < measured(trainer)["train/feature_rank"] <= 1


@pytest.mark.slow
def test_ranks_measure_what_one_process_measures(tree: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.probe_script", str(tmp_path), str(tree),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    single = toy_trainer(probes())
    single.test(ToyEncoder(), datamodule=toy_data(tree), verbose=False)
    expected = measured(single)
    assert set(ranks[0]) == set(expected)
    for name in ("test/knn1", "test/knn5", "test/rankme", "test/pixels_knn5", "test/pixels_logistic"):
        assert ranks[0][name] == pytest.approx(expected[name], rel=1e-5)
    assert ranks[0]["test/linear"] == pytest.approx(
        expected["test/linear"], abs=30
    )  # another order of the bank


# What is said about bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KNNProbe(k=[]), "k must be one or more numbers from 1"),
        (lambda: KNNProbe(temperature=0), "temperature and chunk positive"),
        (lambda: KNNProbe(every=0), "every must be at least 1"),
        (lambda: LinearProbe(epochs=0), "epochs and batch_size must be at least 1"),
        (lambda: LinearProbe(learning_rates=[]), "learning_rates must be one or more positive"),
        (lambda: OnlineLinearProbe(lr=0), "lr must be positive"),
        (lambda: DenseProbe(steps=0), "steps must be at least 1"),
        (lambda: RawPixelProbe(k=5, images=4), "images at least k, got k=5, images=4"),
        (lambda: RankMe(max_images=1), "max_images must be at least 2"),
        (lambda: CollapseMonitor(min_rank=2), r"min_spread and min_rank within \[0, 1\]"),
    ],
)
def test_arguments_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_probes_say_what_they_lack(tree: Path) -> None:
    class Blind(ToyEncoder):
        features = None  # type: ignore[assignment]

    with pytest.raises(MisconfigurationException, match=r"Blind has no features\(image\)"):
        toy_trainer([RankMe()]).validate(Blind(), datamodule=toy_data(tree), verbose=False)

    class Maps(ToyEncoder):
        def features(self, image: Tensor) -> Tensor:
            return image

    with pytest.raises(MisconfigurationException, match=r"Maps.features must return \[B, D\]"):
        toy_trainer([RankMe()]).validate(Maps(), datamodule=toy_data(tree), verbose=False)
    with pytest.raises(MisconfigurationException, match=r"StreetShiftSemi has no bank_dataloader\(\)"):
        toy_trainer([KNNProbe()]).validate(
            ToyEncoder(), datamodule=StreetShiftSemi(**STREETSHIFT_SEMI), verbose=False
        )
    one_image = toy_data(tree, batch_size=1)
    with pytest.warns(UserWarning, match=r"a step has one: it watches nothing\. Raise data\.batch_size"):
        toy_trainer([CollapseMonitor(1)], max_epochs=1, log_every_n_steps=1).fit(
            ToyEncoder(), datamodule=one_image
        )
