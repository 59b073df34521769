"""Checks of weights: what the network starts from, and what a checkpoint to go on from holds."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.checkpoints import CheckpointError, LoadReport, Source, load_reports, open_source, read_weights
from zoo.checkpoints.load import MIN_SHARE, best_plan
from zoo.doctor.checks import Check
from zoo.method import Method
from zoo.resume import MISFIT_REMEDY, misfit


def weights(method: Method, ckpt_path: str | None) -> Iterator[Check]:
    """What ``pretrained`` has loaded, what ``init_from`` and ``--ckpt_path`` would."""
    number = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    yield Check("network", "ok", f"{number:,} parameters to train", details={"parameters": number})
    for name, report in load_reports(method).items():
        yield Check("weights", "ok", f"{name or 'network'}: {_summary(report)}", details=report.as_dict())
    if ckpt_path:
        yield checkpoint(method, ckpt_path)
    elif method.init_from:
        yield start(method, method.init_from)


def start(method: Method, source: str) -> Check:
    """Whether ``init_from`` would be taken; nothing is loaded."""
    try:
        parsed = Source.parse(source)
        report = best_plan(open_source(parsed), method.student, parsed.importer, parsed.network).report
    except CheckpointError as error:
        return Check("weights", "stop", f"init_from: {error}", "correct model.init_from")
    least = MIN_SHARE if parsed.min_share is None else parsed.min_share
    if report.share < least:
        remedy = "take the backbone that the file belongs to (zoo import shows it)"
        return Check("weights", "stop", f"init_from: {_summary(report)}, less than {100 * least:g} %", remedy)
    return Check("weights", "ok", f"init_from: {_summary(report)}", details=report.as_dict())


def checkpoint(method: Method, path: str) -> Check:
    """Whether a checkpoint's tensors are those of the method, by name and shape."""
    prefix = "state_dict."
    held = {
        name.removeprefix(prefix): tensor
        for name, tensor in read_weights(path).tensors.items()
        if name.startswith(prefix)
    }
    wanted = method.state_dict()
    if odd := misfit(wanted, held):
        return Check("weights", "stop", f"--ckpt_path {path} does not fit: {odd}", MISFIT_REMEDY)
    return Check("weights", "ok", f"--ckpt_path {path}: all {len(wanted)} tensors fit")


def _summary(report: LoadReport) -> str:
    what = f", {report.architecture}" if report.architecture else ""
    return f"{report.source} recognised as {report.importer}{what}; fills {100 * report.share:.1f} % of the backbone"
