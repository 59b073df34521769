"""Which volumes a benchmark has: Decathlon's JSON lists and plain folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.layout import Layout, LayoutReport, Pair, Split, SplitReport
from datamodules.volume_files import SUFFIXES, stem_of


def listed_layout(title: str, origin: str, file: str, **splits: Split) -> Layout:
    """A tree that is described by a list; the patterns of its splits are sections of that."""
    return Layout(
        title=title, images=file, suffix="", labels=(), splits=splits, origin=origin, unit="volumes"
    )


def class_names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that a list declares, from 0 on: ``{"0": name}`` or, as nnU-Net writes it, ``{name: 0}``.

    Raises:
        ValueError: it declares none, or numbers that do not count up from 0.
    """
    labels = content.get("labels", {})
    names = {value: str(key) for key, value in labels.items() if isinstance(value, int)}
    names |= {int(key): value for key, value in labels.items() if isinstance(value, str)}
    if not names or sorted(names) != list(range(len(names))):
        raise ValueError(f"the list declares labels {labels}: expected names numbered from 0")
    return tuple(names[number] for number in range(len(names)))


def read_list(file: Path) -> dict[str, Any]:
    """The contents of a list (``dataset.json``).

    Raises:
        ValueError: it is no JSON object; the message names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON list ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON list: expected an object with training, validation or test")
    return content


def listed_pairs(content: Mapping[str, Any], section: str, base: Path) -> list[Pair]:
    """The volumes of a section of a list.

    Entries are ``{"image": path, "label": path}``, or the path alone; paths are relative to ``base``.

    Raises:
        ValueError: an entry is something else.
    """
    pairs = []
    for entry in content.get(section, []):
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
        if not isinstance(image, str) or not isinstance(label, str | None):
            raise ValueError(f"{section} lists {entry!r}: expected a path, or an image and its label")
        pairs.append(Pair(base / image, None if label is None else base / label, stem_of(Path(image))))
    return uniquely_named(pairs)


def folder_pairs(images: Path, labels: Path | None) -> list[Pair]:
    """All volumes below a folder, with the labels of the same sub-path in another.

    A label may lack the ending ``_0000`` that nnU-Net gives to images. Volumes without a label get None.
    """
    found = [p for p in sorted(images.rglob("*")) if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
    there = {} if labels is None else {
        (path.parent.relative_to(labels), stem_of(path)): path
        for path in labels.rglob("*") if path.name.endswith(SUFFIXES)
    }  # fmt: skip
    pairs = []
    for path in found:
        folder, stem = path.parent.relative_to(images), stem_of(path)
        label = there.get((folder, stem)) or there.get((folder, stem.removesuffix("_0000")))
        pairs.append(Pair(path, label, stem))
    return uniquely_named(pairs)


def uniquely_named(pairs: Sequence[Pair]) -> list[Pair]:
    """Volumes of one name are told apart by the folder they lie in (``s0001/ct.nii.gz`` → ``s0001_ct``)."""
    counts = Counter(pair.name for pair in pairs)
    return [p if counts[p.name] == 1 else p._replace(name=f"{p.image.parent.name}_{p.name}") for p in pairs]


def report_pairs(
    layout: Layout,
    root: Path,
    found: Mapping[str, Sequence[Pair]],
    labelled: Mapping[str, bool],
    allow_partial: bool = False,
    problems: Sequence[str] = (),
) -> LayoutReport:
    """Compare the volumes of a root with what its layout declares; raises nothing.

    Args:
        layout: title, origin, and the accepted numbers of volumes of each split.
        root: the root.
        found: split → its volumes.
        labelled: split → whether labels are needed.
        allow_partial: accept other numbers.
        problems: what else is wrong.
    """
    reports = {}
    for name, pairs in found.items():
        wrong = [] if pairs else [f"no volume was found ({layout.wanted(layout.splits[name].patterns[0])})"]
        counts = layout.splits[name].counts
        if pairs and counts and len(pairs) not in counts and not allow_partial:
            wrong.append(
                f"expected {counts[0]} volumes, found {len(pairs)}: not fully extracted? "
                "(allow_partial: true accepts a subset)"
            )
        wanted = [
            path for pair in pairs for path in (pair.image, pair.label if labelled[name] else None) if path
        ]
        absent = [path for path in wanted if not path.exists()]
        if absent:
            shown = ", ".join(str(path) for path in absent[:3])
            wrong.append(f"{len(absent)} of {len(wanted)} files are missing: {shown}")
        bare = [pair.image.name for pair in pairs if pair.label is None] if labelled[name] else []
        if bare:
            wrong.append(f"{len(bare)} of {len(pairs)} volumes have no label: {', '.join(bare[:3])}")
        kept = tuple(pair if labelled[name] else unlabelled(pair) for pair in pairs)
        reports[name] = SplitReport(name, kept, None, tuple(wrong))
    return LayoutReport(layout, root, "root", reports, tuple(problems))


def unlabelled(pair: Pair) -> Pair:
    """The volume alone."""
    return pair._replace(label=None)
