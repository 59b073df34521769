"""What a run card says about code, machine and data: gathered once, at the start."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch

import zoo
from datamodules.layout import LayoutReport, Pair

LIBRARIES = (
    "torch",
    "torchvision",
    "torchaudio",
    "lightning",
    "timm",
    "torchmetrics",
    "jsonargparse",
    "wandb",
)
SAMPLED_FILES = 32


def git_state() -> dict[str, Any]:
    """State of the zoo's own checkout and of the repository one works in.

    Returns:
        ``selfzoo`` and ``working_directory``, each ``{"commit": str, "dirty": bool}``, or None where there is no
        repository. Dirty means that tracked files differ from the commit.
    """
    package = Path(zoo.__file__).parent
    # Installed into an environment inside somebody's repository, the package is no part of that repository.
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    return {"selfzoo": _state(package) if tracked else None, "working_directory": _state(Path.cwd())}


def _state(folder: Path) -> dict[str, Any] | None:
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *command: str) -> str | None:
    """What git prints; None without git, outside a repository or where it refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, check=False, timeout=30
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the installed libraries that decide about results."""
    found = {"python": platform.python_version(), "selfzoo": zoo.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # wandb and the audio libraries may be missing
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def hardware(trainer: L.Trainer) -> dict[str, Any]:
    """The machine of the first process and how the trainer uses it."""
    cuda = trainer.strategy.root_device.type == "cuda"
    name = torch.cuda.get_device_name(trainer.strategy.root_device) if cuda else _processor()
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": trainer.strategy.root_device.type,
        "device_name": name,
        "devices": trainer.world_size,
        "nodes": trainer.num_nodes,
        "cpus": os.cpu_count(),
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
    }


def _processor() -> str:
    """Model of the processor where the system tells it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def samples_per_batch(trainer: L.Trainer) -> int:
    """Samples of a batch on every device, a labelled and an unlabelled one counting as one; 0 if unknown."""
    return getattr(getattr(trainer, "datamodule", None), "batch_size", 0)


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Bytes: ``device``, most allocated by torch on a GPU; ``host``, most resident of this process."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    if sys.platform == "win32":
        return {"device": on_device, "host": None}
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"device": on_device, "host": resident * (1 if sys.platform == "darwin" else 1024)}


def dataset_facts(benchmark: Any) -> dict[str, Any]:
    """Which samples a run has read, without reading them all.

    Returns:
        ``counts``: dataset → number of samples. ``validates_on_test``: whether the test samples validate; None where
        it is not known. ``splits``: ``<root argument>/<split>`` → number of files or
        pairs, encoding of labels, and ``checksum``: SHA-256 of all names below the root and of the content of
        32 evenly spread files. It tells another selection, other labels or resized images; a single changed
        file among many it may miss.
    """
    datasets = getattr(benchmark, "datasets", {})
    reports: dict[str, LayoutReport] = getattr(benchmark, "reports", {})
    return {
        "counts": {name: len(dataset) for name, dataset in datasets.items() if hasattr(dataset, "__len__")},
        "validates_on_test": getattr(benchmark, "validates_on_test", None),
        "splits": {
            f"{argument}/{name}": {
                "files": len(split.pairs),
                "encoding": split.encoding,
                "checksum": checksum(report.root, split.pairs),
            }
            for argument, report in reports.items()
            if report.root is not None
            for name, split in report.splits.items()
        },
    }


def checksum(root: Path, pairs: Iterable[Pair]) -> str:
    """SHA-256 of the names of all files below ``root`` and of the content of some, see :func:`dataset_facts`."""
    files = [path for pair in pairs for path in (pair.image, pair.label) if path is not None]
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.path.relpath(path, root).encode() + b"\n")
    for path in files[:: max(1, len(files) // SAMPLED_FILES)][:SAMPLED_FILES]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def hyper_parameters(trainer: L.Trainer, pl_module: L.LightningModule, benchmark: Any) -> dict[str, Any]:
    """A config in the form of the command line's, for runs that were started from Python."""

    def described(part: Any) -> dict[str, Any]:
        class_path = f"{type(part).__module__}.{type(part).__qualname__}"
        return {"class_path": class_path, "init_args": dict(part.hparams)}

    limits = ("max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val")
    return {
        "model": described(pl_module),
        "data": described(benchmark) if benchmark is not None else {},
        "trainer": {name: getattr(trainer, name) for name in limits} | {"precision": str(trainer.precision)},
    }


def strict(value: Any) -> Any:
    """Plain JSON: text keys, no infinities."""
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
