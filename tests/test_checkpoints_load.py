"""Loading: the report, what is adapted, what is refused, and rules on their own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

import zoo
from zoo.checkpoints import CheckpointError, LoadReport, WeightFile, load_pretrained, load_reports
from zoo.checkpoints.rules import (
    AsBackbone,
    Below,
    Drop,
    Flatten,
    Importer,
    Permute,
    Rename,
    Split,
    unwrapped,
)
from zoo.nn import build_segmentor
from zoo.registry import create_backbone

Tensors = dict[str, Tensor]


def street(classes: int = 4, **kwargs: object) -> nn.Module:
    return build_segmentor("street_cnn", "fpn", classes, backbone_kwargs=kwargs or None)


def saved(network: nn.Module) -> WeightFile:
    return WeightFile("weights.pth", {n: t.detach().clone() for n, t in network.state_dict().items()})


def without(file: WeightFile, *patterns: str) -> WeightFile:
    tensors = {n: t for n, t in file.tensors.items() if not any(p in n for p in patterns)}
    return WeightFile(file.title, tensors, file.facts)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# -- the report ---------------------------------------------------------------------------------------------


def test_whole_network(capsys: pytest.CaptureFixture[str]) -> None:
    source, network = street(), street()
    report = zoo.load_pretrained(network, saved(source))
    assert same(source, network)
    assert isinstance(report, zoo.LoadReport)
    assert report.complete
    assert report.share == 1.0
    counted = [t for n, t in source.state_dict().items() if "num_batches" not in n]
    assert sum(p.tensors for p in report.parts.values()) == len(counted)
    assert sum(p.parameters for p in report.parts.values()) == sum(t.numel() for t in counted)
    printed = capsys.readouterr().err
    assert printed.strip() == str(report)
    assert "weights of weights.pth: timm layout, network" in printed
    assert "100.0 %" in printed
    load_pretrained(network, saved(source), show=False)
    assert capsys.readouterr().err == ""


def test_report_is_plain_for_the_run_card_and_kept_at_the_module() -> None:
    network = street(classes=3)
    report = load_pretrained(network, without(saved(street()), "lateral"))
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["share"] == 1.0
    assert plain["parts"]["backbone"]["loaded_tensors"] == report.parts["backbone"].tensors
    assert plain["missing"] == [f"decode_head.lateral.{i}.{w}" for i in range(4) for w in ("weight", "bias")]
    assert [a["what"] for a in plain["adapted"]] == ["classes", "classes"]
    method = nn.ModuleDict({"student": network, "teacher": copy.deepcopy(network)})
    assert load_reports(method) == {"student": report}  # the teacher's is a copy of it


def test_a_part_that_is_not_in_the_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    network = street()
    before = copy.deepcopy(network.decode_head)
    report = load_pretrained(network, without(saved(street()), "decode_head"))
    assert report.share == 1.0
    assert report.parts["decode_head"].share == 0.0
    assert same(before, network.decode_head)
    assert "missing, stays as initialised: decode_head.lateral.0.weight" in capsys.readouterr().err


def test_a_backbone_takes_its_part_of_a_network() -> None:
    source, backbone = street(), create_backbone("street_cnn")
    report = load_pretrained(backbone, saved(source))
    assert same(source.backbone, backbone)
    assert all(name.startswith("decode_head.") for name in report.unexpected)
    assert report.unexpected


# -- adapted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_input_channels(channels: int) -> None:
    source, network = create_backbone("resnet18"), create_backbone("resnet18", in_chans=channels)
    report = load_pretrained(network, saved(source))
    (adapted,) = report.adapted
    assert (adapted.what, adapted.before, adapted.after) == (
        "input channels",
        (64, 3, 7, 7),
        (64, channels, 7, 7),
    )
    assert report.share == 1.0
    assert not report.complete
    given, got = source.model.conv1.weight, network.model.conv1.weight
    if channels == 1:
        torch.testing.assert_close(got, given.sum(1, keepdim=True))
    else:
        for channel in range(channels):
            torch.testing.assert_close(got[:, channel], given[:, channel % 3] * 3 / channels)


def test_position_embedding_of_another_grid() -> None:
    options = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    source = VisionTransformer(img_size=64, **options)
    network = VisionTransformer(img_size=96, **options)
    report = load_pretrained(network, saved(source))
    assert [a.what for a in report.resized] == ["position embedding"]
    wanted = resample_abs_pos_embed(source.pos_embed, [12, 12], [8, 8], num_prefix_tokens=1)
    torch.testing.assert_close(network.pos_embed, wanted)
    assert torch.equal(network.pos_embed[:, 0], source.pos_embed[:, 0])


def test_relative_positions_of_another_window() -> None:
    import timm

    options = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_classes": 0}
    source = timm.create_model("swin_tiny_patch4_window7_224", **options)
    network = timm.create_model("swin_tiny_patch4_window7_224", **options, window_size=8, img_size=256)
    report = load_pretrained(network, saved(source))
    assert {a.what for a in report.adapted} == {"relative positions"}
    assert {(a.before[0], a.after[0]) for a in report.adapted} == {(13**2, 15**2)}
    centre = source.layers[0].blocks[0].attn.relative_position_bias_table[13**2 // 2]
    torch.testing.assert_close(
        network.layers[0].blocks[0].attn.relative_position_bias_table[15**2 // 2], centre
    )


def test_classes_stay_as_initialised() -> None:
    source, network = street(4), street(7)
    before = network.decode_head.classifier.weight.detach().clone()
    report = load_pretrained(network, saved(source))
    assert {a.what for a in report.adapted} == {"classes"}
    assert torch.equal(network.decode_head.classifier.weight, before)
    assert torch.equal(network.decode_head.smooth[0].weight, source.decode_head.smooth[0].weight)


# -- refused ------------------------------------------------------------------------------------------------


def test_too_little_of_the_backbone_loads_nothing_and_says_what_it_is() -> None:
    network = create_backbone("resnet18")
    before = copy.deepcopy(network)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(network, saved(create_backbone("mit_b0")))
    message = str(error.value)
    for part in (
        "weights.pth fills 0.0 % of the backbone, less than 95 %, so nothing was loaded",
        "looks like: mit_b0 (depths 2-2-2-2, widths 32-64-160-256), segformer layout",
        "patch_embed1.proj.weight [32, 3, 7, 7]",
        "The network wants backbone.conv1.weight [64, 3, 7, 7]",
        "min_share",
    ):
        assert part in message
    assert same(before, network)


def test_the_wrong_variant_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"ResNet-50 \(bottleneck blocks 3-4-6-3\).*Of another shape"):
        load_pretrained(create_backbone("resnet18"), saved(create_backbone("resnet50")))


def test_biases_count_as_much_as_their_names() -> None:
    """Half of the tensors are a thousandth of the numbers; a file without them is no whole file."""
    file = without(saved(street()), ".bias", "running_")
    with pytest.raises(CheckpointError, match=r"fills 40.0 % of the backbone"):
        load_pretrained(street(), file)
    report = load_pretrained(street(), file, min_share=0.4)
    assert report.parts["backbone"].share == pytest.approx(0.4)
    assert any("running_mean" in name for name in report.missing)


def test_threshold_is_a_threshold() -> None:
    file = without(saved(street()), "stages.0.0.")
    share = load_pretrained(street(), file, min_share=0).share
    assert 0.9 < share < 0.98
    load_pretrained(street(), file, min_share=share)
    with pytest.raises(CheckpointError):
        load_pretrained(street(), file, min_share=share + 1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_nothing_is_written(value: float) -> None:
    file, network = saved(street()), street()
    file.tensors["backbone.stages.3.3.weight"][0, 0, 0, 0] = value
    before = copy.deepcopy(network)
    with pytest.raises(CheckpointError, match="nan or inf"):
        load_pretrained(network, file)
    assert same(before, network)


def test_integer_weights_are_not_taken_for_floats() -> None:
    file = saved(street())
    name = "backbone.stages.0.0.weight"
    file.tensors[name] = (file.tensors[name] * 127).to(torch.int8)
    report = load_pretrained(street(), file, min_share=0.5)
    assert [entry[0] for entry in report.mismatched] == [name]


def test_half_precision_files_are_converted() -> None:
    source, network = street(), street()
    file = WeightFile(
        "h.pth", {n: t.half() if t.is_floating_point() else t for n, t in saved(source).tensors.items()}
    )
    assert load_pretrained(network, file).complete
    weight = network.backbone.stages[0][0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.backbone.stages[0][0].weight.half().float())


# -- rules --------------------------------------------------------------------------------------------------


def state(*names: str) -> Tensors:
    return {name: torch.arange(6.0).reshape(6, 1) + i for i, name in enumerate(names)}


def test_rename_drop_below() -> None:
    rules = (Rename(r"^a\.", "b."), Drop("bias$"), Below("b", (Rename("^w", "v"),)))
    found = state("a.w", "a.bias", "w")
    for rule in rules:
        found = rule.apply(found)
    assert list(found) == ["w", "b.v"]
    with pytest.raises(CheckpointError, match="two tensors of the file stand for 'x'"):
        Rename("^[ab]$", "x").apply(state("a", "b"))


def test_split_by_shares() -> None:
    parts = Split(r"\.qkv\.", {".q.": 1, ".kv.": 2}).apply(state("m.qkv.weight", "other"))
    assert {n: t.flatten().tolist() for n, t in parts.items() if n != "other"} == {
        "m.q.weight": [0, 1],
        "m.kv.weight": [2, 3, 4, 5],
    }
    with pytest.raises(CheckpointError, match=r"m\.qkv has shape \(6, 1\).*4 parts"):
        Split("qkv", {"q": 1, "k": 1, "v": 2}).apply(state("m.qkv"))


def test_permute_and_flatten() -> None:
    weights = {"conv": torch.rand(2, 3, 4), "bias": torch.rand(2), "one": torch.rand(5, 2, 1, 1)}
    assert Permute("conv|bias", (2, 0, 1)).apply(weights)["conv"].shape == (4, 2, 3)
    assert Permute("conv|bias", (2, 0, 1)).apply(weights)["bias"] is weights["bias"]
    assert Flatten("one|bias").apply(weights)["one"].shape == (5, 2)
    assert Flatten("one|bias").apply(weights)["bias"].shape == (2,)


def test_wrappers_are_levels_that_all_names_go_through() -> None:
    assert list(unwrapped(state("state_dict.module.a.w", "state_dict.module.b"))) == ["a.w", "b"]
    assert list(unwrapped(state("student.module.w", "student.module.b", "teacher.w"))) == [
        "student.w",
        "student.b",
        "teacher.w",
    ]
    assert list(unwrapped(state("net._orig_mod.w", "other"))) == ["net.w", "other"]
    assert list(unwrapped(state("a.module.w", "a.b"))) == ["a.module.w", "a.b"]  # a part that is called so
    assert list(unwrapped(state("module"))) == ["module"]


def test_an_importer_of_ones_own() -> None:
    source, network = street(), street()
    tensors = {n.replace("backbone.", "enc/"): t.movedim(0, -1) for n, t in saved(source).tensors.items()}
    mine = Importer(
        "mine",
        "channels last",
        ("^enc/",),
        (Rename("^enc/", "backbone."), Permute("", (3, 0, 1, 2)), AsBackbone()),
    )
    report = load_pretrained(network, WeightFile("mine.pth", tensors), importer=mine)
    assert report.importer == "mine"
    assert same(source, network)


def test_report_shares() -> None:
    from zoo.checkpoints.report import PartShare

    part = PartShare(tensors=4, loaded_tensors=1, parameters=100, loaded_parameters=90)
    assert part.share == 0.25
    assert LoadReport("f", "i", "n", "", {"head": part}).share == 0.25
    assert LoadReport("f", "i", "n", "", {"head": part, "backbone": PartShare(1, 1, 5, 5)}).share == 1.0
    assert LoadReport("f", "i", "n", "", {}).share == 0.0
