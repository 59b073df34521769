"""Released layouts: networks filled by formula, renamed to what their authors wrote, loaded, and compared."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.parity import test_fst_networks as uda
from tests.parity import test_semi_networks as semi
from tests.parity.formulas import assert_fingerprint, recipe
from tests.parity.networks import fill, rename, weights
from zoo.backbones import DeepLabResNet
from zoo.checkpoints import CheckpointError, WeightFile, load_pretrained
from zoo.checkpoints.load import best_plan
from zoo.checkpoints.readings import readings
from zoo.nn import Segmentor, build_segmentor, create_decode_head
from zoo.registry import create_backbone

Tensors = dict[str, Tensor]


def under(prefix: str, state: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in state.items()}


def clones(state: Tensors) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """No two tensors alike, statistics of batch norm included."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in weights(network).items():
            spread = 0.3 if tensor.ndim < 2 else 1.2 / (tensor.numel() / tensor.shape[0]) ** 0.5
            around = (
                1.0 if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")) else 0.0
            )
            tensor.copy_(around + spread * (torch.rand(tensor.shape, generator=rng) - 0.5))
    return network.eval()


def readable_as(state: Any) -> list[str]:
    return [reading.importer.name for reading in readings(as_file(state))]


def as_file(state: Tensors, **facts: Any) -> WeightFile:
    return WeightFile("weights.pth", state, facts)


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


# -- domain adaptation (FST card, section 10) ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.", "state_dict.model.", "module."])
@pytest.mark.parametrize("case", ["arch.mit_daformer_small.a", "arch.resnetv1c_dlv2_small.a"])
@pytest.mark.usefixtures("no_grad")
def test_networks_of_mmsegmentation_compute_the_parity_outputs(case: str, prefix: str) -> None:
    """Every released name and shape of the card, filled by formula, into a network of other weights."""
    expected, inputs = uda.CASES[case]["expected"], uda.CASES[case]["inputs"]
    released = {key: torch.empty(shape) for key, shape in expected["keys_and_shapes"]}
    fill(released.items(), inputs["k0"])
    state = under(prefix, released)
    if "model" in prefix:  # the teacher beside it must not be mistaken for the student
        state |= under(prefix.replace("model.", "ema_model."), clones(released))
        state = {n: t + 1 if "ema_model." in n else t for n, t in state.items()}
    network = Segmentor(*uda.network(case)).eval()
    report = load_pretrained(network, as_file(state))
    assert report.share == 1.0
    assert report.complete
    assert report.parts.keys() == {"backbone", "decode_head"}
    assert report.importer == ("segformer" if "mit" in case else "mmseg_resnet")
    assert report.others == (("teacher",) if "model" in prefix else ())
    maps = network.backbone(recipe(inputs["image"]))
    for got, wanted in zip(maps, expected["features"], strict=True):
        assert_fingerprint(got, wanted, **uda.CASES[case]["tolerance"])
    assert_fingerprint(network.decode_head(maps), expected["logits_low_res"], **uda.CASES[case]["tolerance"])


@pytest.mark.usefixtures("no_grad")
def test_teacher_of_a_uda_checkpoint_on_request() -> None:
    case = "arch.mit_daformer_small.a"
    one, two = (randomised(Segmentor(*uda.network(case)), seed) for seed in (1, 2))
    state = {**under("model.", clones(one.state_dict())), **under("ema_model.", clones(two.state_dict()))}
    network = Segmentor(*uda.network(case)).eval()
    image = torch.rand(1, 3, 64, 64)
    for which, wanted in (("teacher", two), ("student", one)):
        assert load_pretrained(network, as_file(state), which=which).network == which
        assert torch.equal(network(image), wanted(image))


@pytest.mark.usefixtures("no_grad")
def test_mit_is_timms_pvt_v2_either_way() -> None:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    p = uda.CASES["arch.mit_daformer_small.a"]["params"]
    mit, _ = uda.network("arch.mit_daformer_small.a")
    pvt = PyramidVisionTransformerV2(
        num_classes=0, depths=p["depths"], embed_dims=p["dims"], num_heads=p["heads"], mlp_ratios=(4, 4, 4, 4)
    ).eval()  # fmt: skip
    image = torch.rand(1, 3, 64, 64)
    randomised(mit)
    assert load_pretrained(pvt, as_file(clones(mit.state_dict()))).importer == "segformer_as_pvt"
    torch.testing.assert_close(pvt.forward_features(image), mit(image)[-1], rtol=1e-5, atol=1e-5)
    again, _ = uda.network("arch.mit_daformer_small.a")
    assert load_pretrained(again.eval(), as_file(clones(pvt.state_dict()))).importer == "pvt_as_mit"
    assert torch.equal(again(image)[-1], mit(image)[-1])


@pytest.mark.usefixtures("no_grad")
def test_mit_of_newer_mmsegmentation_is_split_and_flattened() -> None:
    from tests.test_backbones_mit import mmsegmentation

    mit, _ = uda.network("arch.mit_daformer_small.a")
    state = mmsegmentation(clones(randomised(mit).state_dict()))
    assert any("in_proj" in name for name in state)
    other, _ = uda.network("arch.mit_daformer_small.a")
    assert load_pretrained(other.eval(), as_file({**state, "head.weight": torch.ones(5, 32)})).complete
    image = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(mit(image), other(image), strict=True))


# -- semi-supervised (FST card, sections 5.4 and 10) ------------------------------------------------------------


@pytest.mark.parametrize("case", list(semi.CASES))
def test_semi_supervised_files_fill_backbone_and_heads(case: str) -> None:
    """Names and shapes of the released networks; that these compute the parity outputs is tested beside them."""
    params, expected = semi.CASES[case]["params"], semi.CASES[case]["expected"]
    head, options = semi.HEADS[params["dec"]]
    with torch.device("meta"):
        backbone = DeepLabResNet(101, stem="wide")
        network = Segmentor(backbone, create_decode_head(head, backbone.channels, params["C"], **options))
        aux = create_decode_head("fcn", backbone.channels, params["C"], source=-2, bias=True)
    network.auxiliary_head = aux
    released = {key.replace("model.", "encoder.", 1): tensor for key, tensor in weights(backbone).items()}
    released |= {key: torch.empty(shape, device="meta") for key, shape in expected["non_encoder_keys"]}
    state = under("teacher_state.module.", released) | under("model_state.module.", released)
    report = best_plan(as_file(state), network).report
    assert (report.importer, report.network) == ("semi_segmentation", "teacher")
    assert report.share == report.parts["decode_head"].share == 1.0
    assert report.parts["auxiliary_head"].share == (1.0 if params["aux"] else 0.0)
    assert not report.unexpected


@pytest.mark.usefixtures("no_grad")
def test_semi_supervised_renaming_keeps_every_tensor_in_its_place() -> None:
    case = "semi.arch.r101_deeplabv2_voc"
    keys = [(key, shape) for key, shape in semi.CASES[case]["expected"]["non_encoder_keys"]]
    backbone = DeepLabResNet(50, stem="wide", stem_width=4, channels=(4, 4, 4, 512))
    head = create_decode_head("deeplabv2", backbone.channels, 21, dilations=(6, 12, 18, 24))
    source = randomised(Segmentor(backbone, head))
    names = {
        rename(key.removeprefix("decoder."), semi.SEMI_HEAD_RENAMES["deeplabv2"]): key
        for key, _ in keys
        if key.startswith("decoder.") and not re.match(semi.SEMI_HEAD_IGNORED, key.removeprefix("decoder."))
    }
    state = {names[name]: tensor for name, tensor in clones(source.decode_head.state_dict()).items()}
    state |= {f"encoder.{n.removeprefix('model.')}": t for n, t in clones(backbone.state_dict()).items()}
    network = randomised(
        Segmentor(
            DeepLabResNet(50, stem="wide", stem_width=4, channels=(4, 4, 4, 512)),
            create_decode_head("deeplabv2", backbone.channels, 21, dilations=(6, 12, 18, 24)),
        ),
        seed=5,
    )
    assert load_pretrained(network, as_file({"teacher_state." + n: t for n, t in state.items()})).complete
    image = torch.rand(1, 3, 33, 33)
    assert torch.equal(network(image), source(image))


@pytest.mark.parametrize("multi_level", [False, True])
def test_deeplab_resnet_of_the_uda_literature(multi_level: bool) -> None:
    network = randomised(
        build_segmentor(
            "resnet50_deeplab", "deeplabv2", 19, backbone_kwargs={"stem": "plain"},
            head_kwargs={"dilations": (6, 12, 18, 24)},
        )
    )  # fmt: skip
    main = "layer6" if multi_level else "layer5"
    state = {n.removeprefix("model."): t for n, t in clones(network.backbone.state_dict()).items()}
    for name, tensor in clones(network.decode_head.state_dict()).items():
        state[name.replace("aspp_modules.", f"{main}.conv2d_list.").replace(".conv.", ".")] = tensor
    if multi_level:
        state |= {f"layer5.conv2d_list.{i}.weight": torch.ones(19, 1024, 3, 3) for i in range(4)}
    fresh = randomised(
        build_segmentor(
            "resnet50_deeplab", "deeplabv2", 19, backbone_kwargs={"stem": "plain"},
            head_kwargs={"dilations": (6, 12, 18, 24)},
        ),
        seed=3,
    )  # fmt: skip
    report = load_pretrained(fresh, as_file(under("Scale.", state)))
    assert report.importer == "deeplab"
    assert report.complete
    assert report.note
    assert len(report.unexpected) == (4 if multi_level else 0)
    for (name, wanted), got in zip(network.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(got, wanted), name


# -- timm and torchvision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18", torchvision.models.resnet18),
        ("vit_tiny_patch16_224", lambda: torchvision.models.VisionTransformer(224, 16, 2, 3, 192, 768)),
        (
            "swin_tiny_patch4_window7_224",
            lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [3, 6, 12, 24], [7, 7]),
        ),
    ],
)
@pytest.mark.usefixtures("no_grad")
def test_torchvision_weights_compute_the_same_in_timm(ours: str, theirs: Any) -> None:
    source = randomised(theirs())
    options = {"vit": {"depth": 2}, "swi": {"depths": (1, 1, 1, 1), "embed_dim": 24}}.get(ours[:3], {})
    network = randomised(timm.create_model(ours, **options), seed=4)
    report = load_pretrained(network, as_file(under("module.", clones(source.state_dict()))))
    assert report.complete, report
    assert not report.unexpected
    image = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(network(image), source(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.usefixtures("no_grad")
def test_timm_weights_fill_its_feature_extractors(name: str) -> None:
    """timm's wrappers spell ``stages.0`` as ``stages_0`` and put ``model.`` before some."""
    plain = randomised(timm.create_model(name))
    network = build_segmentor(
        name, "fpn", 4, backbone_kwargs={"img_size": 64} if "vit" in name else {}
    ).eval()
    report = load_pretrained(
        network, as_file({"model." + n: t for n, t in clones(plain.state_dict()).items()})
    )
    assert report.share == 1.0
    assert report.parts["decode_head"].loaded_tensors == 0
    extractor = network.backbone.model
    names = {n.replace(".", "_"): t for n, t in plain.state_dict().items()}
    for key, tensor in extractor.state_dict().items():
        wanted = names[key.removeprefix("model.").replace(".", "_")]
        assert tensor.shape != wanted.shape or torch.equal(tensor, wanted), key


# -- self-distillation (POA card, section 9) --------------------------------------------------------------------------


def vit(**kwargs: Any) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=3,
        num_heads=4,
        init_values=1e-5,
        num_classes=0,
        **kwargs,
    )


def in_chunks(name: str) -> str:
    return re.sub(r"^blocks\.(\d)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", name)


def elastic(name: str) -> str:
    """POA wraps what it can slice: linear layers and norms, not the patch embedding."""
    name = re.sub(r"(norm\d?)\.", r"\1.norm.", name)
    return re.sub(r"\.(qkv|fc\d|(?<=attn\.)proj)\.", r".\1.linear.", name)


FAMILY = {
    "dino": lambda s: {
        **under("student.module.backbone.", {n: t + 1 for n, t in s.items()}),
        **under("teacher.backbone.", s),
        "teacher.head.mlp.0.weight": torch.ones(3, 64),
    },
    "dino, backbone alone": lambda s: s,
    "ibot": lambda s: under("state_dict.", {**s, "masked_embed": torch.ones(1, 64)}),
    "dinov2": lambda s: {**s, "mask_token": torch.ones(1, 64)},
    "dinov2, in chunks": lambda s: under("teacher.backbone.", {in_chunks(n): t for n, t in s.items()}),
    "poa": lambda s: under("teacher.backbone.", {elastic(n): t for n, t in s.items()}),
}


@pytest.mark.parametrize("layout", FAMILY)
@pytest.mark.usefixtures("no_grad")
def test_self_distilled_vits_load_into_timm(layout: str) -> None:
    source, network = randomised(vit()), randomised(vit(), seed=7)
    report = load_pretrained(network, as_file(FAMILY[layout](clones(source.state_dict()))))
    assert report.complete
    assert report.importer == layout.partition(",")[0].replace("ibot", "dino").replace("dinov2", "dino")
    assert report.network == ("teacher" if layout in ("dino", "dinov2, in chunks", "poa") else "network")
    assert report.architecture == "ViT (width 64, depth 3, patches of 8x8)"
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(image), source(image))


@pytest.mark.usefixtures("no_grad")
def test_dinov2_with_registers_is_timms_without_class_position() -> None:
    network = randomised(vit(reg_tokens=4, no_embed_class=True))
    state = clones(network.state_dict())
    position = torch.rand(1, 1, 64)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] -= position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    other = randomised(vit(reg_tokens=4, no_embed_class=True), seed=2)
    assert load_pretrained(other, as_file({**state, "mask_token": torch.ones(1, 64)})).complete
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(other(image), network(image))


@pytest.mark.usefixtures("no_grad")
def test_elastic_networks_take_the_authors_files_and_nothing_that_only_looks_alike() -> None:
    from zoo.backbones.elastic_layouts import poa_state_dict

    network = randomised(create_backbone("elastic_vit_tiny"))
    plain = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=6, init_values=1e-5, num_classes=0
    )
    released = FAMILY["poa"](clones(randomised(plain).state_dict()))
    released["teacher.backbone.mask_token"] = torch.ones_like(network.mask_token)
    released["teacher.dino_head.mlp0.0.weight"] = torch.ones(3, 192)
    report = load_pretrained(network, as_file(released))
    assert report.complete
    assert (report.importer, report.network) == ("poa", "teacher")
    wanted = poa_state_dict(network, {n.removeprefix("teacher."): t for n, t in released.items()})
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())
    image = torch.rand(2, 3, 32, 32)
    whole = plain.forward_features(image)
    torch.testing.assert_close(network.forward_tokens(image).cls, whole[:, 0], rtol=1e-4, atol=1e-5)

    own = under("state_dict.student.backbone.", clones(network.state_dict()))
    run = {"pytorch-lightning_version": "2.6", "hyper_parameters.backbone": "elastic_vit_tiny"}
    fresh = create_backbone("elastic_vit_tiny").eval()
    assert load_pretrained(fresh, as_file(own, **run)).complete
    assert torch.equal(fresh.forward_tokens(image).cls, network.forward_tokens(image).cls)
    with pytest.raises(
        CheckpointError, match=r"nothing was loaded.*trained with the backbone elastic_vit_tiny"
    ):
        load_pretrained(plain, as_file(own, **run))
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        load_pretrained(fresh, as_file(clones(plain.state_dict())))


def test_an_elastic_swin_is_no_plain_one() -> None:
    state = {
        "stages.0.blocks.0.attn.w_msa.qkv.linear.weight": torch.ones(288, 96),
        "stages.0.downsample.reduction.linear.weight": torch.ones(192, 384),
    }
    with torch.device("meta"):
        plain = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(CheckpointError, match="an elastic Swin of POA is no plain one"):
        load_pretrained(plain, as_file(under("teacher.backbone.", state)), importer="poa", min_share=0)
