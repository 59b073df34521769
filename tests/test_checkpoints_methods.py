"""Every registered method: saved, loaded and taken as a start, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from tests.test_configs import SMALLER
from tests.toy import toy_trainer
from zoo.checkpoints import load_pretrained
from zoo.config_files import find_config
from zoo.registry import get_method, list_methods, method_card


def options(name: str) -> dict[str, Any]:
    """The method's first config, with nothing to download."""
    given = yaml.safe_load(find_config(method_card(name).configs[0]).read_text())["model"]["init_args"]
    backbone = given.get("backbone")
    return {**given, "pretrained": False, **({"backbone": SMALLER[backbone]} if backbone in SMALLER else {})}


@pytest.mark.parametrize("name", list_methods())
def test_round_trip(name: str) -> None:
    cls = get_method(name)
    method = cls(**options(name))
    for seed, tensor in enumerate(method.state_dict().values()):  # nothing is as initialised
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)))
    trainer = toy_trainer(max_steps=0)
    trainer.strategy.connect(method)
    trainer.save_checkpoint("m.ckpt")

    loaded = cls.load_from_checkpoint("m.ckpt", map_location="cpu")
    assert loaded.hparams == method.hparams
    for key, tensor in method.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key

    other = cls(**options(name))
    report = load_pretrained(other, "m.ckpt", show=False)
    assert report.complete
    assert not report.unexpected
    for key, tensor in method.student.state_dict().items():
        assert torch.equal(other.student.state_dict()[key], tensor), key
    if method_card(name).modality != "image":
        return
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = outputs(method.student.eval()(image))
        for network in (loaded.student, other.student):
            for got, reference in zip(outputs(network.eval()(image)), wanted, strict=True):
                assert torch.equal(got, reference)


def outputs(result: Any) -> list[torch.Tensor]:
    return (
        [result] if isinstance(result, torch.Tensor) else [x for x in result if isinstance(x, torch.Tensor)]
    )
