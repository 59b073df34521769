"""Samples a second of every benchmark's loader, alone and within training, on files of real size that are made up.

Alone: one process and thread decodes, cuts and collates training batches; then what is done to a batch on the device
is timed apart. Within training: ``zoo fit`` for a few steps, and what its ``Throughput`` monitor logs: the share of
time that training waits for data. Sets that read the same kind of file by the same code are measured once
(:data:`ALIKE`); embedded ones are made small; what needs files that nobody can make up is told.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from benchmarks.speed import input_recordings as recordings
from benchmarks.speed import input_trees as trees
from benchmarks.speed.paired import keep, markdown, now, options
from zoo.nn import VolumeCrops
from zoo.registry import get_benchmark, list_benchmarks

#: Benchmark → the one that reads the same kind of file by the same code.
ALIKE = {
    **dict.fromkeys(("crema_d", "mafw", "msp_improv", "ravdess", "werewolf_xl"), "audio_visual_lists"),
    **dict.fromkeys(("eye_image_lists", "gamma", "ichallenge_amd", "ichallenge_pm"), "eyepacs"),
    **dict.fromkeys(("eye_volume_lists", "gamma_scans"), "octa500"),
    **dict.fromkeys(("imagenet100", "imagenette"), "imagenet"),
    **dict.fromkeys(("amos22", "decathlon_volumes", "flare22", "msd", "prect", "volume_folders"), "btcv"),
    **dict.fromkeys(("iemocap", "voxceleb1", "audioset_librispeech"), "audioset"),
    "cifar100": "cifar10",
    "dnd": "sidd",
    "fsd50k": "esc50",
    "audio_folders": "libri_light",
    "own_footage": "gta5_cityscapes",
    "speech_commands_v1": "speech_commands_v2",
    "omni_volumes": "torso_phantom",
    "packaged_brains": "torso_phantom",
    "torso_scanners": "torso_phantom",
    "taking_turns": "eye_photographs",
}
FEW = {"num_val": 2, "num_test": 2}
PARTIAL = {"allow_partial": True}


def rooted(tree: Callable[[Path], Path], **more: Any) -> Callable[[Path], dict[str, Any]]:
    """Settings with one root."""
    return lambda folder: {**PARTIAL, **more, "root": str(tree(folder / "root"))}


def adapted(source: str, target: str, **more: Any) -> Callable[[Path], dict[str, Any]]:
    """Settings with a source and a target of streets; trees are made once."""

    def settings(folder: Path) -> dict[str, Any]:
        roots = {"source_root": street(folder, source), "target_root": street(folder, target)}
        return {**PARTIAL, **more, **roots}

    return settings


def street(folder: Path, name: str) -> str:
    root = folder.parent / f"streets-{name}"
    return str(root if root.exists() else getattr(trees, name)(root))


def cached(folder: Path) -> dict[str, Any]:
    return {**SETS["gta5_cityscapes"](folder), "cache": str(folder / "cache")}


SETS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "streetshift": lambda folder: {"num_source": 16, "num_target": 16, **FEW, "root": str(folder)},
    "streetshift_semi": lambda folder: {"num_target": 32, **FEW, "root": str(folder)},
    "gta5_cityscapes": adapted("gta5", "cityscapes"),
    "gta5_cityscapes, cache": cached,
    "synthia_cityscapes": adapted("synthia", "cityscapes"),
    "synthia_cityscapes, cache": lambda f: {**SETS["synthia_cityscapes"](f), "cache": str(f / "cache")},
    "cityscapes_darkzurich": adapted("cityscapes", "dark_zurich"),
    "cityscapes_darkzurich, cache": lambda f: {**SETS["cityscapes_darkzurich"](f), "cache": str(f / "cache")},
    "cityscapes_acdc": adapted("cityscapes", "acdc"),
    "cityscapes_acdc, cache": lambda f: {**SETS["cityscapes_acdc"](f), "cache": str(f / "cache")},
    "cityscapes_semi": lambda f: {**PARTIAL, "num_labelled": 2, "root": street(f, "cityscapes")},
    "cityscapes_semi, cache": lambda f: {**SETS["cityscapes_semi"](f), "cache": str(f / "cache")},
    "voc_semi": rooted(trees.voc, num_labelled=2),
    "voc_semi, cache": lambda f: {**SETS["voc_semi"](f), "cache": str(f / "cache")},
    "optdigits": lambda _: {},
    "cifar10": rooted(trees.cifar10, num_val=100),
    "stl10": rooted(trees.stl10, num_val=20),
    "fashion_mnist": rooted(trees.fashion_mnist, num_val=100),
    "tiny_imagenet": rooted(trees.tiny_imagenet),
    "imagenet": rooted(trees.imagenet),
    "imagenet, cache": lambda f: {**rooted(trees.imagenet)(f), "cache": str(f / "cache")},
    "eyepacs": rooted(trees.eyepacs, num_val=2),
    "eyepacs, cache": lambda f: {**rooted(trees.eyepacs, num_val=2)(f), "cache": str(f / "cache")},
    "eye_photographs": lambda folder: {"num_train": 4, **FEW, "root": str(folder), "labelled_fraction": 1.0},
    "packaged_photographs": lambda _: {},
    "sidd": lambda folder: {**rooted(trees.sidd)(folder), "cache_folder": str(folder / "cache")},
    "esc50": rooted(recordings.esc50),
    "speech_commands_v2": rooted(recordings.speech_commands),
    "audioset": rooted(recordings.audioset),
    "librispeech": rooted(recordings.librispeech),
    "libri_light": rooted(recordings.libri_light, val_fraction=0.25, train_seconds=16, crop="random"),
    "spoken_keywords": lambda _: {"synthesiser": "formant", "per_voice": 1, "per_target_voice": 1},
    "telephone_prompts": rooted(recordings.telephone),
    "audio_visual_lists": lambda f: {
        **rooted(recordings.videos, num_classes=2)(f),
        "lists": str(f / "root/lists"),
    },
    "audio_visual_lists, cache": lambda f: {**SETS["audio_visual_lists"](f), "cache": str(f / "cache")},
    "voxceleb2": rooted(recordings.voxceleb2, val_fraction=0.25),
    "voxceleb2, cache": lambda f: {**SETS["voxceleb2"](f), "cache": str(f / "cache")},
    "talking_blobs": lambda _: {"people": 3, "val_people": 2, "test_people": 1, "takes": 4},
    "btcv": lambda folder: {**rooted(recordings.btcv)(folder), "cache_folder": str(folder / "cache")},
    "luna16": lambda f: {
        **rooted(recordings.luna16, num_val=1, views=VolumeCrops())(f),
        "cache_folder": str(f / "cache"),
    },
    "octa500": lambda f: {**rooted(recordings.octa500, num_val=2)(f), "cache_folder": str(f / "cache")},
    "eye_scans": lambda f: {
        **FEW,
        "root": str(f),
        "cache_folder": str(f / "cache"),
        "labelled_fraction": 1.0,
    },
    "torso_phantom": lambda folder: {"num_train": 4, **FEW, "cache_folder": str(folder / "cache")},
    "racetracks": lambda f: {
        **FEW,
        "num_source": 14,
        "num_target": 8,
        "root": str(trees.race_tracks(f / "game")),
        "other_version": True,
        "cache_folder": str(f),
    },
    "pulse_people": lambda _: {"num_train": 8, "num_val": 4, "num_test": 4},
    "signal_folders": rooted(recordings.signal_folders, samples=3840),
    "signal_folders, NPZ": lambda f: rooted(recordings.packed_signals, samples=3840)(f),
    "signal_folders, NPZ, cache": lambda f: {**SETS["signal_folders, NPZ"](f), "cache": str(f / "cache")},
    "ptbxl": rooted(recordings.ptbxl),
    "ptbxl, cache": lambda f: {**SETS["ptbxl"](f), "cache": str(f / "cache")},
}
SMALL = [
    "--model.backbone",
    "street_cnn",
    "--model.backbone_args",
    "null",
    "--model.decode_head",
    "fpn",
    "--model.head_args",
    "null",
    "--model.pretrained",
    "false",
]
#: What trains → (config, options); the last two get made-up streets.
TRAINING: dict[str, tuple[str, list[str]]] = {
    "FST, StreetShift": ("fst/embedded", []),
    "DINO, digits": ("dino/embedded", []),
    "C-BSN, photographs": ("cbsn/embedded", []),
    "VoCo, torso phantom": ("voco/embedded", ["--data.num_train", "4", "--data.num_val", "2"]),
    "HiCMAE, talking blobs": ("hicmae/embedded", ["--data.people", "3", "--data.val_people", "2"]),
    "wearable biosignals, pulses": ("wearable_biosignals/embedded", []),
    "self-training, GTA5 → Cityscapes, small network": ("self_training/gta5_cityscapes", SMALL),
    "the same, cache: true": ("self_training/gta5_cityscapes", [*SMALL, "--data.cache", "true"]),
}


def opened(name: str, folder: Path) -> Any:
    """The benchmark on its files, prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = SETS[name](folder)
    kind: Any = get_benchmark(name.partition(",")[0])
    known = (
        settings
        if name not in {"streetshift_semi"}
        else {k: v for k, v in settings.items() if k != "num_train"}
    )
    if name in {"streetshift", "racetracks"}:
        known = {key: value for key, value in settings.items() if key != "num_train"}
    data = kind(**{"batch_size": 4, "seed": 0, "num_workers": 0, **known})
    data.prepare_data()
    data.setup("fit")
    return data


def alone(data: Any, seconds: float, rounds: int, device: str) -> dict[str, Any]:
    """Samples a second of the loader (medians of the rounds), and milliseconds of a sample on the device."""
    loader = data.train_dataloader()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    first = next(batches)
    by_cpu, by_wall = [], []
    for _ in range(rounds):
        cpu, wall, count = time.process_time(), time.perf_counter(), 0
        while time.process_time() - cpu < seconds:
            next(batches)
            count += data.batch_size
        by_cpu.append(count / (time.process_time() - cpu))
        by_wall.append(count / (time.perf_counter() - wall))
    turns = []
    for batch in (first, *itertools.islice(batches, 3)):
        moved = move_data_to_device(batch, torch.device(device))
        start = now(device)
        data.on_after_batch_transfer(moved, 0)
        turns.append((now(device) - start) / data.batch_size)
    return {
        "samples_per_cpu_s": statistics.median(by_cpu),
        "samples_per_s": statistics.median(by_wall),
        "device_ms": 1000 * statistics.median(turns),
        "hands_over": sorted(set(leaves(first))),
    }


def leaves(batch: Any) -> Iterator[str]:
    """Type and shape of the large tensors of a batch."""
    if isinstance(batch, Tensor) and batch.dim() > 1 and batch[0].numel() > 16:
        yield f"{str(batch.dtype).removeprefix('torch.')} {' x '.join(map(str, batch.shape[1:]))}"
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from leaves(value)


def within(name: str, folder: Path, steps: int, device: str) -> dict[str, float]:
    """What the monitor logs of a few steps."""
    from zoo.__main__ import main as zoo

    config, more = TRAINING[name]
    if "GTA5" in name or "same" in name:
        roots = {
            part: street(folder / "x", tree) for part, tree in (("source", "gta5"), ("target", "cityscapes"))
        }
        more = [*more, *(word for part, root in roots.items() for word in (f"--data.{part}_root", root))]
        more += ["--data.allow_partial", "true", "--data.rare_class_temperature", "null"]
    run = folder / "-".join(name.split())
    quiet = {
        "max_steps": 2 * steps, "log_every_n_steps": steps, "limit_val_batches": 0, "num_sanity_val_steps": 0,
        "enable_progress_bar": "false", "enable_model_summary": "false", "callbacks": "null",
        "enable_checkpointing": "false", "accelerator": "gpu" if device == "cuda" else "cpu",
    }  # fmt: skip
    words = [word for key, value in quiet.items() for word in (f"--trainer.{key}", str(value))]
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        command = ["fit", "--config", config, *more, "--data.num_workers", "0", "--wandb", "disabled"]
        code = zoo([*command, "--run_dir", str(run), *words])
    if code != 0:
        raise RuntimeError(told.getvalue()[-500:])
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row.get("perf/data_wait")]
    return {key: float(rows[-1][f"perf/{key}"]) for key in ("data_wait", "step_ms", "samples_per_s")}


def tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or why nothing was: packages and archives that are not here."""
    try:
        return measure()
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        return {"not measured": " ".join(str(error).split())[:200]}


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--training", nargs="*", choices=TRAINING, default=list(TRAINING))
    parser.add_argument("--seconds", type=float, default=0.7, help="CPU seconds of loading a round")
    parser.add_argument("--steps", type=int, default=6, help="of training, after as many to warm up")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    if lost := set(list_benchmarks()) - {name.partition(",")[0] for name in SETS} - set(ALIKE):
        raise SystemExit(f"no files are made up for {', '.join(sorted(lost))}")
    base = Path(tempfile.mkdtemp())
    os.environ["SELFZOO_CACHE"] = str(base / "selfzoo")
    record: dict[str, Any] = {"alone": {}, "training": {}}
    try:
        for name in given.sets:
            folder = base / "-".join(name.split(", "))
            found = tried(
                lambda n=name, f=folder: alone(opened(n, f), given.seconds, given.rounds, given.device)
            )
            record["alone"][name] = found
            print(name, found, flush=True)
        for name in given.training:
            found = tried(lambda n=name: within(n, base, given.steps, given.device))
            record["training"][name] = found
            print(name, found, flush=True)
    finally:
        shutil.rmtree(base)
    tell(record)
    keep(given.json, given.device, {**record, "alike": ALIKE})


def tell(record: dict[str, Any]) -> None:
    """The tables of docs/performance.md."""
    rows = [
        [
            f"`{name.partition(',')[0]}`{name.partition(',')[1]}{name.partition(',')[2]}",
            f"{found['samples_per_cpu_s']:.3g}", f"{found['samples_per_s']:.3g}", f"{found['device_ms']:.3g}",
            ", ".join(found["hands_over"]),
        ]
        for name, found in record["alone"].items()
        if "device_ms" in found
    ]  # fmt: skip
    print(markdown(["benchmark", "samples a CPU s", "samples a s", "on the device, ms", "hands over"], rows))
    rows = [
        [
            name,
            f"{100 * found['data_wait']:.0f} %",
            f"{found['step_ms']:.0f}",
            f"{found['samples_per_s']:.3g}",
        ]
        for name, found in record["training"].items()
        if "step_ms" in found
    ]
    print(markdown(["training", "waits for data", "a step, ms", "samples a s"], rows))


if __name__ == "__main__":
    main()
