"""One trained miniature of every method, made once a session and shared by all tests that need one."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from tests.test_configs import QUIET, miniature
from zoo.__main__ import main
from zoo.registry import method_card


def trained(name: str) -> Path:
    """Checkpoint of a run of one step of a method's first config."""
    folder = Path(os.environ["SELFZOO_CACHE"]).with_name("selfzoo-lives") / name
    folder.mkdir(parents=True, exist_ok=True)
    config = method_card(name).configs[0]
    last = folder / "run" / "checkpoints" / "last.ckpt"
    with FileLock(f"{folder}.lock"):
        if not last.is_file():
            base = ["--config", config, *miniature(config, folder), *QUIET]
            assert main(["fit", *base, "--trainer.max_steps", "1", "--run_dir", str(folder / "run")]) == 0
    return last
