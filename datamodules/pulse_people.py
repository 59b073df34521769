"""PulsePeople: generated pulse waves of generated people, for participant-level pre-training."""

from __future__ import annotations

import csv
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datamodules.cache import cache_root, ensure_folder, write_atomically
from datamodules.pulses import GENERATOR_VERSION, Person, render
from datamodules.signal_folders import SignalFolders
from datamodules.signal_tables import COLUMNS

#: Split → the first of its seeds: no person is in two.
FIRST_SEED = {"train": 0, "val": 100_000, "test": 200_000}


class PulsePeople(SignalFolders):
    """People whose arteries are more or less stiff, four seconds of pulse at a time, read like any other folder.

    Settings are to be chosen on ``val``; ``test`` is another range of seeds, for reporting. Rendered once into
    ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``; see :mod:`datamodules.pulses`. Traits: ``stiffness`` in [0, 1], ``high``
    (1: stiffness above 0.5), and ``pulse`` at rest, beats a minute.

    Args:
        num_train: people to train with.
        num_val: people of validation.
        num_test: people of test and prediction.
        segments: recordings of each.
        length: samples T of a recording, at 64 Hz.
        root: folder below which the tree is kept, in place of the cache.
        batch_size: people a step, on every device.
        eval_batch_size: recordings a batch in evaluation.
        traits: which of them probes see.
        **common: see :class:`~datamodules.signals.SignalDataModule`. There is no ``cache``: arrays are memory-mapped.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "pulse_people"
    layout = {"root": SignalFolders.layout["root"]}  # noqa: RUF012

    def __init__(
        self,
        num_train: int = 96,
        num_val: int = 96,
        num_test: int = 192,
        segments: int = 6,
        length: int = 256,
        root: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        traits: tuple[str, ...] = Person._fields,
        **common: Any,
    ) -> None:
        self._counts = {"train": num_train, "val": num_val, "test": num_test}
        for split, count in self._counts.items():
            if not 2 <= count <= 100_000:  # the distance between two splits' seeds
                raise ValueError(f"num_{split} must lie in 2..100000, got {count}.")
        for argument, value, least in (("segments", segments, 1), ("length", length, 64)):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}.")
        self._segments, self._length = segments, length
        self._base = Path(root).expanduser() if root else cache_root()
        settings = json.dumps([GENERATOR_VERSION, self._counts, segments, length])
        folder = self._base / f"pulse-people-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        super().__init__(
            root=str(folder),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            traits=traits,
            cache="none",
            **common,
        )

    def prepare_data(self) -> None:
        """Render the people, unless they are there already."""
        assert self.root is not None
        ensure_folder(Path(self.root), f"pulse waves of {sum(self._counts.values())} people", self._write)

    def _write(self, folder: Path) -> None:
        rows = []
        for split, count in self._counts.items():
            for seed in range(FIRST_SEED[split], FIRST_SEED[split] + count):
                person, signals = render(seed, self._segments, self._length)
                path = f"{split}/{seed:06d}.npy"
                write_atomically(folder / path, partial(_write_array, signals))
                rows += [(f"{seed:06d}", path, n, split, n, *person) for n in range(self._segments)]
        with (folder / "segments.csv").open("w", newline="") as file:
            csv.writer(file).writerows([(*COLUMNS, "segment", *Person._fields), *rows])


def _write_array(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)
