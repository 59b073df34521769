"""Checkpoints of the zoo's own runs, of other Lightning modules with a ``student``, and exported networks."""

from __future__ import annotations

from zoo.checkpoints.layouts.facts import describe_any
from zoo.checkpoints.rules import AsBackbone, Importer

EXPORTED = Importer(
    "exported",
    "network exported by the zoo",
    (r"",),
    networks={"network": ""},
    facts=("card",),
    describe=describe_any,
)

OWN = Importer(
    "lightning",
    "Lightning checkpoint of a run of the zoo",
    (r"",),
    (AsBackbone(),),
    {"student": r"(?:state_dict\.)?student\.", "teacher": r"(?:state_dict\.)?teacher\.network\."},
    facts=("pytorch-lightning_version",),
    describe=describe_any,
)
