"""SIDD, DND and the packaged photographs: what is read, how it is cut, and what broken trees are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DND, SIDD, PackagedPhotographs
from datamodules.denoising import DrawnCrops
from datamodules.layout import LayoutError
from datamodules.packaged_photographs import PHOTOGRAPHS, photograph
from datamodules.patch_cache import Cutting
from datamodules.readers import BrokenImageError
from tests import tiny_denoising as tiny


def opened(cls: Any, settings: dict[str, Any], stage: str | None = "fit", **changes: Any) -> Any:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    data = cls(**{**plain, **changes})
    data.prepare_data()
    data.setup(stage)
    return data


# -- what is read ----------------------------------------------------------------------------------------


def test_sidd(tmp_path: Path) -> None:
    data = opened(SIDD, tiny.sidd(tmp_path), None)
    # Rows 10 and 30 of 70, columns 10, 30 and 50 of 90 start a patch of 30 that ends 10 pixels from the edge.
    train = data.datasets["train"].pictures
    assert len(train) == 4 * 2 * 3
    corners = {tuple(train[n][0, 0].tolist()) for n in range(len(train))}
    assert corners == {(y, x, n) for y in (10, 30) for x in (10, 30, 50) for n in (20, 21, 30, 31)}
    val, predict = data.datasets["val"], data.datasets["predict"]
    assert [val[n]["name"] for n in range(len(val))] == ["00_00", "00_01", "00_02", "00_03"]
    assert [int(val[n]["clean"][2, 0, 0]) for n in range(4)] == [0, 1, 2, 3]
    assert set(predict[0]) == {"image", "index", "name"}
    assert torch.equal(predict[0]["image"], val[1]["image"])
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["image"].shape == batch["clean"].shape == (4, 3, 24, 24)
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    assert batch["image"].dtype == torch.float32


def test_sidd_blocks_may_lie_elsewhere_and_need_no_images(tmp_path: Path) -> None:
    settings = tiny.sidd(tmp_path)
    data = SIDD(root=None, blocks_root=str(settings["root"]), allow_partial=True)
    data.setup("validate")
    assert len(data.datasets["val"]) == 4
    with pytest.raises(LayoutError, match="root is not set"):
        data.setup("fit")


def test_dnd(tmp_path: Path) -> None:
    data = opened(DND, tiny.dnd(tmp_path))
    train, val = data.datasets["train"].pictures, data.datasets["val"]
    assert len(train) == 3 * 2 * 2
    assert train[0].dtype == np.float32
    assert np.round(255 * train[3][0, 0]).tolist() == [20, 20, 1]
    assert [val[n]["name"] for n in range(len(val))] == ["0001_01", "0002_01", "0003_01"]
    assert set(val[0]) == {"image", "index", "name"}
    data.setup("predict")
    predict = data.datasets["predict"]
    assert [predict[n]["name"] for n in (1, 5)] == ["0001_02", "0003_02"]
    assert predict[1]["image"].shape == (3, 24, 20)
    assert (255 * predict[3]["image"][:, 0, 0]).round().tolist() == [10, 20, 2]
    assert data.on_after_batch_transfer({"image": predict[0]["image"]}, 0)["image"] is not None
    with pytest.raises(LayoutError, match="DND publishes no clean images"):
        data.setup("test")


def test_patches_are_cut_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.sidd(tmp_path)
    opened(SIDD, settings)
    monkeypatch.setattr(SIDD, "read", staticmethod(lambda path: pytest.fail(f"{path} was read again")))
    opened(SIDD, settings)
    with pytest.raises(pytest.fail.Exception):  # other patches are other files
        opened(SIDD, settings, patch_stride=10)
    data = SIDD(**{**settings, "root": str(settings["root"]), "cache_folder": str(tmp_path / "empty")})
    with pytest.raises(RuntimeError, match="not cut into patches yet"):
        data.setup("fit")


def test_draws_are_squares_in_eight_orientations() -> None:
    picture = tiny.noisy_picture(0, 12, 10)
    crops = DrawnCrops([picture], 8, 3, str)
    seen = set()
    for draw in range(60):
        image = crops[draw]["image"]
        rows, columns = image[0].int(), image[1].int()
        assert image.shape == (3, 8, 8)
        steps = tuple(int(part[at] - part[0, 0]) for part in (rows, columns) for at in ((1, 0), (0, 1)))
        assert sorted(map(abs, steps)) == [0, 0, 1, 1]
        seen.add(steps)
        assert torch.equal(image, DrawnCrops([picture], 8, 3, str)[draw]["image"])
    assert len(seen) == 8


def test_photographs_and_their_noise() -> None:
    data = opened(PackagedPhotographs, {}, None)
    assert [len(data.datasets[name]) for name in ("train", "val", "test")] == [1200, 8, 14]
    pair = data.datasets["test"][0]
    again = opened(PackagedPhotographs, {}, "test").datasets["test"][0]
    assert torch.equal(pair["image"], again["image"])
    clean = photograph(*PHOTOGRAPHS["test"][1])
    noise = data.noisy(np.full_like(clean, 128), "grey").astype(float) - 128
    assert noise.std() == pytest.approx(25, rel=0.03)
    neighbours = [np.corrcoef(noise[:, d:].ravel(), noise[:, : -d or None].ravel())[0, 1] for d in (1, 2, 3)]
    assert neighbours == pytest.approx([2 / 3, 1 / 3, 0], abs=0.03)
    independent = PackagedPhotographs(blur=1).noisy(np.full_like(clean, 128), "grey").astype(float)
    assert np.corrcoef(independent[:, 1:].ravel(), independent[:, :-1].ravel())[0, 1] == pytest.approx(
        0, abs=0.03
    )
    files = [file for split in PHOTOGRAPHS.values() for _, file in split]
    assert len(files) == len(set(files)) == 9


# -- bad input -------------------------------------------------------------------------------------------


def test_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"there is no folder .*nowhere[\s\S]*Where to get it: abdokamel"):
        SIDD(root=str(tmp_path / "nowhere")).setup("fit")
    root = tiny.sidd_tree(tmp_path / "sidd")
    with pytest.raises(LayoutError, match=r"expected 320 images .*NOISY.*found 4"):
        SIDD(root=str(root)).setup("fit")
    (root / "ValidationGtBlocksSrgb.mat").unlink()
    with pytest.raises(LayoutError, match=r"no file matches ValidationGtBlocksSrgb\.mat"):
        SIDD(root=str(root)).setup("validate")
    root = tiny.dnd_tree(tmp_path / "dnd")
    (root / "info.mat").unlink()
    with pytest.raises(LayoutError, match=r"no file matches info\.mat"):
        DND(root=str(root), allow_partial=True).setup("predict")


def test_a_truncated_png_is_named_or_left_out(tmp_path: Path) -> None:
    settings = tiny.sidd(tmp_path)
    broken = sorted((settings["root"] / "SIDD_Medium_Srgb/Data").rglob("*NOISY*"))[1]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(BrokenImageError, match=broken.name):
        opened(SIDD, settings)
    with pytest.warns(UserWarning, match="skip_broken left out 1 of 4 images"):
        data = opened(SIDD, settings, skip_broken=True)
    assert data.skipped == {"root/train": [str(broken)]}
    assert len(data.datasets["train"]) == 3 * 6
    with pytest.raises(BrokenImageError, match=broken.name):  # what was left out once is not taken for whole
        opened(SIDD, settings)


@pytest.mark.parametrize("harm", ["cut", "other", "nan"])
def test_broken_matlab_files_are_named(harm: str, tmp_path: Path) -> None:
    blocks, image = tiny.sidd(tmp_path), tiny.dnd(tmp_path)
    noisy, hdf5 = blocks["root"] / "ValidationNoisyBlocksSrgb.mat", image["root"] / "images_srgb/0002.mat"
    if harm == "cut":
        for path in (noisy, hdf5):
            path.write_bytes(path.read_bytes()[:200])
        messages = ["cannot be read", "cannot be read"]
    elif harm == "other":
        (blocks["root"] / "ValidationGtBlocksSrgb.mat").replace(noisy)
        tiny.sidd_tree(tmp_path / "again")
        (tmp_path / "again/ValidationGtBlocksSrgb.mat").replace(blocks["root"] / "ValidationGtBlocksSrgb.mat")
        with h5py.File(hdf5, "w") as file:
            file["Iclean"] = np.zeros((3, 50, 60), np.float32)
        messages = ["it holds no ValidationNoisyBlocksSrgb", "it holds no InoisySRGB, only .*Iclean"]
    else:
        with h5py.File(hdf5, "r+") as file:
            file["InoisySRGB"][0, 3, 3] = np.nan
        messages = ["", "InoisySRGB holds values from nan to nan"]
    if messages[0]:
        with pytest.raises(BrokenImageError, match=rf"ValidationNoisyBlocksSrgb\.mat .*{messages[0]}"):
            opened(SIDD, blocks)
    with pytest.raises(BrokenImageError, match=rf"0002\.mat .*{messages[1]}"):
        opened(DND, image)


def test_images_smaller_than_patches_or_crops(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match=r"NOISY.*: 70 x 90 pixels hold no patch of 60 pixels 10 from"):
        opened(SIDD, tiny.sidd(tmp_path), patch_size=60)
    with pytest.raises(ValueError, match=r"crop=40 does not fit patches: raise patch_size=30"):
        SIDD(crop=40, patch_size=30)
    small = DrawnCrops([np.zeros((9, 30, 3), np.uint8)], 10, 0, lambda index: f"picture {index}")
    with pytest.raises(ValueError, match=r"picture 0 has 9 x 30 pixels, fewer than crop=10"):
        small[0]


def test_boxes_beyond_the_image(tmp_path: Path) -> None:
    settings = tiny.dnd(tmp_path)
    with h5py.File(settings["root"] / "images_srgb/0001.mat", "w") as file:
        file["InoisySRGB"] = np.zeros((3, 30, 60), np.float32)
    data = opened(DND, settings, "predict")
    with pytest.raises(ValueError, match=r"box 10, 20, 34, 40 for .*0001\.mat, which has 60 x 30 pixels"):
        data.datasets["predict"][1]


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LayoutError, match=r"pip install 'selfzoo\[denoising\]'"):
        PackagedPhotographs().setup("test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackagedPhotographs(blur=2), "blur=2 odd"),
        (lambda: PackagedPhotographs(sigma=0), "sigma=0 must be positive"),
        (lambda: PackagedPhotographs(num_crops=0), "num_crops=0"),
        (lambda: PackagedPhotographs(crop=0), "crop must be at least 1"),
        (lambda: DND(val_boxes=0), "val_boxes must be at least 1"),
        (lambda: Cutting(border=-1), "border=-1"),
        (lambda: PackagedPhotographs(tile=400).setup("test"), r"tile=400 is larger than .*china\.jpg"),
    ],
)
def test_arguments_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_images_are_the_ones_in_the_files(tmp_path: Path) -> None:
    """The clean training images of SIDD are no images at all here, and nobody minds."""
    settings = tiny.sidd(tmp_path)
    assert not any("GT" in path.name for path in opened(SIDD, settings).training_images())
    with (
        pytest.raises(OSError, match="cannot identify"),
        Image.open(next(settings["root"].rglob("*GT*.PNG"))),
    ):
        pass
