"""Which images are drawn: passes, rare classes, ranks, and the cached class counts."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data.distributed import DistributedSampler

from datamodules import class_counts
from datamodules.class_counts import FILE_NAME, count_classes
from datamodules.layout import CITYSCAPES, GTA5, inspect_root
from datamodules.readers import BrokenImageError, RandomCrop, SegmentationDataset
from datamodules.sampling import (
    JointDataset,
    RareClassPicker,
    ShuffledPicker,
    StridedSampler,
    rare_class_probabilities,
)
from tests.tiny import cityscapes_tree, expected_pairs, gta5_tree

NAMES = ("common", "rare", "absent")


@pytest.fixture
def joint(tmp_path: Path) -> JointDataset:
    return make_joint(tmp_path, seed=3)


def make_joint(folder: Path, seed: int) -> JointDataset:
    source = inspect_root(GTA5, gta5_tree(folder / "gta"), {"train": True}, allow_partial=True)
    target = inspect_root(CITYSCAPES, cityscapes_tree(folder / "city"), {"train": False}, allow_partial=True)
    crop = RandomCrop((16, 24))
    domains = {
        "source": SegmentationDataset(source.splits["train"].pairs, "ids", crop=crop),
        "target": SegmentationDataset(target.splits["train"].pairs, crop=crop),
    }
    return JointDataset(domains, seed)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Passes.


def test_every_image_once_a_pass_in_another_order_each_pass() -> None:
    picker = ShuffledPicker(7, seed=(1,))
    passes = [[picker(draw, rng()).index for draw in range(start, start + 7)] for start in (0, 7, 14)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_a_draw_does_not_depend_on_the_draws_before_it(joint: JointDataset, tmp_path: Path) -> None:
    forward = [joint[draw] for draw in range(12)]
    fresh = make_joint(tmp_path, seed=3)
    for draw in reversed(range(12)):
        again = fresh[draw]
        for domain, sample in forward[draw].items():
            assert sample["index"] == again[domain]["index"]
            assert torch.equal(sample["image"], again[domain]["image"])
    other = make_joint(tmp_path, seed=4)
    assert any(not torch.equal(other[d]["source"]["image"], forward[d]["source"]["image"]) for d in range(4))


def test_domains_are_drawn_independently(joint: JointDataset) -> None:
    assert len(joint) == 5  # the larger domain
    pairs = Counter((joint[d]["source"]["index"], joint[d]["target"]["index"]) for d in range(400))
    # 4 x 5 equally likely pairs, 20 draws of each expected; a fixed pairing would leave most of them at 0.
    assert len(pairs) == 20
    assert max(pairs.values()) < 40


def test_another_picker_of_one_domain_leaves_the_other_as_it_was(tmp_path: Path) -> None:
    plain = make_joint(tmp_path, seed=3)
    counts = np.full((4, 3), 9)
    rare = JointDataset(plain.domains, 3, {"source": RareClassPicker(counts, 1.0, 0, NAMES)})
    assert [rare[d]["target"]["index"] for d in range(20)] == [plain[d]["target"]["index"] for d in range(20)]
    assert [rare[d]["source"]["index"] for d in range(20)] != [plain[d]["source"]["index"] for d in range(20)]


# Ranks.


@pytest.mark.parametrize("epoch", [0, 3])
def test_ranks_share_endless_draws_without_overlap(epoch: int) -> None:
    samplers = [StridedSampler(12, rank, 3, endless=True) for rank in range(3)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [4, 4, 4] == [len(share) for share in shares]
    assert sorted(chain(*shares)) == list(range(12 * epoch, 12 * epoch + 12))


def test_ranks_evaluate_every_image_exactly_once() -> None:
    samplers = [StridedSampler(7, rank, 3) for rank in range(3)]
    for sampler in samplers:
        sampler.set_epoch(5)
    assert sorted(chain(*samplers)) == list(range(7))
    assert [len(sampler) for sampler in samplers] == [3, 2, 2]


def test_lightning_leaves_the_sampler_alone() -> None:
    # Its rule is "not an instance of DistributedSampler"; tests/test_datamodules.py runs two processes.
    assert isinstance(StridedSampler(4), DistributedSampler)


# Rare classes.


def test_probabilities_are_a_softmax_over_the_classes_that_occur() -> None:
    pixels = np.array([900, 100, 0])
    expected = np.exp([(1 - 0.9) / 0.5, (1 - 0.1) / 0.5])
    assert rare_class_probabilities(pixels, 0.5) == pytest.approx([*(expected / expected.sum()), 0])
    assert rare_class_probabilities(pixels, 0.001) == pytest.approx([0, 1, 0])  # no overflow


def test_rare_classes_are_drawn_as_often_as_stated_from_images_that_show_them() -> None:
    counts = np.array([[500, 0, 0], [400, 21, 0], [300, 20, 0], [200, 80, 0]])
    picker = RareClassPicker(counts, temperature=0.7, min_pixels=20, classes=NAMES)
    generator = rng()
    picks = [picker(draw, generator) for draw in range(4000)]
    share = np.mean([pick.rare_class == 1 for pick in picks])
    assert share == pytest.approx(picker.probabilities[1], abs=4 * np.sqrt(0.25 / 4000))
    assert {pick.index for pick in picks if pick.rare_class == 1} == {1, 3}  # more than 20, not 20
    assert {pick.index for pick in picks if pick.rare_class == 0} == {0, 1, 2, 3}
    assert all(pick.rare_class != 2 for pick in picks)


def test_rare_class_errors_name_the_argument() -> None:
    counts = np.array([[500, 12, 0]])
    with pytest.raises(ValueError, match=r"rare_class_min_pixels=12: .*'rare', the most is 12"):
        RareClassPicker(counts, 0.01, 12, NAMES)
    with pytest.raises(ValueError, match="rare_class_temperature must be positive, got 0"):
        RareClassPicker(counts, 0, 1, NAMES)


# Class counts.


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFZOO_CACHE", str(tmp_path / "cache"))
    return gta5_tree(tmp_path / "gta", count=3, size=(20, 28), seed=5)


def counted(root: Path) -> np.ndarray:
    report = inspect_root(GTA5, root, {"train": True}, allow_partial=True).splits["train"]
    assert report.encoding is not None
    return count_classes(report.pairs, report.encoding, root)


def refuse_to_count(*_: object) -> np.ndarray:
    raise AssertionError("counted again")


def test_counts_equal_a_count_by_hand_and_are_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [[int((ids == c).sum()) for c in range(19)] for _, ids in expected_pairs(3, (20, 28), seed=5)]
    assert counted(source).tolist() == expected
    assert (source / FILE_NAME).is_file()
    monkeypatch.setattr(class_counts, "_count", refuse_to_count)
    assert counted(source).tolist() == expected


def test_stale_counts_are_counted_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = counted(source)
    gta5_tree(source, count=3, size=(20, 28), seed=6)
    after = counted(source)
    assert not np.array_equal(before, after)
    (source / "labels/00003.png").unlink()
    (source / "images/00003.png").unlink()
    assert counted(source).tolist() == after[:2].tolist()


def test_damaged_counts_are_counted_again(source: Path) -> None:
    before = counted(source)
    content = (source / FILE_NAME).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not an archive"):
        (source / FILE_NAME).write_bytes(damaged)
        assert np.array_equal(counted(source), before)
    assert len((source / FILE_NAME).read_bytes()) > 100


def test_counts_go_to_the_cache_where_the_root_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / FILE_NAME).mkdir()  # no file can be written here, not even by root
    before = counted(source)
    assert len(list((tmp_path / "cache/class-counts").glob("*.npz"))) == 1
    monkeypatch.setattr(class_counts, "_count", refuse_to_count)
    assert np.array_equal(counted(source), before)
    assert [path.name for path in source.glob(".*")] == []  # no temporary file is left behind


def test_a_damaged_label_is_named(source: Path) -> None:
    label = source / "labels/00002.png"
    label.write_bytes(label.read_bytes()[:40])
    with pytest.raises(BrokenImageError, match=r"labels/00002\.png"):
        counted(source)
