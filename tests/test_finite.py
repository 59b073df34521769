"""nan and inf: who is named, what is kept, and what a skipped step leaves alone."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import EMATeacher, NonFinite
from tests.cli_toy import only_run, zoo_run
from tests.toy import SGD, Record, ToyMethod, toy_batch, toy_trainer, weights
from zoo.__main__ import main
from zoo.broken_batch import BrokenBatch
from zoo.checkpoints.files import CheckpointError
from zoo.config_files import UsageError
from zoo.nn.magnitudes import magnitudes
from zoo.optim import Optim
from zoo.rerun import rerun


class InfGradient(torch.autograd.Function):
    """Nothing forwards, inf backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("inf")


class Breaks(ToyMethod):
    """Breaks in the batch whose first target point is 99: in its loss, its gradient or its statistics."""

    def __init__(self, what: str = "loss", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.what = what
        self.register_buffer("mean", torch.zeros(3))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses, image = super().losses(batch), batch["target"]["image"]
        broken = (image[0, 0] == 99).float()
        if self.what == "loss":
            losses["target"] = losses["target"] + (broken / (1 - broken) - broken)  # 1 / 0
        elif broken:
            losses["target"] = InfGradient.apply(losses["target"])
        return losses

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean.add_(
            batch["target"]["image"].mean(0) * (1 / (1 - (batch["target"]["image"][0, 0] == 99).float()))
        )
        return loss


class Still(EMATeacher):
    """A teacher that nobody moves, so that a skipped step can be told from one that never was."""

    def __init__(self) -> None:
        super().__init__(timing="manual")

    def on_train_end(self, *_: Any) -> None:
        """Standing still is the point."""


def batches(count: int = 5, broken: tuple[int, ...] = (2,), value: float = 99.0) -> list[dict[str, Any]]:
    items = [toy_batch(seed) for seed in range(count)]
    for number, item in enumerate(items):
        item["source"]["index"] = torch.arange(6) + 10 * number
        item["target"]["index"] = torch.arange(6) + 100 * number
        if number in broken:
            item["target"]["image"][0, 0] = value
    return items


def loader(items: list[dict[str, Any]]) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(items, batch_size=None)


def fit(method: ToyMethod, items: list[dict[str, Any]], *callbacks: Callback, **options: Any) -> Any:
    trainer = toy_trainer(max_epochs=1, callbacks=[*callbacks], **options)
    trainer.fit(method, loader(items))
    return trainer


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("what", "term"), [("loss", "loss 'target'"), ("gradient", "gradient of 'student.0.weight', gradient of")]
)
def test_step_samples_and_term_are_named_and_the_batch_is_kept(what: str, term: str, wait: bool) -> None:
    items = batches()
    named = rf"{term}.* became nan or inf in step 2 \(micro-batch 2; source.index 20, .*target.index 200, 201"
    with pytest.raises(FloatingPointError, match=named) as error:
        fit(Breaks(what), items, NonFinite(wait=wait, folder="here"))
    path = re.search(r"zoo rerun (\S+)\. ", str(error.value))
    assert path is not None
    found = BrokenBatch.load(path[1])
    assert (found.step, found.batch_idx, bool(found.state)) == (2, 2, wait)
    assert torch.equal(found.batch["target"]["image"], items[2]["target"]["image"])
    assert found.broken[0].startswith(term.partition(",")[0])


def test_the_broken_step_changes_nothing_where_the_host_waits() -> None:
    good, bad = Breaks(), Breaks()
    torch.manual_seed(0)
    state = {k: v.clone() for k, v in good.state_dict().items()}
    bad.load_state_dict(state)
    fit(good, batches()[:2], EMATeacher(timing="after_step", decay=0.9))
    with pytest.raises(FloatingPointError):
        fit(bad, batches(), EMATeacher(timing="after_step", decay=0.9))
    for name, tensor in good.state_dict().items():
        assert torch.equal(tensor, bad.state_dict()[name]), name


def test_a_batch_is_run_again_to_the_same_end(capsys: pytest.CaptureFixture[str]) -> None:
    class Keep(Record):
        step_order = 0  # before the run is ended

        def on_losses(self, pl_module: Any, losses: dict[str, Tensor]) -> None:
            self.losses = {name: float(loss.detach()) for name, loss in losses.items()}

    keep = Keep()
    with pytest.raises(FloatingPointError) as first:
        fit(Breaks(dropout=0.5), batches(), NonFinite(folder="here"), keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.class_paths._allowed", {"zoo"})
        with pytest.raises(UsageError, match="importing tests runs its code"):
            rerun("here/nonfinite-step2-rank0.pt")
    with pytest.raises(FloatingPointError) as again:
        rerun("here/nonfinite-step2-rank0.pt")
    assert str(again.value).partition(" (")[0] == str(first.value).partition(" (")[0]
    assert main(["rerun", "here/nonfinite-step2-rank0.pt"]) == 1
    assert "it breaks again: loss 'target' became nan or inf in step 2" in capsys.readouterr().err
    healed = BrokenBatch.load("here/nonfinite-step2-rank0.pt")
    healed.batch["target"]["image"][0, 0] = 0.0
    healed.save(Path("healed.pt"))
    losses = rerun("healed.pt")
    assert losses["source"] == keep.losses["source"]  # the same dropout
    assert main(["rerun", "healed.pt"]) == 0
    healed.state = {}
    healed.save(Path("without.pt"))
    assert main(["rerun", "without.pt"]) == 2
    assert "add --ckpt_path" in capsys.readouterr().err
    torch.save({"state_dict": {}}, "other.pt")
    with pytest.raises(CheckpointError, match="no batch that NonFinite wrote"):
        rerun("other.pt")


def test_samples_that_are_broken_already_are_named() -> None:
    items = batches(broken=(1,), value=float("nan"))
    with pytest.raises(FloatingPointError, match=r"Already in the batch: target.image: index 100: look at"):
        fit(ToyMethod(), items)


def test_no_checkpoint_is_written_of_broken_weights() -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            # A whole checkpoint, as runs write it: here the argument says what is saved, not how it is loaded.
            trainer.save_checkpoint(f"{trainer.global_step}.ckpt", weights_only=False)

    with pytest.raises(FloatingPointError, match="in step 2"):
        fit(Breaks(), batches(), NonFinite(wait=False), Save(), enable_checkpointing=True)
    assert sorted(path.name for path in Path().glob("*.ckpt")) == ["1.ckpt", "2.ckpt"]


def test_the_last_micro_batches_are_looked_at_when_training_ends() -> None:
    with pytest.raises(FloatingPointError, match="in step 4"):
        fit(Breaks(), batches(broken=(4,)), NonFinite(wait=False))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_leaves_everything_as_it_was(what: str) -> None:
    with_it, without = Breaks(what), Breaks(what)
    without.load_state_dict(with_it.state_dict())
    optim = {"name": "adamw", "lr": 0.1, "schedule": "constant"}
    for method in (with_it, without):
        method.optim = type(method.optim)(**optim)
    skip = NonFinite("skip", folder="here")
    with pytest.warns(UserWarning, match="Step 2 is skipped: .*target.index 200"):
        skipped = fit(with_it, batches(), skip, Still())
    items = batches()
    del items[2]
    fit(without, items, Still())
    assert (skip.skipped, skipped.global_step) == ([2], 5)
    assert Path("here/nonfinite-step2-rank0.pt").is_file()
    for name, tensor in with_it.state_dict().items():
        if name != "teacher.step":  # steps count on
            assert torch.equal(tensor, without.state_dict()[name]), name


def test_accumulated_micro_batches_are_skipped_together() -> None:
    method = Breaks()
    before = weights(method.student)
    skip = NonFinite("skip")
    with pytest.warns(UserWarning, match="Step 0 is skipped"):
        fit(method, batches(2, broken=(0,)), skip, Still(), accumulate_grad_batches=2)
    assert skip.skipped == [0]
    assert all(torch.equal(a, b) for a, b in zip(before, weights(method.student), strict=True))
    assert not method.mean.any()


def test_skipping_gives_up() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match="Skipping does not help: 2 steps in a row were broken"):
            fit(Breaks(), batches(broken=(1, 2)), NonFinite("skip", max_skipped=2))

        class Poison(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
                pl_module.teacher.network[0].bias.data[0] = float("nan")

        with pytest.raises(FloatingPointError, match="Skipping does not help: a teacher holds it"):
            fit(ToyMethod(), batches(broken=()), NonFinite("skip"), Poison())


def test_a_full_disk_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FloatingPointError, match=r"in step 2 .*could not be written .*No space left"):
        fit(Breaks(), batches(), NonFinite(folder="here"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_numbers_are_finite_and_infinite_ones_are_found(dtype: torch.dtype) -> None:
    """Also where the Euclidean norm, which a CPU looks at first, overflows."""
    large = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    assert magnitudes([large, torch.ones(2, dtype=dtype)]).isfinite().tolist() == [True, True]
    for broken in ("inf", "-inf", "nan"):
        worse = large.clone()
        worse[1, 2] = float(broken)
        assert magnitudes([large, worse, -large]).isfinite().tolist() == [True, False, True]


def test_the_flags_never_wait_for_the_device() -> None:
    """Tensors of `meta` have no values: reading one on the host fails."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).to("meta")
    assert magnitudes(network.parameters()).shape == (4,)
    with pytest.raises(RuntimeError):
        magnitudes(network.parameters()).tolist()


@pytest.mark.parametrize(
    "options", [{"action": "ignore"}, {"action": "skip", "wait": False}, {"max_skipped": 0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match="NonFinite"):
        NonFinite(**options)


# -- precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [{}, {"clip_norm": 9.0, "options": {"fused": True}}])
def test_a_gradient_scaler_steps_over_what_overflows(optim: dict[str, Any]) -> None:
    """fp16 with a scaler: gradients overflow by design, and the scaler leaves out the step and halves its scale."""
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    method = Breaks("gradient", optim=Optim(**{**SGD, **optim}))
    trainer = fit(method, batches(), EMATeacher(decay=0.9), plugins=[precision])
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 4.0
    assert trainer.global_step == 5
    assert all(torch.isfinite(weight).all() for weight in weights(method))
    with pytest.raises(FloatingPointError, match="loss 'target' became nan or inf in step 2"):
        fit(Breaks(), batches(), plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))])


def test_bf16_is_watched() -> None:
    for precision in ("bf16-mixed", "bf16-true"):
        items = batches()
        if precision == "bf16-true":
            for item in items:
                for domain in item.values():
                    domain["image"] = domain["image"].bfloat16()
        with pytest.raises(FloatingPointError, match="loss 'target' became nan or inf in step 2"):
            fit(Breaks(), items, precision=precision)


def test_the_command_line_stops_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run("fit", "--model", "BrokenMethod", steps=1) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("zoo fit: error: loss 'source' became nan or inf in step 0")
    assert "zoo rerun runs/brokenmethod" in last
    assert (only_run() / "nonfinite-step0-rank0.pt").is_file()
