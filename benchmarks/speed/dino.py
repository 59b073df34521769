"""A DINO step of the zoo and of other libraries: same backbone, crops, batch and head, each in its own Trainer.

Every library is installed into an environment of its own, which sees the packages of this one and changes none of
them; one that cannot be installed or run is reported. ``hand-written`` is the step without any library, in a Trainer
that logs nothing. What each does is in :mod:`benchmarks.speed.dino_libraries`.

``--solo-learn CHECKOUT`` measures solo-learn, from a checkout of its repository, beside the zoo and the step without a
library. Its DINO has no local crops: the others then get none either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed.paired import Worker, markdown, shown, spread, take_turns
from datamodules.cache import cache_root

PEERS = {
    "lightly": "lightly==1.6.*",
    "lightly-train": "lightly-train==0.18.*",
    "stable-pretraining": "stable-pretraining==0.1.*",
}
#: What a checkout of solo-learn needs for DINO beyond what is here; its own list asks for an old Lightning.
SOLO_LEARN = {"solo-learn": "omegaconf==2.*"}
LOCAL = 6
OURS = ("zoo", "zoo, AdamW not fused", "hand-written")
#: Installed here and the same for everybody.
SHARED = ("torch", "torchvision", "lightning", "pytorch-lightning", "timm", "torchmetrics", "numpy")


def environment(folder: Path, requirement: str) -> Path:
    """Python of an environment with the library, on top of the packages of this one.

    Raises:
        RuntimeError: pip could not install it; its last lines are in the message.
    """
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    venv.create(folder, with_pip=False, symlinks=True, clear=True)
    here = sysconfig.get_path("purelib")
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(site.strip()) / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in SHARED))
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))[-1000:]
        )
    (folder / "installed").touch()
    return python


def start(name: str, python: str | Path, options: dict[str, Any]) -> Worker:
    """The library's process, after its first step.

    Raises:
        RuntimeError: it ended.
    """
    asked = json.dumps({**options, "worker": name})
    worker = Worker(name, [str(python), "-m", "benchmarks.speed.dino_libraries", asked])
    worker.turn(1)
    return worker


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--solo-learn", type=Path, metavar="CHECKOUT", help="measure it, in place of the other peers"
    )
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prototypes", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each library a round")
    parser.add_argument("--environments", type=Path, help="where to install; the zoo's cache by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = {key: getattr(arguments, key) for key in ("backbone", "batch", "prototypes", "device")}
    peers, checkout = {name: PEERS[name] for name in arguments.peers}, {}
    options["local"] = LOCAL
    if arguments.solo_learn is not None:
        if not (arguments.solo_learn / "solo" / "methods" / "dino.py").is_file():
            parser.error(
                f"--solo-learn: {arguments.solo_learn} is no checkout: it has no solo/methods/dino.py"
            )
        peers, options["local"] = SOLO_LEARN, 0
        checkout = {"solo_learn": str(arguments.solo_learn.resolve())}
    environments = arguments.environments or cache_root() / "peers"
    workers, missing = [], {}
    for name in (*OURS, *peers):
        try:
            python = sys.executable if name in OURS else environment(environments / name, peers[name])
            workers.append(start(name, python, {**options, **checkout}))
        except RuntimeError as error:
            if name in OURS:
                raise
            missing[name] = str(error)
    told = take_turns(workers, arguments.rounds, arguments.steps)
    base = [turn["step"] for turn in told["hand-written"]]
    record: dict[str, Any] = {**options, "missing": missing, "libraries": {}}
    for name, turns in told.items():
        ratios = [turn["step"] / step for turn, step in zip(turns, base, strict=True)]
        best = [turn["step"] / ours["step"] for turn, ours in zip(turns, told["zoo"], strict=True)]
        record["libraries"][name] = {
            "over hand-written": spread(ratios),
            "over zoo": spread(best),
            "peak": max(turn["peak"] for turn in turns),
        }
    header = ["library", "/ hand-written", "/ zoo", "peak memory"]
    rows = [
        [
            name,
            shown(found["over hand-written"]),
            shown(found["over zoo"]),
            f"{found['peak'] / 2**20:.0f} MiB",
        ]
        for name, found in record["libraries"].items()
    ]
    print(markdown(header, rows))
    for name, reason in missing.items():
        print(f"not measured: {name}: {reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
