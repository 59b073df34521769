"""The real brains that packages ship, and pseudo-subjects warped from them."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from datamodules.layout import LayoutError
from datamodules.rendered_volumes import Rendering
from datamodules.volume_files import read_volume
from zoo.extras import require

Template = Literal["mni152", "colin27"]

#: Counts up whenever a seed gives another volume.
WARP_VERSION: Final = 1
#: MNI152's label where neither grey nor white matter is likely, and the probability (of 255) that makes it so.
_TISSUES: Final = ("background", "other brain", "grey matter", "white matter")
_LIKELY: Final = 80
_MNI152: Final = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_DEBIAN_FOLDER: Final = Path("/usr/share/mricron/templates")
_HOW_TO_GET: Final = {
    "mni152": "pip install nilearn, or unpack its wheel (5 MB of volumes in nilearn/datasets/data)",
    "colin27": "Debian package mricron-data (15 MiB): apt-get install mricron-data; without being root, "
    "apt-get download mricron-data && dpkg -x mricron-data_*.deb FOLDER",
}


class Brain(NamedTuple):
    """A T1-weighted volume ``[X, Y, Z]`` float32, its labels uint8, and their affine."""

    volume: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def template_folder(template: Template, root: str | None) -> Path:
    """Where a template's files lie.

    Args:
        template: ``mni152`` or ``colin27``.
        root: the folder itself, or the one a package was unpacked to; None looks where packages are installed.

    Raises:
        LayoutError: they are not there; the message says how to get them.
    """
    inside = Path("nilearn/datasets/data") if template == "mni152" else _DEBIAN_FOLDER.relative_to("/")
    if root is not None:
        places = [Path(root).expanduser(), Path(root).expanduser() / inside]
    elif template == "colin27":
        places = [_DEBIAN_FOLDER]
    else:
        spec = importlib.util.find_spec("nilearn")
        places = (
            [Path(folder) / "datasets/data" for folder in (spec.submodule_search_locations or [])]
            if spec
            else []
        )
    wanted = _files(template)
    for place in places:
        if all((place / name).is_file() for name in wanted):
            return place
    raise LayoutError(
        f"The template {template} ({', '.join(wanted)}) is not in {', '.join(map(str, places)) or 'nilearn'} "
        f"(root={root!r}). Get it: {_HOW_TO_GET[template]}; then set root, if it is not found by itself."
    )


def class_names(template: Template, root: str | None) -> tuple[str, ...]:
    """Four tissues of MNI152, or the 116 regions of the AAL atlas on Colin-27.

    Raises:
        LayoutError: the names of the regions are not there.
    """
    if template == "mni152":
        return _TISSUES
    lines = (template_folder(template, root) / "aal.nii.txt").read_text().splitlines()
    return ("background", *(line.split()[1] for line in lines if line.strip()))


@lru_cache(maxsize=2)
def read_template(template: Template, root: str | None, stride: int) -> Brain:
    """Read a template, coarser by ``stride`` (means of its T1; labels as in the middle).

    MNI152's labels: grey or white matter, whichever is likelier, where that is likely (above 80 of 255), otherwise the
    rest of the brain (T1 above 0). Colin-27's are those of the AAL atlas.

    Raises:
        LayoutError: its files are not there.
        BrokenVolumeError: a file cannot be read.
    """
    folder = template_folder(template, root)
    volumes = [read_volume(folder / name) for name in _files(template)[:3] if name.endswith(".gz")]
    arrays = [volume.array[0] for volume in volumes]
    if template == "mni152":
        t1, grey, white = arrays
        label = (t1 > 0).astype(np.uint8)
        tissue = np.where(grey >= white, 2, 3)
        label = np.where(np.maximum(grey, white) > _LIKELY, tissue, label).astype(np.uint8)
    else:
        t1, label = arrays[0], arrays[1].astype(np.uint8)
    filtered = require("scipy.ndimage", "medical", "PackagedBrains").uniform_filter(t1, stride)
    middle = (slice(stride // 2, None, stride),) * 3
    move = np.diag([stride, stride, stride, 1.0])
    move[:3, 3] = stride // 2
    return Brain(filtered[middle], label[middle], volumes[0].affine @ move)


def pseudo_subject(brain: Brain, seed: int) -> Rendering:
    """Warp a template: size (5 %), place (1 voxel), smooth displacement (1.6 voxels), bias field, gain and noise.

    Raises:
        ImportError: SciPy is not installed.
    """
    ndimage: Any = require("scipy.ndimage", "medical", "PackagedBrains")
    rng, size = np.random.default_rng(seed), brain.volume.shape

    def smooth(sigma: float) -> np.ndarray:
        """A smooth random field of unit variance."""
        field = ndimage.gaussian_filter(rng.normal(size=size), sigma)
        return field / field.std()

    middle = (np.array(size) - 1).reshape(3, 1, 1, 1) / 2
    scale, shift = rng.normal(1, 0.05, (3, 1, 1, 1)), rng.normal(0, 1, (3, 1, 1, 1))
    place = (np.indices(size) - middle) * scale + middle + shift
    place += 1.6 * np.stack([smooth(5) for _ in range(3)])
    volume = ndimage.map_coordinates(brain.volume, place, order=1, mode="constant")
    label = ndimage.map_coordinates(brain.label, place, order=0, mode="constant")
    volume = volume * np.exp(0.12 * smooth(8)) * rng.normal(1, 0.05) + rng.normal(0, 6, size)
    return Rendering(np.clip(volume.round(), 0, 32767).astype(np.int16), label, brain.affine)


def _files(template: Template) -> tuple[str, ...]:
    if template == "mni152":
        return tuple(_MNI152.format(kind) for kind in ("t1", "gm", "wm"))
    return ("ch2.nii.gz", "aal.nii.gz", "aal.nii.txt")
