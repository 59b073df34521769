"""Reading and processing volumes, putting labels back, and what is said about broken files."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules.volume_files import BrokenVolumeError, read_label, read_volume
from datamodules.volume_processing import Processing, process, to_original_space
from tests import tiny_volumes as tiny

PLAIN = Processing(spacing=None, crop_foreground=False)


# -- reading and processing ---------------------------------------------------------------------------------


def test_axes_run_to_the_right_front_and_top(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path)
    done = process(pair.image, pair.label, PLAIN)
    volume, label = tiny.box()
    # The files run to the left and back: both axes are mirrored.
    np.testing.assert_allclose(done.volume[0], np.clip((volume[::-1, ::-1] + 175) / 425, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(done.label, label[::-1, ::-1])
    assert nib.aff2axcodes(done.affine) == ("R", "A", "S")
    last = np.array([s - 1 for s in tiny.SIZE[:2]])
    np.testing.assert_allclose(done.affine[:2, 3], -last * tiny.SPACING[:2])


def test_swapped_axes_are_put_in_order(tmp_path: Path) -> None:
    volume, label = tiny.box()
    affine = tiny.LPS[:, [2, 0, 1, 3]]
    pair = tiny.pair(
        tmp_path,
        volume=volume.transpose(2, 0, 1),
        label=label.transpose(2, 0, 1),
        affine=affine,
        label_affine=affine,
    )
    np.testing.assert_array_equal(process(pair.image, pair.label, PLAIN).label, label[::-1, ::-1])


def test_a_linear_ramp_stays_one_at_another_spacing(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32) * 30 - 100, tiny.SIZE)
    image = tiny.save(tmp_path / "v.nii.gz", ramp.copy())
    done = process(image, None, Processing(spacing=(2.3, 1.0, 1.0), crop_foreground=False))
    assert done.volume.shape[1:] == (16, 30, 34)  # (24-1)*1.5/2.3 + 1, (20-1)*1.5 + 1.5, (12-1)*3 + 1
    expected = np.clip((np.arange(34) * 10 - 100 + 175) / 425, 0, 1)
    np.testing.assert_allclose(done.volume[0, 4, 7], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(done.affine[:3, :3], axis=0), (2.3, 1, 1))


def test_spacing_agrees_with_monai(tmp_path: Path) -> None:
    transforms = pytest.importorskip("monai.transforms")
    from monai.data import MetaTensor

    pair = tiny.pair(tmp_path)
    volume, _ = tiny.box()
    given = MetaTensor(torch.from_numpy(volume[None].astype(np.float32)), affine=torch.from_numpy(tiny.LPS))
    oriented = transforms.Orientation("RAS", labels=None)(given)
    theirs = transforms.Spacing((1.5, 1.5, 1.5), mode="bilinear")(oriented)
    ours = process(pair.image, None, Processing(window=(-1000.0, 500.0), crop_foreground=False))
    np.testing.assert_allclose(ours.volume, np.clip((theirs.numpy() + 1000) / 1500, 0, 1), atol=1e-3)
    np.testing.assert_allclose(ours.affine, theirs.affine.numpy(), atol=1e-6)


def test_the_box_around_the_foreground_is_cut_out_where_it_lies(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path)
    whole, cropped = (
        process(pair.image, pair.label, Processing(spacing=None, crop_foreground=c)) for c in (False, True)
    )
    assert cropped.volume.shape[1:] == (20, 16, 8)  # without two voxels of air on each side
    np.testing.assert_array_equal(cropped.volume, whole.volume[:, 2:-2, 2:-2, 2:-2])
    np.testing.assert_allclose(cropped.affine[:3, 3], (whole.affine @ (2, 2, 2, 1))[:3])


def test_percentiles_are_taken_channel_by_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(*tiny.SIZE, 3)) * (1, 10, 100) + (0, 5, 1000)
    image = tiny.save(tmp_path / "v.nii.gz", array.astype(np.float32))
    done = process(image, None, Processing(spacing=None, window=None, channels=(2, 0), crop_foreground=False))
    assert done.volume.shape == (2, *tiny.SIZE)
    low, high = np.percentile(array[..., 2].astype(np.float32), (0.5, 99.5))
    expected = np.clip((array[::-1, ::-1, :, 2] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(done.volume[0], expected, atol=1e-4)


def test_resize_keeps_corners_and_places(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path)
    done = process(
        pair.image, pair.label, Processing(spacing=None, crop_foreground=False, resize=(47, 39, 23))
    )
    assert done.volume.shape[1:] == done.label.shape == (47, 39, 23)  # type: ignore[union-attr]
    plain = process(pair.image, pair.label, PLAIN)
    np.testing.assert_allclose(done.volume[:, ::2, ::2, ::2], plain.volume, atol=1e-5)
    np.testing.assert_array_equal(done.label[::2, ::2, ::2], plain.label)  # type: ignore[index]
    corner = [side - 1 for side in (47, 39, 23)]
    np.testing.assert_allclose(
        done.affine @ (*corner, 1), plain.affine @ (*[s - 1 for s in tiny.SIZE], 1), atol=1e-9
    )


@pytest.mark.parametrize("angle", [0.0, 0.2], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [None, (0.75, 0.75, 1.5)], ids=["same", "finer"])
def test_labels_come_back_to_the_file_they_belong_to(
    tmp_path: Path, angle: float, spacing: tuple[float, float, float] | None
) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (5, -7, 11)
    affine = turn @ tiny.LPS
    pair = tiny.pair(tmp_path, affine=affine, label_affine=affine)
    done = process(pair.image, pair.label, Processing(spacing=spacing))
    assert done.label is not None
    back = to_original_space(done.label, done.affine, done.original_size, done.original_affine)
    np.testing.assert_array_equal(back, tiny.box()[1])
    assert back.dtype == np.uint8


def test_nearly_every_voxel_comes_back_from_a_coarser_grid(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path)
    done = process(pair.image, pair.label, Processing(spacing=(2.0, 2.0, 2.0)))
    assert done.label is not None
    back = to_original_space(done.label, done.affine, done.original_size, done.original_affine)
    truth = tiny.box()[1]
    assert 2 * ((back == 1) & (truth == 1)).sum() / ((back == 1).sum() + (truth == 1).sum()) > 0.85


def test_metaimages_are_mirrored_to_niftis_axes(tmp_path: Path) -> None:
    tree = tiny.luna16_tree(tmp_path, count=1)
    volume = read_volume(tree / "subset0/1.3.6.1.0.mhd")
    np.testing.assert_array_equal(volume.array[0], tiny.box()[0])
    # Stored: first axis to the right (the matrix mirrors "left"), second to the back, offset in left-back-top.
    expected = [[1.5, 0, 0, -10], [0, -1.5, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)


def test_compressed_and_local_metaimages(tmp_path: Path) -> None:
    import zlib

    tree = tiny.luna16_tree(tmp_path, count=1)
    header, raw = (tree / f"subset0/1.3.6.1.0.{end}" for end in ("mhd", "raw"))
    text = header.read_text().replace("CompressedData = False", "CompressedData = True")
    local = text.replace("ElementDataFile = 1.3.6.1.0.raw", "ElementDataFile = LOCAL")
    (tree / "one.mha").write_bytes(local.encode() + zlib.compress(raw.read_bytes()))
    np.testing.assert_array_equal(read_volume(tree / "one.mha").array[0], tiny.box()[0])


# -- bad input ----------------------------------------------------------------------------------------------


def test_anisotropic_files_are_brought_to_the_asked_spacing(tmp_path: Path) -> None:
    """The rule: axes may differ, and are resampled."""
    affine = np.diag([0.5, 0.9, 5.0, 1.0])
    done = process(tiny.pair(tmp_path, affine=affine, label_affine=affine).image, None, Processing())
    np.testing.assert_allclose(np.linalg.norm(done.affine[:3, :3], axis=0), 1.5)


def test_a_missing_affine_names_the_file_or_takes_its_spacing(tmp_path: Path) -> None:
    image = tmp_path / "v.nii.gz"
    nifti = nib.Nifti1Image(tiny.box()[0], None)
    nifti.header.set_zooms((1.0, 2.0, 3.0))
    nib.save(nifti, image)
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz has no affine .*missing_affine: spacing"):
        read_volume(image)
    np.testing.assert_allclose(read_volume(image, missing_affine="spacing").affine, np.diag([1, 2, 3, 1]))


def test_an_affine_that_collapses_space(tmp_path: Path) -> None:
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    nifti = nib.Nifti1Image(tiny.box()[0], tiny.LPS)
    nifti.header.set_sform(flat, code=1)
    nifti.header.set_qform(tiny.LPS, code=0)
    nib.save(nib.Nifti1Image(nifti.dataobj, None, nifti.header), tmp_path / "v.nii.gz")
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz has an affine that maps voxels to no place"):
        read_volume(tmp_path / "v.nii.gz")


def test_one_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny.pair(tmp_path)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"nibabel: pip install 'selfzoo\[medical\]'"):
        read_volume(pair.image)


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 1)])
def test_two_dimensional_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = tiny.save(tmp_path / "v.nii.gz", np.zeros(shape, np.int16))
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz holds a two-dimensional image"):
        read_volume(image)


def test_channels_must_be_asked_for(tmp_path: Path) -> None:
    image = tiny.save(tmp_path / "v.nii.gz", np.zeros((6, 5, 4, 3), np.int16))
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz is 4-D and holds 3 channels: set .*channels"):
        read_volume(image)
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz holds 3 channels; .*\[5\]"):
        read_volume(image, channels=(5,))
    assert read_volume(image, channels=(2, 0)).array.shape == (2, 6, 5, 4)
    single = tiny.save(tmp_path / "s.nii.gz", np.zeros((6, 5, 4, 1), np.int16))
    assert read_volume(single).array.shape == (1, 6, 5, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    array = np.zeros(tiny.SIZE, np.float32)
    array[3, 4, 5] = value
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz holds 1 voxels that are NaN or infinite"):
        read_volume(tiny.save(tmp_path / "v.nii.gz", array))


@pytest.mark.parametrize("kept", [0.5, 0.05, 0.0], ids=["half", "header", "empty"])
def test_truncated_gzip(tmp_path: Path, kept: float) -> None:
    image = tiny.pair(tmp_path).image
    content = image.read_bytes()
    image.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz cannot be read .*skip_broken"):
        read_volume(image)


def test_files_of_another_kind(tmp_path: Path) -> None:
    for content in (b"<html>", gzip.compress(b"<html>")):
        (tmp_path / "v.nii.gz").write_bytes(content)
        with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz cannot be read"):
            read_volume(tmp_path / "v.nii.gz")
    (tmp_path / "v.mhd").write_text("no header")
    with pytest.raises(BrokenVolumeError, match=r"v\.mhd cannot be read .*no MetaImage header"):
        read_volume(tmp_path / "v.mhd")


def test_incomplete_metaimages(tmp_path: Path) -> None:
    raw = tiny.luna16_tree(tmp_path, count=1) / "subset0/1.3.6.1.0.raw"
    raw.write_bytes(raw.read_bytes()[:100])
    with pytest.raises(BrokenVolumeError, match=r"1\.3\.6\.1\.0\.mhd cannot be read .*holds 100 bytes"):
        read_volume(raw.with_suffix(".mhd"))


def test_labels_on_another_grid(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path, label=np.zeros((24, 20, 11), np.uint8))
    assert pair.label is not None
    with pytest.raises(
        BrokenVolumeError, match=r"l\.nii\.gz has shape \[24, 20, 11\], but its volume .*v\.nii\.gz"
    ):
        read_label(pair.label, read_volume(pair.image))
    shifted = tiny.LPS.copy()
    shifted[0, 3] = 4.0
    pair = tiny.pair(tmp_path, label_affine=shifted)
    assert pair.label is not None
    with pytest.raises(BrokenVolumeError, match=r"l\.nii\.gz lies up to 4\.00 mm beside its volume"):
        read_label(pair.label, read_volume(pair.image))


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path, label=np.full(tiny.SIZE, 0.5, np.float32))
    assert pair.label is not None
    with pytest.raises(BrokenVolumeError, match=r"l\.nii\.gz holds values that are no classes"):
        read_label(pair.label, read_volume(pair.image))


def test_no_foreground(tmp_path: Path) -> None:
    pair = tiny.pair(tmp_path, volume=np.full(tiny.SIZE, -1000, np.int16))
    with pytest.raises(BrokenVolumeError, match=r"v\.nii\.gz has no foreground: no voxel is above -175"):
        process(pair.image, None, Processing())
