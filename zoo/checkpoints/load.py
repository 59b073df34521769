"""Start a network from weights: never a silent partial load, never code from the file."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from zoo.checkpoints.files import CheckpointError, WeightFile
from zoo.checkpoints.match import Plan, carry_out, parts_of, plan
from zoo.checkpoints.readings import examples, readings
from zoo.checkpoints.report import LoadReport
from zoo.checkpoints.rules import Importer
from zoo.checkpoints.sources import Source, open_source

MIN_SHARE = 0.95


def load_pretrained(
    network: nn.Module,
    source: str | Source | WeightFile,
    *,
    importer: str | Importer | None = None,
    which: str | None = None,
    min_share: float | None = None,
    show: bool = True,
) -> LoadReport:
    """Load weights that anybody released into ``network``, and say what was loaded.

    The file's layout is recognised by its tensors' names. Tensors are taken by name and shape; a first
    convolution for another number of channels, position embeddings of another grid and attention biases of
    another window are adapted; classifiers for other classes stay as initialised. Nothing is written unless
    enough of the backbone is found.

    Args:
        network: a backbone, a network with a ``backbone``, or a method (its student is meant).
        source: a path, ``hf-hub:owner/name[@revision][:file]``, ``timm:name.tag`` or a URL with its checksum; see
            :class:`~zoo.checkpoints.sources.Source`.
        importer: name of a layout (``zoo import --help`` lists them) or one of your own, to skip recognition.
        which: name of a network in the file, ``student`` or ``teacher``; by default the one that the layout's
            authors evaluate.
        min_share: least share of the backbone's tensors and parameters, 0.95 by default.
        show: print the report (on the first process).

    Returns:
        The report; it is kept as ``load_report`` of the network, too.

    Raises:
        CheckpointError: the file cannot be read safely, or fills less than ``min_share``; the message says
            what the file looks like.
    """
    network = _student(network)
    if isinstance(source, str):
        source = Source.parse(source)
    if isinstance(source, Source):
        importer, which = importer or source.importer, which or source.network
        min_share = source.min_share if min_share is None else min_share
    file = source if isinstance(source, WeightFile) else open_source(source)
    best = best_plan(file, network, importer, which)
    least = MIN_SHARE if min_share is None else min_share
    if best.report.share < least:
        raise CheckpointError(_refusal(best.report, network, file, least))
    carry_out(best)
    network.load_report = best.report  # type: ignore[assignment]
    if show:
        tell(best.report)
    return best.report


def best_plan(
    file: WeightFile, network: nn.Module, importer: str | Importer | None = None, which: str | None = None
) -> Plan:
    """The reading of ``file`` that fills most of ``network``; of equals the likeliest.

    Raises:
        CheckpointError: the file has no such layout or network.
    """
    plans: list[Plan] = []
    complaint = ""
    for candidate in readings(file, importer, which):
        try:
            plans.append(plan(candidate, network, file.title))
        except CheckpointError as error:
            complaint = str(error)
    if not plans:
        raise CheckpointError(f"{file.title}: {complaint}")
    return max(plans, key=lambda found: found.report.share)


def load_reports(network: nn.Module) -> dict[str, LoadReport]:
    """Reports of everything below ``network`` that was loaded, by module; for the run card."""
    found: dict[str, LoadReport] = {}
    for name, module in network.named_modules():
        report = getattr(module, "load_report", None)
        if isinstance(report, LoadReport) and report not in found.values():  # teachers are copies
            found[name] = report
    return found


@rank_zero_only
def tell(report: LoadReport) -> None:
    """Print a report, on the first process."""
    print(report, file=sys.stderr)


def _student(network: nn.Module) -> nn.Module:
    student: Any = getattr(network, "student", None)
    return student if isinstance(student, nn.Module) else network


def _refusal(report: LoadReport, network: nn.Module, file: WeightFile, least: float) -> str:
    trained = file.facts.get("hyper_parameters.backbone")
    looks = f"{report.architecture or 'a network'}, {report.importer} layout, {report.network}"
    differ = [f"{name} is {list(a)} there and {list(b)} here" for name, a, b in report.mismatched[:2]]
    return " ".join(
        [
            f"{report.source} fills {100 * report.share:.1f} % of the backbone, less than {100 * least:g} %,",
            "so nothing was loaded.",
            f"The file looks like: {looks}, with {examples(file.tensors)}.",
            *([f"It was trained with the backbone {trained}."] if trained else []),
            f"The network wants {examples(parts_of(network))}.",
            *([f"Of another shape: {'; '.join(differ)}."] if differ else []),
            *(
                [f"Missing: {', '.join(report.missing[:3])}, ... ({len(report.missing)})."]
                if report.missing
                else []
            ),
            "Take the backbone that the file belongs to, or add #min_share=... to the source if you mean it.",
        ]
    )
