"""C-BSN: blindness, parts, options, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from scipy.io import loadmat

from callbacks import WriteImages
from datamodules import DND, SIDD, PackagedPhotographs
from tests import tiny_denoising
from zoo.methods.image.cbsn import CBSN
from zoo.nn.blind_spot import MaskedConv2d, draw_cells, image_statistics, reflect_pad, subsample
from zoo.optim import Optim
from zoo.optim_schedule import lr_factor

SMALL: dict[str, Any] = {"backbone_args": {"width": 8, "modules": 2}}


def cbsn(**options: Any) -> CBSN:
    torch.manual_seed(0)
    return CBSN(**{**SMALL, **options})


@torch.no_grad()
def test_the_blind_output_ignores_every_pixel_of_its_own() -> None:
    """All 225 pixels of a 15 x 15 image, one changed in each copy; the open mode looks at all of them."""
    network, side = cbsn().student, 15
    image = torch.randn(1, 3, side, side).expand(side**2, -1, -1, -1)
    changed = image.clone()
    own = torch.arange(side**2)
    changed[own, :, own // side, own % side] += 3.0

    def change(blind: bool) -> torch.Tensor:
        found = network(changed, blind) - network(image, blind)
        return found.abs().amax(1)

    blind, opened = change(True), change(False)
    assert (blind[own, own // side, own % side] == 0).all()
    assert (opened[own, own // side, own % side] > 0).all()
    assert (blind.flatten(1).amax(1) > 0).all()  # the neighbours see it


def test_masks_share_one_kernel() -> None:
    conv = MaskedConv2d(1, 1, 3)
    x = torch.randn(1, 1, 5, 5)
    centre = conv.weight[..., 1:2, 1:2] * x
    torch.testing.assert_close(conv(x) - conv(x, blind=True), centre)
    assert set(conv.state_dict()) == {"weight", "bias"}
    with pytest.raises(ValueError, match="kernel_size=4: a kernel with a centre to mask is odd"):
        MaskedConv2d(1, 1, 4)


def test_sub_samples_take_one_pixel_of_each_cell() -> None:
    image = torch.arange(36.0).view(1, 1, 6, 6).expand(2, 3, 6, 6).contiguous()
    cells = draw_cells(image, 2, torch.Generator().manual_seed(0))
    small = subsample(image, cells, 2)
    rows, columns = 2 * torch.arange(3)[:, None] + cells // 2, 2 * torch.arange(3) + cells % 2
    assert torch.equal(small, (6 * rows + columns)[:, None].expand(-1, 3, -1, -1).float())
    assert not torch.equal(small[0], small[1])


def test_a_flat_image_is_normalised_by_the_floor() -> None:
    mean, std = image_statistics(torch.full((1, 3, 10, 10), 0.5))
    assert mean.unique().item() == 0.5
    assert std.unique().item() == pytest.approx(0.1)


def test_small_images_are_padded_by_what_they_have() -> None:
    assert reflect_pad(torch.rand(1, 3, 5, 40), 32).shape == (1, 3, 13, 104)
    assert reflect_pad(torch.rand(1, 3, 1, 1), 32).shape == (1, 3, 1, 1)


def test_terms_and_their_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"image": torch.rand(2, 3, 20, 20)}
    method = cbsn(ramp_steps=100)
    assert [loss.item() > 0 for loss in method.losses(batch).values()] == [True, False, False]
    batch = method.prepared(batch)
    found = {}
    for step in (50, 100, 500):
        monkeypatch.setattr(CBSN, "global_step", step)
        found[step] = method.losses(batch)
    for term in ("self", "invariance"):
        assert found[50][term].item() == pytest.approx(found[500][term].item() / 2)
        assert torch.equal(found[100][term], found[500][term])
    alone = cbsn(blind_only=True)
    assert set(alone.losses(batch)) == {"blind"}
    assert "cells" not in alone.prepared({"image": batch["image"]})


def test_the_guide_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes: blind on phases, open on images, blind on sub-samples without a gradient."""
    monkeypatch.setattr(CBSN, "global_step", 10**6)
    method, calls = cbsn(), []
    network = method.student.forward

    def watched(image: torch.Tensor, blind: bool = False) -> torch.Tensor:
        found = network(image, blind)
        calls.append((tuple(image.shape), blind, found.requires_grad))
        return found

    monkeypatch.setattr(method.student, "forward", watched)
    method.losses({"image": torch.rand(2, 3, 20, 20)})
    assert calls == [
        ((50, 3, 4, 4), True, True),
        ((2, 3, 20, 20), False, True),
        ((2, 3, 10, 10), True, False),
    ]


def test_learning_rate_halves_in_steps() -> None:
    optim = cbsn().optim
    factor = lr_factor(optim, 500_000)
    assert not optim.in_epochs
    assert [factor(step) for step in (0, 99_999, 100_000, 199_999, 200_000, 499_999)] == [
        *(1.0, 1.0, 0.5, 0.5, 0.25, 0.5**4),
    ]
    with pytest.raises(ValueError, match="drop_in must be epochs or steps"):
        Optim(drop_in="hours")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blind_stride": 0}, "blind_stride must be at least 1, got 0"),
        ({"invariance": -1.0}, "invariance must be at least 0"),
        ({"ramp_steps": 0}, "ramp_steps must be at least 1"),
        ({"backbone": "street_cnn", "backbone_args": {}}, "backbone='street_cnn' has no blind mode"),
        ({"pretrained": True}, "blind_spot has no pretrained weights"),
        ({"backbone_args": {"width": 0}}, "width=0 must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cbsn(**options)


def test_images_without_whole_phases_or_cells() -> None:
    with pytest.raises(ValueError, match="24 x 24 pixels have no 5 x 5 phases"):
        cbsn().losses({"image": torch.rand(1, 3, 24, 24)})
    with pytest.raises(ValueError, match="25 x 25 pixels have no whole cells of 2 x 2"):
        cbsn().losses({"image": torch.rand(1, 3, 25, 25)})


def test_predict_refuses_nan() -> None:
    image = torch.rand(3, 16, 16)
    assert cbsn().predict(image).shape == (3, 16, 16)
    image[0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="image holds floats from nan to nan"):
        cbsn().predict(image)


# -- evaluation and files --------------------------------------------------------------------------------


def quiet_trainer(folder: Path | None = None) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=1,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip


@torch.no_grad()
def test_whole_images_are_normalised_padded_and_put_back() -> None:
    image = torch.rand(1, 3, 40, 50) * 0.4 + 0.2
    method = cbsn()
    mean, std = image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True, correction=0)
    padded = torch.nn.functional.pad((image - mean) / std, (32, 32, 32, 32), mode="reflect")
    wanted = (method.student(padded)[..., 32:72, 32:82] * std + mean).clamp(0, 1)
    torch.testing.assert_close(method(image), wanted)
    blind = (method.student(padded, blind=True)[..., 32:72, 32:82] * std + mean).clamp(0, 1)
    alone = cbsn(blind_only=True)
    torch.testing.assert_close(alone(image), blind)


def test_scores_are_means_over_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that answers with the noisy image: both ratios are the input's, up to rounding to 8 bits."""
    monkeypatch.setattr(CBSN, "forward", lambda self, image: image)
    settings = {**tiny_denoising.MINI, "eval_batch_size": 3, "root": str(tiny_denoising.sidd_tree(tmp_path))}
    data = SIDD(**settings)
    (found,) = quiet_trainer().validate(cbsn(), datamodule=data, verbose=False)
    val = data.datasets["val"]
    errors = [(val[n]["image"].double() - val[n]["clean"]).square().mean() / 255**2 for n in range(4)]
    wanted = torch.stack(errors).log10().mul(-10).mean().item()
    assert found["val/psnr"] == pytest.approx(wanted, rel=1e-5)
    assert found["val/noisy_psnr"] == pytest.approx(wanted, rel=1e-5)
    assert 0 < found["val/ssim"] < 1
    (tested,) = quiet_trainer().test(cbsn(), datamodule=data, verbose=False)
    assert tested["test/psnr"] == found["val/psnr"]


def test_without_clean_images_the_blind_loss_is_watched(tmp_path: Path) -> None:
    data = DND(**tiny_denoising.MINI, root=str(tiny_denoising.dnd_tree(tmp_path)))
    (found,) = quiet_trainer().validate(cbsn(), datamodule=data, verbose=False)
    assert set(found) == {"val/blind"}
    assert found["val/blind"] > 0


def test_crops_must_have_whole_phases_and_cells(tmp_path: Path) -> None:
    for crop, options in ((24, {}), (25, {}), (22, {"blind_only": True})):
        with pytest.raises(MisconfigurationException, match=f"data.crop={crop} must be a multiple"):
            quiet_trainer().fit(cbsn(**options), datamodule=PackagedPhotographs(crop=crop, num_crops=8))


def test_files_of_denoised_images(tmp_path: Path) -> None:
    data = DND(**tiny_denoising.MINI, root=str(tiny_denoising.dnd_tree(tmp_path)))
    for form in ("png", "mat"):
        trainer, method = quiet_trainer(tmp_path / form), cbsn()
        trainer.callbacks.append(WriteImages(form))  # type: ignore[attr-defined, arg-type]
        answers: Any = trainer.predict(method, datamodule=data)
        files = sorted((tmp_path / form / "predictions").iterdir())
        assert [file.name for file in files] == [f"000{i}_0{k}.{form}" for i in (1, 2, 3) for k in (1, 2)]
        image = answers[1]["image"][0].permute(1, 2, 0)
        if form == "png":
            assert np.array_equal(np.array(Image.open(files[1])), (255 * image).byte().numpy())
        else:
            np.testing.assert_array_equal(loadmat(files[1])["Idenoised_crop"], image.numpy())
    with pytest.raises(MisconfigurationException, match="expected png or mat"):
        WriteImages("jpg")  # type: ignore[arg-type]
    writer = WriteImages(folder=str(tmp_path / "twice"))
    output = {"image": torch.rand(2, 3, 4, 4), "index": torch.tensor([0, 1]), "name": ["a", "a"]}
    with pytest.raises(MisconfigurationException, match=r"two images are called a\.png"):
        writer.on_predict_batch_end(quiet_trainer(), cbsn(), output, {}, 0)
    with pytest.raises(MisconfigurationException, match="must return a dict with 'image'"):
        writer.on_predict_batch_end(quiet_trainer(), cbsn(), torch.rand(1), {}, 0)
