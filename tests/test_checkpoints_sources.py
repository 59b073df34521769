"""Sources: paths, downloads that are cut, checked and cached, the hub's cache, timm, offline."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file

from zoo.checkpoints import CheckpointError, Source, load_pretrained, open_source
from zoo.checkpoints import sources as source_module
from zoo.registry import create_backbone

CONTENT = bytes(range(256)) * 1000


class Server(BaseHTTPRequestHandler):
    """Serves ``content``; breaks the connection after ``cut`` bytes of an answer, as long as cuts are left."""

    content: ClassVar[bytes] = CONTENT
    ranges: ClassVar[bool] = True
    cuts: ClassVar[list[int]] = []
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        if self.path.startswith("/gone"):
            self.send_error(404, "Not Found")
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start >= len(self.content) > 0:
            self.send_error(416, "Range Not Satisfiable")
            return
        body = self.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SELFZOO_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Server.content, Server.ranges, Server.cuts, Server.asked = CONTENT, True, [], []
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def digest(content: bytes = CONTENT) -> str:
    return hashlib.sha256(content).hexdigest()


def fetched(text: str) -> bytes:
    return source_module.fetch(Source.parse(text)).read_bytes()


# -- downloads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [8, 64])
def test_download_once(url: str, digits: int) -> None:
    text = f"{url}/w.pth#sha256={digest()[:digits].upper()}"
    assert fetched(text) == fetched(text) == CONTENT
    assert Server.asked == [None]
    assert not list(Path("cache").rglob("*.part"))


def test_a_cut_download_is_resumed_where_it_broke(url: str) -> None:
    Server.cuts = [1000, 50_000]
    assert fetched(f"{url}/w.pth#sha256={digest()}") == CONTENT
    assert Server.asked == [None, "bytes=1000-", "bytes=51000-"]


def test_a_cut_download_is_kept_for_the_next_call(url: str) -> None:
    Server.cuts = [1000, 1000, 1000]
    with pytest.raises(CheckpointError, match=r"connection broke .*3,000 bytes are kept"):
        fetched(f"{url}/w.pth#sha256={digest()}")
    assert fetched(f"{url}/w.pth#sha256={digest()}") == CONTENT
    assert Server.asked[-1] == "bytes=3000-"


def test_a_server_without_ranges_begins_again(url: str) -> None:
    Server.cuts, Server.ranges = [1000], False
    assert fetched(f"{url}/w.pth#sha256={digest()}") == CONTENT


def test_wrong_checksum_is_told_and_nothing_is_kept(url: str) -> None:
    wrong = "0" * 64
    with pytest.raises(CheckpointError, match=f"the checksum is {digest()}, not {wrong}"):
        fetched(f"{url}/w.pth#sha256={wrong}")
    assert [path.name for path in Path("cache").rglob("w.pth*")] == ["w.pth.lock"]


def test_a_file_that_changed_at_the_server_is_not_glued_together(url: str) -> None:
    Server.cuts = [1000, 0, 0]
    with pytest.raises(CheckpointError, match="connection broke"):
        fetched(f"{url}/w.pth#sha256={digest()}")
    Server.content = CONTENT[::-1]
    with pytest.raises(CheckpointError, match="checksum"):
        fetched(f"{url}/w.pth#sha256={digest()}")
    Server.content = CONTENT
    assert fetched(f"{url}/w.pth#sha256={digest()}") == CONTENT


def test_no_checksum_no_such_file_no_server(url: str) -> None:
    with pytest.raises(CheckpointError, match="a download needs its checksum: add #sha256="):
        fetched(f"{url}/w.pth")
    assert Server.asked == []
    with pytest.raises(CheckpointError, match="the server answers 404 Not Found"):
        fetched(f"{url}/gone.pth#sha256={digest()}")
    with pytest.raises(CheckpointError, match="the connection broke"):
        fetched(f"http://127.0.0.1:9/w.pth#sha256={digest()}")


@pytest.mark.parametrize("flag", ["SELFZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_means_the_cache_or_nothing(url: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{url}/w.pth#sha256={digest()}"
    with monkeypatch.context() as patch:
        go_offline(patch, flag)
        with pytest.raises(CheckpointError, match=r"is not in the cache .* downloads are switched off"):
            fetched(text)
        assert Server.asked == []
    fetched(text)
    go_offline(monkeypatch, flag)
    assert fetched(text) == CONTENT
    assert len(Server.asked) == 1


def go_offline(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    if flag == "SELFZOO_OFFLINE":
        monkeypatch.setenv(flag, "1")
    else:  # the hub reads it once, at import
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_network_starts_from_a_url(url: str) -> None:
    source = create_backbone("street_cnn")
    torch.save(source.state_dict(), "w.pth")
    Server.content = Path("w.pth").read_bytes()
    network = create_backbone("street_cnn", pretrained=f"{url}/w.pth#sha256={digest(Server.content)}")
    assert all(map(torch.equal, source.state_dict().values(), network.state_dict().values()))
    assert network.load_report.share == 1.0


# -- the hub ------------------------------------------------------------------------------------------------

COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as its client lays it out, with no connection."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def cached(hub: Path, name: str, file: str, state: dict[str, torch.Tensor], ref: str = "main") -> None:
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(COMMIT)
    path = repository / "snapshots" / COMMIT / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if file.endswith(".safetensors") else torch.save)(state, path)


@pytest.mark.parametrize(
    ("text", "file", "ref"),
    [
        ("hf-hub:me/net", "model.safetensors", "main"),
        ("hf-hub:me/net", "pytorch_model.bin", "main"),
        ("hf-hub:me/net@v2", "model.safetensors", "v2"),
        ("hf-hub:me/net:weights/best.pth", "weights/best.pth", "main"),
        ("hf-hub:me/net@v2:best.safetensors", "best.safetensors", "v2"),
        (f"hf-hub:me/net@{COMMIT}", "model.safetensors", "main"),
    ],
)
def test_hub_repositories(hub: Path, text: str, file: str, ref: str) -> None:
    source = create_backbone("street_cnn")
    cached(hub, "me/net", file, source.state_dict(), ref)
    network = create_backbone("street_cnn", pretrained=text)
    assert all(map(torch.equal, source.state_dict().values(), network.state_dict().values()))


def test_hub_complaints(hub: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"hf-hub:me/net: model\.safetensors nor .* downloads are switched off"
    ):
        fetched("hf-hub:me/net")
    with pytest.raises(CheckpointError, match=r"hf-hub:me/net: x\.pth is not in the cache"):
        fetched("hf-hub:me/net:x.pth")
    with pytest.raises(CheckpointError, match=r"hf-hub:a/b/c: .*Repo id"):
        fetched("hf-hub:a/b/c")


def test_hub_file_that_is_not_there_is_not_mistaken_for_no_connection(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def nothing(name: str, file: str, **_: Any) -> str:
        asked.append(file)
        raise EntryNotFoundError("404")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", nothing)
    with pytest.raises(CheckpointError, match="is not in the repository: name its file"):
        fetched("hf-hub:me/net")
    assert tuple(asked) == source_module.HUB_FILES


@pytest.mark.parametrize("text", ["timm:resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"])
def test_timm_weights_by_tag(hub: Path, text: str) -> None:
    source = timm.create_model("resnet18")
    cached(hub, "timm/resnet18.a1_in1k", "model.safetensors", source.state_dict())
    network = create_backbone("resnet18", pretrained=text)
    assert torch.equal(network.model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert network.load_report.share == 1.0


def test_timm_complaints(hub: Path) -> None:
    with pytest.raises(CheckpointError, match="timm has no such model"):
        open_source(Source.parse("timm:resnet1818"))
    with pytest.raises(CheckpointError, match="timm has no such weights"):
        open_source(Source.parse("timm:resnet18.no_tag"))


# -- the text -----------------------------------------------------------------------------------------------


def test_options_of_a_source() -> None:
    source = Source.parse("run.ckpt#network=teacher&importer=dino&min_share=0.5")
    assert (source.location, source.network, source.importer, source.min_share) == (
        "run.ckpt",
        "teacher",
        "dino",
        0.5,
    )
    Path("odd#name.pth").write_bytes(b"x")
    assert Source.parse("odd#name.pth").location == "odd#name.pth"
    for text, complaint in (
        ("x.pth#sha=1", "no option of a source"),
        ("x.pth#teacher", "no option of a source"),
        ("x.pth#sha256=xyz", "8 to 64 hexadecimal digits"),
        ("x.pth#min_share=2", "a number from 0 to 1, found '2'"),
        ("x.pth#min_share=most", "a number from 0 to 1, found 'most'"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            Source.parse(text)


def test_options_take_effect() -> None:
    network = create_backbone("street_cnn")
    state = {f"state_dict.student.backbone.{n}": t for n, t in network.state_dict().items()}
    state |= {n.replace("student", "teacher.network"): t + 1 for n, t in state.items()}
    torch.save({**state, "pytorch-lightning_version": "2.6"}, "run.ckpt")
    loaded = create_backbone("street_cnn", pretrained="run.ckpt#network=teacher")
    assert torch.equal(loaded.stages[0][0].weight, network.stages[0][0].weight + 1)
    torch.save({n: t for n, t in network.state_dict().items() if "stages.0" not in n}, "part.pth")
    with pytest.raises(CheckpointError, match="less than 95 %"):
        create_backbone("street_cnn", pretrained="part.pth")
    assert create_backbone("street_cnn", pretrained="part.pth#min_share=0.5").load_report.share > 0.5
    assert (
        load_pretrained(loaded, "part.pth#min_share=0.9", min_share=0.5).share < 0.9
    )  # the typed argument wins


@pytest.mark.parametrize("text", ["hub:x/y", "s3://bucket/x.pth", "ftp://x/y.pth"])
def test_unknown_kinds_of_sources(text: str) -> None:
    with pytest.raises(CheckpointError, match="no source of weights; take a path, hf-hub:"):
        fetched(text)
