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
    """Images of a split: ``pattern`` is a glob below the image folder, without the suffix.

    ``counts`` are the accepted numbers of images, the published one first; empty accepts any number.
    """

    pattern: str
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """An official data tree. ``labels`` lists alternatives: the first complete one is read."""

    title: str
    images: str
    suffix: str
    labels: tuple[LabelFiles, ...]
    splits: Mapping[str, Split]
    origin: str


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
            return f"{where}: {counts} images"
        lines = [f"{where} cannot be used:", *(f"  - {problem}" for problem in self.problems)]
        lines += [f"  - {name}: {p}" for name, split in self.splits.items() for p in split.problems]
        folders = ", ".join(
            dict.fromkeys([self.layout.images, *(label.folder for label in self.layout.labels)])
        )
        lines.append(f"  Where to get it: {self.layout.origin}")
        lines.append(f"  Then set {self.argument} to the folder that holds: {folders}")
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
    if root is None:
        return LayoutReport(layout, None, argument, problems=(f"{argument} is not set",))
    root = Path(root).expanduser()
    if not root.is_dir():
        return LayoutReport(layout, root, argument, problems=(f"there is no folder {root}",))
    found = {
        name: _inspect_split(layout, root, name, layout.splits[name], labelled, allow_partial)
        for name, labelled in splits.items()
    }
    return LayoutReport(layout, root, argument, found)


def require(reports: Iterable[LayoutReport]) -> None:
    """Raise one :class:`LayoutError` that lists every report that is not ok."""
    bad = [str(report) for report in reports if not report.ok]
    if bad:
        raise LayoutError("\n".join(bad))


def _inspect_split(
    layout: Layout, root: Path, name: str, split: Split, labelled: bool, allow_partial: bool
) -> SplitReport:
    base = root / layout.images
    images = sorted(_visible(base, split.pattern + layout.suffix))
    wanted = f"{layout.images}/{split.pattern}{layout.suffix}"
    if not images:
        present = ", ".join(sorted(path.name for path in root.iterdir())[:6]) or "nothing"
        return SplitReport(name, problems=(f"no image matches {wanted}; the root holds {present}",))
    problems = []
    if split.counts and len(images) not in split.counts and not allow_partial:
        problems.append(
            f"expected {split.counts[0]} images ({wanted}), found {len(images)}: not fully extracted? "
            "(allow_partial: true accepts a subset)"
        )
    if not labelled:
        pairs = tuple(Pair(image, None, _stem(layout, image)) for image in images)
        return SplitReport(name, pairs, problems=tuple(problems))
    pairs, encoding, missing = _match_labels(layout, root, split, images)
    if missing:
        examples = ", ".join(path.relative_to(root).as_posix() for path in missing[:3])
        problems.append(f"{len(missing)} of {len(images)} images have no label: {examples}")
    return SplitReport(name, pairs, encoding, tuple(problems))


def _match_labels(
    layout: Layout, root: Path, split: Split, images: list[Path]
) -> tuple[tuple[Pair, ...], str, list[Path]]:
    """Pair images with the most complete of the layout's kinds of labels; also the labels it lacks."""
    best: tuple[tuple[Pair, ...], str, list[Path]] | None = None
    for kind in layout.labels:
        # One listing of the folder instead of one question to the file system an image.
        present = set(_visible(root / kind.folder, split.pattern + kind.suffix))
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
