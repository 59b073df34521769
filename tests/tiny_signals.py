"""Miniature sets of biosignals in their official layouts, written without the package's own tables and readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

#: Arguments of PulsePeople that render in a fraction of a second.
PULSE_PEOPLE: dict[str, Any] = {
    "num_train": 6,
    "num_val": 4,
    "num_test": 4,
    "segments": 3,
    "length": 64,
    "batch_size": 2,
    "eval_batch_size": 5,
}
#: Options that put a tiny encoder into a config.
SMALL = ["--model.backbone_args", '{"embed_dim": 36, "expansion": 2}', "--model.hidden_dim", "16"]
SPLITS = {"train": 6, "val": 4, "test": 4}
LEADS = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def columns(segments: int = 3) -> dict[str, list[Any]]:
    """A table of three segments of everybody, newest first; ages are whole years, some unknown."""
    table: dict[str, list[Any]] = {
        key: [] for key in ("participant_id", "segment_path", "start_time", "split", "segment", "age")
    }
    number = 0
    for split, count in SPLITS.items():
        for _ in range(count):
            for segment in reversed(range(segments)):
                row = (f"p{number}", f"arrays/p{number}.npy", 100.0 * segment, split, segment, 20.0 + number)
                for key, value in zip(table, row, strict=True):
                    table[key].append(value)
            number += 1
    return table


def segment(person: int, number: int, channels: int = 4, samples: int = 64) -> np.ndarray:
    """``[C, T]``: person and number can be read off."""
    rng = np.random.default_rng([person, number])
    return (1000 * person + number + rng.random((channels, samples))).astype(np.float32)


def folder(root: Path, parquet: bool = True, channels: int = 4) -> Path:
    """A SignalFolders tree, a ``.npy`` per participant."""
    table = columns()
    (root / "arrays").mkdir(parents=True)
    for person in range(sum(SPLITS.values())):
        array = np.stack([segment(person, n, channels) for n in range(3)])
        np.save(root / f"arrays/p{person}.npy", array)
    write_table(root, table, parquet)
    return root


def write_table(root: Path, table: dict[str, list[Any]], parquet: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if parquet:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(table), root / "segments.parquet")
        return
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    (root / "segments.csv").write_text("\n".join(lines) + "\n")


def ptbxl_tree(root: Path) -> Path:
    """Records of ten seconds at 100 Hz of twelve leads, format 16, of one or two visits of seven patients."""
    import wfdb

    lines = ["ecg_id,patient_id,age,sex,height,recording_date,strat_fold,filename_lr,filename_hr"]
    visits = [(1, 1), (1, 1), (2, 2), (3, 8), (4, 9), (5, 9), (6, 10), (7, 10)]
    for ecg, (patient, fold) in enumerate(visits, 1):
        place = f"records100/00000/{ecg:05d}_lr"
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(1000) / 100
        leads = np.stack([np.sin(2 * np.pi * (patient + lead) * time / 10) for lead in range(12)], 1)
        wfdb.wrsamp(
            f"{ecg:05d}_lr", fs=100, units=["mV"] * 12, sig_name=LEADS, p_signal=leads, fmt=["16"] * 12,
            adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str((root / place).parent),
        )  # fmt: skip
        age = 300 if patient == 7 else 40 + patient
        date = f"1990-01-{ecg:02d} 09:17:34"
        lines.append(
            f"{ecg},{patient}.0,{age}.0,{patient % 2},,{date},{fold},{place},{place.replace('lr', 'hr')}"
        )
    (root / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")
    return root


def pulse_people(_: Path) -> dict[str, Any]:
    return PULSE_PEOPLE


def signal_folders(place: Path, channels: int = 4) -> dict[str, Any]:
    return {
        "root": folder(place / "signals", channels=channels),
        "samples": 64,
        "batch_size": 2,
        "eval_batch_size": 5,
        "num_workers": 0,
        "traits": "[age]",
    }


def ecg_folders(place: Path) -> dict[str, Any]:
    return signal_folders(place, channels=1)


def ptbxl(place: Path) -> dict[str, Any]:
    few = {"batch_size": 2, "num_workers": 0, "allow_partial": True}
    return {**few, "root": ptbxl_tree(place / "ptbxl")}
