"""What every registered method must do: fit, resume bit for bit, come back from its file, test and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resuming import straight_and_resumed
from tests.test_configs import QUIET, miniature
from zoo.__main__ import main
from zoo.cards import MethodCard
from zoo.registry import get_method, list_methods, method_card

#: Saved after every step, so that the run can be resumed from the first, within its epoch.
THREE_STEPS = [
    *(
        "--trainer.max_steps",
        "3",
        "--trainer.val_check_interval",
        "1",
        "--trainer.check_val_every_n_epoch",
        "1",
    ),
    *("--trainer.num_sanity_val_steps", "0", "--trainer.log_every_n_steps", "1"),
]


def one_example(method: Any) -> tuple[Any, tuple[int, ...] | None]:
    """What ``predict`` takes, and the shape of its answer where every method of the kind has the same."""
    match method_card_of(method).modality, method_card_of(method).task:
        case "image", task if "segmentation" in task:
            return torch.rand(3, 32, 64), (32, 64)
        case "image", task if "denoising" in task:
            return torch.rand(3, 16, 16), (3, 16, 16)
        case "image and volume", _:
            return torch.rand(3, 16, 16), None
        case "image", _:
            return torch.rand(3, 16, 16), (method.student.backbone.embed_dim,)
        case "signal", _:
            return torch.randn(2, 64), (method.student.backbone.embed_dim,)
        case "audio", _:
            return torch.randn(16_000) / 10, None
        case "audio-visual", _:
            video = torch.randint(256, (8, 40, 30, 3), dtype=torch.uint8)
            return {"video": video, "waveform": torch.randn(16_000) / 10}, None
        case _:
            return torch.rand(32, 32, 32), None


def method_card_of(method: Any) -> MethodCard:
    return next(
        card for name in list_methods() if (card := method_card(name)).class_name == type(method).__name__
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list_methods())
def test_life_of_a_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = method_card(name).configs[0]
    base = ["--config", config, *miniature(config, tmp_path), *QUIET]
    run = tmp_path / "run"

    # stopped and resumed, it ends where it does without a stop, bit for bit
    stopped, last = straight_and_resumed(["fit", *base, *THREE_STEPS], run, 1, monkeypatch)
    assert stopped["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] is False
    before, state = stopped["state_dict"], last["state_dict"]
    if "teacher.step" in state:
        assert state["teacher.step"] > before["teacher.step"]
    assert [k for k in state if k.startswith("student.") and not torch.equal(state[k], before[k])]

    # watched by default
    metrics = (run / "metrics.csv").read_text().splitlines()[0]
    assert "perf/samples_per_s" in metrics
    assert ("/distance" in metrics) == any(key.endswith("teacher.step") for key in state)
    assert any((run / "pictures").glob("train-batch-*.png"))

    # comes back bit for bit, without the callbacks that trained it
    path = run / "checkpoints" / "last.ckpt"
    method = get_method(name).load_from_checkpoint(path, map_location="cpu")
    for key, tensor in method.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    example, shape = one_example(method)
    first = torch.as_tensor(method.predict(example))
    assert shape is None or first.shape == shape
    again = get_method(name).load_from_checkpoint(path, map_location="cpu").predict(example)
    assert torch.equal(first, torch.as_tensor(again))

    for verb in ("validate", "test", "predict"):
        assert main([verb, *base, "--ckpt_path", str(path), "--run_dir", str(tmp_path / verb)]) == 0
    if method.monitor is not None:
        assert method.monitor.replace("val/", "test/") in (tmp_path / "test" / "metrics.csv").read_text()
