"""Importers: checkpoints of our own, and importers by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.test_checkpoints_layouts import (
    as_file,
    clones,
    readable_as,
    under,
)
from zoo.checkpoints import IMPORTERS, CheckpointError, load_pretrained
from zoo.checkpoints.readings import readings
from zoo.nn import build_segmentor
from zoo.registry import UnknownNameError

# -- our own ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spell",
    [
        lambda n: n,
        lambda n: n.replace("student.", "student._orig_mod."),
        lambda n: n.replace("backbone.", "backbone._orig_mod."),
        lambda n: n.replace("student.", "student.module."),
    ],
)
def test_lightning_checkpoints_compiled_and_in_parallel(spell: Any) -> None:
    source = build_segmentor("street_cnn", "fpn", 4)
    student = under("state_dict.student.", clones(source.state_dict()))
    teacher = under("state_dict.teacher.network.", {n: t + 1 for n, t in source.state_dict().items()})
    file = as_file(
        {**{spell(n): t for n, t in student.items()}, **teacher}, **{"pytorch-lightning_version": "2.6"}
    )
    network = build_segmentor("street_cnn", "fpn", 4)
    report = load_pretrained(network, file)
    assert (report.importer, report.network, report.others) == ("lightning", "student", ("teacher",))
    assert report.complete
    assert all(torch.equal(a, source.state_dict()[n]) for n, a in network.state_dict().items())
    load_pretrained(network, file, which="teacher")
    assert torch.equal(network.decode_head.classifier.bias, source.decode_head.classifier.bias + 1)


def test_importers_by_name() -> None:
    assert list(IMPORTERS) == [importer.name for importer in IMPORTERS.values()]
    file = as_file(clones(build_segmentor("street_cnn", "fpn", 4).state_dict()))
    with pytest.raises(UnknownNameError, match="did you mean segformer"):
        readings(file, "segfomer")
    with pytest.raises(CheckpointError, match=r"no network in the dino layout.*read as: timm \(network\)"):
        readings(file, "dino")
    with pytest.raises(CheckpointError, match="holds no teacher network"):
        readings(file, None, "teacher")
    assert readable_as(file.tensors) == ["timm"]
