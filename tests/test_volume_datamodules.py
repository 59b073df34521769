"""Volume benchmarks: official layouts, the choice of volumes, draws and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import (
    AMOS22,
    BTCV,
    FLARE22,
    LUNA16,
    MSD,
    DecathlonVolumes,
    PreCT,
    VolumeFolders,
)
from datamodules.layout import LayoutError
from datamodules.volume_augment import VolumeAugment
from datamodules.volume_processing import Processing
from datamodules.volume_sets import cut
from tests import tiny_volumes as tiny
from tests.volume_benchmarks import BENCHMARKS, LABELLED, Halves, ready, train_batch

# -- layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_batches(name: str, tmp_path: Path) -> None:
    data = ready(name, tmp_path)
    batch = train_batch(data)
    assert batch["volume"].shape == (2, 1, 8, 8, 8)
    assert batch["volume"].dtype == torch.float32
    assert batch["label"].shape == (2, 8, 8, 8)
    assert batch["label"].dtype == torch.int64
    assert 0 <= batch["label"].min() <= batch["label"].max() < data.num_classes
    whole = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert whole["volume"].shape[2:] == whole["label"].shape[1:]
    assert whole["spacing"].shape == (1, 3)
    assert whole["affine"].shape == (1, 4, 4)
    assert 0 <= whole["volume"].min() < whole["volume"].max() <= 1
    assert len(data.classes) == data.num_classes


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_pretraining_reads_no_labels(name: str, tmp_path: Path) -> None:
    data = ready(name, tmp_path, views=Halves(), **({"resize": (16, 16, 8)} if name == "prect" else {}))
    batch = train_batch(data)
    assert batch["volume"].shape == (1, 1, 8, 8, 8)
    assert batch["crops"].shape == (1, 1, 1, 4, 8, 8)
    assert "label" not in batch
    assert not list((tmp_path / "processed").rglob("label.npy"))


def test_published_numbers_are_expected(tmp_path: Path) -> None:
    root = str(tiny.btcv_tree(tmp_path))
    with pytest.raises(LayoutError, match=r"expected 24 volumes, found 3.*allow_partial"):
        BTCV(root=root).setup("fit")
    with pytest.raises(LayoutError, match="root is not set"):
        BTCV().setup("fit")
    (Path(root) / "labelsTr/label0001.nii.gz").unlink()
    with pytest.raises(LayoutError, match=r"1 of 6 files are missing: .*label0001"):
        BTCV(root=root, allow_partial=True).setup("fit")


def test_damaged_lists(tmp_path: Path) -> None:
    root = tiny.msd_tree(tmp_path)
    content = (root / "dataset.json").read_text()
    for broken, said in (
        (content[:40], "no JSON list"),
        ("[]", "no JSON list"),
        ('{"training": [3]}', "lists 3"),
    ):
        (root / "dataset.json").write_text(broken)
        with pytest.raises(LayoutError, match=said):
            DecathlonVolumes(root=str(root), **tiny.MINI).setup("fit")


def test_btcv_without_a_list_takes_the_customary_split(tmp_path: Path) -> None:
    listed, bare = tiny.btcv_tree(tmp_path / "a"), tiny.btcv_tree(tmp_path / "b", listed=False)
    raw = tmp_path / "c/RawData/Training"
    raw.mkdir(parents=True)
    for folder, name in (("imagesTr", "img"), ("labelsTr", "label")):
        (raw / name).symlink_to(bare / folder)
    for root in (listed, bare, tmp_path / "c"):
        splits = BTCV(root=str(root), allow_partial=True).checked("fit")["root"].splits
        assert [p.name for p in splits["train"].pairs] == ["img0001", "img0002", "img0003"]
        assert [(p.name, p.label.name) for p in splits["val"].pairs if p.label] == [
            ("img0035", "label0035.nii.gz"), ("img0036", "label0036.nii.gz"),
        ]  # fmt: skip


def test_flare22_folders_are_split_like_its_list(tmp_path: Path) -> None:
    splits = FLARE22(root=str(tiny.flare22_tree(tmp_path)), allow_partial=True).checked("fit")["root"].splits
    assert [p.name for p in splits["val"].pairs] == ["FLARE22_Tr_0001_0000", "FLARE22_Tr_0002_0000"]
    assert [p.label.name for p in splits["train"].pairs if p.label] == [
        "FLARE22_Tr_0011.nii.gz", "FLARE22_Tr_0012.nii.gz",
    ]  # fmt: skip


def test_amos22_tells_ct_from_mri(tmp_path: Path) -> None:
    root = str(tiny.amos22_tree(tmp_path))
    names = {}
    for modality in ("ct", "mri", "both"):
        data = AMOS22(root=root, modality=modality, allow_partial=True)  # type: ignore[arg-type]
        names[modality] = [job.pair.name for job in data.jobs("fit")["train"]]
        windows = {job.processing.window for job in data.jobs("fit")["train"]}
        assert windows == {"ct": {(-175.0, 250.0)}, "mri": {None}, "both": {(-175.0, 250.0), None}}[modality]
    assert names == {
        "ct": ["amos_0001", "amos_0004"], "mri": ["amos_0507"], "both": ["amos_0001", "amos_0004", "amos_0507"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "channels", "classes"),
    [("Task01_BrainTumour", 4, 4), ("Task05_Prostate", 2, 3), ("Task09_Spleen", 0, 2)],
)
def test_msd_tasks_by_rule(tmp_path: Path, task: Any, channels: int, classes: int) -> None:
    root = tiny.msd_tree(tmp_path / "t", channels, classes)
    data = MSD(task, root=str(root), cache_folder=str(tmp_path / "c"), num_val=1, crop=(8, 8, 8), **tiny.MINI)
    data.prepare_data()
    data.setup("fit")
    assert (data.num_classes, data.classes[1]) == (classes, "organ 1")
    assert train_batch(data)["volume"].shape == (4, max(channels, 1), 8, 8, 8)
    assert (data.processing.window is None) == (task != "Task09_Spleen")
    assert len(data.datasets["train"].records) == 2
    assert len(data.datasets["val"]) == 1


@pytest.mark.parametrize(
    ("task", "volumes", "channels", "window"),
    [
        ("Task01_BrainTumour", (484, 266), 4, None),
        ("Task02_Heart", (20, 10), 1, None),
        ("Task03_Liver", (131, 70), 1, (-175.0, 250.0)),
        ("Task04_Hippocampus", (260, 130), 1, None),
        ("Task05_Prostate", (32, 16), 2, None),
        ("Task06_Lung", (63, 32), 1, (-1000.0, 500.0)),
        ("Task07_Pancreas", (281, 139), 1, (-175.0, 250.0)),
        ("Task08_HepaticVessel", (303, 140), 1, (-175.0, 250.0)),
        ("Task09_Spleen", (41, 20), 1, (-175.0, 250.0)),
        ("Task10_Colon", (126, 64), 1, (-175.0, 250.0)),
    ],
)
def test_facts_of_all_ten_tasks(task: Any, volumes: tuple[int, int], channels: int, window: Any) -> None:
    data = MSD(task)
    assert tuple(data.tree().splits[split].counts[0] for split in ("train", "test")) == volumes
    assert (data.processing.num_channels, data.processing.window) == (channels, window)
    assert data.processing.spacing == ((1.0,) * 3 if window is None else (1.5,) * 3)
    assert data.num_val == volumes[0] // 5
    with pytest.raises(ValueError, match="num_val must be at least 1, got 0"):
        MSD(task, num_val=0)


def test_msd_predicts_its_test_volumes(tmp_path: Path) -> None:
    data = ready("msd", tmp_path, "predict", predict_split="test")
    batch = data.on_after_batch_transfer(next(iter(data.predict_dataloader())), 0)
    assert batch["name"] == ["spleen_9"]
    assert "label" not in batch


def test_classes_beyond_the_benchmark_name_the_file(tmp_path: Path) -> None:
    root = tiny.msd_tree(tmp_path / "t")
    tiny.save(root / "labelsTr/spleen_2.nii.gz", np.full(tiny.SIZE, 7, np.uint8))
    data = VolumeFolders(root=str(root), cache_folder=str(tmp_path / "c"), **tiny.MINI)
    data.prepare_data()
    with pytest.raises(
        LayoutError, match=r"spleen_2\.nii\.gz holds label 7, but VolumeFolders has 2 classes"
    ):
        data.setup("fit")


def test_prect_groups(tmp_path: Path) -> None:
    data = PreCT(root=str(tiny.prect_tree(tmp_path)), views=Halves(), num_val=1, split_seed=3, **tiny.MINI)
    jobs = [job for group in data.jobs("fit").values() for job in group]
    found = {job.pair.image.parent.name: (job.processing.spacing, job.processing.resize) for job in jobs}
    assert found == {
        "BTCV": ((1.5, 1.5, 1.5), None),
        "DeepLesion": ((1.5, 1.5, 1.5), (192, 192, 64)),
        "LIDC_convert_v1": ((1.25, 1.25, 5.0), None),
        "HNSCC_convert_v1": ((1.5, 1.5, 1.5), (192, 192, 64)),
    }
    times = {job.pair.image.parent.name: data.repetitions(job.pair) for job in jobs}
    assert times == {"BTCV": 8, "DeepLesion": 8, "LIDC_convert_v1": 1, "HNSCC_convert_v1": 8}
    # BTCV's two sections, both; names of different folders stay apart.
    assert len(jobs) == 5
    assert len({job.pair.name for job in jobs}) == 5
    with pytest.raises(LayoutError, match="source NLST has no list"):
        PreCT(root=str(tmp_path), sources=("NLST",), views=Halves(), allow_partial=True).setup("fit")
    with pytest.raises(ValueError, match="'nothing' is none of"):
        PreCT(sources=("nothing",))


def test_prect_shows_groups_in_their_shares(tmp_path: Path) -> None:
    data = ready("prect", tmp_path, views=Halves(), resize=(8, 8, 8), num_val=1, split_seed=3)
    train = data.datasets["train"]
    shown = [train[draw]["name"][0] for draw in range(len(train))]
    counts = {record.name: shown.count(record.name) for record in train.records}
    assert counts == {r.name: 1 if "LIDC" in r.source else 8 for r in train.records}


def test_pretraining_sets_need_views(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LUNA16 has no labels: set data\.views"):
        LUNA16(root=str(tiny.luna16_tree(tmp_path)), **tiny.MINI).setup("fit")


# -- draws and batches --------------------------------------------------------------------------------------


def test_windows_are_centred_on_organs_as_often_as_asked(tmp_path: Path) -> None:
    shares = {}
    for share in (1.0, 0.0):
        data = ready("btcv", tmp_path, foreground_share=share, augment=False, crop=(1, 1, 1), num_crops=40)
        labels = train_batch(data)["label"]
        shares[share] = float((labels > 0).float().mean())
    assert shares == {1.0: 1.0, 0.0: 0.0}


def test_draws_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    one, two = (ready("btcv", tmp_path, num_workers=n).datasets["train"] for n in (0, 0))
    torch.testing.assert_close(one[7]["volume"], two[7]["volume"], rtol=0, atol=0)
    assert not torch.equal(one[7]["volume"], one[8]["volume"])
    other = ready("btcv", tmp_path, seed=1).datasets["train"]
    assert not torch.equal(one[7]["volume"], other[7]["volume"])


def test_every_volume_once_a_pass(tmp_path: Path) -> None:
    data = ready("btcv", tmp_path)
    names = [data.datasets["train"][draw]["name"][0] for draw in range(6)]
    assert sorted(names[:3]) == sorted(names[3:]) == ["img0001", "img0002", "img0003"]


def test_few_labels(tmp_path: Path) -> None:
    names = {}
    for fraction in (0.3, 0.67):
        data = ready("btcv", tmp_path, labelled_fraction=fraction)
        names[fraction] = {record.name for record in data.datasets["train"].records}
    assert (len(names[0.3]), len(names[0.67])) == (1, 2)
    assert names[0.3] < names[0.67]
    pretraining = ready("btcv", tmp_path, labelled_fraction=0.3, views=Halves())
    assert len(pretraining.datasets["train"].records) == 3
    assert len(ready("btcv", tmp_path, num_train=2).datasets["train"].records) == 2
    with pytest.raises(ValueError, match="num_train=9, but there are 3"):
        ready("btcv", tmp_path, num_train=9)


def test_future_batches_are_cut_off(tmp_path: Path) -> None:
    data = ready("btcv", tmp_path)
    data.future_batches = 2
    batch = train_batch(data)
    assert len(batch["future"]) == 2
    assert all(part["volume"].shape == (2, 1, 8, 8, 8) for part in (batch, *batch["future"]))
    assert len({part["name"][0] for part in (batch, *batch["future"])}) == 3


def test_volumes_of_different_sizes_cannot_share_a_batch(tmp_path: Path) -> None:
    root = tiny.btcv_tree(tmp_path / "tree")
    volume, label = tiny.box((30, 20, 12))
    tiny.save(root / "imagesTr/img0036.nii.gz", volume)
    tiny.save(root / "labelsTr/label0036.nii.gz", label)
    data = BTCV(root=str(root), cache_folder=str(tmp_path / "c"), eval_batch_size=2, **tiny.MINI)
    data.prepare_data()
    data.setup("validate")
    with pytest.raises(ValueError, match=r"different sizes.*eval_batch_size: 1"):
        next(iter(data.val_dataloader()))


def test_augmentation_moves_labels_with_their_voxels() -> None:
    torch.manual_seed(0)
    label = torch.randint(0, 5, (40, 6, 6, 4))
    plain = label.float()[:, None].clone()
    made = VolumeAugment(0.5, 0.5, shift=0.0, scale=0.0)({"volume": plain.clone(), "label": label.clone()})
    torch.testing.assert_close(made["volume"][:, 0], made["label"].float())
    moved = (made["label"] != label).flatten(1).any(1)
    assert 20 < int(moved.sum()) < 40
    changed = VolumeAugment(0.0, 0.0, shift_probability=1.0, scale_probability=1.0)
    difference = changed({"volume": torch.ones(200, 1, 2, 2, 2)})["volume"] - 1
    assert 0.1 < float(difference.abs().max()) <= 0.2
    assert (difference.flatten(1).std(1) < 1e-6).all()


def test_windows_of_unequal_sides_are_turned_by_half() -> None:
    torch.manual_seed(0)
    volume = torch.rand(3, 1, 6, 4, 2)
    made = VolumeAugment(0.0, 1.0, shift=0.0, scale=0.0)({"volume": volume.clone()})
    torch.testing.assert_close(made["volume"], volume.flip((2, 3)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop": (0, 8, 8)}, "crop must be three positive sides"),
        ({"foreground_share": 1.5}, "foreground_share must be a probability"),
        ({"labelled_fraction": 0.0}, "labelled_fraction must lie in"),
        ({"num_crops": 0}, "num_crops must be at least 1"),
        ({"predict_split": "nothing"}, "predict_split must be one of"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BTCV(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spacing": (0.0, 1.0, 1.0)}, "spacing must be three positive"),
        ({"window": (5.0, 5.0)}, "window must be"),
        ({"percentiles": (50.0, 150.0)}, "percentiles must be"),
        ({"resize": (1, 4, 4)}, "resize must be"),
        ({"missing_affine": "guess"}, "missing_affine must be"),
    ],
)
def test_processing_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Processing(**settings)


# -- small and empty ones -----------------------------------------------------------------------------------


def test_a_label_without_foreground_gives_windows_anywhere(tmp_path: Path) -> None:
    """The rule for label maps that are all background."""
    root = tiny.msd_tree(tmp_path / "tree")
    for number in (1, 2):  # one of them at least is not held out
        tiny.save(root / f"labelsTr/spleen_{number}.nii.gz", np.zeros(tiny.SIZE, np.uint8))
    data = MSD(root=str(root), cache_folder=str(tmp_path / "c"), crop=(8, 8, 8), num_val=1, **tiny.MINI)
    data.prepare_data()
    data.setup("fit")
    assert any(record.classes == [0] for record in data.datasets["train"].records)
    batches = [train_batch(data) for _ in range(2)]
    assert all(batch["volume"].shape == (4, 1, 8, 8, 8) for batch in batches)


def test_volumes_smaller_than_a_window_lie_in_the_middle_of_zeros(tmp_path: Path) -> None:
    """The rule."""
    data = ready("btcv", tmp_path, crop=(40, 8, 16), augment=False)
    record = data.datasets["train"].records[0]
    assert record.volume.shape[1:] == (20, 16, 15)
    batch = train_batch(data)
    assert batch["volume"].shape == (2, 1, 40, 8, 16)
    assert batch["volume"][:, :, :10].abs().max() == 0
    assert batch["volume"][:, :, 30:].abs().max() == 0
    assert batch["volume"][:, :, 10:30].max() > 0
    assert batch["label"][:, :10].max() == 0


def test_window_by_hand() -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    piece = cut(array, (-1, 1, 3), (5, 2, 4))
    assert piece.shape == (2, 5, 2, 4)
    np.testing.assert_array_equal(piece[:, 1:4, :, :2], array[:, :, 1:3, 3:])
    assert piece[:, 0].max() == piece[:, 4].max() == piece[..., 2:].max() == 0
