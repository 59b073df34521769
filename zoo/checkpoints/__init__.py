"""Weights that others released, and our own: what a file is, whether it can be trusted, where it belongs."""

from zoo.checkpoints.files import CheckpointError, WeightFile, read_plain, read_weights
from zoo.checkpoints.layouts import IMPORTERS, get_importer
from zoo.checkpoints.load import load_pretrained, load_reports
from zoo.checkpoints.report import LoadReport
from zoo.checkpoints.rules import Importer
from zoo.checkpoints.sources import Source, open_source

__all__ = [
    "IMPORTERS",
    "CheckpointError",
    "Importer",
    "LoadReport",
    "Source",
    "WeightFile",
    "get_importer",
    "load_pretrained",
    "load_reports",
    "open_source",
    "read_plain",
    "read_weights",
]
