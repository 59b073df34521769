"""Every registered method: trained, exported, and loaded by the tools the files are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.lives import trained
from tests.test_methods import one_example
from zoo.backbones import UnifiedViT
from zoo.checkpoints import CheckpointError, load_pretrained
from zoo.export.card import deployed
from zoo.export.command import export_as
from zoo.export.timm import timm_call
from zoo.method import Method
from zoo.registry import get_method, list_methods

onnxruntime = pytest.importorskip("onnxruntime")

SIZES = {"image": (64, 64), "volume": (16, 16, 16), "spectrogram": None, "video": None, "signal": (64,)}
#: Methods whose miniature has a backbone that timm has not.
NOT_IN_TIMM = {
    *("fst", "self_training", "semi_mean_teacher", "sepico", "source_only", "fst_semi"),  # StreetCNN
    "cbsn",
    *("voco", "voco_cvpr", "voco_omni", "volume_classifier", "volume_segmenter", "w2v_bert"),
    *("uni4eye", "eye_classifier"),
    *("hicmae", "hicmae_classifier", "wearable_biosignals"),
}


def size_of(method: Any) -> tuple[int, ...] | None:
    """Small inputs; backbones of tokens take those they were built for."""
    tokens = method.input_name == "image" and hasattr(method.student.backbone, "forward_tokens")
    return None if tokens else SIZES[method.input_name]


def inputs_of(method: Any) -> tuple[Tensor, ...]:
    """A batch of two of everything that the network takes."""
    example = method.example_input(size_of(method))
    return example if isinstance(example, tuple) else (example,)


def as_list(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(as_list(one), as_list(other), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), b, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=list_methods())
def method(request: pytest.FixtureRequest) -> Any:
    found = Method.from_pretrained(trained(request.param))
    assert type(found) is get_method(request.param)
    assert not found.training
    return found


@pytest.mark.slow
@torch.no_grad()
def test_every_method_comes_back_from_what_it_wrote(method: Any, tmp_path: Path) -> None:
    cls, example = type(method), one_example(method)[0]
    example = example[:16, :16, :16] if method.input_name == "volume" else example
    wanted = torch.as_tensor(method.predict(example))
    batch = inputs_of(method)
    name = method.evaluated_name()
    outputs = as_list(deployed(method, None, "whole")(*batch))

    path = method.save_pretrained(tmp_path / "out")
    plain = load_file(path)
    state = method.networks()[name].state_dict()
    assert plain.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in plain.items())
    for source in (tmp_path / "out", path):
        again = cls.from_pretrained(source)
        assert torch.equal(torch.as_tensor(again.predict(example)), wanted)
        same(deployed(again, None, "whole")(*batch), outputs)
        assert again.benchmark == method.benchmark
        assert again.preprocessing == method.preprocessing
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["network"] == name
    assert config["kept"]["benchmark"]["name"]
    assert f"{cls.__name__}.from_pretrained" in (tmp_path / "out" / "README.md").read_text()

    # a start for others: the whole network, and the backbone alone
    fresh = cls.from_pretrained(path)
    for tensor in fresh.student.state_dict().values():
        tensor.zero_()
    assert load_pretrained(fresh, str(path), show=False).complete
    same(deployed(fresh, "student", "whole")(*batch), outputs)
    alone = method.save_pretrained(tmp_path / "backbone", part="backbone")
    for tensor in fresh.student.backbone.state_dict().values():
        tensor.zero_()
    report = load_pretrained(fresh.student.backbone, str(alone), show=False)
    assert report.complete
    assert not report.unexpected
    same(deployed(fresh, "student", "backbone")(*batch), as_list(deployed(method, None, "backbone")(*batch)))
    with pytest.raises(CheckpointError, match="holds the backbone alone"):
        cls.from_pretrained(alone)


@pytest.mark.slow
@torch.no_grad()
def test_every_method_runs_in_other_tools(method: Any, tmp_path: Path) -> None:
    size = size_of(method)
    module = deployed(method, None, "whole")
    outputs = module.outputs if hasattr(module, "outputs") else ("logits",)
    batch = [part.flip(0)[:1] for part in inputs_of(method)]
    wanted = as_list(module(*batch))

    program = export_as("program", method, tmp_path, size=size)
    same(torch.export.load(program).module()(*batch), wanted, 1e-5)

    model = export_as("onnx", method, tmp_path, size=size)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == list(method.input_names())
    assert tuple(entry.name for entry in session.get_outputs()) == outputs
    card = json.loads(session.get_modelmeta().custom_metadata_map["selfzoo"])
    assert card["class"].endswith(type(method).__name__)
    given = {name: part.numpy() for name, part in zip(method.input_names(), batch, strict=True)}
    same(session.run(None, given), wanted, 1e-5)

    name = next(n for n in list_methods() if get_method(n) is type(method))
    if name in NOT_IN_TIMM:
        with pytest.raises(CheckpointError, match=r"timm has no network like \w+: export it as"):
            export_as("timm", method, tmp_path, size=size)
        return
    folder = export_as("timm", method, tmp_path, size=size)
    called, arguments = timm_call(folder / "model.safetensors")
    built = timm.create_model(called, **arguments).eval()
    image = batch[0].transpose(1, 2)[:, None] if method.input_name == "spectrogram" else batch[0]
    tokens = method.networks()[method.evaluated_name()].backbone.forward_tokens(image)
    features = built.forward_features(image)
    if features.ndim == 3:
        same([features[:, built.num_prefix_tokens :]], [tokens.patches], 1e-5)
    from_folder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    same([from_folder.forward_features(image)], [features])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in list_methods() if get_method(n).input_name == "image"])
def test_predict_takes_pictures_of_every_kind(name: str) -> None:
    method: Any = Method.from_pretrained(trained(name))
    size = (32, 64) if "decode_head" in dict(method.student.named_children()) else (16, 16)
    if isinstance(method.student.backbone, UnifiedViT):  # takes one size: nothing is resized
        size = method.student.backbone.sizes[2]
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    wanted = method.predict(Image.fromarray(array))
    for picture in (array, tensor, tensor / 255, array / np.float32(255)):
        same([method.predict(picture)], [wanted], 1e-4)
    with pytest.raises(ValueError, match=r"floats from .* to .*: expected \[0, 1\]"):
        method.predict(tensor.float())
