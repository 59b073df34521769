"""The cache of decoded streets: the same samples, made once, whole or not read at all."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import CityscapesDarkZurich, CityscapesSemi, GTA5Cityscapes, ImageNet, StreetShift
from datamodules.array_cache import CacheError
from datamodules.image_cache import ImageCache
from datamodules.readers import BrokenImageError, ImageJob, read_image
from tests import tiny, tiny_images, tiny_streets, tiny_voc
from tests.test_datamodules import epoch
from zoo.doctor.data import layout
from zoo.doctor.data import opened as doctor_opened


def gta5(folder: Path) -> tuple[type, dict[str, Any]]:
    source, target = tiny.gta5_tree(folder / "gta5"), tiny.cityscapes_tree(folder / "cityscapes")
    settings = {**tiny.GTA5_CITYSCAPES, **tiny_streets.ANY_PIXEL, "rare_class_temperature": 0.1}
    return GTA5Cityscapes, {**settings, "source_root": source, "target_root": target}


def dark_zurich(folder: Path) -> tuple[type, dict[str, Any]]:
    return CityscapesDarkZurich, tiny_streets.cityscapes_darkzurich(folder)


def semi(folder: Path) -> tuple[type, dict[str, Any]]:
    return CityscapesSemi, {"num_labelled": 2, **tiny_voc.cityscapes_semi(folder)}


def street_shift(folder: Path) -> tuple[type, dict[str, Any]]:
    return StreetShift, {**tiny.STREETSHIFT, "root": str(folder)}


def imagenet(folder: Path) -> tuple[type, dict[str, Any]]:
    settings = tiny_images.imagenet(folder)
    return ImageNet, {**settings, "image_size": 24, "resize": 30}


def whole_imagenet(folder: Path) -> tuple[type, dict[str, Any]]:
    kind, settings = imagenet(folder)
    return kind, {**settings, "window": "whole", "longest_side": 48}


def samples(kind: type, settings: dict[str, Any], **more: Any) -> list[Any]:
    data = kind(**{**settings, "seed": 0, **more})
    data.prepare_data()
    data.setup("fit")
    return [*epoch(data, 1), *data.datasets["val"]]


def flat(value: Any) -> list[Any]:
    """Leaves, tensors as they are."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


@pytest.fixture
def image(tmp_path: Path) -> ImageJob:
    root = tiny.gta5_tree(tmp_path / "tree", count=1)
    return ImageJob(Path(root) / "images/00001.png", None, (32, 16))


@pytest.mark.parametrize("benchmark", [gta5, dark_zurich, semi, street_shift, imagenet, whole_imagenet])
def test_samples_are_the_same_bit_for_bit(benchmark: Any, tmp_path: Path) -> None:
    kind, settings = benchmark(tmp_path)
    decoded = flat(samples(kind, settings, cache="none"))
    for workers in (0, 2):  # the second finds the cache full
        stored = flat(samples(kind, settings, cache=str(tmp_path / "kept"), num_workers=workers))
        assert len(stored) == len(decoded) > 20
        for one, other in zip(decoded, stored, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert list((tmp_path / "kept").glob("*/pixels.npy"))


@pytest.mark.parametrize("benchmark", [gta5, imagenet, whole_imagenet])
def test_nothing_is_decoded_any_more(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, settings = benchmark(tmp_path)
    samples(kind, settings, cache=str(tmp_path / "kept"))

    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    for place in ("datamodules.readers", "datamodules.image_cache", "datamodules.image_sets"):
        for name in ("read_image", "read_label"):
            monkeypatch.setattr(f"{place}.{name}", decode, raising=False)
    samples(kind, settings, cache=str(tmp_path / "kept"))


def test_true_keeps_it_in_the_cache_of_selfzoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "home"))
    kind, settings = gta5(tmp_path)
    samples(kind, settings, cache=True)
    assert list((tmp_path / "home/images").glob("*/pixels.npy"))


def test_made_once_and_mended(image: ImageJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ImageJob] = []
    make = ImageCache.make
    monkeypatch.setattr(ImageCache, "make", lambda self, job: (made.append(job), make(self, job)))
    cache = ImageCache(tmp_path / "kept")
    cache.ensure([image])
    cache.ensure([image])
    assert len(made) == 1
    file = cache.place(image) / "pixels.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"pixels\.npy is damaged: decoding .*00001\.png again"):
        cache.ensure([image])
    assert len(made) == 2
    assert cache.find(ImageJob(image.file, None, (16, 16))) is None
    ImageCache.version += 1
    try:
        assert cache.find(image) is None
    finally:
        ImageCache.version -= 1


def test_what_was_interrupted_goes_on(image: ImageJob, tmp_path: Path) -> None:
    bad = ImageJob(tmp_path / "bad.png")
    bad.file.write_bytes(image.file.read_bytes()[:90])
    cache = ImageCache(tmp_path / "kept")
    with pytest.raises(BrokenImageError, match=r"bad\.png cannot be decoded"):
        cache.ensure([image, bad])
    (first,) = cache.records([image])
    (cache.place(image) / ".pixels.npy-left").write_bytes(b"half of it")  # by a process that was killed
    bad.file.write_bytes(image.file.read_bytes())
    cache.ensure([image, bad])
    assert cache.records([image, bad])[0] == first
    assert torch.equal(cache.records([bad])[0].read(), read_image(bad.file))


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    kind, settings = gta5(tmp_path)
    settings = {**settings, "seed": 0, "cache": str(tmp_path / "kept")}
    data = kind(**settings)
    with pytest.raises(CacheError, match=r"call prepare_data\(\)"):
        data.setup("fit")
    data.prepare_data()
    data.setup("fit")
    changed = next(Path(settings["source_root"]).glob("images/*.png"))
    changed.touch()
    with pytest.raises(CacheError, match=rf"1 of \d+ files are not in .*{changed.name}"):
        kind(**settings).setup("fit")
    data.prepare_data()
    kind(**settings).setup("fit")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:150]), Path.unlink])
def test_a_damaged_array_is_no_sample(damage: Any, image: ImageJob, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "kept")
    cache.ensure([image])
    (record,) = cache.records([image])
    damage(record.folder / "pixels.npy")
    with pytest.raises(CacheError, match=r"pixels\.npy, made of .*00001\.png, is damaged"):
        record.read()


def test_an_image_and_a_label_of_other_size_are_refused(tmp_path: Path) -> None:
    kind, settings = gta5(tmp_path)
    label = next(Path(settings["source_root"]).glob("labels/*.png"))
    tiny_streets.save(np.zeros((5, 7), np.uint8), label)
    with pytest.raises(BrokenImageError, match=rf"{label.name} is 5 x 7"):
        samples(kind, settings, cache=str(tmp_path / "kept"))


def test_nothing_reaches_the_files(image: ImageJob, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "kept")
    cache.ensure([image])
    (record,) = cache.records([image])
    before = record.read().clone()
    record.read().zero_()
    assert torch.equal(record.read(), before)


def fill(folder: Path, jobs: list[ImageJob], start: Any) -> None:
    start.wait()
    ImageCache(folder).ensure(jobs)


def test_several_processes_at_once(tmp_path: Path) -> None:
    root = Path(tiny.gta5_tree(tmp_path / "tree", count=6))
    jobs = [ImageJob(path) for path in sorted(root.glob("images/*.png"))]
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    both = [context.Process(target=fill, args=(tmp_path / "kept", jobs, start)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    for job, record in zip(jobs, ImageCache(tmp_path / "kept").records(jobs), strict=True):
        assert torch.equal(record.read(), read_image(job.file))
    assert not list((tmp_path / "kept").rglob(".pixels*"))


@pytest.mark.parametrize("benchmark", [gta5, imagenet])
def test_the_doctor_fills_no_cache(benchmark: Any, tmp_path: Path) -> None:
    kind, settings = benchmark(tmp_path)
    data = kind(**settings, cache=str(tmp_path / "kept"))
    assert all(check.status == "ok" for check in layout(data))
    assert len(doctor_opened(data).datasets["train"])
    assert not (tmp_path / "kept").exists()


def test_what_is_no_cache(tmp_path: Path) -> None:
    for benchmark in (gta5, imagenet):
        kind, settings = benchmark(tmp_path)
        with pytest.raises(ValueError, match=r"cache must be none, (ram, )?true or a folder .*got 'rma'"):
            kind(**settings, cache="rma")
    with pytest.raises(ValueError, match="must be none, true or a folder, got 'ram'"):
        kind(**settings, cache="ram")


def test_an_image_file_that_changed_is_refused(tmp_path: Path) -> None:
    kind, settings = imagenet(tmp_path)
    data = kind(**settings, cache=str(tmp_path / "kept"))
    data.prepare_data()
    data.setup("fit")
    for path in Path(settings["root"]).rglob("*.JPEG"):
        path.touch()
    with pytest.raises(CacheError, match=r"are not in .*\.JPEG.*call prepare_data"):
        epoch(data, 0)


def test_splits_that_a_stage_does_not_show_are_decoded(tmp_path: Path) -> None:
    kind, settings = imagenet(tmp_path)
    plain, data = kind(**settings), kind(**settings, cache=str(tmp_path / "kept"))
    for each in (plain, data):
        each.setup(
            "validate"
        )  # as in `zoo validate` on a new machine, whose probes compare with training images
    assert torch.equal(data.subset("train")[0]["image"], plain.subset("train")[0]["image"])
    with pytest.raises(CacheError, match=r"call prepare_data"):
        data.subset("val")[0]
