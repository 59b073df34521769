"""A method from a file: what is refused, that nothing is executed or fetched, and the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.test_checkpoints_files import Evil
from tests.test_checkpoints_sources import COMMIT
from tests.toy import toy_trainer
from zoo.checkpoints import CheckpointError
from zoo.method import Method
from zoo.methods.image.dino import DINO
from zoo.methods.medical.voco import VoCo
from zoo.methods.segmentation.fst import FST
from zoo.methods.segmentation.self_training import SelfTraining, SourceOnly

FUZZ = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def source_only(**options: Any) -> SourceOnly:
    method = SourceOnly(**{"backbone": "street_cnn", "num_classes": 4, **options})
    method.benchmark = {"name": "toys", "classes": ["a", "b", "c", "d"], "ignore_index": 255}
    return method


def saved_run(method: Method, path: str = "run.ckpt") -> str:
    trainer = toy_trainer(max_steps=0)
    trainer.strategy.connect(method)
    trainer.save_checkpoint(path)
    return path


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def rewritten(path: Path, change: Any, to: str = "changed.safetensors") -> str:
    """The file with another card."""
    facts = header(path)
    card = json.loads(facts["card"])
    change(card)
    save_file(load_file(path), to, {**facts, "card": json.dumps(card)})
    return to


# -- which network, which part ----------------------------------------------------------------------------------


def test_student_or_teacher_whole_or_backbone() -> None:
    method = SelfTraining(backbone="street_cnn", num_classes=4)
    with torch.no_grad():
        for tensor in method.teacher.network.parameters():
            tensor.add_(1)
    for network, wanted in (
        ("student", method.student),
        ("teacher", method.teacher.network),
        (None, method.student),
    ):
        path = method.save_pretrained("out", network)
        assert header(path)["network"] == network or network is None
        state = wanted.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(path).items())
        again = SelfTraining.from_pretrained(path)
        for loaded in (again.student, again.teacher.network):  # a teacher starts where its student is
            assert all(map(torch.equal, loaded.state_dict().values(), state.values()))
    alone = method.save_pretrained("backbone", "teacher", part="backbone")
    assert load_file(alone).keys() == {f"backbone.{name}" for name in method.student.backbone.state_dict()}
    with pytest.raises(
        CheckpointError, match="SelfTraining has no whole network 'labeler': there is student, teacher"
    ):
        method.save_pretrained("out", "labeler")
    with pytest.raises(CheckpointError, match="part='head': expected whole or backbone"):
        method.save_pretrained("out", part="head")


def test_the_network_that_predicts_is_the_default() -> None:
    options = {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"depth": 1, "img_size": 32},
        "prototypes": 8,
    }
    method = DINO(**options)
    with torch.no_grad():
        method.teacher.network.backbone.model.cls_token.add_(1)
    image = torch.rand(3, 32, 32)
    again = DINO.from_pretrained(method.save_pretrained("dino"))
    assert torch.equal(again.predict(image), method.predict(image))
    assert header(Path("dino/model.safetensors"))["network"] == "teacher"


def test_parts_of_a_teacher_are_no_networks() -> None:
    method = VoCo("residual_unet", backbone_args={"widths": [4, 8]}, hidden_dim=8, projection_dim=8)
    assert list(method.networks()) == ["student"]
    again = VoCo.from_pretrained(method.save_pretrained("voco"))
    # the projector's teacher starts from the projector that was exported
    theirs, ours = again.teacher.network.state_dict(), method.student.projector.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_header_says_what_is_needed_to_use_the_file() -> None:
    path = source_only(pretrained=False).save_pretrained("out")
    card = json.loads(header(path)["card"])
    assert card == json.loads(Path("out/config.json").read_text())
    assert card["method"] == "source_only"
    assert card["hyper_parameters"]["backbone"] == "street_cnn"
    assert card["kept"]["benchmark"]["classes"] == ["a", "b", "c", "d"]
    assert card["input"]["mean"] == list(source_only().student.backbone.mean)
    assert card["outputs"] == ["logits"]
    assert {"selfzoo", "torch", "timm"} <= card["versions"].keys()


def test_what_cannot_be_written_is_told() -> None:
    method = source_only()
    with torch.no_grad():
        method.student.decode_head.classifier.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"decode_head\.classifier\.bias holds nan or inf"):
        method.save_pretrained("out")
    assert not Path("out/model.safetensors").exists()
    method = source_only()
    method.hparams["head_args"] = {"norm": torch.nn.LayerNorm}
    with pytest.raises(
        CheckpointError, match=r"card\.hyper_parameters\.head_args\.norm is a type, no plain value"
    ):
        method.save_pretrained("out")
    Path("file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        source_only().save_pretrained("file/out")


# -- nothing is executed, nothing is fetched ---------------------------------------------------------------------


def test_nothing_that_a_checkpoint_names_is_called() -> None:
    content = torch.load(saved_run(source_only()), weights_only=True)
    content["hyper_parameters"]["_instantiator"] = "os.system"  # Lightning would call it
    torch.save(content, "run.ckpt")
    for load in (SourceOnly.from_pretrained, Method.from_pretrained, SourceOnly.load_from_checkpoint):
        assert type(load("run.ckpt")) is SourceOnly
    content["class_path"] = "subprocess.Popen"
    torch.save(content, "run.ckpt")
    for cls in (SourceOnly, Method):
        with pytest.raises(
            CheckpointError, match=r"holds a subprocess\.Popen, which is no registered method"
        ):
            cls.from_pretrained("run.ckpt")
    torch.save({**content, "extra": Evil()}, "run.ckpt")
    with pytest.raises(CheckpointError, match=r"was refused: .*\.system"):
        SourceOnly.from_pretrained("run.ckpt")
    assert not Path("executed").exists()


def test_nothing_that_an_exported_file_names_is_imported() -> None:
    path = source_only().save_pretrained("out")
    Path("evil_module.py").write_text("open('executed', 'w').close()\nclass SourceOnly_: ...\n")
    changed = rewritten(path, lambda card: card.update({"class": "evil_module.SourceOnly_"}))
    for cls in (SourceOnly, Method):
        with pytest.raises(CheckpointError, match="no registered method"):
            cls.from_pretrained(changed)
    assert not Path("executed").exists()


@pytest.mark.parametrize("form", ["checkpoint", "export"])
def test_pretrained_weights_are_not_fetched_again(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = source_only(backbone="resnet18", decode_head="fcn", backbone_args={"layers": [1, 1, 1, 1]})
    method.hparams["pretrained"] = True
    method.hparams["init_from"] = "gone.ckpt"
    path = saved_run(method) if form == "checkpoint" else method.save_pretrained("out")

    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched")

    for name in (
        "huggingface_hub.hf_hub_download",
        "urllib.request.urlopen",
        "torch.hub.load_state_dict_from_url",
    ):
        monkeypatch.setattr(name, fetch)
    again = SourceOnly.from_pretrained(path)
    image = torch.rand(3, 64, 64)
    assert again.hparams["pretrained"] is True
    assert torch.equal(again.predict(image), method.predict(image))


@pytest.mark.parametrize(
    "spell",
    [
        lambda n: n.replace("student.", "student._orig_mod."),
        lambda n: n.replace("student.backbone.", "student.backbone._orig_mod.module."),
        lambda n: "_orig_mod." + n,
        lambda n: "module." + n,
    ],
)
def test_checkpoints_of_compiled_and_parallel_methods(spell: Any) -> None:
    method = source_only()
    content = torch.load(saved_run(method), weights_only=True)
    content["state_dict"] = {spell(name): tensor for name, tensor in content["state_dict"].items()}
    torch.save(content, "run.ckpt")
    image = torch.rand(3, 32, 64)
    assert torch.equal(SourceOnly.from_pretrained("run.ckpt").predict(image), method.predict(image))


def test_constructor_arguments_can_be_changed() -> None:
    path = source_only().save_pretrained("out")
    assert SourceOnly.from_pretrained(path, inference={"flip": True}).inference.flip
    with pytest.raises(
        CheckpointError, match=r"nothing was loaded; of another shape: decode_head\.classifier"
    ):
        SourceOnly.from_pretrained(path, num_classes=7)
    with pytest.raises(CheckpointError, match=r"SourceOnly cannot be built with its arguments: .*'no_such'"):
        SourceOnly.from_pretrained(path, no_such=1)


# -- what is refused ---------------------------------------------------------------------------------------------


def test_files_of_another_kind() -> None:
    path, run = source_only().save_pretrained("out"), saved_run(source_only())
    for source in (path, run):
        with pytest.raises(
            CheckpointError, match=r"holds a SourceOnly, not a FST: use SourceOnly.from_pretrained"
        ):
            FST.from_pretrained(source)
        assert type(Method.from_pretrained(source)) is SourceOnly
    state = source_only().student.state_dict()
    torch.save(state, "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth is no Lightning checkpoint but other weights"):
        SourceOnly.from_pretrained("weights.pth")
    save_file(state, "weights.safetensors")
    with pytest.raises(CheckpointError, match="holds weights alone, of no method"):
        SourceOnly.from_pretrained("weights.safetensors")
    with pytest.raises(CheckpointError, match=r"there is no such file; from the hub: hf-hub:me/net"):
        SourceOnly.from_pretrained("me/net")
    Path("empty").mkdir()
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors"):
        SourceOnly.from_pretrained("empty")
    with pytest.raises(CheckpointError, match="weights of a backbone, no method"):
        SourceOnly.from_pretrained("timm:resnet18")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda card: card.update(format=2), "has a card of format 2, this selfzoo reads up to 1"),
        (lambda card: card.pop("class"), "the card in its header is damaged"),
        (lambda card: card.update(hyper_parameters=[]), "the card in its header is damaged"),
        (
            lambda card: card["hyper_parameters"].update(backbone="no_such"),
            "cannot be built .*unknown backbone",
        ),
        (
            lambda card: card["hyper_parameters"].update(decode_head="deeplabv2"),
            "nothing was loaded; missing: ",
        ),
    ],
)
def test_cards_that_do_not_fit(change: Any, complaint: str) -> None:
    path = rewritten(source_only().save_pretrained("out"), change)
    with pytest.raises(CheckpointError, match=complaint):
        SourceOnly.from_pretrained(path)


@FUZZ
@given(data=st.data())
def test_a_method_is_never_loaded_in_part(data: st.DataObject) -> None:
    """Exported files and checkpoints whose tensors were dropped, renamed, added or reshaped, or that were cut."""
    method = source_only()
    if data.draw(st.booleans()):
        path: Any = method.save_pretrained("out")
        facts, tensors = header(path), load_file(path)

        def write() -> None:
            save_file(tensors, path, facts)
    else:
        path = Path(saved_run(method))
        content = torch.load(path, weights_only=True)
        tensors = content["state_dict"]

        def write() -> None:
            torch.save(content, path)

    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=3, unique=True)):
        tensor = tensors.pop(name)
        match data.draw(st.sampled_from(["drop", "rename", "reshape", "add"])):
            case "rename":
                tensors[name.replace("weight", "wait") + "_"] = tensor
            case "reshape":
                tensors[name] = tensor[None]
            case "add":
                tensors |= {name: tensor, f"{name}.more": torch.ones(1)}
    write()
    share = data.draw(st.sampled_from([1.0, 0.99, 0.5, 0.01]))
    with path.open("r+b") as file:
        file.truncate(int(share * path.stat().st_size))
    wanted = method.student.state_dict() if path.suffix == ".safetensors" else method.state_dict()
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    intact = share == 1.0 and {name: tensor.shape for name, tensor in tensors.items()} == shapes
    if intact:
        SourceOnly.from_pretrained(path)
    else:
        with pytest.raises(CheckpointError):
            SourceOnly.from_pretrained(path)


# -- the hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Uploads end in the client's cache, where downloads find them; there is no connection."""
    from huggingface_hub import CommitInfo, HfApi

    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def upload(
        self: Any, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str
    ) -> Any:
        asked.append(
            (repo_id, sorted(path.name for path in Path(folder_path).iterdir()), revision, commit_message)
        )
        place = tmp_path / "hub" / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, place / "snapshots" / COMMIT)
        (place / "refs").mkdir(parents=True)
        (place / "refs" / (revision or "main")).write_text(COMMIT)
        url = f"https://huggingface.co/{repo_id}/commit/{COMMIT}"
        return CommitInfo(commit_url=url, commit_message=commit_message, commit_description="", oid=COMMIT)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: asked.append((name, options)))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return asked


def test_a_method_goes_to_the_hub_and_comes_back(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method, image = source_only(), torch.rand(3, 32, 64)
    with monkeypatch.context() as online:
        online.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        address = method.push_to_hub("me/net", private=True, message="first")
    assert address.endswith(f"me/net/commit/{COMMIT}")
    created, uploaded = hub
    assert created == ("me/net", {"private": True, "exist_ok": True})
    assert uploaded == ("me/net", ["README.md", "config.json", "model.safetensors"], None, "first")
    for source in ("hf-hub:me/net", f"hf-hub:me/net@{COMMIT}", "hf-hub:me/net:model.safetensors"):
        again = SourceOnly.from_pretrained(source)  # offline: from the cache
        assert torch.equal(again.predict(image), method.predict(image))
        assert again.benchmark["classes"] == ["a", "b", "c", "d"]
    with pytest.raises(CheckpointError, match="is not in the cache, and downloads are switched off"):
        SourceOnly.from_pretrained("hf-hub:me/other")


@pytest.mark.parametrize("flag", ["HF_HUB_OFFLINE", "SELFZOO_OFFLINE"])
def test_offline_nothing_is_uploaded(flag: str, hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", flag == "HF_HUB_OFFLINE")
    if flag == "SELFZOO_OFFLINE":
        monkeypatch.setenv(flag, "1")
    with pytest.raises(
        CheckpointError, match=r"me/net: uploads are switched off .* save_pretrained writes the same"
    ):
        source_only().push_to_hub("me/net")
    assert hub == []


def test_what_the_hub_refuses_is_one_error(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(self: Any, name: str, **_: Any) -> None:
        raise OSError("Token is required\n to upload")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(CheckpointError, match="hf-hub:me/net: Token is required to upload"):
        source_only().push_to_hub("me/net")
