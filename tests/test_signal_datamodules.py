"""Sets of biosignals: tables, pairs, PTB-XL's layout, generated people, and what happens when data is bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import PTBXL, PulsePeople, SignalFolders
from datamodules.layout import LayoutError
from datamodules.signal_sets import BrokenSignalError
from datamodules.signals import SignalDataModule
from tests import tiny_signals
from tests.tiny_signals import columns, folder, ptbxl_tree, segment, write_table
from zoo.nn import SignalAugment

FEW: dict[str, Any] = {"batch_size": 2, "eval_batch_size": 5, "seed": 0}


def ready(data: SignalDataModule, stage: str | None = None) -> Any:
    data.prepare_data()
    data.setup(stage)
    return data


def epoch(loader: Any) -> dict[str, torch.Tensor]:
    batches = list(loader)
    return {
        key: torch.cat([batch[key] for batch in batches])
        for key, value in batches[0].items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("parquet", [True, False])
def test_segments_come_in_order_of_person_and_time(parquet: bool, tmp_path: Path) -> None:
    data = ready(SignalFolders(root=str(folder(tmp_path / "s", parquet)), traits=["age"], **FEW))
    seen = epoch(data.val_dataloader())
    assert seen["participant"].tolist() == np.repeat(range(4), 3).tolist()
    # people of val are 6..9
    for row, (person, number) in enumerate((p, n) for p in range(6, 10) for n in range(3)):
        assert torch.equal(seen["signal"][row], torch.from_numpy(segment(person, number)))
    assert seen["trait"][:, 0].tolist() == np.repeat([26.0, 27, 28, 29], 3).tolist()
    assert next(iter(data.test_dataloader()))["name"][0] == "p10/000000"
    bank = epoch(data.bank_dataloader())
    assert len(bank["signal"]) == 18
    half = ready(SignalFolders(root=data.root, labelled_fraction=0.5, **FEW), "test")
    assert len(epoch(half.bank_dataloader())["participant"].unique()) == 3


def test_pairs_are_two_segments_of_one_person(tmp_path: Path) -> None:
    root = str(folder(tmp_path / "s"))
    data = ready(SignalFolders(root=root, **FEW), "fit")
    seen = epoch(data.train_dataloader())
    assert sorted(seen["participant"].tolist()) == list(range(6))  # everybody once an epoch
    person, number = (seen["pair"].mean((2, 3)) / 1000).floor(), seen["pair"].mean((2, 3)) % 1000
    assert torch.equal(person, seen["participant"].float()[:, None].expand(-1, 2))
    assert (number[:, 0].floor() != number[:, 1].floor()).all()

    same = ready(SignalFolders(root=root, pairs="segment", **FEW), "fit")
    pair = epoch(same.train_dataloader())["pair"]
    assert torch.equal(pair[:, 0], pair[:, 1])

    again = ready(SignalFolders(root=root, **FEW), "fit").datasets["train"]
    assert torch.equal(again[4]["pair"], data.datasets["train"][4]["pair"])


def test_views_are_made_on_the_device_and_future_batches_cut_off(tmp_path: Path) -> None:
    data = ready(SignalFolders(root=str(folder(tmp_path / "s")), views=SignalAugment(), **FEW), "fit")
    data.future_batches = 1
    raw = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch["pair"].shape == (2, 2, 4, 64)
    assert len(batch["future"]) == 1
    assert not torch.equal(batch["future"][0]["pair"], raw["pair"][2:])
    plain = SignalFolders(root=data.root, **FEW).on_after_batch_transfer(raw, 0)
    assert plain["pair"].mean(-1).abs().max() < 1e-3  # standardised


def test_a_person_with_one_segment_is_told_and_left_out(tmp_path: Path) -> None:
    root, table = folder(tmp_path / "s"), columns()
    (root / "segments.parquet").unlink()
    keep = [n for n, who in enumerate(table["participant_id"]) if who != "p2" or table["segment"][n] == 1]
    write_table(root, {key: [values[n] for n in keep] for key, values in table.items()})
    with pytest.warns(UserWarning, match=r"1 of 6 training participants have one segment.* e\.g\. p2"):
        data = ready(SignalFolders(root=str(root), **FEW), "fit")
    assert len(data.datasets["train"]) == 5
    assert len(ready(SignalFolders(root=str(root), pairs="segment", **FEW), "fit").datasets["train"]) == 6
    alone = {key: [values[n] for n in (0, 18, 30)] for key, values in table.items()}
    write_table(root, alone)
    with pytest.raises(ValueError, match="0 of 1 participants have 2 segments or more"):
        ready(SignalFolders(root=str(root), **FEW), "fit")


def change(name: str, row: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    return lambda table: table[name].__setitem__(row, value)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda table: table.pop("start_time"),
            r"segments\.csv lacks the column start_time; it has participant",
        ),
        (lambda table: table.pop("age"), "lacks the column age"),
        (change("start_time", 4, "noon"), "start_time of row 5 is 'noon': expected a number"),
        (change("start_time", 4, ""), "start_time of row 5 is ''"),
        (change("split", 0, "dev"), "split 'dev' is none of train, val, test"),
        (change("split", 0, "test"), "participant p0 is in test and in train: splits must not share people"),
        (change("segment", 0, -1), "segment must number the parts of a file from 0"),
        (change("segment_path", 0, "arrays/gone.npy"), r"1 of 7 files are missing: arrays/gone\.npy"),
        (lambda table: [values.__delitem__(slice(18, 30)) for values in table.values()], "no segment of it"),
    ],
)
def test_bad_tables(harm: Callable[..., Any], message: str, tmp_path: Path) -> None:
    root, table = folder(tmp_path / "s"), columns()
    (root / "segments.parquet").unlink()
    harm(table)
    write_table(root, table)
    with pytest.raises(LayoutError, match=message):
        SignalFolders(root=str(root), traits=["age"], **FEW).setup("fit")


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    for content, file in ((b"PAR1 cut", "segments.parquet"), (b"\xff\xfe,\n", "segments.csv")):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(LayoutError, match=f"{file} is no"):
            SignalFolders(root=str(tmp_path), **FEW).setup("fit")
        (tmp_path / file).unlink()
    with pytest.raises(LayoutError, match=r"neither segments\.parquet nor segments\.csv"):
        SignalFolders(root=str(tmp_path), **FEW).setup("fit")
    with pytest.raises(LayoutError, match="root is not set"):
        SignalFolders(**FEW).setup("fit")
    with pytest.raises(LayoutError, match="there is no folder"):
        SignalFolders(root=str(tmp_path / "gone"), **FEW).setup("fit")


def whole_files(root: Path, suffix: str = ".npz") -> None:
    """One file per segment, ``[C, T]``."""
    table = columns()
    del table["segment"]
    (root / "arrays").mkdir(parents=True)
    for n, who in enumerate(table["participant_id"]):
        file = f"arrays/{n}{suffix}"
        array = segment(int(who[1:]), n)
        np.savez(root / file, signal=array) if suffix == ".npz" else np.save(root / file, array)
        table["segment_path"][n] = file
    write_table(root, table)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda file: np.savez(file, signal=array)


NAN = segment(0, 2)
NAN[1, 5:9] = np.nan


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, r"0\.npz cannot be read \(.*write it again"),
        (lambda file: file.write_bytes(b""), r"0\.npz cannot be read"),
        (save(NAN), r"0\.npz holds 4 samples that are nan or inf"),
        (save(segment(0, 2, samples=63)), r"0\.npz has 63 samples, others have 64: set data\.samples"),
        (save(segment(0, 2, channels=3)), r"0\.npz has 3 channels, others have 4"),
        (save(segment(0, 2)[0]), r"0\.npz holds float32 \[64\]: expected numbers \[channels, samples\]"),
        (save(np.array([["a"]])), r"0\.npz holds <U1 \[1, 1\]"),
        (lambda file: np.savez(file, signal=np.array([None])), "cannot be read"),
    ],
)
def test_broken_segments(harm: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    whole_files(tmp_path / "s")
    harm(tmp_path / "s/arrays/0.npz")
    data = ready(SignalFolders(root=str(tmp_path / "s"), **FEW), "fit")
    read = data.reader("train")
    read(0)
    with pytest.raises(BrokenSignalError, match=message):
        read(2)  # the newest of the first person, which is the first of the table
    with pytest.warns(UserWarning, match=r"skip_broken left out 1 of 18 train segments"):
        whole = ready(SignalFolders(root=str(tmp_path / "s"), skip_broken=True, **FEW), "fit")
    assert len(whole.reader("train").segments) == 17


def test_segments_are_cut_to_their_first_samples(tmp_path: Path) -> None:
    whole_files(tmp_path / "s", ".npy")
    root = str(tmp_path / "s")
    signal = ready(SignalFolders(root=root, samples=10, **FEW), "fit").reader("train")(0)
    assert torch.equal(signal, torch.from_numpy(segment(0, 2)[:, :10]))
    with pytest.raises(BrokenSignalError, match=r"has 64 samples, fewer than data\.samples=65"):
        ready(SignalFolders(root=root, samples=65, **FEW), "fit").reader("train")(0)
    assert (tmp_path / "s/arrays/0.npy").stat().st_size  # memory-mapped, never written
    table_row = ready(SignalFolders(root=str(folder(tmp_path / "t")), **FEW), "fit")
    with pytest.raises(BrokenSignalError, match=r"holds \[3, 4, 64\], and the table names its segment 3"):
        table_row.load("arrays/p0.npy", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": "people"}, "pairs='people'"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"labelled_fraction": 0.0}, "labelled_fraction"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignalFolders(**arguments)


# -- PTB-XL ----------------------------------------------------------------------------------------------


def test_ptbxl_windows_of_patients(tmp_path: Path) -> None:
    root = str(ptbxl_tree(tmp_path / "p"))
    data = ready(PTBXL(root=root, leads=["II", "V6"], seconds=4, allow_partial=True, **FEW))
    train = data.reader("train").segments
    assert [len(rows) for rows in train.by_participant()] == [
        4,
        2,
        2,
    ]  # two windows a record, two visits of the first
    time = np.arange(400, 800) / 100
    wanted = np.stack([np.sin(2 * np.pi * (1 + lead) * time / 10) for lead in (1, 11)])
    np.testing.assert_allclose(data.reader("train")(1).numpy(), wanted, atol=1e-3)
    assert train.traits[0].tolist() == [41, 1]
    test = epoch(data.test_dataloader())
    assert test["trait"][:, 0].tolist() == [46, 46, 90, 90]  # 300 stands for all above 89
    assert data.skipped == {}


def test_ptbxl_bad_input(tmp_path: Path) -> None:
    root = ptbxl_tree(tmp_path / "p")
    with pytest.raises(LayoutError, match=r"expected 17418 records, the table lists 4: another version"):
        PTBXL(root=str(root), **FEW).setup("fit")
    data = ready(PTBXL(root=str(root), allow_partial=True, **FEW), "fit")
    samples = root / "records100/00000/00001_lr.dat"
    samples.write_bytes(samples.read_bytes()[:15000])
    data.reader("train")(0)
    with pytest.raises(BrokenSignalError, match=r"00001_lr \(\.hea and \.dat\) cannot be read"):
        data.reader("train")(1)
    with pytest.raises(BrokenSignalError, match=r"has no lead X, only I, II"):
        ready(PTBXL(root=str(root), leads=["X"], allow_partial=True, **FEW), "fit").reader("train")(0)
    (root / "records100/00000/00002_lr.dat").unlink()
    with pytest.raises(LayoutError, match=r"1 of 4 files are missing: records100/00000/00002_lr"):
        PTBXL(root=str(root), allow_partial=True, **FEW).setup("fit")
    with pytest.raises(LayoutError, match="4 of 4 files are missing"):
        PTBXL(root=str(root), sample_rate=500, allow_partial=True, **FEW).setup("fit")
    table = root / "ptbxl_database.csv"
    table.write_text(table.read_text().replace("1990-01-01 09:17:34", "1990-13-01"))
    with pytest.raises(LayoutError, match="recording_date of row 1 is '1990-13-01'"):
        PTBXL(root=str(root), allow_partial=True, **FEW).setup("fit")
    table.unlink()
    with pytest.raises(LayoutError, match=r"there is no ptbxl_database\.csv"):
        PTBXL(root=str(root), **FEW).setup("fit")
    for arguments in ({"sample_rate": 250}, {"seconds": 11.0}, {"leads": []}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            PTBXL(**arguments)  # type: ignore[arg-type]


# -- generated people ------------------------------------------------------------------------------------


def test_generated_people_are_the_same_everywhere_and_in_one_split(tmp_path: Path) -> None:
    settings = {**tiny_signals.PULSE_PEOPLE, "length": 128}
    data = ready(PulsePeople(root=str(tmp_path / "a"), **settings))
    again = ready(PulsePeople(root=str(tmp_path / "b"), **settings))
    one, two = (epoch(d.val_dataloader()) for d in (data, again))
    assert one["signal"].shape == (12, 2, 128)
    assert torch.equal(one["signal"], two["signal"])
    assert one["trait"].shape[1] == len(data.traits) == 3
    assert set(data.reader("val").segments.participants).isdisjoint(data.reader("test").segments.participants)
    for arguments in ({"num_val": 1}, {"length": 8}, {"segments": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            PulsePeople(**arguments)  # type: ignore[arg-type]
