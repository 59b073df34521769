"""Files: nothing in them is executed, and what is damaged is one error."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zoo.checkpoints import CheckpointError, WeightFile, load_pretrained, read_weights
from zoo.checkpoints.rules import canonical
from zoo.registry import create_backbone

FUZZ = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class Sneaky:
    """Writes a file through something that looks harmless."""

    def __reduce__(self) -> Any:
        return eval, ("open('executed', 'w').close()",)


def weights() -> dict[str, torch.Tensor]:
    return {"backbone.w": torch.arange(6.0).reshape(2, 3), "backbone.b": torch.ones(2)}


# -- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_format_is_told_by_its_content(form: str) -> None:
    if form == "safetensors":
        save_file(weights(), "file.bin", {"epoch": "3"})
    else:
        torch.save(
            {"state_dict": weights(), "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}},
            "file.bin",
            _use_new_zipfile_serialization=form == "zip",
        )
    file = read_weights("file.bin")
    prefix = "" if form == "safetensors" else "state_dict."
    assert file.tensors.keys() == {prefix + name for name in weights()}
    assert all(torch.equal(file.tensors[prefix + name], tensor) for name, tensor in weights().items())
    assert str(file.facts["epoch"]) == "3"
    assert file.size == Path("file.bin").stat().st_size


def test_inert_types_that_authors_store_are_read() -> None:
    """DINO keeps its arguments, others a NumPy score or a path: values, nothing that runs."""
    torch.save(
        {
            "teacher": weights(),
            "args": argparse.Namespace(arch="vit_small", lr=0.1, data=Path("x")),
            "best": np.float64(0.5),
            "count": np.int64(3),
        },
        "dino.pth",
    )
    facts = read_weights("dino.pth").facts
    assert facts["args.arch"] == "vit_small"
    assert float(facts["best"]) == 0.5
    assert int(facts["count"]) == 3


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "protocol 4"])
@pytest.mark.parametrize(("evil", "named"), [(Evil(), "system"), (Sneaky(), "eval")])
def test_malicious_pickles_are_refused_by_name_and_not_executed(form: str, evil: Any, named: str) -> None:
    content = {"state_dict": weights(), "extra": evil}
    if form == "pickle":
        Path("evil.pth").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(
            content,
            "evil.pth",
            _use_new_zipfile_serialization=form != "legacy",
            pickle_protocol=4 if form == "protocol 4" else 2,
        )
    network = create_backbone("street_cnn")
    before = [tensor.clone() for tensor in network.state_dict().values()]
    with pytest.raises(CheckpointError) as error:
        load_pretrained(network, "evil.pth")
    assert not Path("executed").exists()
    assert all(map(torch.equal, before, network.state_dict().values()))
    assert f".{named}," in str(error.value)
    assert "ask its authors for safetensors" in str(error.value)
    if form == "pickle":
        pickle.loads(Path("evil.pth").read_bytes())
    else:
        torch.load("evil.pth", weights_only=False)
    assert Path("executed").exists()  # the file was dangerous indeed


def test_no_environment_variable_switches_safety_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": weights(), "extra": Evil()}, "evil.pth")
    with pytest.raises(CheckpointError, match="was refused"):
        read_weights("evil.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("page.pth", b"<!DOCTYPE html><html>Sign in</html>", "page.pth is a web page"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer"),
        ("empty.pth", b"", "damaged or cut short"),
        ("junk.pth", b"junk that is no file of weights", "damaged or cut short"),
    ],
)
def test_what_is_no_weight_file_is_told(name: str, content: bytes, complaint: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_weights(name)


def test_missing_folder_empty_and_program() -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: there is no such file"):
        read_weights("none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(".")
    torch.save({"epoch": 3, "name": "x"}, "facts.pth")
    with pytest.raises(CheckpointError, match=r"holds no tensors, only epoch, name"):
        read_weights("facts.pth")


# -- fuzz: cut, changed, dropped, renamed, reshaped ------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@FUZZ
@given(share=st.floats(0, 0.999))
def test_a_cut_file_is_one_error(form: str, share: float) -> None:
    if form == "safetensors":
        save_file(weights(), "whole")
    else:
        torch.save(weights(), "whole", _use_new_zipfile_serialization=form == "zip")
    content = Path("whole").read_bytes()
    Path("cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="cut"):
        read_weights("cut")


@FUZZ
@given(data=st.data())
def test_changed_bytes_never_end_in_anything_but_an_error_or_tensors(data: st.DataObject) -> None:
    torch.save({"state_dict": weights()}, "whole", _use_new_zipfile_serialization=False)
    content = bytearray(Path("whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    Path("changed").write_bytes(content)
    try:
        file = read_weights("changed")
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in file.tensors.values())


NETWORKS = {
    "cnn": create_backbone("street_cnn"),
    "mit": create_backbone("mit_b0", depths=(1, 1, 1, 1), widths=(8, 16, 20, 32)),
    "resnet": create_backbone("resnet50_deeplab", stem_width=4, channels=(4, 4, 4, 4)),
}


@FUZZ
@given(data=st.data())
def test_no_partial_load_is_silent(data: st.DataObject) -> None:
    """Whatever is dropped, renamed or reshaped: every tensor is what the file says, or told, or nothing is loaded."""
    network = NETWORKS[data.draw(st.sampled_from(sorted(NETWORKS)))]
    tensors = {n: torch.full_like(t, 2) for n, t in network.state_dict().items()}
    names = [n for n in tensors if "num_batches" not in n]
    hurt = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names) // 4, unique=True))
    for key in hurt:
        tensor = tensors.pop(key)
        match data.draw(st.sampled_from(["drop", "rename", "reshape", "transpose", "integer"])):
            case "rename":
                tensors[key + "x"] = tensor
            case "reshape":
                tensors[key] = torch.cat([tensor, tensor])
            case "transpose":
                tensors[key] = tensor[None]
            case "integer":
                tensors[key] = tensor.to(torch.int32)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(1)
    least = data.draw(st.sampled_from([0.0, 0.8, 0.95]))
    try:
        report = load_pretrained(network, WeightFile("f.pth", tensors), min_share=least, show=False)
    except CheckpointError:
        assert all((tensor == 1).all() for tensor in network.state_dict().values())
        return
    told = {*report.missing, *(entry[0] for entry in report.mismatched), *(a.name for a in report.adapted)}
    assert told == {canonical(f"backbone.{key}") for key in hurt}
    assert report.share >= least
    part = report.parts["backbone"]
    assert part.tensors - part.loaded_tensors == len(hurt)
    for key, tensor in network.state_dict().items():
        if "num_batches" not in key:
            assert (tensor == (1 if key in hurt else 2)).all(), key


def test_a_zip_that_is_no_checkpoint() -> None:
    with zipfile.ZipFile("x.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_weights("x.pth")
