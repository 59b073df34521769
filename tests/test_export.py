"""`zoo export`, its formats one by one, and prediction with the preprocessing that a method keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules import GTA5Cityscapes, ImageNet
from datamodules.volume_files import write_nifti
from datamodules.volume_processing import Processing, plain_settings, process, settings_of, to_original_space
from tests import tiny, tiny_images
from tests.test_checkpoints_layouts import randomised
from tests.test_export_restore import saved_run, source_only
from tests.toy import toy_trainer
from zoo.__main__ import main
from zoo.backbones import create_token_backbone
from zoo.checkpoints import CheckpointError
from zoo.checkpoints.write import write_tensors
from zoo.export import graphs
from zoo.export.checks import check_close, difference
from zoo.export.timm import check, form_of, timm_call
from zoo.methods.image.dino import DINO
from zoo.methods.medical.segmenter import VolumeSegmenter
from zoo.methods.segmentation.self_training import SelfTraining, SourceOnly
from zoo.nn.volume_inference import SlidingWindow
from zoo.pictures import as_pixels, prepared
from zoo.registry import create_backbone

pytest.importorskip("onnxruntime")

# -- the command -------------------------------------------------------------------------------------------------


def test_all_formats_of_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    method = SelfTraining(
        backbone="resnet18", backbone_args={"layers": [1, 1, 1, 1]}, decode_head="fcn", num_classes=3
    )
    with torch.no_grad():
        list(method.teacher.network.parameters())[-1].add_(1)
    run = saved_run(method)
    formats = [word for kind in ("safetensors", "onnx", "program", "timm") for word in ("--format", kind)]
    command = [
        "export",
        "--checkpoint",
        run,
        *formats,
        "--network",
        "teacher",
        "--input_size",
        "32x64",
        "out",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    files = ("model.safetensors", "model.onnx", "model.pt2", "timm")
    assert all(f"out/{name}" in shown for name in files)
    assert {path.name for path in Path("out").iterdir()} == {*files, "config.json", "README.md"}

    image = torch.rand(3, 3, 32, 64)
    with torch.no_grad():
        wanted = method.teacher.network.eval()(image)
    extra = {graphs.CARD_FILE: ""}
    program = torch.export.load("out/model.pt2", extra_files=extra).module()
    torch.testing.assert_close(program(image), wanted, rtol=1e-5, atol=1e-5)
    assert json.loads(extra[graphs.CARD_FILE])["network"] == "teacher"
    again = SelfTraining.from_pretrained("out")
    assert torch.equal(again.predict(image[0]), wanted[0].argmax(0))
    backbone = timm.create_model("local-dir:out/timm", pretrained=True).eval()
    pixels = method.student.normalize(image)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.forward_features(pixels), method.teacher.network.backbone(pixels)[-1], rtol=1e-5, atol=1e-5
        )  # fmt: skip

    # what was exported can be exported again, e.g. its backbone alone
    assert main(["export", "--checkpoint", "out", "--part", "backbone", "alone"]) == 0
    start = create_backbone("resnet18", pretrained="alone/model.safetensors", layers=[1, 1, 1, 1])
    assert torch.equal(start.model.conv1.weight, method.teacher.network.backbone.model.conv1.weight)
    assert main(["import", "alone/model.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "SelfTraining" in shown
    assert "backbone.bn1.bias" in shown


def test_complaints_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_run(source_only())
    torch.save({"w": torch.ones(1)}, "w.pth")
    for typed, complaint in (
        (["--checkpoint", "none.ckpt"], "none.ckpt: there is no such file"),
        (["--checkpoint", "w.pth"], "is no Lightning checkpoint but other weights"),
        (["--checkpoint", run, "--method", "fstt"], "did you mean fst"),
        (["--checkpoint", run, "--method", "fst"], "holds a SourceOnly, not a FST"),
        (["--checkpoint", run, "--network", "teacher"], "has no whole network 'teacher': there is student"),
        (["--checkpoint", run, "--format", "timm"], "timm has no network like StreetCNN"),
        (["--checkpoint", run, "--push", "me/net"], "uploads are switched off"),
    ):
        assert main(["export", *typed, "out"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("zoo export: error: ")
        assert complaint in error
        assert error.count("\n") == 1


# -- a file that computes something else is no export --------------------------------------------------------------


class Noisy(nn.Module):
    """Gives something else every time."""

    outputs = ("noise",)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Undecided(nn.Module):
    """Looks at its values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_what_differs_is_refused_and_not_kept(kind: str) -> None:
    module, example = Noisy().eval(), torch.rand(2, 3)
    program = graphs.trace(module, [example])
    save: Any = graphs.save_program if kind == "pt2" else graphs.save_onnx
    with pytest.raises(
        CheckpointError, match=r"computes something else than torch: outputs \[3, 3\].* differ"
    ):
        save(program, module, [example], Path("out") / f"x.{kind}", {})
    assert list(Path("out").iterdir()) == []
    with pytest.raises(CheckpointError, match="Undecided cannot be written as a graph"):
        graphs.trace(Undecided(), [example])


def test_differences_are_relative_to_large_values_only() -> None:
    assert difference(torch.tensor([1e-6]), torch.zeros(1)) == pytest.approx(1e-6, rel=1e-3)
    assert difference(torch.tensor([1e4 + 0.05]), torch.tensor([1e4])) < 1e-5
    for wrong in (torch.zeros(2), torch.tensor([torch.nan])):
        assert difference(wrong, torch.zeros(1)) == float("inf")
    with pytest.raises(CheckpointError, match="x computes something else"):
        check_close(torch.tensor([1e-4]), torch.zeros(1), "x")


# -- timm ---------------------------------------------------------------------------------------------------------

IN_TIMM: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet18": (lambda: create_backbone("resnet18", layers=[1, 1, 1, 1]), (3, 64, 64)),
    "of two maps": (
        lambda: create_backbone("resnet18", out_indices=(1, 2), layers=[1, 1, 1, 1]),
        (3, 64, 64),
    ),
    "dilated": (
        lambda: create_backbone("resnet50_deeplab", layers=[1, 1, 1, 3], channels=(8, 8, 8, 8)),
        (3, 64, 64),
    ),
    "convnext": (lambda: create_backbone("convnext_atto", depths=(1, 1, 1, 1)), (3, 64, 64)),
    "mit": (lambda: create_backbone("mit_b2", depths=(1, 1, 1, 1), widths=(8, 16, 20, 32)), (3, 64, 64)),
    "swin": (
        lambda: create_backbone("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24),
        (3, 224, 224),
    ),
    "vit": (lambda: create_token_backbone("vit_tiny_patch16_224", depth=1, img_size=32), (3, 32, 32)),
    "pooled": (lambda: create_token_backbone("resnet18", layers=[1, 1, 1, 1]), (3, 64, 64)),
    "elastic": (lambda: create_backbone("elastic_vit_tiny"), (3, 32, 32)),
    "ast": (
        lambda: create_backbone("ast_tiny", in_chans=1, depth=1, frames=64, mask_token=True),
        (1, 128, 64),
    ),
    "ast, one token": (
        lambda: create_backbone("ast_base_nokd", in_chans=1, depth=1, frames=32),
        (1, 128, 32),
    ),
}


@pytest.mark.parametrize("name", IN_TIMM)
def test_backbones_in_timms_terms(name: str) -> None:
    make, shape = IN_TIMM[name]
    backbone, image = randomised(make()), torch.rand(2, *shape)
    form = form_of(backbone)
    arguments = json.dumps(form.arguments)  # as the file's header has them
    path = write_tensors(
        form.state, Path("m.safetensors"), {"timm_model": form.name, "timm_arguments": arguments}
    )
    called, arguments_again = timm_call(path)
    assert timm.create_model(called, **arguments_again)
    check(backbone, form, path, image)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.1)
    with pytest.raises(CheckpointError, match="computes something else"):
        check(backbone, form, path, image)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("resnet50_deeplab", {"multi_grid": (2, 2, 4)}, "differs from timm's of that name"),
        ("resnet50_deeplab", {"ceil_mode": True}, "differs from timm's of that name"),
        ("resnet18", {"layer_norm": True}, "differs from timm's of that name"),
        ("ast_tiny", {"stride": (10, 10), "in_chans": 1}, "no transformer whose patches overlap"),
        ("street_cnn", {}, "no network like StreetCNN: export it as safetensors"),
    ],
)
def test_what_timm_has_not(name: str, options: dict[str, Any], complaint: str) -> None:
    with torch.device("meta"), pytest.raises(CheckpointError, match=complaint):
        form_of(create_backbone(name, **options))
    write_tensors({"w": torch.ones(1)}, Path("w.safetensors"), {})
    with pytest.raises(CheckpointError, match="is no backbone for timm"):
        timm_call("w.safetensors")


# -- the stored preprocessing ---------------------------------------------------------------------------------------


def test_segmentation_predicts_like_the_command_does(roots: dict[str, Any]) -> None:
    """Resized as the benchmark's images are, labelled at the picture's own size."""
    data = GTA5Cityscapes(**{**tiny.GTA5_CITYSCAPES, **roots, "target_resize": (32, 16), "crop": (8, 16)})
    method = source_only(num_classes=19)
    trainer = toy_trainer(max_steps=1)
    trainer.fit(method, datamodule=data)
    trainer.save_checkpoint("run.ckpt")
    results = trainer.predict(method, datamodule=data)
    again = SourceOnly.from_pretrained("run.ckpt")
    exported = SourceOnly.from_pretrained(again.save_pretrained("out"))
    assert again.preprocessing == exported.preprocessing == {"resize": [32, 16]}
    assert exported.benchmark["classes"] == list(data.classes)
    assert exported.benchmark["palette"] == [list(colour) for colour in data.palette]
    for result in results:
        (path,) = Path(roots["target_root"]).glob(f"leftImg8bit/**/{result['name'][0]}*.png")
        picture = Image.open(path)
        for loaded in (again, exported):
            assert torch.equal(loaded.predict(picture), result["label"][0].long())
            assert torch.equal(loaded.predict(np.array(picture)), result["label"][0].long())


def test_images_are_resized_and_cut_like_the_benchmarks(tmp_path: Path) -> None:
    data = ImageNet(**{**tiny_images.imagenet(tmp_path), "image_size": 24, "resize": 30})
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    facts = data.preprocessing
    assert facts == {"short_side": 30, "crop": 24}
    for pixels, name in zip(batch["image"], batch["name"], strict=True):
        (path,) = tmp_path.rglob(f"{name}.JPEG")
        assert torch.equal(prepared(Image.open(path), facts, torch.device("cpu"))[0], pixels.float() / 255)
    method = DINO("vit_tiny_patch16_224", backbone_args={"depth": 1, "img_size": 16}, prototypes=8)
    method.benchmark = {"preprocessing": {"size": [16, 16]}}
    loaded = DINO.from_pretrained(method.save_pretrained("out"))
    picture = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20).convert("RGB")
    assert loaded.predict(picture).shape == (192,)  # whatever its size
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        DINO("vit_tiny_patch16_224", backbone_args={"depth": 1}, prototypes=8).predict(picture)


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        (torch.rand(1, 8, 8), r"shape \(1, 8, 8\): expected one RGB image"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\): expected one RGB array, \[H, W, 3\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "image is torch.int64: expected uint8, or float"),
        (torch.rand(3, 8, 8) * 255, r"holds floats from .* expected \[0, 1\]. Divide by 255"),
        (torch.full((3, 8, 8), torch.nan), r"holds floats from nan"),
        (torch.zeros(3, 0, 8), "expected one RGB image"),
    ],
)
def test_pictures_that_are_none(picture: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        as_pixels(picture)


def test_volumes_are_prepared_from_scans_and_labelled_in_their_space() -> None:
    pytest.importorskip("monai")
    pytest.importorskip("nibabel")
    settings = Processing(spacing=(2.0, 2.0, 2.0), window=(-100.0, 100.0))
    assert settings_of(json.loads(json.dumps(plain_settings(settings)))) == settings
    method = VolumeSegmenter(
        "residual_unet", 3, backbone_args={"widths": [4, 8]}, inference=SlidingWindow((8, 8, 8), 0.25)
    )
    raw = np.random.default_rng(0).normal(0, 80, (12, 14, 10)).astype(np.float32)
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])  # stored from right to left
    write_nifti(Path("scan.nii.gz"), raw, affine)
    with pytest.raises(ValueError, match="trained on no benchmark of volumes"):
        method.predict("scan.nii.gz")
    method.benchmark = {"preprocessing": {"volume": plain_settings(settings)}}
    loaded = VolumeSegmenter.from_pretrained(method.save_pretrained("out"))

    done = process(Path("scan.nii.gz"), None, settings)
    inner = loaded.predict(done.volume).numpy()
    wanted = to_original_space(inner, done.affine, done.original_size, done.original_affine)
    assert wanted.shape == raw.shape
    for given in (("scan.nii.gz",), (Path("scan.nii.gz"),), (raw, affine), (torch.from_numpy(raw), affine)):
        assert np.array_equal(loaded.predict(*given).numpy(), wanted)
    with pytest.raises(
        ValueError, match=r"expected float in \[0, 1\], prepared as in training; for a raw scan"
    ):
        loaded.predict(raw)
    with pytest.raises(ValueError, match="all finite"):
        loaded.predict(np.full((4, 4, 4), np.nan, np.float32), affine)
