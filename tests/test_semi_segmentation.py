"""Semi-supervised datamodules: which images are labelled, and that the others stay unlabelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import CityscapesSemi
from tests.test_datamodules import epoch


def semi(roots: dict[str, Any], **settings: Any) -> CityscapesSemi:
    options = {
        "root": roots["target_root"],
        "crop": None,
        "scale": None,
        "num_workers": 0,
        "allow_partial": True,
        "seed": 0,
    }
    data = CityscapesSemi(**{**options, **settings})
    data.setup()
    return data


def test_semi_supervised_split(roots: dict[str, Any]) -> None:
    data = semi(roots, num_labelled=2, batch_size=1)
    batches = epoch(data)
    assert len(batches) == 3  # a pass over the unlabelled images
    assert set(batches[0]["labelled"]) == {"image", "label", "index"}
    assert set(batches[0]["unlabelled"]) == {"image", "index"}
    labelled, unlabelled = (data.datasets["train"].domains[name].pairs for name in ("labelled", "unlabelled"))
    names = {pair.name for pair in labelled}, {pair.name for pair in unlabelled}
    assert (len(names[0]), len(names[1])) == (2, 3)
    assert not names[0] & names[1]
    assert sorted(int(batch["unlabelled"]["index"]) for batch in batches) == [0, 1, 2]
    again = semi(roots, num_labelled=2, seed=9)
    assert {pair.name for pair in again.datasets["train"].domains["labelled"].pairs} == names[0]
    splits = {
        tuple(
            p.name
            for p in semi(roots, num_labelled=2, split_seed=s).datasets["train"].domains["labelled"].pairs
        )
        for s in range(6)
    }
    assert len(splits) > 1


@pytest.mark.parametrize(
    "line",
    [
        "traincity1_000003_000019",
        "leftImg8bit/train/traincity1/traincity1_000003_000019_leftImg8bit.png gtFine/ignored.png",
    ],
)
def test_labelled_list(roots: dict[str, Any], tmp_path: Path, line: str) -> None:
    listed = tmp_path / "labelled.txt"
    listed.write_text(f"\n{line}\n")
    data = semi(roots, labelled_list=str(listed))
    labelled = data.datasets["train"].domains["labelled"].pairs
    assert [pair.name for pair in labelled] == ["traincity1_000003_000019"]
    listed.write_text(f"{line}\nnobody\n")
    with pytest.raises(ValueError, match=r"1 of its 2 entries are no training image: \['nobody'\]"):
        semi(roots, labelled_list=str(listed))
    listed.write_text("\n")
    with pytest.raises(ValueError, match="it is empty"):
        semi(roots, labelled_list=str(listed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labelled": 5}, "num_labelled asks for 5 labelled images of 5"),
        ({"num_labelled": 50}, "num_labelled asks for 50 labelled images of 5"),
        ({"num_labelled": 0}, "num_labelled must be at least 1, got 0"),
        ({}, "exactly one of partition, num_labelled and labelled_list"),
        (
            {"num_labelled": 1, "labelled_list": "x.txt"},
            "exactly one of partition, num_labelled and labelled_list",
        ),
        ({"partition": "3/2"}, "partition must be a share such as '1/16', or 'full', got '3/2'"),
        ({"num_labelled": 1, "scale": (0.5, 2.0)}, "resizes at random and so needs a crop"),
        ({"num_labelled": 1, "crop": (8, 8), "scale": (1.5, 2.0)}, "scale must be two factors around 1"),
        (
            {"num_labelled": 1, "crop": (8, 8), "scale": (0.5, 2.0), "pad_label": 256},
            "pad_label must be a trainId",
        ),
    ],
)
def test_wrong_numbers_of_labelled_images(
    roots: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        semi(roots, **settings)


# Arguments.
