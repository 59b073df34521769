"""PTB-XL (Wagner et al., Scientific Data 2020): 12-lead electrocardiograms of ten seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

from datamodules.layout import Layout, LayoutError, Split
from datamodules.signal_cache import SignalJob
from datamodules.signal_sets import BrokenSignalError
from datamodules.signal_tables import (
    Segments,
    check_columns,
    numbers,
    read_table,
    split_segments,
    trait_columns,
)
from datamodules.signals import SignalDataModule
from zoo.extras import require

TABLE: Final = "ptbxl_database.csv"
SECONDS: Final = 10.0
#: What the table holds in place of ages above 89, and what it becomes.
HIDDEN_AGE: Final = (300.0, 90.0)
Trait = Literal["age", "sex", "height", "weight"]


class PTBXL(SignalDataModule):
    """Participants are patients; folds 1-8 train, 9 validates, 10 tests, as the authors recommend.

    Most patients have one record. So that everybody makes a pair, records are cut into windows, which are the segments:
    pairs are two windows of a patient, of one record or of several. Records are read by the ``wfdb`` package (extra
    ``signals``), in millivolts.

    Args:
        root: folder with ``ptbxl_database.csv``, ``records100`` and ``records500``.
        sample_rate: 100 or 500 Hz: which records are read.
        leads: which leads, by their names in the records; lead I is what wrist devices record.
        seconds: length of a window.
        traits: columns of the table for probes: ``age`` (years; 90 stands for all above 89), ``sex`` (1: female),
            ``height``, ``weight``.
        **common: see :class:`~datamodules.signals.SignalDataModule`. ``cache`` keeps float32 samples of the ``leads``.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "ptbxl"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="PTB-XL",
            images=TABLE,
            suffix="",
            labels=(),
            # Version 1.0.3, and 1.0.1, which still had doubles.
            splits={
                "train": Split("*", (17418, 17441)),
                "val": Split("*", (2183, 2193)),
                "test": Split("*", (2198, 2203)),
            },
            origin="physionet.org/content/ptb-xl (open access)",
            unit="records",
        )
    }

    def __init__(
        self,
        root: str | None = None,
        sample_rate: Literal[100, 500] = 100,
        leads: Sequence[str] = ("I",),
        seconds: float = 5.0,
        traits: Sequence[Trait] = ("age", "sex"),
        **common: Any,
    ) -> None:
        super().__init__(root=root, traits=traits, **common)
        if sample_rate not in (100, 500):
            raise ValueError(f"sample_rate must be 100 or 500, got {sample_rate}.")
        if not 0 < seconds <= SECONDS:
            raise ValueError(f"seconds must lie in (0, {SECONDS:g}], got {seconds}.")
        if not leads:
            raise ValueError("leads must name one lead or more, got none.")
        self.sample_rate, self.leads, self.seconds = sample_rate, tuple(leads), seconds

    def file(self, root: Path, path: str) -> Path:
        """Samples of a record; its header lies beside it."""
        return root / f"{path}.dat"

    def read(self, root: Path) -> dict[str, Segments]:
        """The windows of all records of the table."""
        file = root / TABLE
        if not file.is_file():
            raise LayoutError(f"there is no {TABLE} in {root}")
        table = read_table(file)
        name = "filename_lr" if self.sample_rate == 100 else "filename_hr"
        check_columns(table, ("patient_id", "strat_fold", "recording_date", name, *self.traits), TABLE)
        windows = self._windows
        traits = trait_columns(table, self.traits, TABLE)
        if "age" in self.traits:
            age = traits[:, self.traits.index("age")]
            age[age == HIDDEN_AGE[0]] = HIDDEN_AGE[1]
        patient = numbers(table, "patient_id", TABLE).astype(np.int64)
        start = np.array([_seconds(cell, row) for row, cell in enumerate(table["recording_date"])])
        return split_segments(
            np.repeat(patient, windows).tolist(),
            [path for path in table[name] for _ in range(windows)],
            np.tile(np.arange(windows), len(patient)),
            np.repeat(start, windows) + np.tile(np.arange(windows) * self.seconds, len(patient)),
            [_split(fold) for fold in np.repeat(numbers(table, "strat_fold", TABLE), windows)],
            np.repeat(traits, windows, 0),
            TABLE,
        )

    @property
    def _windows(self) -> int:
        """Of a record."""
        return int(SECONDS / self.seconds)

    def job(self, root: Path, path: str) -> SignalJob:
        """A record and its header."""
        header = root / f"{path}.hea"
        files = (self.file(root, path), *([header] if header.is_file() else []))
        return SignalJob(path, files, (self.sample_rate, self.leads, self.seconds))

    def decode(self, path: str) -> np.ndarray:
        """Windows of a record ``[n, leads, samples]``, in millivolts."""
        return np.stack([self.load(path, row) for row in range(self._windows)]).astype(np.float32)

    def load(self, path: str, row: int) -> np.ndarray:
        """A window of a record ``[leads, samples]``, in millivolts."""
        wfdb = require("wfdb", "signals", "PTBXL")
        assert self.root is not None
        record, length = Path(self.root).expanduser() / path, round(self.seconds * self.sample_rate)
        first = row * length
        try:
            found = wfdb.rdrecord(str(record), sampfrom=first, sampto=first + length)
        except Exception as error:  # wfdb has no errors of its own: cut files fail wherever they are reshaped
            raise BrokenSignalError(
                f"{record} (.hea and .dat) cannot be read ({type(error).__name__}: {error}): download it again"
            ) from error
        if absent := [lead for lead in self.leads if lead not in found.sig_name]:
            raise BrokenSignalError(
                f"{record} has no lead {absent[0]}, only {', '.join(found.sig_name)}: see data.leads"
            )
        if found.fs != self.sample_rate:
            raise BrokenSignalError(f"{record} was sampled at {found.fs} Hz: expected {self.sample_rate}")
        return found.p_signal.T[[found.sig_name.index(lead) for lead in self.leads]]


def _split(fold: float) -> str:
    return "train" if fold <= 8 else "val" if fold == 9 else "test"


def _seconds(cell: str, row: int) -> float:
    """Seconds since 1970 of a date of the table."""
    try:
        return (datetime.fromisoformat(cell) - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        raise LayoutError(f"{TABLE}: recording_date of row {row + 1} is {cell!r}: expected a date") from None
