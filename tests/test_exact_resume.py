"""Stopping and resuming: bit for bit, from within an epoch and from its end, and after being killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks import AtomicCheckpointIO, ExactResume
from callbacks.exact_resume import rng_state, set_rng_state
from datamodules.sampling import ResumableLoader, StridedSampler
from tests.cli_toy import checkpoint, notes, zoo_run
from tests.resuming import differences, straight_and_resumed
from tests.test_configs import QUIET, miniature
from tests.toy import ToyMethod, toy_loader, toy_trainer
from zoo.__main__ import main
from zoo.registry import method_card
from zoo.resume import Trained

# -- bit for bit -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self_training", "ssast"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["within", "end"])
def test_resumed_equals_unbroken(
    name: str, workers: int, accumulate: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches an epoch, saved after each; workers read two and more batches ahead."""
    config = method_card(name).configs[0]
    command = ["fit", "--config", config, *miniature(config, tmp_path), *QUIET]
    for option, value in {
        "max_steps": 5,
        "limit_train_batches": 3,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 1,
        "limit_val_batches": 1,
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }.items():
        command += [f"--trainer.{option}", str(value)]
    stop = 3 // accumulate + 3 % accumulate if where == "end" else 1
    stopped, _ = straight_and_resumed(
        [*command, "--data.num_workers", str(workers)], tmp_path / "run", stop, monkeypatch
    )
    progress = stopped["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["is_last_batch"] is (where == "end")
    assert progress["current"]["ready"] == (3 if where == "end" else accumulate)


def test_random_states_come_back() -> None:
    def draw() -> list[Any]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),  # noqa: NPY002
            np.random.randn(),  # noqa: NPY002
            torch.rand(3).tolist(),
        ]

    draw()
    torch.save(rng_state(), "state.pt")
    first = draw()
    draw()
    set_rng_state(torch.load("state.pt", weights_only=True))
    assert draw() == first


def test_a_loader_goes_on_where_the_run_stands() -> None:
    for workers in (0, 2):
        sampler = StridedSampler(12, rank=1, ranks=2, endless=True)
        loader = ResumableLoader(range(1000), batch_size=2, sampler=sampler, num_workers=workers)
        loader.position = lambda: 1
        running = iter(loader)  # Lightning makes it before it tells the epoch
        sampler.set_epoch(3)
        before = torch.get_rng_state()
        assert [batch.tolist() for batch in running] == [[41, 43], [45, 47]]
        assert torch.equal(torch.get_rng_state(), before)
        loader.position = lambda: 3  # a shorter loader beside a longer one starts again
        assert len(list(loader)) == len(loader) == 3


def test_no_checkpoint_within_an_accumulating_step(tmp_path: Path) -> None:
    """Six batches, two a step, validation after the third: what it would have saved waits for the fourth."""
    logged = ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3"]
    assert zoo_run("fit", *logged, "--data.batches", "6", "--run_dir", "run", steps=2) == 0
    last = checkpoint(Path("run/checkpoints/last.ckpt"))
    assert last["global_step"] == 2
    assert last["callbacks"]["ExactResume"]["pending"] == 0
    best = next(Path("run/checkpoints").glob("best*.ckpt"))
    assert checkpoint(best)["callbacks"]["ExactResume"]["pending"] == 1


def test_resuming_within_an_accumulating_step_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    test_no_checkpoint_within_an_accumulating_step(Path())
    capsys.readouterr()
    assert zoo_run("fit", "--ckpt_path", "run/checkpoints/best.ckpt", "--run_dir", "on", steps=3) == 0
    assert any("1 micro-batches into an optimiser step, whose gradient" in note for note in notes(capsys))


def test_another_batch_size_or_length_is_told(recwarn: pytest.WarningsRecorder) -> None:
    """Steps of the schedule; a constant rate knows no end."""
    base = ["--run_dir", "run", "--model.optim.schedule", "poly"]
    assert zoo_run("fit", *base, steps=2) == 0
    assert zoo_run("fit", *base, "--ckpt_path", "last", "--data.batch_size", "3", steps=4) == 0
    told = " ".join(str(warning.message) for warning in recwarn)
    assert "data.batch_size was 1 where the checkpoint was written and is 3" in told
    assert "the number of steps of the schedule was 2 where the checkpoint was written and is 4" in told


def test_another_number_of_processes_is_told() -> None:
    resume = ExactResume()
    trainer = toy_trainer(max_steps=1, callbacks=[resume])
    resume.load_state_dict({"rng_state": [rng_state(), rng_state()], "pending": 0})
    with pytest.warns(UserWarning, match="random states of 2 processes and 1 go on"):
        trainer.fit(ToyMethod(), toy_loader(1))


# -- files -----------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), Path("a/last.ckpt")
    io.save_checkpoint({"x": torch.ones(3)}, path)

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"x": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(3))
    assert [*path.parent.iterdir()] == [path]


def test_every_save_of_a_run_is_atomic() -> None:
    resume = ExactResume()
    trainer = toy_trainer(max_steps=1, callbacks=[resume])
    trainer.fit(ToyMethod(), toy_loader(1))
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_passed_over(harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy is best at step 4 of 5."""
    assert zoo_run("fit", "--trainer.val_check_interval", "2", "--run_dir", "run", steps=5) == 0
    last, best = (Path("run/checkpoints", f"{name}.ckpt") for name in ("last", "best"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[harm]
    last.write_bytes(harmed)
    found = Trained("last", "run", resumes=True)
    assert found.path == str(best)
    assert found.checkpoint["global_step"] == 4
    capsys.readouterr()
    assert zoo_run("fit", "--ckpt_path", "last", "--run_dir", "run", steps=6) == 0
    assert any(str(last) in note and f"passed over for {best}" in note for note in notes(capsys))
    assert checkpoint(last)["global_step"] == 6

    last.write_bytes(harmed)
    best.write_bytes(harmed)
    assert zoo_run("fit", "--ckpt_path", "last", "--run_dir", "run", steps=6) == 2
    said = capsys.readouterr().err
    assert "none of the run's checkpoints can be used" in said
    assert str(last) in said
    assert str(best) in said
    assert zoo_run("fit", "--ckpt_path", last, "--run_dir", "run", steps=6) == 2


def test_the_newest_checkpoint_is_found_whatever_its_name() -> None:
    Path("run/checkpoints").mkdir(parents=True)
    for name, step in (("checkpoints/last", 2), ("checkpoints/best", 3), ("hpc_ckpt_1", 5)):
        torch.save({"callbacks": {}, "global_step": step}, f"run/{name}.ckpt")
    assert Trained("last", "run", resumes=True).path == "run/hpc_ckpt_1.ckpt"


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at random moments of a run that saves after every step: what is left resumes to the same end."""
    config = method_card("self_training").configs[0]
    options = [
        *("--config", config, *miniature(config, tmp_path), *QUIET, "--trainer.val_check_interval", "1"),
        *("--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0", "--run_card", "false"),
    ]
    run, steps = tmp_path / "killed", 200
    limit = ["--trainer.max_steps", str(steps)]
    command = [sys.executable, "-m", "zoo", "fit", *options, *limit, "--run_dir", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    last, rng = run / "checkpoints" / "last.ckpt", random.Random(0)
    reached = 0
    for _ in range(2):
        with subprocess.Popen(
            [*command, "--ckpt_path", "last"],
            env=environment,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and _steps(last) <= reached:
                time.sleep(0.05)
            time.sleep(rng.random())
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        found = Trained("last", str(run), resumes=True)  # the best one, if last.ckpt was next to be written
        assert found.passed_over == []
        assert reached < found.checkpoint["global_step"] < steps
        reached = found.checkpoint["global_step"]

    # The unbroken run saves the same at that step.
    limit = ["--trainer.max_steps", str(reached), "--model.optim.total_steps", str(steps)]
    assert main(["fit", *options, *limit, "--run_dir", str(tmp_path / "unbroken")]) == 0
    unbroken = checkpoint(tmp_path / "unbroken" / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(unbroken[part], found.checkpoint[part]) == []


def _steps(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"] if path.is_file() else 0
