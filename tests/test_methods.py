"""What every registered method must do: fit, stop and resume, come back from its file, test and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_configs import QUIET, miniature
from zoo.__main__ import main
from zoo.cards import MethodCard
from zoo.registry import get_method, list_methods, method_card

EVERY = [
    "--trainer.val_check_interval",
    "2",
    "--trainer.num_sanity_val_steps",
    "0",
    "--trainer.log_every_n_steps",
    "1",
]


def one_example(method: Any) -> tuple[Tensor, tuple[int, ...] | None]:
    """What ``predict`` takes, and the shape of its answer where every method of the kind has the same."""
    match method_card_of(method).modality, method_card_of(method).task:
        case "image", task if "segmentation" in task:
            return torch.rand(3, 32, 64), (32, 64)
        case "image", _:
            return torch.rand(3, 16, 16), (method.student.backbone.embed_dim,)
        case "audio", _:
            return torch.randn(16_000) / 10, None
        case _:
            return torch.rand(32, 32, 32), None


def method_card_of(method: Any) -> MethodCard:
    return next(
        card for name in list_methods() if (card := method_card(name)).class_name == type(method).__name__
    )


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
    example, shape = one_example(method)
    first = torch.as_tensor(method.predict(example))
    assert shape is None or first.shape == shape
    again = get_method(name).load_from_checkpoint(last, map_location="cpu").predict(example)
    assert torch.equal(first, torch.as_tensor(again))

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
    if method.monitor is not None:
        assert method.monitor.replace("val/", "test/") in (tmp_path / "test" / "metrics.csv").read_text()
