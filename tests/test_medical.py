"""Volumes: backbones, released weights, decoder, windows, scores, and the two fine-tuning methods."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.parity.formulas import DATA
from tests.toy import toy_trainer
from tests.toy_volumes import ToyNet, loader, register_toy_net
from zoo import create_backbone, load_pretrained
from zoo.backbones.swin_unetr import OCTANTS, OctantMerging, SwinUNETREncoder
from zoo.checkpoints import WeightFile
from zoo.methods.medical.classifier import VolumeClassifier
from zoo.methods.medical.segmenter import VolumeSegmenter
from zoo.nn import SlidingWindow
from zoo.nn.heads.unetr import UNETRHead
from zoo.nn.volume_losses import deep_dice_cross_entropy, dice_cross_entropy
from zoo.nn.volume_networks import PooledClassifier, PositionNetwork, VolumeSegmentor
from zoo.optim import Optim
from zoo.volume_metrics import VolumeScores

monai = pytest.importorskip("monai")
pytest.importorskip("einops")

LAYOUT: dict[str, Any] = json.loads((DATA / "voco.json").read_text())["state_dict_layout"]
SGD = Optim("sgd", lr=0.1, weight_decay=0.0, schedule="constant")
WINDOW = SlidingWindow((8, 8, 8), overlap=0.5)
TINY: dict[str, Any] = {"feature_size": 12}
FAST: dict[str, Any] = {**TINY, "window_size": 2, "depths": (1, 1, 1, 1)}


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy_net(monkeypatch)


# -- backbones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("swin_unetr_b", FAST, 64),
        ("residual_unet", {"widths": (4, 8, 8), "blocks": 2}, 16),
        ("toy_3d", {}, 8),
    ],
)
def test_facts_are_what_comes_out(name: str, options: dict[str, Any], side: int) -> None:
    backbone = create_backbone(name, in_chans=1, **options).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 1, side, side, side))
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [m.shape[2] * s for m, s in zip(maps, backbone.strides, strict=True)] == [side] * len(maps)
    assert backbone.in_chans == len(backbone.mean) == len(backbone.std) == 1


@pytest.mark.parametrize(("name", "key"), [("swin_unetr_b", "B"), ("swin_unetr_l", "L")])
def test_sizes_are_the_published_ones(name: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = LAYOUT["counts"][key]
    # MONAI reads the rates of stochastic depth back from the device, and the meta device holds nothing.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        backbone = create_backbone(name, in_chans=1)
        network, segmentor = PositionNetwork(backbone), VolumeSegmentor(backbone, 21)

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert size(backbone) == counts["ssl_backbone"]
    assert size(backbone.swinViT) == counts["swinViT"]
    assert size(network.projector) == counts["projector_each"]
    assert size(segmentor) == counts["swin_unetr_out21"]
    assert network.embed_dim == 24 * counts["feature_size"]


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("swin_unetr_b", TINY, (1, 1, 64, 64, 32), "sides must be multiples of 32 and at least 64"),
        ("swin_unetr_b", TINY, (1, 1, 64, 64, 80), "sides must be multiples of 32"),
        ("swin_unetr_b", TINY, (1, 2, 64, 64, 64), r"expected \[B, 1, X, Y, Z\]"),
        ("swin_unetr_b", TINY, (1, 64, 64), r"volume has shape \[1, 64, 64\]"),
        ("residual_unet", {"widths": (4, 4, 4)}, (1, 1, 8, 8, 4), "sides must be multiples of 4 and larger"),
        ("residual_unet", {}, (1, 16, 16), r"volume has shape \[1, 16, 16\]"),
    ],
)
def test_backbones_refuse_what_they_cannot_take(name: str, options: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, in_chans=1, **options)(torch.rand(shape))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_unetr_h", {"pretrained": True}, "no weights come with swin_unetr_h"),
        ("swin_unetr_b", {"merging": "old"}, "merging must be 'legacy' or 'corrected', got 'old'"),
        ("swin_unetr_b", {"feature_size": 50}, "multiple of 12, got 50"),
        ("residual_unet", {"pretrained": True}, "residual_unet has no pretrained weights"),
        ("residual_unet", {"widths": ()}, "at least one of each"),
    ],
)
def test_backbones_refuse_options(name: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, **{"in_chans": 1, **options})


def test_merging_takes_the_octants_of_its_order() -> None:
    volume = torch.randn(1, 4, 4, 5, 3)  # an odd side is padded
    for merging, octants in OCTANTS.items():
        layer = OctantMerging(3, merging=merging)
        padded = nn.functional.pad(volume, (0, 0, 0, 1))
        parts = [padded[:, o & 1 :: 2, o >> 1 & 1 :: 2, o >> 2 & 1 :: 2] for o in octants]
        expected = layer.reduction(layer.norm(torch.cat(parts, -1)))
        assert torch.equal(layer(volume), expected)
    assert sorted(OCTANTS["corrected"]) == list(range(8))
    with pytest.raises(ValueError, match="three dimensions, not 2"):
        OctantMerging(3, spatial_dims=2)


# -- decoder, losses, windows, scores ------------------------------------------------------------------------------


def test_the_whole_network_is_monais() -> None:
    """MONAI's own Swin UNETR and ours with its weights, read as trained with MONAI 1.5 or later, agree."""
    torch.manual_seed(0)
    options = {"in_channels": 1, "out_channels": 3, "use_v2": True}
    theirs = monai.networks.nets.SwinUNETR(**options, **FAST).eval()
    ours = VolumeSegmentor(SwinUNETREncoder(**FAST), 3).eval()
    report = load_pretrained(ours, WeightFile("x.pt", theirs.state_dict()), importer="swin_unetr", show=False)
    assert report.complete
    volume = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(volume), theirs(volume))


def test_decoder_of_any_backbone_and_its_supervised_scales() -> None:
    backbone = ToyNet()
    network = VolumeSegmentor(backbone, 3, deep_supervision=1)
    volume = torch.rand(2, 1, 8, 8, 8)
    fine, coarse = network.forward_deep(volume)
    assert fine.shape == (2, 3, 8, 8, 8)
    assert coarse.shape == (2, 3, 4, 4, 4)
    assert torch.equal(fine, network(volume))
    with pytest.raises(ValueError, match="deep_supervision=2 with maps of"):
        UNETRHead(backbone.channels, 3, 2)
    maps = backbone(volume)
    with pytest.raises(ValueError, match="needs a backbone whose maps halve"):
        UNETRHead((4, 8), 3)([maps[0], maps[2]])


def test_dice_and_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    reference = monai.losses.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    torch.testing.assert_close(
        sum(dice_cross_entropy(logits, label).values()), reference(logits, label[:, None])
    )
    # an empty foreground is no special case
    empty = torch.zeros_like(label)
    torch.testing.assert_close(
        sum(dice_cross_entropy(logits, empty).values()), reference(logits, empty[:, None])
    )
    # ignored voxels change nothing, whatever is predicted there
    label[:, :2] = 255
    first = dice_cross_entropy(logits, label)
    logits[:, :, :2] += torch.randn(2, 3, 2, 4, 4)
    for name, loss in dice_cross_entropy(logits, label).items():
        torch.testing.assert_close(loss, first[name])


def test_coarser_scales_weigh_half() -> None:
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 8, 8, 8))
    scales = [torch.randn(2, 3, side, side, side) for side in (8, 4)]
    got = deep_dice_cross_entropy(scales, label)
    fine, coarse = (
        dice_cross_entropy(scales[0], label),
        dice_cross_entropy(scales[1], label[:, ::2, ::2, ::2]),
    )
    for name in fine:
        torch.testing.assert_close(got[name], (2 * fine[name] + coarse[name]) / 3)


def test_windows() -> None:
    calls: list[int] = []

    def network(windows: Tensor) -> Tensor:
        calls.append(len(windows))
        assert windows.shape[2:] == (8, 8, 8)
        return torch.cat((windows, -windows), 1)

    volume = torch.rand(1, 1, 12, 8, 20)
    for blend in ("constant", "gaussian"):
        got = SlidingWindow((8, 8, 8), 0.5, blend, window_batch=4)(network, volume)  # type: ignore[arg-type]
        torch.testing.assert_close(got, torch.cat((volume, -volume), 1))
    assert calls == [4, 4, 4, 4][: len(calls)]
    small = torch.rand(1, 1, 5, 8, 6)  # smaller than a window: padded, cut back
    torch.testing.assert_close(SlidingWindow((8, 8, 8))(network, small)[:, :1], small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1.0}, r"inference.overlap must be within \[0, 1\), got 1.0"),
        ({"window_batch": 0}, "inference.window_batch=0 must be positive"),
        ({"blend": "linear"}, "inference.blend must be constant or gaussian, got 'linear'"),
        ({"gather_on": "disk"}, "inference.gather_on must be device or cpu"),
    ],
)
def test_windows_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindow(**options)


def test_scores_of_shifted_boxes() -> None:
    label = torch.zeros(2, 12, 12, 12, dtype=torch.long)
    label[0, 2:6, 2:6, 2:6] = 1
    label[0, 8:10, 8:10, 8:10] = 2
    label[1, 2:6, 2:6, 2:6] = 1  # class 2 is not in the second volume
    prediction = torch.zeros_like(label)
    prediction[0, 4:8, 2:6, 2:6] = 1  # half of it, two voxels off along the first axis
    prediction[1] = label[1]
    prediction[1, 0, 0, 0] = 2  # costs nothing there, by rule
    scores = VolumeScores(3, hausdorff=True)
    scores.update(prediction, label, torch.tensor([[1.5, 1.0, 1.0]] * 2))
    result = scores.compute()
    assert result["organ_dice"].tolist() == pytest.approx([(0.5 + 1.0) / 2, 0.0])
    assert result["dice"].item() == pytest.approx(((0.5 + 0.0) / 2 + 1.0) / 2)
    assert result["organ_hd95"][0].item() == pytest.approx((3.0 + 0.0) / 2)  # 2 voxels of 1.5 mm
    assert result["organ_hd95"][1].isnan()
    assert result["hd95"].item() == pytest.approx(1.5)
    scores.reset()
    scores.update(torch.ones_like(label), torch.zeros_like(label))  # no foreground at all
    assert scores.compute()["dice"].isnan()
    with pytest.raises(ValueError, match="differ: score both on one grid"):
        scores.update(label[:1], label)
    with pytest.raises(ValueError, match="label holds class 5, but num_classes is 3"):
        scores.update(label, label.clamp(max=0) + 5)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        VolumeScores(1)


# -- methods -------------------------------------------------------------------------------------------------------


def scan(seed: int, side: int = 8) -> dict[str, Any]:
    """Bright boxes (class 1) on noise."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.zeros(2, side, side, side, dtype=torch.long)
    for volume in label:
        x, y, z = torch.randint(0, side - 4, (3,), generator=rng).tolist()
        volume[x : x + 4, y : y + 4, z : z + 4] = 1
    volume = (0.2 + 0.6 * label + 0.1 * torch.rand(label.shape, generator=rng))[:, None]
    return {"volume": volume, "label": label, "spacing": torch.ones(2, 3), "name": ["a", "b"]}


def segmenter(**options: Any) -> VolumeSegmenter:
    torch.manual_seed(0)
    settings = {"backbone": "toy_3d", "num_classes": 2, "inference": WINDOW, "optim": SGD}
    return VolumeSegmenter(**{**settings, **options})


def test_segmenter_learns_and_scores_whole_volumes(tmp_path: Any) -> None:
    method = segmenter(deep_supervision=1, optim=Optim("adamw", lr=1e-2, schedule="constant"))
    trainer = toy_trainer(max_steps=80)
    evaluation = loader(
        [{**scan(100 + i, side=12), "affine": torch.eye(4).expand(2, 4, 4)} for i in range(2)]
    )
    (before,) = trainer.validate(method, evaluation, verbose=False)
    trainer.fit(method, loader([scan(i) for i in range(80)]))
    (after,) = trainer.test(method, evaluation, verbose=False)
    assert after["test/dice"] > max(60, before["val/dice"] + 30)
    assert after["test/dice_1"] == pytest.approx(after["test/dice"])
    assert "test/hd95" in after
    assert "val/hd95" not in before
    predicted = trainer.predict(method, evaluation)[0]
    assert predicted["label"].shape == (2, 12, 12, 12)
    assert predicted["label"].dtype == torch.uint8
    assert predicted["affine"].shape == (2, 4, 4)
    volume = scan(100, side=12)["volume"][0, 0]
    assert torch.equal(method.predict(volume.numpy()), predicted["label"][0].long())
    assert torch.equal(method.predict(volume[None]), predicted["label"][0].long())

    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = VolumeSegmenter.load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.inference == WINDOW
    assert torch.equal(again.predict(volume), method.predict(volume))


def test_segmenter_refuses() -> None:
    with pytest.raises(ValueError, match="hausdorff='sometimes'"):
        segmenter(hausdorff="sometimes")
    with pytest.raises(ValueError, match=r"volume has shape \[12, 12\]"):
        segmenter().predict(np.zeros((12, 12), np.float32))


@pytest.mark.parametrize("pool", ["decoder", "encoder"])
def test_classifier_tells_bright_from_dark(pool: Any) -> None:
    torch.manual_seed(0)
    optim = Optim("adamw", lr=1e-2, schedule="constant")
    method = VolumeClassifier("toy_3d", num_classes=2, pool=pool, optim=optim)
    label = torch.tensor([0, 1, 0, 1])
    volume = (0.3 + 0.3 * label).view(4, 1, 1, 1, 1) + 0.1 * torch.rand(4, 1, 8, 8, 8)
    if pool == "decoder":  # instance norm hides brightness; texture stays
        volume = volume + (label.view(4, 1, 1, 1, 1) * 0.4 - 0.2) * (torch.arange(8) % 2)
    batch = {"volume": volume, "label": label, "name": list("abcd")}
    trainer = toy_trainer(max_steps=40)
    trainer.fit(method, loader([batch] * 40), loader([batch]))
    (scores,) = trainer.test(method, loader([batch]), verbose=False)
    assert scores["test/accuracy"] == 100.0
    predicted = trainer.predict(method, loader([batch]))[0]
    assert predicted["label"].tolist() == label.tolist()
    assert method.predict(volume[1, 0].numpy()) == 1
    if pool == "encoder":
        assert PooledClassifier(ToyNet(), 2, decoder=False).classifier.in_features == 12
    with pytest.raises(ValueError, match="pool='all'"):
        VolumeClassifier("toy_3d", pool="all")  # type: ignore[arg-type]


# -- without the extra ---------------------------------------------------------------------------------------------


def test_everything_imports_without_monai_and_says_what_is_missing() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("monai", "nibabel", "einops")))
import zoo, zoo.nn, zoo.backbones, zoo.checkpoints, callbacks
import zoo.methods.medical.voco_omni, zoo.methods.medical.segmenter, zoo.methods.medical.classifier
for name in ("swin_unetr_b", "residual_unet"):
    try:
        zoo.create_backbone(name, in_chans=1)
    except ImportError as error:
        print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "swin_unetr needs einops: pip install 'selfzoo[medical]'",
        "residual_unet needs monai: pip install 'selfzoo[medical]'",
    ]
