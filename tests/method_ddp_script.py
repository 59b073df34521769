"""Run by tests/test_ddp_methods.py in two gloo processes: what every method does there, through the command line.

For each method of the arguments: train three steps, resume from the first and train on, validate, and compare the
gradient of the two ranks with that of one process which has the joint batch.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_configs import QUIET, miniature
from zoo import cli
from zoo.config_files import resolve_configs
from zoo.nn import ranks
from zoo.nn.masking import Masks
from zoo.run_folder import LastCheckpoint, finish_wandb

STEPS = [
    *(
        "--trainer.max_steps",
        "3",
        "--trainer.val_check_interval",
        "1",
        "--trainer.check_val_every_n_epoch",
        "1",
    ),
    *("--trainer.num_sanity_val_steps", "0", "--trainer.log_every_n_steps", "1", "--run_card", "false"),
]
DDP = ["--trainer.devices", "2", "--trainer.strategy"]
#: Methods that leave parameters out of some losses.
STRATEGY = dict.fromkeys(("sepico", "uni4eye"), "ddp_find_unused_parameters_true")


def run(verb: str, *options: str) -> Any:
    """What ``zoo <verb>`` leaves behind."""
    return cli.ZooCLI(resolve_configs([verb, *options]))


def unequal(state: dict[str, Tensor]) -> list[str]:
    """Names of tensors in which this rank differs from the others."""
    other = ranks.gather_objects(state)
    return [key for key in state if not all(torch.equal(o[key], state[key]) for o in other)]


@contextmanager
def alone() -> Iterator[None]:
    """The arithmetic of one process: nothing is exchanged."""
    there, ranks.dist = ranks.dist, SimpleNamespace(is_available=lambda: False)  # type: ignore[assignment]
    try:
        yield
    finally:
        ranks.dist = there


def joint(parts: list[Any]) -> Any:
    """The batch one process would have, from those of the ranks."""
    first = parts[0]
    if isinstance(first, dict) and "views" in first:
        return joint_views(parts)
    if isinstance(first, dict):
        return {key: joint([part[key] for part in parts]) for key in first}
    if isinstance(first, Masks):
        return Masks.of(torch.cat([part.mask for part in parts]))
    if isinstance(first, Tensor):
        return torch.cat(padded(parts)) if first.ndim else first
    return [item for part in parts for item in part] if isinstance(first, list) else first


def padded(parts: list[Tensor]) -> list[Tensor]:
    """Waveforms are as long as the longest of their rank: with zeros to the longest of all."""
    longest = max(part.shape[-1] for part in parts)
    return [F.pad(part, (0, longest - part.shape[-1])) if part.ndim > 1 else part for part in parts]


def joint_views(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of crops, which are view-major, as what the teacher says of them is."""
    B, masks = len(parts[0]["index"]), [part["masks"] for part in parts]

    def merged(values: list[Tensor], cuts: list[list[int]]) -> Tensor:
        pieces = [value.split(cut) for value, cut in zip(values, cuts, strict=True)]
        return torch.cat([piece[view] for view in range(len(cuts[0])) for piece in pieces])

    def every(values: list[Tensor]) -> Tensor:
        return merged(values, [[B] * (len(value) // B) for value in values])

    def said(key: str, values: list[Any]) -> Any:
        if isinstance(values[0], (list, tuple)):  # of several heads
            return [said(key, list(each)) for each in zip(*values, strict=True)]
        if key == "cls":
            return every(values)
        counts = [0 if mask is None else int(mask.mask[:B].sum()) for mask in masks]
        return merged(values, [[n, len(v) - n] for n, v in zip(counts, values, strict=True)])

    found = joint(
        [{k: v for k, v in part.items() if k not in ("views", "masks", "teacher")} for part in parts]
    )
    found["views"] = {kind: every([part["views"][kind] for part in parts]) for kind in parts[0]["views"]}
    found["masks"] = None if masks[0] is None else Masks.of(every([mask.mask for mask in masks]))
    teacher = parts[0]["teacher"]
    found["teacher"] = {
        key: said(key, [part["teacher"][key] for part in parts]) for key in teacher if key != "patch_mean"
    }
    return found


def gradient(method: Any, batch: dict[str, Any]) -> list[Tensor]:
    """Of the sum of the losses, for every trained parameter."""
    parameters = [p for module in method.trained_modules() for p in module.parameters() if p.requires_grad]
    total = torch.stack(list(method.losses(batch).values())).sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def without_chance(method: Any) -> None:
    """Switch off what ranks draw for themselves and what a batch does to its own normalisation."""
    method.train()
    for module in method.modules():
        for name in ("p", "drop_prob", "drop", "rate", "drop_path_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


def deviation(method: Any, batch: dict[str, Any]) -> float:
    """Largest relative difference of a parameter's gradient between two ranks and one process."""
    without_chance(method)
    ours = [ranks.mean_over_ranks(g) for g in gradient(method, batch)]
    together = joint(ranks.gather_objects(batch))
    with alone():
        single = gradient(method, together)
        again = gradient(method, together)
    scale = max(float(g.abs().max()) for g in single)
    assert all(torch.equal(a, b) for a, b in zip(single, again, strict=True)), "chance is left in the losses"
    return max(float((a - b).abs().max()) for a, b in zip(ours, single, strict=True)) / scale


def train(name: str, base: list[str], folder: Path) -> dict[str, Any]:
    """Three steps straight, and two more from the first; what was seen on the way."""
    seen: dict[str, Any] = {"unequal_in_step": [], "drawn": [], "index": []}
    save, rank = LastCheckpoint._save, dist.get_rank()
    last, kept = folder / "run" / "checkpoints" / "last.ckpt", folder / "stopped.ckpt"

    def save_and_keep(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if rank == 0 and trainer.global_step == 1 and not kept.exists():
            shutil.copy(last, kept)

    instantiate = cli.ZooCLI.instantiate_classes

    def watched(self: Any) -> None:
        instantiate(self)
        self.model.training_step = watching(self.model, self.model.training_step)
        self.model.losses = recording(self.model.losses)

    def watching(method: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        def training_step(batch: Any, batch_idx: int) -> Any:
            seen["unequal_in_step"] += unequal(method.state_dict())
            seen["index"] += indices(batch)
            if hasattr(method, "draw_size"):
                seen["drawn"].append(tuple(method.draw_size()))
            return step(batch, batch_idx)

        return training_step

    def recording(losses: Callable[..., Any]) -> Callable[..., Any]:
        def noted(batch: Any) -> Any:
            seen["batch"] = batch
            return losses(batch)

        return noted

    LastCheckpoint._save, cli.ZooCLI.instantiate_classes = save_and_keep, watched  # type: ignore[method-assign]
    try:
        done = run("fit", *base, *STEPS, "--run_dir", str(folder / "run"))
        seen["unequal"] = unequal(done.model.state_dict())
        seen["deviation"] = deviation(done.model, seen.pop("batch"))
        if rank == 0:
            last.rename(folder / "straight.ckpt")
            kept.rename(last)
            (last.parent / "best.ckpt").unlink(missing_ok=True)
        dist.barrier()
        run("fit", *base, *STEPS, "--run_dir", str(folder / "run"), "--ckpt_path", str(last))
    finally:
        LastCheckpoint._save, cli.ZooCLI.instantiate_classes = save, instantiate  # type: ignore[method-assign]
    del seen["batch"]
    return seen


def indices(batch: Any) -> list[int]:
    """Positions of the images of a batch in their dataset, of the unlabelled part where there are two."""
    part = next((batch[key] for key in ("target", "unlabelled") if key in batch), batch)
    return part["index"].tolist() if "index" in part else []


def main(folder: Path, names: list[str]) -> None:
    dist.init_process_group("gloo")
    cli.import_classes()
    for name in names:
        config, own = f"{name}/embedded", folder / name
        options = miniature(config, folder / f"data-{name}") if dist.get_rank() == 0 else []
        options = ranks.gather_objects(options)[0]  # one tree for both
        base = ["--config", config, *options, *QUIET, *DDP, STRATEGY.get(name, "ddp")]
        seen = train(name, base, own)
        command = [*base, "--ckpt_path", str(own / "straight.ckpt"), "--run_dir", str(own / "val")]
        validated = run("validate", *command).trainer.callback_metrics
        seen["validated"] = {key: float(value) for key, value in validated.items()}
        finish_wandb(0)
        (folder / f"{name}-{dist.get_rank()}.json").write_text(json.dumps({**seen, "options": options}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
