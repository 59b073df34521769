"""Checks of the machine: libraries, devices, memory, disk. None needs a config."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from zoo.doctor.checks import Check, gib

PACKAGE = "selfzoo"
#: Built against one another in compiled code: a mismatch shows when they are imported.
COMPILED = ("torch", "torchvision", "torchaudio")
LITTLE_DISK = 2**30
LITTLE_MEMORY = 2**30


def environment() -> Iterator[Check]:
    """All of them."""
    yield versions()
    yield imports()
    yield devices()
    yield memory()
    yield from disks()


# -- libraries -------------------------------------------------------------------------------------------


def versions(package: str = PACKAGE) -> Check:
    """Whether every installed library satisfies what it is required to be by the others."""
    try:
        problems = [*conflicts(package)]
    except PackageNotFoundError:
        return Check(
            "versions",
            "note",
            f"{package} is not installed here (it runs from its sources), so nothing says which versions it needs",
            "pip install -e . in its checkout",
        )
    if problems:
        wanted = " ".join(f"'{requirement}'" for requirement, _ in problems)
        found = "; ".join(text for _, text in problems)
        return Check("versions", "stop", found, f"pip install {wanted}")
    shown = ", ".join(f"{name} {version(name)}" for name in (*COMPILED, "lightning", "timm"))
    missing = [*missing_extras(package)]
    without = f"; not installed: extras {', '.join(missing)}" if missing else ""
    remedy = f"if you need them: pip install '{package}[{','.join(missing)}]'" if missing else ""
    return Check(
        "versions", "ok", f"python {platform.python_version()}, {shown} fit together{without}", remedy
    )


def conflicts(package: str) -> Iterator[tuple[Requirement, str]]:
    """Requirements that are not met, and in words: of the package, and of everything installed for it.

    Raises:
        PackageNotFoundError: the package itself is not installed.
    """
    pending, seen = [package], {_normal(package)}
    while pending:
        name = pending.pop()
        for requirement in _requirements(name):
            try:
                installed = version(requirement.name)
            except PackageNotFoundError:
                yield requirement, f"{name} needs {requirement.name}, which is not installed"
                continue
            if not requirement.specifier.contains(installed, prereleases=True):
                yield requirement, f"{name} needs {requirement}, found {installed}"
            if _normal(requirement.name) not in seen:
                seen.add(_normal(requirement.name))
                pending.append(requirement.name)


def missing_extras(package: str) -> Iterator[str]:
    """Extras of which a library is missing, without those for developing."""
    needed: dict[str, list[str]] = {}
    for requirement in map(Requirement, requires(package) or ()):
        for extra in re.findall(r'extra == "(\w+)"', str(requirement.marker or "")):
            needed.setdefault(extra, []).append(requirement.name)
    yield from (
        extra
        for extra, names in needed.items()
        if extra not in ("dev", "all") and not all(map(_is_installed, names))
    )


def _requirements(name: str) -> Iterable[Requirement]:
    """What holds here and without extras."""
    for requirement in map(Requirement, requires(name) or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(modules: Iterable[str] = COMPILED) -> Check:
    """Whether compiled libraries load, and were built for the same kind of device."""
    try:
        loaded = {name: importlib.import_module(name) for name in modules}
    except (ImportError, OSError, RuntimeError) as error:
        return Check(
            "imports",
            "stop",
            f"{type(error).__name__}: {error}",
            "reinstall torch, torchvision and torchaudio together, from one index of wheels",
        )
    builds = {name: module.__version__.partition("+")[2] for name, module in loaded.items()}
    if len({_device_kind(build) for build in builds.values() if build}) > 1:
        shown = ", ".join(f"{name} +{build}" for name, build in builds.items())
        return Check(
            "imports",
            "stop",
            f"builds for different devices: {shown}",
            "install all from one index of wheels",
        )
    return Check("imports", "ok", f"{', '.join(loaded)} load")


def _device_kind(build: str) -> str:
    """``cu13`` of ``cu130`` and of ``cu132``: minor versions of CUDA work together, major ones do not."""
    return re.sub(r"(?<=^cu\d\d)\d$", "", build)


# -- devices ---------------------------------------------------------------------------------------------


def devices(accelerator: str = "auto") -> Check:
    """What torch can compute on; every GPU has to multiply a matrix."""
    import torch

    cpus = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores"
    threads = f"{cpus}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        found = []
        for number in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(number)
            try:
                square = torch.ones(64, 64, device=f"cuda:{number}")
                if float((square @ square)[0, 0]) != 64:
                    raise RuntimeError("it multiplies wrongly")
                free, total = torch.cuda.mem_get_info(number)
            except RuntimeError as error:  # no kernels for it, another process holds it, a driver too old
                return Check(
                    "devices",
                    "stop",
                    f"{name} (cuda:{number}) cannot be used: {error}",
                    "free it, hide it with CUDA_VISIBLE_DEVICES, or install a torch built for it",
                )
            found.append(f"{name} ({gib(free)} of {gib(total)} free)")
        return Check("devices", "ok", f"{', '.join(found)}; {threads}", details={"cuda": len(found)})
    if torch.backends.mps.is_available():
        return Check("devices", "ok", f"Apple GPU (mps); {threads}", details={"cuda": 0})
    built = f"torch {torch.__version__}"
    if accelerator in ("gpu", "cuda", "mps"):
        remedy = "set trainer.accelerator: auto, or install a torch and a driver for the GPU"
        return Check("devices", "stop", f"trainer.accelerator={accelerator}, but {built} sees no GPU", remedy)
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return Check(
            "devices",
            "note",
            f"there is an NVIDIA driver, but {built} cannot use it; {threads}",
            "install the CUDA build of torch for this driver (nvidia-smi shows its version)",
        )
    return Check("devices", "ok", f"no GPU; {threads}", details={"cuda": 0})


# -- memory and disk -------------------------------------------------------------------------------------


def memory() -> Check:
    """Free memory of the host, or of the container it runs in."""
    free, total = host_memory()
    if free is None or total is None:
        return Check("memory", "note", "this system does not tell its free memory")
    status, remedy = ("note", "end other processes") if free < LITTLE_MEMORY else ("ok", "")
    found = f"{gib(free)} of {gib(total)} of the host's memory free"
    return Check("memory", status, found, remedy, {"free": free, "total": total})  # type: ignore[arg-type]


def host_memory() -> tuple[int | None, int | None]:
    """Bytes free and in all, bounded by the limit of the control group; None where nobody tells."""
    described = Path("/proc/meminfo")
    if not described.is_file():
        return None, None
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", described.read_text(), re.MULTILINE))
    free, total = (int(kilobytes[key]) * 1024 for key in ("MemAvailable", "MemTotal"))
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / limit).is_file() and (most := (group / limit).read_text().strip()).isdigit():
            total = min(total, int(most))
            free = min(free, max(0, int(most) - int((group / used).read_text())))
    return free, total


def disks(runs: str | Path = "runs") -> Iterator[Check]:
    """Room where runs and where generated data are kept."""
    from datamodules.cache import cache_root

    yield disk("runs", Path(runs), "start from a folder on another disk, or set --run_dir")
    yield disk("cache", cache_root(), "set SELFZOO_CACHE to a folder on another disk")


def disk(what: str, folder: Path, elsewhere: str) -> Check:
    """Free room below a folder, which need not exist yet, and whether it can be written."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check("disk", "stop", f"{what}: {there} cannot be written", elsewhere)
    free = shutil.disk_usage(there).free
    status, remedy = ("ok", "") if free >= LITTLE_DISK else ("note", elsewhere)
    return Check("disk", status, f"{what}: {gib(free)} free below {there}", remedy, {"free": free})  # type: ignore[arg-type]
