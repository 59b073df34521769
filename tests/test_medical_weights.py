"""Released weights of Swin UNETR and VoCo: recorded names and shapes, and the merging they were trained with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.parity.formulas import DATA, det
from zoo import load_pretrained
from zoo.backbones.swin_unetr import OCTANTS, SwinUNETREncoder
from zoo.checkpoints import WeightFile
from zoo.nn.volume_networks import PositionNetwork, VolumeEncoder, VolumeSegmentor

pytest.importorskip("monai")
pytest.importorskip("einops")

LAYOUT: dict[str, Any] = json.loads((DATA / "voco.json").read_text())["state_dict_layout"]
TINY: dict[str, Any] = {"feature_size": 12}
FAST: dict[str, Any] = {**TINY, "window_size": 2, "depths": (1, 1, 1, 1)}


def released(names: dict[str, list[int]], prefix: str = "", seed: int = 0) -> WeightFile:
    """A file of the recorded names and shapes, no two tensors alike."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in names.items():
        index = name.endswith("relative_position_index")
        state[prefix + name] = (
            torch.zeros(shape, dtype=torch.long) if index else 0.02 * torch.randn(shape, generator=rng)
        )
    return WeightFile("VoCo.pt", state)


def narrow(shape: list[int]) -> list[int]:
    """A shape of B at feature size 12."""
    kept = (1, 2, 3, 6, 12, 21, 24, 343, 1024, 2197)
    return [side if side in kept else side // 4 for side in shape]


HEAD = LAYOUT["head"]
BARE = {n.removeprefix("backbone."): narrow(s) for n, s in HEAD.items() if n.startswith("backbone.")}
DECODER = {n: narrow(s) for n, s in LAYOUT["decoder"].items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "state_dict.", "net.", "state_dict.module.backbone.", "student."]
)
def test_released_encoders_load_and_bring_their_merging(prefix: str) -> None:
    network = VolumeEncoder(SwinUNETREncoder(merging="corrected", **TINY))
    file = released(BARE, prefix)
    assert len(BARE) == LAYOUT["counts"]["B"]["ssl_backbone_keys"] == 145
    report = load_pretrained(network, file, show=False)
    assert (report.importer, report.share) == ("voco", 1.0)
    assert report.complete
    assert "feature size 12" in report.architecture
    loaded = network.backbone.state_dict()
    for name, tensor in file.tensors.items():
        assert torch.equal(loaded[name.removeprefix(prefix)], tensor)
    for stage in range(1, 5):
        order = loaded[f"swinViT.layers{stage}.0.downsample.order"]
        assert tuple(order.tolist()) == OCTANTS["legacy"]


def test_the_importer_decides_on_the_features() -> None:
    """One file in a network built with the other merging: features are those of the importer's merging."""
    legacy = SwinUNETREncoder(merging="legacy", **FAST).eval()
    file = WeightFile("x.pt", {n: t for n, t in legacy.state_dict().items() if not n.endswith(".order")})
    volume = det((1, 1, 64, 64, 64), 1)
    other = SwinUNETREncoder(merging="corrected", **FAST).eval()
    with torch.no_grad():
        wanted = legacy(volume)
        load_pretrained(other, file, show=False)
        for ours, theirs in zip(other(volume), wanted, strict=True):
            assert torch.equal(ours, theirs)
        report = load_pretrained(other, file, importer="swin_unetr", show=False)
        changed = other(volume)
    assert report.share == 1.0
    same = [torch.equal(a, b) for a, b in zip(changed, wanted, strict=True)]
    assert same == [True, True, False, False, False, False]  # the first merging lies before the third map


def test_a_run_keeps_the_merging_it_was_loaded_with() -> None:
    network = SwinUNETREncoder(**TINY, merging="corrected")
    load_pretrained(network, released(BARE), show=False)
    again = SwinUNETREncoder(**TINY, merging="corrected")
    again.load_state_dict(network.state_dict())
    assert tuple(again.swinViT.layers1[0].downsample.order.tolist()) == OCTANTS["legacy"]


def test_files_of_the_training_script() -> None:
    """Backbone and projectors side by side; 'student' there is the projector alone."""
    network = PositionNetwork(SwinUNETREncoder(**TINY), hidden_dim=1024, out_dim=1024)
    names = {n: narrow(s) if n.startswith("backbone.") else s for n, s in HEAD.items()}
    names |= {f"{n}.layer1.0.weight": [1024, 288] for n in ("student", "teacher")}
    file = released(names, "state_dict.module.")
    report = load_pretrained(network, file, show=False)
    assert report.complete
    assert not report.unexpected
    weight = file.tensors["state_dict.module.student.layer2.0.weight"]
    assert torch.equal(network.projector.layer2[0].weight, weight)


@pytest.mark.parametrize("classes", [21, 14])
def test_vocomni_fills_the_decoder(classes: int) -> None:
    network = VolumeSegmentor(SwinUNETREncoder(**TINY), classes)
    before = network.decode_head.out.conv.conv.weight.detach().clone()
    file = released({**BARE, **DECODER})
    report = load_pretrained(network, file, show=False)
    assert (report.parts["backbone"].share, report.unexpected, report.missing) == (1.0, (), ())
    deep = "decoder5.transp_conv.conv.weight"
    assert torch.equal(network.decode_head.get_parameter(deep), file.tensors[deep])
    if classes == 21:
        assert report.complete
    else:
        assert {a.what for a in report.adapted} == {"classes"}
        assert torch.equal(network.decode_head.out.conv.conv.weight, before)


def test_one_channel_weights_serve_several_sequences() -> None:
    """Four times the same sequence gives the features of one."""
    one, four = SwinUNETREncoder(**FAST).eval(), SwinUNETREncoder(in_chans=4, **FAST).eval()
    report = load_pretrained(four, WeightFile("ct.pt", one.state_dict()), importer="voco", show=False)
    assert report.share == 1.0
    adapted = {a.name for a in report.adapted}
    assert {a.what for a in report.adapted} == {"modalities"}
    assert adapted == {
        "backbone.swinViT.patch_embed.proj.weight",
        "backbone.encoder1.layer.conv1.conv.weight",
        "backbone.encoder1.layer.conv3.conv.weight",
    }
    volume = det((1, 1, 64, 64, 64), 0)
    with torch.no_grad():
        for a, b in zip(one(volume), four(volume.expand(-1, 4, -1, -1, -1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)
