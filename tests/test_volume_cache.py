"""The cache of processed volumes, the embedded sets, and predictions as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules import (
    BTCV,
    OmniVolumes,
    PackagedBrains,
    TorsoPhantom,
    TorsoScanners,
)
from datamodules.layout import LayoutError
from datamodules.phantom import CLASSES, SIZE, render
from datamodules.volume_cache import Job, VolumeCache
from datamodules.volume_files import BrokenVolumeError
from datamodules.volume_processing import Processing, process
from tests import tiny_volumes as tiny
from tests.volume_benchmarks import Halves, ready, train_batch

PLAIN = Processing(spacing=None, crop_foreground=False)


# -- the cache ----------------------------------------------------------------------------------------------


def test_the_cache_is_made_once_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, job = VolumeCache(tmp_path / "c"), Job(tiny.pair(tmp_path), Processing())
    made: list[Job] = []
    monkeypatch.setattr(
        VolumeCache, "make", lambda self, j, make=VolumeCache.make: (made.append(j), make(self, j))
    )
    cache.ensure([job])
    cache.ensure([job])
    assert len(made) == 1
    record = cache.find(job)
    assert record is not None
    assert isinstance(record.volume, np.memmap)
    file = record.folder / "volume.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    VolumeCache(tmp_path / "c", verify=False).ensure([job])
    assert len(made) == 1
    with pytest.warns(UserWarning, match="volume.npy is damaged"):
        cache.ensure([job])
    assert len(made) == 2
    assert cache.find(Job(job.pair, Processing(window=(0.0, 1.0)))) is None
    job.pair.image.touch()
    assert cache.find(job) is None


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    cache = VolumeCache(tmp_path / "c")
    good, bad = tiny.pair(tmp_path / "a"), tiny.pair(tmp_path / "b")
    content = bad.image.read_bytes()
    bad.image.write_bytes(content[:200])
    jobs = [Job(good, PLAIN), Job(bad, PLAIN)]
    with pytest.raises(BrokenVolumeError, match="cannot be read"):
        cache.ensure(jobs)
    assert cache.find(jobs[0]) is not None
    bad.image.write_bytes(content)
    cache.ensure(jobs)
    assert cache.find(jobs[1]) is not None


def test_processes_share_the_work(tmp_path: Path) -> None:
    jobs = [Job(tiny.pair(tmp_path / name), PLAIN) for name in "abc"]
    cache = VolumeCache(tmp_path / "c")
    cache.ensure(jobs, num_workers=2)
    assert all(cache.find(job) is not None for job in jobs)


def test_half_precision_is_finer_than_a_hounsfield_unit(tmp_path: Path) -> None:
    pair, cache = tiny.pair(tmp_path), VolumeCache(tmp_path / "c")
    cache.ensure([Job(pair, PLAIN)])
    record = cache.find(Job(pair, PLAIN))
    assert record is not None
    exact = process(pair.image, None, PLAIN).volume
    assert np.abs(record.volume.astype(np.float32) - exact).max() * 425 < 0.25


def test_skip_broken_leaves_volumes_out_and_says_so(tmp_path: Path) -> None:
    root = tiny.btcv_tree(tmp_path / "tree")
    (root / "imagesTr/img0002.nii.gz").write_bytes(b"no")
    settings: dict[str, Any] = {**tiny.MINI, "root": str(root), "cache_folder": str(tmp_path / "c")}
    with pytest.raises(BrokenVolumeError, match="img0002"):
        BTCV(**settings).prepare_data()
    data = BTCV(**settings, skip_broken=True)
    data.prepare_data()
    with pytest.warns(UserWarning, match="skip_broken left out 1 volumes"):
        data.setup("fit")
    assert [record.name for record in data.datasets["train"].records] == ["img0001", "img0003"]
    assert "img0002" in data.skipped["root/train"][0]


def test_setup_before_prepare(tmp_path: Path) -> None:
    data = BTCV(root=str(tiny.btcv_tree(tmp_path / "t")), cache_folder=str(tmp_path / "c"), **tiny.MINI)
    with pytest.raises(RuntimeError, match=r"img0035.*call prepare_data"):
        data.setup("fit")


# -- embedded sets ------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {"num_train": 4, "num_val": 2, "num_test": 1, "seed": 0}


def test_the_phantom_is_a_function_of_its_seed() -> None:
    (a, label), (again, _), (b, same) = render(3, "A"), render(3, "A"), render(3, "B")
    np.testing.assert_array_equal(a, again)
    np.testing.assert_array_equal(label, same)
    assert a.shape == label.shape == SIZE
    assert (a.dtype, label.dtype) == (np.int16, np.uint8)
    assert np.abs(a - b.astype(float)).mean() > 20
    assert not np.array_equal(label, render(4, "A")[1])


def test_the_phantom_has_every_organ_in_its_place() -> None:
    volumes, labels = map(np.stack, zip(*(render(seed) for seed in range(6)), strict=True))
    share = dict(zip(CLASSES, np.bincount(labels.ravel(), minlength=9) / labels.size, strict=True))
    # Shares of the generator that the benchmark was sized with, in percent.
    expected = {
        "lung": 7.1,
        "liver": 4.1,
        "spleen": 0.8,
        "kidney": 1.4,
        "spine": 1.6,
        "aorta": 0.7,
        "stomach": 0.9,
    }
    for organ, percent in expected.items():
        assert 0.5 * percent < 100 * share[organ] < 2 * percent, organ
    assert volumes[labels == CLASSES.index("lung")].mean() == pytest.approx(-800, abs=60)
    assert volumes[labels == CLASSES.index("spine")].mean() == pytest.approx(420, abs=60)
    centre = {organ: np.argwhere(labels == i)[:, 1:].mean(0) / SIZE for i, organ in enumerate(CLASSES)}
    assert centre["liver"][0] < 0.4 < 0.6 < centre["spleen"][0]  # the first axis runs to the left
    assert centre["stomach"][1] < centre["aorta"][1] < centre["spine"][1]  # the second to the back
    assert centre["lung"][2] < centre["liver"][2] < centre["kidney"][2]  # the third to the bottom


def test_the_phantom_is_read_like_any_ct() -> None:
    data = TorsoPhantom(**FEW, style="both", labelled_fraction=0.5)
    data.prepare_data()
    data.setup()
    batch = train_batch(data)
    assert batch["volume"].shape == (2, 1, 64, 48, 32)
    assert set(batch["label"].unique().tolist()) == set(range(9))
    whole = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert whole["spacing"].tolist() == [[2.0, 2.0, 2.5]]
    # Stored to the left, back and bottom; read to the right, front and top.
    np.testing.assert_array_equal(whole["label"][0].numpy(), render(200_000, "A", 0.03)[1][::-1, ::-1, ::-1])
    assert len(data.datasets["train"].records) == 2


def test_scanners_are_told_by_names() -> None:
    data = TorsoScanners(**FEW)
    data.prepare_data()
    data.setup("fit")
    batch = train_batch(data)
    expected = [int(name[-6:]) % 2 for name in batch["name"]]
    assert batch["label"].tolist() == expected
    whole = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert whole["label"].tolist() == [0, 1]


def test_validation_views_are_the_same_in_every_run(tmp_path: Path) -> None:
    class Trainer:
        validating, sanity_checking, global_rank, world_size, state = True, False, 0, 1, None

    data = TorsoPhantom(**FEW, views=Halves(), crop=(32, 32, 32))
    data.prepare_data()
    data.setup("fit")
    data.trainer = Trainer()  # type: ignore[assignment]
    batch = next(iter(data.val_dataloader()))
    assert batch["volume"].shape[2:] == (32, 32, 32)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    drawn = [data.on_after_batch_transfer(dict(batch), 0)["drawn"] for _ in range(2)]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_warped_brains(tmp_path: Path) -> None:
    root = str(tiny.brains_tree(tmp_path / "unpacked"))
    data = PackagedBrains(
        root=root, stride=2, rendered=str(tmp_path / "r"), cache_folder=str(tmp_path / "c"), **FEW
    )
    data.prepare_data()
    data.setup("fit")
    assert data.classes == ("background", "other brain", "grey matter", "white matter")
    batch = train_batch(data)
    assert batch["volume"].shape == (2, 1, 12, 14, 10)
    assert set(batch["label"].unique().tolist()) == {0, 1, 2, 3}
    inner = batch["volume"][:, 0][batch["label"] == 3].mean()
    assert inner > batch["volume"][:, 0][batch["label"] == 2].mean() > 0.2
    assert not torch.equal(batch["label"][0], batch["label"][1])


def test_regions_of_colin27(tmp_path: Path) -> None:
    """As mricron-data unpacks: a T1 and the atlas on its grid, whose regions a text file names."""
    root = tiny.colin_tree(tmp_path / "unpacked")
    data = PackagedBrains(
        "colin27", str(root), stride=2, rendered=str(tmp_path / "r"), cache_folder=str(tmp_path / "c"), **FEW
    )
    assert data.classes == ("background", "Precentral_L", "Precentral_R")
    data.prepare_data()
    data.setup("fit")
    assert set(train_batch(data)["label"].unique().tolist()) == {0, 1, 2}


def test_brains_that_are_not_installed(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"mni152 .*is not in .*Get it: pip install nilearn"):
        PackagedBrains(root=str(tmp_path))
    with pytest.raises(LayoutError, match="Debian package mricron-data"):
        PackagedBrains("colin27", root=str(tmp_path))


def test_labelled_and_unlabelled_side_by_side() -> None:
    labelled = TorsoPhantom(**FEW, crop=(16, 16, 16), num_crops=3)
    unlabelled = TorsoPhantom(**FEW, style="both", views=Halves())
    data = OmniVolumes(labelled, unlabelled)
    data.prepare_data()
    data.setup("fit")
    assert data.num_classes == 9
    loaders = data.train_dataloader()
    batch = data.on_after_batch_transfer({name: next(iter(loader)) for name, loader in loaders.items()}, 0)
    assert batch["labelled"]["label"].shape == (6, 16, 16, 16)
    assert batch["unlabelled"]["crops"].shape[0] == 2
    assert "label" not in batch["unlabelled"]
    assert set(data.inspect("fit")) == {"labelled.root", "unlabelled.root"}
    with pytest.raises(ValueError, match=r"data\.unlabelled must have views"):
        OmniVolumes(unlabelled, labelled)


# -- writing ------------------------------------------------------------------------------------------------


def test_predictions_are_written_in_the_space_of_their_files(tmp_path: Path) -> None:
    import lightning as L

    from callbacks import WriteVolumes

    class Threshold(L.LightningModule):
        """Calls bright voxels organ 1."""

        def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
            return {"label": (batch["volume"][:, 0] > 0.7).to(torch.uint8), "name": batch["name"]}

    data = ready("flare22", tmp_path, "predict", processing=Processing(spacing=(0.75, 0.75, 1.5)))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[WriteVolumes()], default_root_dir=tmp_path / "run",
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(Threshold(), datamodule=data, return_predictions=False)
    for name in ("FLARE22_Tr_0001", "FLARE22_Tr_0002"):
        made = nib.load(tmp_path / f"run/predictions/{name}_0000.nii.gz")
        truth = nib.load(tmp_path / f"tree/labels/{name}.nii.gz")
        np.testing.assert_allclose(made.affine, truth.affine)
        np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(truth.dataobj) > 0)
        assert made.get_data_dtype() == np.uint8


def test_only_label_maps_are_written(tmp_path: Path) -> None:
    import lightning as L
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from callbacks import WriteVolumes

    class Features(L.LightningModule):
        def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
            return {"features": batch["volume"].mean((1, 2, 3, 4))}

    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[WriteVolumes(str(tmp_path / "p"))], enable_progress_bar=False,
        enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(
        MisconfigurationException, match=r"Features\.predict_step must return a dict with 'label'"
    ):
        trainer.predict(Features(), datamodule=ready("btcv", tmp_path, "predict"))
    with pytest.raises(MisconfigurationException, match=r"end it with \.nii\.gz"):
        WriteVolumes(suffix=".png")


def test_lists_name_classes_in_both_ways(tmp_path: Path) -> None:
    from datamodules.volume_lists import class_names

    assert class_names({"labels": {"0": "background", "1": "organ"}}) == ("background", "organ")
    assert class_names({"labels": {"background": 0, "organ": 1}}) == ("background", "organ")
    with pytest.raises(ValueError, match="numbered from 0"):
        class_names(json.loads('{"labels": {"1": "organ"}}'))
