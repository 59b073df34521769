"""Benchmarks that are made of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datamodules.base import BenchmarkDataModule
from datamodules.layout import Layout, LayoutReport


class JoinedBenchmarks(BenchmarkDataModule):
    """Several benchmarks as one: their roots are looked at, prepared and opened together.

    Args:
        parts: by name, which is the argument of the command line.
        main: the part whose sizes of batches and loaders are told as those of the whole.
    """

    layout: ClassVar[Mapping[str, Layout]] = {}

    def __init__(self, parts: Mapping[str, BenchmarkDataModule], main: str) -> None:
        super().__init__(parts[main].batch_size, parts[main].eval_batch_size, parts[main].num_workers)
        self.parts = dict(parts)

    def parts_of(self, stage: str | None) -> dict[str, Any]:
        """The parts that a stage reads."""
        return self.parts

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """What the parts read."""
        found = {name: part.needs(stage) for name, part in self.parts_of(stage).items()}
        return {f"{name}.{root}": splits for name, needs in found.items() for root, splits in needs.items()}

    def inspect(self, stage: str | None = None) -> dict[str, LayoutReport]:
        """All roots compared with their layouts."""
        found = {name: part.inspect(stage) for name, part in self.parts_of(stage).items()}
        return {
            f"{name}.{root}": report for name, reports in found.items() for root, report in reports.items()
        }

    def prepare_data(self) -> None:
        """Prepare all parts."""
        for part in self.parts.values():
            part.trainer = self.trainer
            part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up what a stage reads."""
        for part in self.parts_of(stage).values():
            part.trainer = self.trainer
            part.setup(stage)
