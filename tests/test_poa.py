"""POA beyond its parity numbers: which sizes are drawn, when masks start, memory, ranks, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from datamodules import Optdigits
from tests.toy import toy_trainer, weights
from zoo import POA
from zoo.checkpoints.files import CheckpointError
from zoo.nn import MultiCrop
from zoo.nn.early_backward import early_backward
from zoo.nn.elastic import Size
from zoo.nn.size_cycle import SizeCycle, size_copies
from zoo.optim import Optim

NETWORK: dict[str, Any] = {
    "backbone": "elastic_vit_tiny",
    "backbone_args": {"img_size": 16, "patch_size": 4, "widths": [16, 32], "depths": [2, 3], "head_dim": 16},
    "prototypes": [16, 24],
    "head_args": {"hidden_dim": 16, "bottleneck_dim": 8},
    "teacher_temp_epochs": 0,
    "optim": Optim(lr=1e-3, schedule="constant"),
}


def poa(**options: Any) -> POA:
    return POA(**{**NETWORK, "mask_start_epochs": 0, **options})


def data(**options: Any) -> Optdigits:
    views = MultiCrop(global_size=16, local_size=8, num_local=2, saturation=0.0, hue=0.0)
    return Optdigits(**{"batch_size": 4, "image_size": 16, "views": views, "seed": 0, **options})


def fit(method: POA, steps: int = 2, **options: Any) -> L.Trainer:
    trainer = toy_trainer(max_steps=steps, limit_val_batches=0, **options)
    trainer.fit(method, datamodule=data())
    return trainer


def test_a_cycle_uses_every_copy_once_and_never_the_intact_network() -> None:
    sizes = [Size(width, depth) for width in (16, 32) for depth in (2, 3)]
    copies = size_copies(sizes, 3.0, 3.0)
    assert copies == [(Size(16, 2), 9), (Size(16, 3), 3), (Size(32, 2), 3), (Size(32, 3), 1)]
    cycle = SizeCycle(copies)
    first, second = ([cycle(start + i, "seed") for i in range(15)] for start in (0, 15))
    assert sorted(first) == sorted(second) == sorted(size for size, n in copies[:-1] for _ in range(n))
    assert first != second
    # A run that starts in the middle draws what one that ran through would have drawn.
    assert [SizeCycle(copies)(i, "seed") for i in (20, 3)] == [second[5], first[3]]
    assert [SizeCycle(copies)(i, "other") for i in range(15)] != first
    with pytest.raises(ValueError, match="no size but the intact one"):
        SizeCycle(size_copies([Size(16, 2)]))
    with pytest.raises(ValueError, match=r"width_emphasis=0\.5"):
        size_copies(sizes, 0.5, 1.0)


def test_a_gradient_taken_early_is_that_of_the_sum() -> None:
    layer, other = nn.Linear(3, 2), nn.Linear(2, 1)
    x = torch.randn(4, 3)
    early, late = layer(x).square().sum(), layer(x).sin().sum()
    scale = 7.0
    (scale * (early + late)).backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    held: list[torch.Tensor] = []
    hidden = layer(x)
    hidden.register_hook(held.append)
    zero = early_backward(hidden.square().sum(), [*layer.parameters(), *other.parameters()])
    assert len(held) == 1  # differentiated already
    assert zero.item() == 0
    (scale * (zero + layer(x).sin().sum())).backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad is None for parameter in other.parameters())
    with torch.no_grad():
        assert early_backward(layer(x).sum(), layer.parameters()).item() == 0


def test_separate_backward_changes_nothing_but_memory() -> None:
    found = []
    for separate in (True, False):
        L.seed_everything(0, verbose=False)
        # A rate that follows the gradient: AdamW makes full steps of gradients that are all but 0.
        method = poa(separate_backward=separate, optim=Optim("sgd", lr=0.1, schedule="constant"))
        fit(method, 3, accumulate_grad_batches=2)
        found.append(method.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_masks_and_patch_terms_start_together() -> None:
    method, seen = poa(mask_start_epochs=1), []
    losses = method.losses

    def noted(batch: dict[str, Any]) -> dict[str, Any]:
        terms = losses(batch)
        seen.append((batch["masks"] is not None, "ibot" in terms, "ibot_elastic" in terms))
        return terms

    method.losses = noted  # type: ignore[method-assign]
    fit(method, 4, limit_train_batches=2)
    assert seen == [(False,) * 3] * 2 + [(True,) * 3] * 2
    assert "train/same_view" in fit(poa(), 2, log_every_n_steps=1, logger=True).callback_metrics


def test_features_of_every_size() -> None:
    method = poa().eval()
    image = torch.rand(2, 3, 16, 16)
    for size in method.student.backbone.sizes():
        alone = method.teacher.network.backbone.extract(size)
        normalised = (image - method.student.mean) / method.student.std
        torch.testing.assert_close(method.features(image, size), alone.forward_tokens(normalised).cls)
    assert method.predict(image[0]).shape == (32,)


def test_one_draw_for_all_ranks_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[list[Size]]] = {"rank": [], "common": []}
    for draws, lists in drawn.items():
        for rank in (0, 1):
            monkeypatch.setattr(POA, "global_rank", rank)
            method = poa(draws=draws)
            steps = []
            for step in range(8):
                monkeypatch.setattr(POA, "global_step", step)
                steps.append(method.draw_size())
            lists.append(steps)
    assert drawn["rank"][0] != drawn["rank"][1]
    assert drawn["common"][0] == drawn["common"][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "vit_tiny_patch16_224", "backbone_args": {"img_size": 32}},
            "has no smaller networks within",
        ),
        ({"draws": "both"}, "draws='both': expected rank or common"),
        ({"targets": "centring"}, "taught by sinkhorn alone"),
        ({"intact_weight": 1.5}, r"intact_weight=1.5: expected a share"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        poa(**options)


def test_bad_runs() -> None:
    with pytest.raises(MisconfigurationException, match="prototypes=8 cannot tell the 10 classes"):
        fit(poa(prototypes=[8, 16]))
    with pytest.raises(ValueError, match="KoLeo compares each image with its nearest neighbour and got 1"):
        toy_trainer(max_steps=1, limit_val_batches=0).fit(poa(), datamodule=data(batch_size=1))
    toy_trainer(max_steps=1, limit_val_batches=0).fit(poa(koleo_weight=0.0), datamodule=data(batch_size=1))
    method = poa()
    method.trainer = toy_trainer()
    method.trainer.strategy.precision_plugin.precision = "16-mixed"  # type: ignore[misc]
    method.configure_callbacks()
    with pytest.raises(MisconfigurationException, match="does not know the loss scale"):
        method.setup("fit")


def test_a_checkpoint_of_another_width_is_refused(tmp_path: Path) -> None:
    source = str(tmp_path / "run.ckpt")
    fit(poa(), steps=1).save_checkpoint(source)
    for widths in ([16, 48], [16]):
        other = poa(backbone_args={**NETWORK["backbone_args"], "widths": widths}, init_from=source)
        before = weights(other)
        with pytest.raises(
            CheckpointError,
            match=rf"nothing was loaded.*cls_token is \[1, 1, 32\] there and \[1, 1, {widths[-1]}\] here.*Take the",
        ):
            fit(other, steps=1)
        assert all(map(torch.equal, before, weights(other)))


def test_nan_in_a_view_is_named() -> None:
    class Breaks(MultiCrop):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            views = super().forward(image)
            views["local"][1] = torch.nan
            return views

    method = poa()
    broken = data(views=Breaks(global_size=16, local_size=8, num_local=2, saturation=0.0, hue=0.0))
    with pytest.raises(FloatingPointError, match=r"nan or inf in step 0 .*views.local: index \d+:"):
        toy_trainer(max_steps=2, limit_val_batches=0, log_every_n_steps=1, logger=True).fit(
            method, datamodule=broken
        )
