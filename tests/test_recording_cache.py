"""The caches of decoded videos and signals: the same samples, made once, whole or not read at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import PTBXL, AudioVisualLists, PulsePeople, SignalFolders, TalkingBlobs, VoxCeleb2
from datamodules.array_cache import CacheError
from datamodules.video_cache import VideoCache, VideoJob
from datamodules.video_files import BrokenVideoError, VideoFile
from tests import tiny_signals, tiny_videos
from tests.test_image_cache import flat
from zoo.doctor.data import layout
from zoo.doctor.data import opened as doctor_opened

Settings = tuple[Any, dict[str, Any]]


def voxceleb2(folder: Path) -> Settings:
    return VoxCeleb2, tiny_videos.voxceleb2(folder)


def lists(folder: Path) -> Settings:
    # Frames of test clips are resized to another size than those of validation.
    return AudioVisualLists, {**tiny_videos.audio_visual_lists(folder), "num_classes": 2, "test_size": 40}


def ptbxl(folder: Path) -> Settings:
    settings = {**tiny_signals.ptbxl(folder), "leads": ("V1", "I"), "seconds": 3.0}
    return PTBXL, {**settings, "eval_batch_size": 3}


def packed(folder: Path) -> Settings:
    """Compressed archives, of which each holds three segments."""
    settings = tiny_signals.signal_folders(folder)
    root = Path(settings["root"])
    for path in root.glob("arrays/*.npy"):
        np.savez_compressed(path.with_suffix(".npz"), signal=np.load(path))
        path.unlink()
    (root / "segments.parquet").unlink()
    table = tiny_signals.columns()
    table["segment_path"] = [path.replace(".npy", ".npz") for path in table["segment_path"]]
    tiny_signals.write_table(root, table)
    return SignalFolders, {**settings, "traits": ("age",)}


BENCHMARKS = [voxceleb2, lists, ptbxl, packed]


def opened(kind: Any, settings: dict[str, Any], **more: Any) -> Any:
    data = kind(**{**settings, "seed": 0, **more})
    data.prepare_data()
    data.setup()
    return data


def samples(kind: Any, settings: dict[str, Any], **more: Any) -> list[Any]:
    data = opened(kind, settings, **more)
    batches = [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
    return flat([*batches, *data.bank_dataloader()])


def same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(some, others, strict=True)
    )


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    for place in ("video_files.FrameFolder", "video_files.VideoFile", "ptbxl.PTBXL"):
        monkeypatch.setattr(f"datamodules.{place}.{'load' if 'ptbxl' in place else '__init__'}", decode)
    monkeypatch.setattr(SignalFolders, "decode", decode)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_samples_are_the_same_bit_for_bit_and_nothing_is_decoded_any_more(
    benchmark: Callable[[Path], Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings = benchmark(tmp_path)
    decoded = samples(kind, settings)
    assert len(decoded) > 20
    kept = str(tmp_path / "kept")
    data = opened(kind, {**settings, "num_workers": 2}, cache=kept)
    no_decoding(monkeypatch)
    trained = flat(list(data.train_dataloader()))
    assert same(decoded[: len(trained)], trained)
    assert same(decoded, samples(kind, settings, cache=kept))


@pytest.mark.parametrize(("benchmark", "place"), [(voxceleb2, "videos"), (ptbxl, "signals")])
def test_true_keeps_what_is_seen_in_the_cache_of_selfzoo(
    benchmark: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "home"))
    kind, settings = benchmark(tmp_path)
    opened(kind, settings, cache=True)
    arrays = {path.parent.name: np.load(path) for path in (tmp_path / "home" / place).glob("*/*.npy")}
    found = {(array.dtype.name, array.shape) for array in arrays.values()}
    shape = ("uint8", (12, 3, 32, 32)) if kind is VoxCeleb2 else ("float32", (3, 2, 300))
    assert (len(arrays), found) == ({VoxCeleb2: 5, PTBXL: 8}[kind], {shape})


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_made_once_mended_and_made_anew_of_files_that_changed(benchmark: Any, tmp_path: Path) -> None:
    kind, settings = benchmark(tmp_path)
    kept = tmp_path / "kept"
    first = samples(kind, settings, cache=str(kept))
    written = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npy")}
    victim = next(iter(written))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{victim} is damaged: decoding .* again"):
        assert same(first, samples(kind, settings, cache=str(kept)))
    for path, when in written.items():
        assert (path.stat().st_mtime_ns == when) == (path != victim)
    data = opened(kind, settings, cache=str(kept))
    for pattern in ("*.mp4", "faces/*/*3.png", "*.hea", "*.npz"):
        for path in Path(settings["root"]).rglob(pattern):
            path.touch()
    with pytest.raises(CacheError, match=r"1 of 1 files are not in .*start again if they have changed"):
        list(data.train_dataloader())
    assert same(first, samples(kind, settings, cache=str(kept)))
    assert len(list(kept.rglob("*.npy"))) == 2 * len(written)


@pytest.mark.parametrize("benchmark", [voxceleb2, ptbxl])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:150]), Path.unlink])
def test_a_damaged_array_is_no_sample(benchmark: Any, damage: Any, tmp_path: Path) -> None:
    kind, settings = benchmark(tmp_path)
    data = kind(**settings, cache=str(tmp_path / "kept"))
    data.setup()
    with pytest.raises(CacheError, match=r"call prepare_data\(\)"):
        list(data.train_dataloader())
    data.prepare_data()
    for path in (tmp_path / "kept").rglob("*.npy"):
        damage(path)
    with pytest.raises(CacheError, match=r"\.npy, made of .*, is damaged .*: start again, which mends it"):
        list(data.train_dataloader())


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    root = tiny_videos.voxceleb2_tree(tmp_path / "tree")
    good, bad = (VideoJob(path, 16) for path in sorted(root.glob("dev/mp4/*/*/*.mp4"))[:2])
    content = bad.video.read_bytes()
    bad.video.write_bytes(content[:200])
    cache = VideoCache(tmp_path / "kept")
    with pytest.raises(BrokenVideoError, match=rf"{bad.video.name} cannot be decoded"):
        cache.ensure([good, bad])
    first = cache.records([good])
    (cache.place(good) / ".frames.npy-left").write_bytes(b"half of it")  # by a process that was killed
    bad.video.write_bytes(content)
    cache.ensure([good, bad])
    assert cache.records([good, bad])[0] == first[0]
    record = cache.records([bad])[0]
    assert torch.equal(record.read([3, 3, 0], 16), VideoFile(bad.video).read([3, 3, 0], 16))
    with pytest.raises(ValueError, match="kept with 16 pixels a side, not 8"):
        record.read([0], 8)


def test_a_video_that_ends_early_is_kept_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers may promise more frames than come; windows that need none of these are read in either case."""
    video = tiny_videos.write_video(tmp_path / "a.mp4", label=1, frames=5)
    counted = VideoFile._counted
    monkeypatch.setattr(VideoFile, "_counted", lambda self: counted(self) + 2)
    cache = VideoCache(tmp_path / "kept")
    cache.ensure([VideoJob(video, 8)])
    (record,) = cache.records([VideoJob(video, 8)])
    assert len(record) == len(VideoFile(video)) == 7
    assert torch.equal(record.read([1, 4], 8), VideoFile(video).read([1, 4], 8))
    for frames in (record, VideoFile(video)):
        with pytest.raises(BrokenVideoError, match=r"a\.mp4 is truncated: frame 5 of 7 is missing"):
            frames.read([0, 5], 8)


def break_frame(root: Path) -> None:
    for path in (root / "faces/00000").iterdir():
        path.write_bytes(b"x")


def cut_record(root: Path) -> None:
    """The first window stays whole."""
    path = root / "records100/00000/00001_lr.dat"
    path.write_bytes(path.read_bytes()[:16_000])


@pytest.mark.parametrize(
    ("benchmark", "damage", "told"),
    [(lists, break_frame, "cannot be decoded"), (ptbxl, cut_record, "cannot be read")],
)
def test_broken_files_are_told_or_left_out_as_without_a_cache(
    benchmark: Any, damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    kind, settings = benchmark(tmp_path)
    damage(Path(settings["root"]))
    kept = str(tmp_path / "kept")
    with pytest.raises(ValueError, match=told):
        kind(**settings, cache=kept).prepare_data()
    with pytest.warns(UserWarning, match="skip_broken left out 1 of"):
        decoded = samples(kind, settings, skip_broken=True)
    with pytest.warns(UserWarning, match="skip_broken left out 1 of"):
        assert same(decoded, samples(kind, settings, skip_broken=True, cache=kept))


@pytest.mark.parametrize("benchmark", [lists, ptbxl])
def test_the_bank_of_a_test_decodes_what_was_not_kept(benchmark: Any, tmp_path: Path) -> None:
    """Probes read training samples in ``zoo test``, too, for which nothing but test samples is kept."""
    kind, settings = benchmark(tmp_path)
    data = kind(**settings, cache=str(tmp_path / "kept"))
    data.trainer = type(
        "Trainer", (), {"state": type("State", (), {"fn": type("Fn", (), {"value": "test"})})}
    )
    data.prepare_data()
    data.trainer = None
    data.setup("test")
    kept = len(list((tmp_path / "kept").iterdir()))
    assert len(flat(list(data.test_dataloader()))) > 5
    assert len(flat(list(data.bank_dataloader()))) > 5
    assert 0 < kept == len(list((tmp_path / "kept").iterdir()))


@pytest.mark.parametrize("benchmark", [voxceleb2, ptbxl])
def test_the_doctor_fills_no_cache(benchmark: Any, tmp_path: Path) -> None:
    kind, settings = benchmark(tmp_path)
    data = kind(**settings, cache=str(tmp_path / "kept"))
    assert all(check.status == "ok" for check in layout(data))
    assert doctor_opened(data).datasets["train"][0]
    assert not (tmp_path / "kept").exists()


def test_what_is_no_cache(tmp_path: Path) -> None:
    for kind, what in ((VoxCeleb2, "videos"), (PTBXL, "signals")):
        with pytest.raises(ValueError, match=r"cache must be none, true or a folder .*got 'rma'"):
            kind(cache="rma")
        with pytest.raises(ValueError, match=f"cache of {what} must be none, true or a folder, got 'ram'"):
            kind(cache="ram")
    for rendered in (TalkingBlobs, PulsePeople):
        with pytest.raises(TypeError, match="multiple values for keyword argument 'cache'"):
            rendered(cache=True)
    data = opened(
        SignalFolders, {**tiny_signals.signal_folders(tmp_path), "traits": ()}, cache=str(tmp_path / "kept")
    )
    assert data.datasets["train"][0]["pair"].shape == (2, 4, 64)
    assert not (tmp_path / "kept").exists()  # arrays that are mapped anyway
