"""`zoo export`: from a checkpoint of a run to files that load anywhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from torch import nn

from datamodules import Optdigits
from datamodules.image_sets import balanced_choice
from tests.elastic import images, randomize, tiny_elastic
from zoo import Teacher, create_backbone
from zoo.__main__ import main
from zoo.backbones import ElasticBackbone, ElasticSwin, ElasticViT
from zoo.backbones.elastic_layouts import load_poa_weights
from zoo.extraction import count_flops, load_extracted, read_extracted, save_extracted, timm_call
from zoo.nn.elastic import Size
from zoo.nn.knn import knn_scores
from zoo.size_plot import plot_accuracy

KWARGS = {"img_size": 16, "patch_size": 4, "widths": [16, 24], "depths": [2, 3], "head_dim": 8}


class Pretraining(L.LightningModule):
    """What a checkpoint of a method holds: a student, its teacher, both with a backbone, and the arguments."""

    def __init__(self, backbone: str, backbone_args: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        network = create_backbone(backbone, **(backbone_args or {}))
        self.student = nn.ModuleDict({"backbone": network, "head": nn.Linear(4, 2)})
        self.teacher = Teacher(self.student)
        randomize(self.teacher)


def run_checkpoint(path: Path, backbone: str = "elastic_vit_tiny", kwargs: Any = KWARGS) -> ElasticBackbone:
    """Write a checkpoint of Lightning's; returns the teacher's backbone."""
    module = Pretraining(backbone, kwargs)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return module.teacher.network["backbone"].eval()


def test_every_size_of_the_teacher_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = run_checkpoint(tmp_path / "run.ckpt")
    folder = tmp_path / "sizes"
    command = ["export", "--method", "poa", "--checkpoint", str(tmp_path / "run.ckpt"), "--all", str(folder)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "4 files, sizes.csv, sizes.md in" in printed
    assert "no plot: the checkpoint lies in no run" in printed

    image = torch.randn(2, 3, 16, 16)
    rows = list(csv.DictReader((folder / "sizes.csv").open()))
    assert [row["name"] for row in rows] == ["vit_w16_d2", "vit_w16_d3", "vit_w24_d2", "vit_w24_d3"]
    for row, size in zip(rows, teacher.sizes(), strict=True):
        with torch.no_grad():
            expected = teacher.forward_tokens(image, size=size)
            ours = load_extracted(folder / row["file"]).forward_tokens(image)
            name, arguments = timm_call(folder / row["file"])
            timms = timm.create_model(name, **arguments).eval()
            features = timms.forward_features(image)
        assert torch.equal(ours.cls, expected.cls)
        assert torch.equal(ours.patches, expected.patches)
        torch.testing.assert_close(features[:, 0], expected.cls, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features[:, 1:], expected.patches, rtol=1e-5, atol=1e-5)
        assert int(row["parameters"]) == sum(p.numel() for p in timms.parameters())
    table = (folder / "sizes.md").read_text().splitlines()
    assert len(table) == 2 + 4
    assert table[2].startswith("| vit_w16_d2 | 16 | 2 | 0.01 |")


def test_sizes_by_name_and_a_plot(tmp_path: Path) -> None:
    run_checkpoint(tmp_path / "run.ckpt")
    accuracy = tmp_path / "accuracy.csv"
    accuracy.write_text("name,accuracy\nvit_w24_d3,61.5\nvit_w16_d2,50\n")
    command = ["export", "--checkpoint", str(tmp_path / "run.ckpt"), "--size", "vit_w24_d3", "--size"]
    assert main([*command, "vit_w16_d2", "--accuracy", str(accuracy), str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("sizes.csv", "sizes.md", "sizes.png", "vit_w16_d2.safetensors", "vit_w24_d3.safetensors")
    ]
    assert (tmp_path / "out" / "sizes.png").stat().st_size > 5000
    accuracy.write_text("name,accuracy\nvit_w99_d9,61.5\n")
    with pytest.raises(ValueError, match="'vit_w99_d9' is no network of"):
        plot_accuracy(tmp_path / "out" / "sizes.csv", accuracy, tmp_path / "x.png")
    accuracy.write_text("network,top1\nvit_w16_d2,61.5\n")
    with pytest.raises(ValueError, match="must be a CSV with the columns name, accuracy"):
        plot_accuracy(tmp_path / "out" / "sizes.csv", accuracy, tmp_path / "x.png")


def test_a_plot_comes_with_the_sizes_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = run_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    (tmp_path / "run" / "config.yaml").write_text(
        "data: {class_path: datamodules.Optdigits, init_args: {image_size: 16, views: {class_path: nothing}}}"
    )
    command = ["export", "--checkpoint", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "--all"]
    assert main([*command, "--images", "100", str(tmp_path / "out")]) == 0
    assert "20-NN %" in capsys.readouterr().out
    assert (tmp_path / "out" / "sizes.png").stat().st_size > 5000
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "out" / "accuracies.csv").open())}
    assert list(rows) == [teacher.size_name(size) for size in teacher.sizes()]

    size, data = Size(16, 3), Optdigits(image_size=16)
    parts = []
    for name in ("labelled", "val"):
        subset = data.subset(name)
        batch = subset.batch(balanced_choice(subset.labels, 100, 0))
        mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
        with torch.no_grad():
            tokens = teacher.forward_tokens((batch["image"] / 255 - mean) / std, size=size)
        parts.append((tokens.cls, batch["label"]))
    scores = knn_scores(parts[1][0], *parts[0], 10, [20])[20]
    expected = 100 * float((scores.argmax(1) == parts[1][1]).float().mean())
    assert float(rows["vit_w16_d3"]["accuracy"]) == pytest.approx(expected, abs=0.01)

    assert main([*command, "--no_plot", str(tmp_path / "bare")]) == 0
    assert not (tmp_path / "bare" / "sizes.png").exists()
    (tmp_path / "run" / "config.yaml").write_text("data: StreetShift")
    assert main([*command, str(tmp_path / "no")]) == 2
    assert "its data (StreetShift) is no image benchmark" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_files_of_all_families(family: str, tmp_path: Path) -> None:
    backbone = tiny_elastic(family)
    size = Size(backbone.widths[1], backbone.depths[-2])
    written = save_extracted(backbone, size, tmp_path)
    path = tmp_path / f"{written.name}.safetensors"
    assert read_extracted(path) == written
    loaded = create_backbone(str(path)).eval()
    with torch.no_grad():
        expected, found = (
            backbone.forward_tokens(images(family), size=size),
            loaded.forward_tokens(images(family)),
        )
        maps = zip(backbone.forward_features(images(family), size), loaded(images(family)), strict=True)
    assert torch.equal(found.cls, expected.cls)
    assert torch.equal(found.patches, expected.patches)
    assert all(torch.equal(a, b) for a, b in maps)
    assert loaded.channels == tuple(m.shape[1] for m in loaded(images(family)))
    if family == "swin":
        with pytest.raises(ValueError, match="timm has no network of the shape"):
            timm_call(path)
    else:
        name, arguments = timm_call(path)
        assert sum(p.numel() for p in timm.create_model(name, **arguments).parameters()) == written.parameters


def test_arguments_that_change_no_tensor_can_be_set(tmp_path: Path) -> None:
    backbone = tiny_elastic("vit")
    written = save_extracted(backbone, backbone.intact, tmp_path)
    path = str(tmp_path / f"{written.name}.safetensors")
    assert create_backbone(path, drop_path_rate=0.3).blocks[0].drop_path.rate == 0.3
    with pytest.raises(ValueError, match=r"does not fit ElasticViT\(vit of width 40 and depth 5\)"):
        create_backbone(path, in_chans=1)


def test_operations_are_counted_as_by_hand() -> None:
    """Two per multiply-add of patch embedding, qkv, logits and values, projection and MLP."""
    backbone = ElasticViT(32, 8, widths=(24, 40), depths=(2, 5), head_dim=8)
    D, L, N = 24, 2, 1 + 16
    block = N * (3 * D * D + D * D + 8 * D * D) + 2 * N * N * D
    alone = backbone.extract(Size(D, L))
    assert count_flops(alone, 32) == 2 * (16 * 3 * 64 * D + L * block)


def test_published_sizes_have_their_parameters_and_operations() -> None:
    expected = {"vit_small": (21.67, 4.6), "vit_base": (85.82, 17.6)}
    with torch.device("meta"):
        backbone = ElasticViT()
    for name, (parameters, operations) in expected.items():
        with torch.device("meta"):
            alone = ElasticViT(**backbone.alone_arguments(backbone.find_size(name)))
        found = sum(p.numel() for p in alone.parameters()) - alone.mask_token.numel()
        assert found / 1e6 == pytest.approx(parameters, abs=0.006)
        assert count_flops(alone, 224) / 2e9 == pytest.approx(operations, abs=0.05)


# -- the authors' files ----------------------------------------------------------------------------------


def authors_file(path: Path, backbone: ElasticViT) -> None:
    """Our state under the authors' names and in their order, with a head beside it."""
    state = {"dino_head.mlp0.0.linear.weight": torch.zeros(2, 2)}
    for name, tensor in backbone.state_dict().items():
        if "qkv_by_head" in name:
            name = name.replace("qkv_by_head", "qkv")
            tensor = tensor.unflatten(0, (-1, 3, backbone.head_dim)).transpose(0, 1).flatten(0, 2)
        for layer in ("norm1", "norm2"):
            name = name.replace(f".{layer}.", f".{layer}.norm.")
        for layer in ("qkv", "attn.proj", "fc1", "fc2"):
            name = name.replace(f".{layer}.", f".{layer}.linear.")
        name = f"norm.{name}" if name.startswith("norm.") else name
        state[f"backbone.{name}"] = tensor.clone()
    torch.save({"teacher": state}, path)


def test_sizes_of_an_authors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import registry

    backbone = ElasticViT(**KWARGS)
    randomize(backbone)
    authors_file(tmp_path / "teacher.pth", backbone)
    monkeypatch.setitem(registry._backbones, "elastic_here", lambda **_: ElasticViT(**KWARGS))
    command = ["export", "--checkpoint", str(tmp_path / "teacher.pth"), "--size", "vit_w16_d2"]
    assert main([*command, "--backbone", "elastic_here", str(tmp_path)]) == 0
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = backbone.eval().forward_tokens(image, size=Size(16, 2))
        found = load_extracted(tmp_path / "vit_w16_d2.safetensors").forward_tokens(image)
    assert torch.equal(found.cls, expected.cls)


def test_authors_weights_of_another_network_are_refused_in_one_error(tmp_path: Path) -> None:
    narrow = ElasticViT(**{**KWARGS, "widths": [16], "depths": [2]})
    authors_file(tmp_path / "teacher.pth", narrow)
    content = torch.load(tmp_path / "teacher.pth")
    with pytest.raises(
        ValueError,
        match=r"a\.pth does not fit ElasticViT\(vit of width 24 and depth 3\): it holds vit of width 16 and depth 2 "
        r"and differs in \d+ tensors: .*Build the backbone with the family, widths and depths",
    ):
        load_poa_weights(ElasticViT(**KWARGS), content, "a.pth")
    with pytest.raises(
        ValueError, match=r"ElasticSwin\(swin of width 16 and depth 1-1\): it holds vit of width 16"
    ):
        load_poa_weights(ElasticSwin(widths=(16,), depths=((1,), (1,)), head_dim=8), content, "a.pth")
    missing = {"teacher": {k: v for k, v in content["teacher"].items() if "norm.norm" not in k}}
    with pytest.raises(ValueError, match=r"differs in 2 tensors: norm.weight None \(expected \[16\]\)"):
        load_poa_weights(ElasticViT(**{**KWARGS, "widths": [16], "depths": [2]}), missing, "a.pth")


# -- what cannot be exported -----------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main(["export", *map(str, command)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("zoo export: error: ")
    assert message.count("\n") == 1
    return message


def test_bad_exports_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run.ckpt", tmp_path / "out"
    run_checkpoint(run)
    assert "no such file" in refused(capsys, "--checkpoint", tmp_path / "none.ckpt", "--all", out)
    unknown = refused(capsys, "--checkpoint", run, "--size", "vit_small", out)
    assert "size 'vit_small' is none of the 4 of this backbone; names are like vit_w16_d2" in unknown
    assert "only elastic backbones can be exported" in refused(
        capsys, "--checkpoint", run, "--all", "--backbone", "street_cnn", out
    )
    assert not out.exists()

    run_checkpoint(run, "street_cnn", None)
    assert "backbone 'street_cnn'" in refused(capsys, "--checkpoint", run, "--all", out)

    content = torch.load(run, weights_only=True)
    run_checkpoint(run)
    wide = torch.load(run, weights_only=True)
    wide["hyper_parameters"]["backbone_args"]["widths"] = [16, 32]
    torch.save(wide, run)
    assert "does not fit ElasticViT(vit of width 32 and depth 3): it holds vit of width 24" in refused(
        capsys, "--checkpoint", run, "--all", out
    )
    wide["state_dict"] = {k: v for k, v in wide["state_dict"].items() if not k.startswith("teacher.")}
    torch.save(wide, run)
    assert "holds 0 backbones of a teacher" in refused(capsys, "--checkpoint", run, "--all", out)
    torch.save({"state_dict": content["state_dict"]}, run)
    assert "does not say which backbone it holds" in refused(capsys, "--checkpoint", run, "--all", out)
    for typed, complaint in (
        (
            ["--all", "--format", "onnx"],
            "--all and --size write sub-networks of the teacher, without --format",
        ),
        (["--accuracy", "x.csv"], "belong to --all or --size"),
    ):
        with pytest.raises(SystemExit):
            main(["export", "--checkpoint", str(run), str(out), *typed])
        assert complaint in capsys.readouterr().err
    assert "does not say of which method it is" in refused(capsys, "--checkpoint", run, out)


def test_other_files_are_not_extracted_networks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is not an extracted network"):
        create_backbone(str(tmp_path / "a.safetensors"))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_extracted(tmp_path / "b.safetensors")


def test_metadata_can_be_read_without_the_zoo(tmp_path: Path) -> None:
    from safetensors import safe_open

    backbone = tiny_elastic("vit")
    save_extracted(backbone, Size(24, 3), tmp_path)
    with safe_open(tmp_path / "vit_w24_d3.safetensors", "pt") as file:
        metadata = file.metadata()
        assert "mask_token" not in file.keys()  # noqa: SIM118 - it is no dict
    assert (metadata["name"], metadata["width"], metadata["depth"]) == ("vit_w24_d3", "24", "3")
    assert int(metadata["flops"]) > 0
    assert json.loads(metadata["selfzoo"])["timm_arguments"]["embed_dim"] == 24
