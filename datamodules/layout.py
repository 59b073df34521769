"""What an official data tree looks like, and one check that a folder really is one.

A :class:`Layout` declares where images and labels lie, how labels are encoded, how many images a split has
and where to get them. :func:`inspect_root` compares a folder with it and returns a :class:`LayoutReport`,
which ``zoo doctor`` prints and :func:`require` turns into one error. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple


class LayoutError(ValueError):
    """A data root does not hold what its layout declares; the message says how to put it right."""


@dataclass(frozen=True)
class LabelFiles:
    """Labels lie in ``folder`` at the image's own sub-path and stem, ending in ``suffix``."""

    folder: str
    suffix: str
    encoding: str  # a key of datamodules.labels.ENCODINGS


@dataclass(frozen=True)
class Split:
    """Images of a split.

    Args:
        pattern: glob below the image folder, without the suffix; of several each must match something.
        counts: accepted numbers of images, the published one first; empty accepts any number.
        listed: text file below the root with the stems of the split, one a line; those that match
            ``pattern`` are its images.
        without: the same for stems that belong to another split.
        only_labelled: images without a label are no part of the split.
    """

    pattern: str | tuple[str, ...]
    counts: tuple[int, ...] = ()
    listed: str = ""
    without: str = ""
    only_labelled: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """All patterns."""
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern


@dataclass(frozen=True)
class Layout:
    """An official data tree. ``labels`` lists alternatives: the first complete one is read.

    ``unit`` is what files are called in messages (plural), where a file is not an image.
    """

    title: str
    images: str
    suffix: str
    labels: tuple[LabelFiles, ...]
    splits: Mapping[str, Split]
    origin: str
    unit: str = "images"

    @property
    def folders(self) -> list[str]:
        """What lies at the top of the tree."""
        if self.images == ".":
            patterns = (pattern for split in self.splits.values() for pattern in split.patterns)
            return list(dict.fromkeys(pattern.partition("/")[0] for pattern in patterns))
        return list(dict.fromkeys([self.images, *(label.folder for label in self.labels)]))

    def wanted(self, pattern: str) -> str:
        """A pattern of files as it is seen from the root."""
        return f"{self.images}/{pattern}{self.suffix}".removeprefix("./")


class Pair(NamedTuple):
    """One image, its label where labels are wanted, and its stem."""

    image: Path
    label: Path | None
    name: str


@dataclass(frozen=True)
class SplitReport:
    """What was found of one split. ``encoding`` is that of the labels, None without labels."""

    name: str
    pairs: tuple[Pair, ...] = ()
    encoding: str | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayoutReport:
    """What was found below one root, split by split."""

    layout: Layout
    root: Path | None
    argument: str
    splits: Mapping[str, SplitReport] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every asked split can be used."""
        return not self.problems and not any(split.problems for split in self.splits.values())

    def __str__(self) -> str:
        where = f"{self.layout.title} ({self.argument}={str(self.root) if self.root else None!r})"
        if self.ok:
            counts = ", ".join(f"{name} {len(split.pairs)}" for name, split in self.splits.items())
            return f"{where}: {counts} {self.layout.unit}"
        lines = [f"{where} cannot be used:", *(f"  - {problem}" for problem in self.problems)]
        lines += [f"  - {name}: {p}" for name, split in self.splits.items() for p in split.problems]
        lines.append(f"  Where to get it: {self.layout.origin}")
        lines.append(f"  Then set {self.argument} to the folder that holds: {', '.join(self.layout.folders)}")
        return "\n".join(lines)


def inspect_root(
    layout: Layout,
    root: str | Path | None,
    splits: Mapping[str, bool],
    argument: str = "root",
    allow_partial: bool = False,
) -> LayoutReport:
    """Compare a folder with a layout; never raises for what it finds there.

    Args:
        layout: the declared tree.
        root: the folder to look at.
        splits: split → whether its labels are needed. Labels that are not needed are not even looked for.
        argument: the datamodule argument that holds ``root``, for messages.
        allow_partial: accept fewer or more images than were published (a subset, a miniature).

    Raises:
        KeyError: the layout declares no such split.
    """
    if (absent := absent_root(layout, root, argument)) is not None:
        return absent
    assert root is not None
    root = Path(root).expanduser()
    found = {
        name: _inspect_split(layout, root, name, layout.splits[name], labelled, allow_partial)
        for name, labelled in splits.items()
    }
    return LayoutReport(layout, root, argument, found)


def inspect_files(
    layout: Layout,
    root: str | Path | None,
    splits: Iterable[str],
    suffixes: tuple[str, ...],
    argument: str = "root",
    advice: str = "",
) -> LayoutReport:
    """The report on a tree of which every file of some kinds counts, at any depth; each split has all of them.

    Args:
        layout: for messages.
        root: the folder to look at.
        splits: names of splits.
        suffixes: endings of the files, in lower case.
        argument: the datamodule argument that holds ``root``.
        advice: what to do where there is none.
    """
    if (absent := absent_root(layout, root, argument)) is not None:
        return absent
    assert root is not None
    root = Path(root).expanduser()
    # Named with their folders, so that equal names in two of them stay apart.
    pairs = tuple(
        Pair(file, None, file.relative_to(root).with_suffix("").as_posix())
        for file in files_below(root, suffixes)
    )
    problems = () if pairs else (f"no file at any depth ends in {', '.join(suffixes)}{advice}",)
    found = {name: SplitReport(name, pairs, problems=problems) for name in splits}
    return LayoutReport(layout, root, argument, found)


def absent_root(layout: Layout, root: str | Path | None, argument: str = "root") -> LayoutReport | None:
    """The report on a root that is not set, or that is no folder; None on any other."""
    if root is None:
        return LayoutReport(layout, None, argument, problems=(f"{argument} is not set",))
    root = Path(root).expanduser()
    if not root.is_dir():
        return LayoutReport(layout, root, argument, problems=(f"there is no folder {root}",))
    return None


def require(reports: Iterable[LayoutReport]) -> None:
    """Raise one :class:`LayoutError` that lists every report that is not ok."""
    bad = [str(report) for report in reports if not report.ok]
    if bad:
        raise LayoutError("\n".join(bad))


def _inspect_split(
    layout: Layout, root: Path, name: str, split: Split, labelled: bool, allow_partial: bool
) -> SplitReport:
    try:
        images, problems = _find_images(layout, root, split)
    except FileNotFoundError as error:
        present = ", ".join(sorted(path.name for path in root.iterdir())[:6]) or "nothing"
        return SplitReport(name, problems=(f"{error}; the root holds {present}",))
    pairs = tuple(Pair(image, None, _stem(layout, image)) for image in images)
    encoding = None
    if labelled or split.only_labelled:
        pairs, encoding, missing = _match_labels(layout, root, split, images)
        if split.only_labelled:
            absent = set(missing)
            pairs = tuple(pair for pair in pairs if pair.label not in absent)
        elif missing:
            examples = ", ".join(path.relative_to(root).as_posix() for path in missing[:3])
            problems.append(f"{len(missing)} of {len(images)} images have no label: {examples}")
    if split.counts and len(pairs) not in split.counts and not allow_partial:
        kind = f"{layout.unit} with labels" if split.only_labelled else layout.unit
        wanted = ", ".join(map(layout.wanted, split.patterns))
        problems.insert(
            0,
            f"expected {split.counts[0]} {kind} ({wanted}), found {len(pairs)}: not fully extracted? "
            "(allow_partial: true accepts a subset)",
        )
    return SplitReport(name, pairs, encoding, tuple(problems))


def _find_images(layout: Layout, root: Path, split: Split) -> tuple[list[Path], list[str]]:
    """The images of a split, and what is wrong with them; FileNotFoundError where nothing can be told."""
    base = root / layout.images
    images: list[Path] = []
    for pattern in split.patterns:
        found = _visible(base, pattern + layout.suffix)
        if not found:
            raise FileNotFoundError(f"no {layout.unit[:-1]} matches {layout.wanted(pattern)}")
        images += found
    problems = []
    if split.listed:
        wanted, there = _read_stems(root, split.listed), {_stem(layout, image) for image in images}
        absent = sorted(wanted - there)
        if absent:
            problems.append(
                f"{len(absent)} of {len(wanted)} images in {split.listed} are missing: {absent[:3]}"
            )
        images = [image for image in images if _stem(layout, image) in wanted]
    if split.without:
        other = _read_stems(root, split.without)
        images = [image for image in images if _stem(layout, image) not in other]
    return sorted(images), problems


def _read_stems(root: Path, listed: str) -> set[str]:
    file = root / listed
    if not file.is_file():
        raise FileNotFoundError(f"there is no list {listed}")
    return {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}


def _match_labels(
    layout: Layout, root: Path, split: Split, images: list[Path]
) -> tuple[tuple[Pair, ...], str, list[Path]]:
    """Pair images with the most complete of the layout's kinds of labels; also the labels it lacks."""
    best: tuple[tuple[Pair, ...], str, list[Path]] | None = None
    for kind in layout.labels:
        # One listing of the folder instead of one question to the file system an image.
        present = {
            path for pattern in split.patterns for path in _visible(root / kind.folder, pattern + kind.suffix)
        }
        labels = [
            (root / kind.folder / image.relative_to(root / layout.images)).with_name(
                _stem(layout, image) + kind.suffix
            )
            for image in images
        ]
        missing = [label for label in labels if label not in present]
        pairs = tuple(
            Pair(image, label, _stem(layout, image)) for image, label in zip(images, labels, strict=True)
        )
        if best is None or len(missing) < len(best[2]):
            best = pairs, kind.encoding, missing
    if best is None:
        raise ValueError(f"Layout {layout.title!r} declares no labels, so none can be asked for.")
    return best


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Files that match, without the hidden companions some archives and systems leave (``._name.png``)."""
    return [path for path in folder.glob(pattern) if not path.name.startswith(".")]


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files at any depth whose names end in one of ``suffixes``, in either case, by path; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _stem(layout: Layout, image: Path) -> str:
    return image.name.removesuffix(layout.suffix)


GTA5: Final = Layout(
    title="GTA5 (Playing for Data)",
    images="images",
    suffix=".png",
    # The plain files are palette images whose index is the Cityscapes id.
    labels=(LabelFiles("labels", "_labelTrainIds.png", "trainIds"), LabelFiles("labels", ".png", "ids")),
    # Papers train on all 24,966 frames; some public copies hold 24,941 pairs.
    splits={"train": Split("*", (24966, 24941))},
    origin="download.visinf.tu-darmstadt.de/data/from_games: the ten image and ten label archives",
)

CITYSCAPES: Final = Layout(
    title="Cityscapes",
    images="leftImg8bit",
    suffix="_leftImg8bit.png",
    labels=(
        LabelFiles("gtFine", "_gtFine_labelTrainIds.png", "trainIds"),
        LabelFiles("gtFine", "_gtFine_labelIds.png", "ids"),
        LabelFiles("gtFine", "_gtFine_color.png", "colors"),
    ),
    splits={
        "train": Split("train/*/*", (2975,)),
        "val": Split("val/*/*", (500,)),
        "test": Split("test/*/*", (1525,)),
    },
    origin="cityscapes-dataset.com (registration): leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip",
)
