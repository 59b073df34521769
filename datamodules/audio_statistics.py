"""Mean and standard deviation of a set's log-mel cells, by which spectrograms are normalised."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock

from datamodules.audio_sets import AudioSubset
from datamodules.cache import cache_root, write_atomically
from datamodules.image_sets import as_batch

#: Raised by every change that alters a number.
_VERSION: Final = 1
_BATCH: Final = 16


@dataclass(frozen=True)
class Statistics:
    """What ``mean`` and ``std`` of :class:`zoo.nn.AudioFeatures` should be.

    Args:
        mean: of all cells.
        std: of all cells, with the number of cells as divisor.
        clips: how many were read.
        cells: how many they hold.
    """

    mean: float
    std: float
    clips: int
    cells: int


def feature_statistics(
    subset: AudioSubset, features: Any, name: str, max_clips: int | None = None, folder: Path | None = None
) -> Statistics:
    """Mean and standard deviation over the log-mel cells of clips, computed once and kept in a file.

    Clips are read as evaluation reads them and cut to the features' length; cells of padding do not count (the
    released constants of AST average over batches of padded clips). Clips are taken at even distances where there
    are more than ``max_clips``. The file holds a checksum and is made again where it is damaged; its name tells
    which clips were read, their sizes on disk, and how.

    Args:
        subset: the clips.
        features: a :class:`zoo.nn.AudioFeatures`; its own ``mean`` and ``std`` make no difference.
        name: of the set, for the file.
        max_clips: how many are read at most; None reads all.
        folder: where the file lies; None takes the folder of the cache.

    Raises:
        ValueError: ``features`` make no log-mel cells, or no clip is as long as one frame.
    """
    if not hasattr(features, "bank"):
        raise ValueError(
            f"statistics are those of log-mel features, and features is {type(features).__name__}: set it to "
            "{class_path: zoo.nn.AudioFeatures}."
        )
    count = min(len(subset), max_clips or len(subset))
    index = torch.arange(count) * len(subset) // count
    file = (folder or cache_root() / "statistics") / f"{name}-{_digest(subset, index, features)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        found = _load(file)
        if found is None:
            found = _compute(subset, index, features)
            content = json.dumps({**asdict(found), "crc32": _checksum(found)}).encode()
            write_atomically(file, lambda stream: stream.write(content))
    return found


@torch.no_grad()
def _compute(subset: AudioSubset, index: torch.Tensor, features: Any) -> Statistics:
    collate: Any = as_batch
    loader: Any = torch.utils.data.DataLoader(
        subset, batch_size=_BATCH, sampler=index.tolist(), collate_fn=collate
    )
    total, squares, cells = 0.0, 0.0, 0
    device = features.bank.window.device
    for batch in loader:
        made = features({key: batch[key].to(device) for key in ("waveform", "length")})
        spectrogram, frames = made["spectrogram"], made["frames"]
        valid = torch.arange(spectrogram.shape[1], device=device) < frames[:, None]
        # back to what was normalised
        values = spectrogram[valid].double() * (2 * features.std) + features.mean
        total, squares, cells = total + values.sum(), squares + values.square().sum(), cells + values.numel()
    if not cells:
        raise ValueError(f"none of {len(index)} clips, e.g. {subset.path(0)}, is as long as one frame.")
    mean = float(total) / cells
    return Statistics(mean, (float(squares) / cells - mean**2) ** 0.5, len(index), cells)


def _digest(subset: AudioSubset, index: torch.Tensor, features: Any) -> str:
    bank = features.bank
    how: list[Any] = [
        _VERSION,
        asdict(subset.reading),
        subset.seconds,
        features.target_length,
        features.centre,
    ]
    how += [bank.sample_rate, bank.size, bank.hop, zlib.crc32(bank.triangles.cpu().numpy().tobytes())]
    how += [zlib.crc32(bank.window.cpu().numpy().tobytes())]
    digest = hashlib.sha256(json.dumps(how).encode())
    for number in index.tolist():
        digest.update(f"{subset.clips.identity(int(subset.positions[number]))}\n".encode())
    return digest.hexdigest()[:12]


def _checksum(statistics: Statistics) -> int:
    return zlib.crc32(json.dumps(asdict(statistics)).encode())


def _load(file: Path) -> Statistics | None:
    """What the file holds; None where there is none, or a damaged one."""
    try:
        content = json.loads(file.read_text())
        found = Statistics(**{key: content[key] for key in Statistics.__dataclass_fields__})
        return found if _checksum(found) == content["crc32"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
