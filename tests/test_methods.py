"""What every registered method must do: fit, stop and resume, come back from its file, test and predict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_configs import QUIET, miniature
from zoo.__main__ import main
from zoo.registry import get_method, list_methods, method_card

EVERY = [
    "--trainer.val_check_interval",
    "2",
    "--trainer.num_sanity_val_steps",
    "0",
    "--trainer.log_every_n_steps",
    "1",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_methods())
def test_life_of_a_method(name: str, tmp_path: Path) -> None:
    config = method_card(name).configs[0]
    base = ["--config", config, *miniature(config, tmp_path), *QUIET]
    run = tmp_path / "run"
    assert main(["fit", *base, *EVERY, "--trainer.max_steps", "3", "--run_dir", str(run)]) == 0
    last = run / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]

    # comes back bit for bit, without the callbacks that trained it
    method = get_method(name).load_from_checkpoint(last, map_location="cpu")
    for key, tensor in method.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    image = torch.rand(3, 32, 64)
    first = method.predict(image)
    assert first.shape == (32, 64)
    again = get_method(name).load_from_checkpoint(last, map_location="cpu").predict(image)
    assert torch.equal(first, again)

    # goes on where it stopped
    resume = [
        *base,
        *EVERY,
        "--trainer.max_steps",
        "5",
        "--run_dir",
        str(tmp_path / "on"),
        "--ckpt_path",
        str(last),
    ]
    assert main(["fit", *resume]) == 0
    resumed = torch.load(tmp_path / "on" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 5
    if "teacher.step" in state:
        assert resumed["state_dict"]["teacher.step"] > state["teacher.step"] > 0
    moved = [
        k for k in state if k.startswith("student.") and not torch.equal(state[k], resumed["state_dict"][k])
    ]
    assert moved

    for verb in ("validate", "test", "predict"):
        assert main([verb, *base, "--ckpt_path", str(last), "--run_dir", str(tmp_path / verb)]) == 0
    assert "test/mIoU" in (tmp_path / "test" / "metrics.csv").read_text()
