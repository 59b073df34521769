"""Wearable biosignals: the teacher, both terms, the loss of validation, and probes of people."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from callbacks import EMATeacher, NoMonitors, ParticipantProbe
from callbacks.collapse import samples_of
from callbacks.participant_probe import averaged, same_person, trait_scores
from callbacks.preview import preview
from tests.toy import toy_loader, toy_trainer, weights
from zoo.methods.signal.wearable_biosignals import WearableContrast, ends_of
from zoo.nn import koleo_loss, participant_info_nce
from zoo.nn.logistic import logistic_probe
from zoo.nn.ridge import ridge_probe
from zoo.optim import Optim

SGD = Optim("sgd", lr=0.05, weight_decay=0.0, schedule="constant")


def small(**arguments: Any) -> WearableContrast:
    torch.manual_seed(0)
    network: dict[str, Any] = {"embed_dim": 36, "expansion": 1}
    sizes = {"in_chans": 2, "backbone_args": network, "hidden_dim": 16, "projection_dim": 8}
    return WearableContrast(**{**sizes, "optim": SGD, **arguments})


def batch(people: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pair": torch.randn(people, 2, 2, 64, generator=generator),
        "participant": torch.arange(people),
    }


def norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]


def run(method: WearableContrast, steps: int = 2, **trainer: Any) -> L.Trainer:
    running = toy_trainer(max_steps=steps, callbacks=[NoMonitors()], **trainer)
    batches = [batch(seed=n) for n in range(steps)]
    running.fit(method, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return running


def test_the_teacher_trains_its_own_statistics_and_is_moved_before_the_step() -> None:
    method = small()
    method.train()
    assert all(module.training for module in method.teacher.network.modules())  # dropout, too
    start = weights(method.student)
    run(method, steps=1)
    after_one = weights(method.student)
    # before_step: in the first step it is the student that it was copied from
    for own, first in zip(weights(method.teacher.network), start, strict=True):
        assert torch.equal(own, first)
    student, teacher = norms(method.student)[0], norms(method.teacher.network)[0]
    assert teacher.num_batches_tracked == student.num_batches_tracked == 2  # both views, each by both
    assert not torch.equal(teacher.running_mean, torch.zeros_like(teacher.running_mean))  # type: ignore[arg-type]

    method = small()
    run(method, steps=2)
    wanted = [0.99 * a + 0.01 * b for a, b in zip(start, after_one, strict=True)]
    for own, moved in zip(weights(method.teacher.network), wanted, strict=True):
        torch.testing.assert_close(own, moved)
    assert norms(method.teacher.network)[0].num_batches_tracked == 4  # never the student's


def test_both_terms_by_hand() -> None:
    method, pairs = small(dropout=0.0, koleo_weight=0.3), batch()
    pairs["participant"][1] = 0
    one, two = pairs["pair"].unbind(1)
    found = method.losses(pairs)
    student, teacher = ([net(view) for view in (one, two)] for net in (method.student, method.teacher))
    directions = [(student[0], teacher[1]), (student[1], teacher[0])]
    contrast = sum(participant_info_nce(a, b, pairs["participant"]) for a, b in directions) / 2
    spread = sum(0.5 * (koleo_loss(a) + koleo_loss(b)) for a, b in directions) / 2
    torch.testing.assert_close(found["contrast"], contrast)
    torch.testing.assert_close(found["koleo"], 0.3 * spread)
    assert list(small(koleo_weight=0.0).losses(pairs)) == ["contrast"]
    assert small(negatives="cross", dropout=0.0).losses(pairs)["contrast"] < found["contrast"]
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.student.parameters())


def test_validation_contrasts_the_first_and_last_segment_of_everybody() -> None:
    first, last = ends_of(torch.tensor([5, 5, 5, 7, 9, 9]))
    assert first.tolist() == [0, 4]
    assert last.tolist() == [2, 5]
    method = small()
    signal, who = torch.randn(6, 2, 64) * 7 + 3, torch.tensor([0, 0, 1, 1, 2, 2])
    # in two batches, out of order, as two ranks would give them
    parts = [torch.tensor([1, 2, 5]), torch.tensor([0, 3, 4])]
    batches = [{"signal": signal[p], "participant": who[p], "index": p} for p in parts]
    trainer = toy_trainer()
    statistics = [norm.num_batches_tracked.clone() for norm in norms(method.teacher.network)]
    (metrics,) = trainer.validate(method, DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert statistics == [norm.num_batches_tracked for norm in norms(method.teacher.network)]
    standard = (signal - signal.mean(2, keepdim=True)) / signal.std(2, keepdim=True, correction=0)
    method.eval()
    with torch.no_grad(), method.teacher.using("eval"):
        student, teacher = method.student(standard), method.teacher(standard)
        ends = torch.tensor([0, 2, 4])
        terms = method.terms(
            [student[ends], student[ends + 1]], [teacher[ends + 1], teacher[ends]], torch.arange(3)
        )
    assert metrics["val/loss"] == pytest.approx(sum(terms.values()).item(), rel=1e-4)  # type: ignore[union-attr]
    alone = [{"signal": signal[:2], "participant": who[:2], "index": torch.tensor([0, 1])}]
    with pytest.raises(ValueError, match="val shows 1 participants with two segments or more"):
        trainer.validate(small(), DataLoader(alone, batch_size=None), verbose=False)  # type: ignore[arg-type]


def test_features_do_not_depend_on_the_unit() -> None:
    method = small().eval()
    signal = torch.randn(3, 2, 64)
    torch.testing.assert_close(method(signal), method(signal * 5 - 2), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(method.predict(signal[0].numpy()), method(signal)[0])
    assert method.predict(signal[0]).shape == (method.student.backbone.embed_dim,)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (torch.zeros(3, 64), r"shape \[3, 64\]: expected \[2, T\]"),
        (torch.zeros(64), r"shape \[1, 64\]"),
        (torch.zeros(2, 0), r"shape \[2, 0\]"),
        (torch.full((2, 64), torch.nan), "nan or inf"),
    ],
)
def test_signals_that_cannot_be_predicted(signal: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().predict(signal)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"koleo_weight": -1.0}, "koleo_weight=-1.0"),
        ({"negatives": "all"}, "negatives='all'"),
        ({"backbone": "street_cnn", "backbone_args": {}}, "must embed signals"),
    ],
)
def test_options_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_the_recipe_is_the_released_one() -> None:
    method = WearableContrast(backbone_args={"embed_dim": 36, "expansion": 1})
    optim = method.optim
    assert (optim.name, optim.lr, optim.weight_decay, optim.clip_norm) == ("adam", 1e-3, 1e-5, None)
    assert (optim.schedule, optim.drop_in, optim.drop_start, optim.drop_every) == (
        *("drops", "steps"),
        *(125_000, 125_000),
    )
    (moves,) = [c for c in method.default_callbacks() if isinstance(c, EMATeacher)]
    assert (moves.timing, moves.decay, moves.schedule) == ("before_step", 0.99, "constant")


# -- probes ----------------------------------------------------------------------------------------------


def test_ridge_leaves_one_out_exactly() -> None:
    torch.manual_seed(0)
    x, unseen = torch.randn(12, 3).double(), torch.randn(4, 3).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.3 * torch.randn(12).double() + 5

    def fitted(x: Tensor, y: Tensor, at: Tensor, alpha: float, whole: Tensor) -> Tensor:
        mean, spread = whole.mean(0), whole.std(0, correction=0)
        z = torch.cat([(x - mean) / spread, torch.ones(len(x), 1)], 1)
        penalty = alpha * torch.eye(z.shape[1]).double()
        penalty[-1, -1] = 0
        weight = torch.linalg.solve(z.T @ z + penalty, z.T @ y)
        return torch.cat([(at - mean) / spread, torch.ones(len(at), 1)], 1) @ weight

    alphas, errors = (0.01, 1.0, 100.0), {}
    for alpha in alphas:
        left = list(range(12))
        residuals = [
            y[i] - fitted(x[[j for j in left if j != i]], y[[j for j in left if j != i]], x[[i]], alpha, x)
            for i in left
        ]
        errors[alpha] = float(torch.cat(residuals).square().mean())
    found = ridge_probe(x, y, unseen, alphas)
    assert found.alpha == min(errors, key=errors.__getitem__)
    torch.testing.assert_close(found.prediction, fitted(x, y, unseen, found.alpha, x))
    assert ridge_probe(torch.ones(5, 2), torch.arange(5.0), torch.ones(1, 2)).prediction.item() == 2.0
    with pytest.raises(ValueError, match="needs three samples"):
        ridge_probe(x[:2], y[:2], unseen)


def test_logistic_regression_is_scikit_learns_with_the_penalty_of_least_log_loss() -> None:
    torch.manual_seed(0)
    x, unseen = torch.randn(14, 3) * 5 + 2, torch.randn(6, 3)
    target = (x[:, 0] + 3 * torch.randn(14) > 2).float()
    scaled = StandardScaler().fit(x.numpy())

    def fitted(penalty: float) -> LogisticRegression:
        return LogisticRegression(C=1 / penalty).fit(scaled.transform(x.numpy()), target.numpy())

    wanted = {a: fitted(a).decision_function(scaled.transform(unseen.numpy())) for a in (1.0, 1e4)}
    for alpha, log_odds in wanted.items():
        found = logistic_probe(x, target, unseen, [alpha])
        torch.testing.assert_close(found, torch.from_numpy(log_odds).double(), rtol=1e-3, atol=1e-4)
    # 1e4 all but ignores the features, which tell the classes apart
    torch.testing.assert_close(
        logistic_probe(x, target, unseen, [1e4, 1.0]), logistic_probe(x, target, unseen, [1.0])
    )
    for labels in (torch.zeros(14), torch.eye(14)[0], target * 2):
        with pytest.raises(ValueError, match="needs two samples of 0 and of 1"):
            logistic_probe(x, labels, unseen)
    with pytest.raises(ValueError, match="must be positive penalties"):
        logistic_probe(x, target, unseen, [0.0])


def test_binary_traits_are_predicted_as_asked_and_others_by_ridge() -> None:
    torch.manual_seed(2)
    people = torch.arange(20)
    trait = torch.stack([(people % 2).float(), people.float()], 1)
    trait[3, 0] = torch.nan  # not known of one
    features = 2 * torch.randn(20, 3) + trait.nan_to_num()[:, :1]
    seen = {"features": features, "participant": people, "trait": trait}
    known, found = ({key: value[part] for key, value in seen.items()} for part in (people < 10, people >= 10))
    traits, alphas = ("sex", "age"), (0.1, 10.0)
    logistic, ridge = (
        trait_scores(known, found, traits, alphas, "logistic"),
        trait_scores(known, found, traits, alphas),
    )
    fits = known["trait"][:, 0].isfinite()
    odds = logistic_probe(known["features"][fits], known["trait"][fits, 0], found["features"], alphas)
    area = binary_auroc(odds.sigmoid(), found["trait"][:, 0].long())
    assert logistic["sex_auc"] == 100 * area
    assert logistic["sex_auc"] != ridge["sex_auc"]
    assert logistic["age_mae"] == ridge["age_mae"]


def test_retrieval_and_dispersion_by_hand() -> None:
    features = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.2, 1], [1, 0.05]])
    found = same_person(features, torch.tensor([0, 0, 1, 1, 2]))
    assert found["retrieval"].item() == pytest.approx(
        50.0
    )  # person 2 lies between both of 0, and is no query
    assert found["dispersion"] < 0.1
    assert same_person(features, torch.tensor([0, 0, 1, 1, 2]), limit=4)["retrieval"] == 100


def test_people_are_averaged_without_gaps() -> None:
    features, trait = averaged(
        {
            "features": torch.tensor([[1.0], [3], [5]]),
            "participant": torch.tensor([4, 4, 2]),
            "trait": torch.tensor([[7.0], [torch.nan], [torch.nan]]),
            "index": torch.arange(3),
        }
    )
    assert features.tolist() == [[5.0], [2.0]]
    assert trait[1].tolist() == [7.0]
    assert trait[0].isnan()


def test_the_probe_says_what_it_needs() -> None:
    for arguments in ({"alphas": ()}, {"alphas": (0.0,)}, {"max_segments": 1}):
        with pytest.raises(ValueError, match="must be positive"):
            ParticipantProbe(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classifier='svm': expected ridge or logistic"):
        ParticipantProbe(classifier="svm")  # type: ignore[arg-type]
    trainer = toy_trainer(callbacks=[ParticipantProbe()])
    with pytest.raises(MisconfigurationException, match="compares people, and NoneType has none"):
        trainer.validate(small(), toy_loader(1))


def test_pictures_and_samples_of_signals() -> None:
    pairs = batch()
    assert samples_of(pairs).shape == (4, 2, 64)
    for shown in (pairs, {"signal": torch.randn(3, 2, 50)}):
        assert preview(shown, None).width > 100
