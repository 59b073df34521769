"""Label files that are no plain 8-bit images: SYNTHIA's 16-bit PNGs and SBD's MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def read_synthia_ids(path: Path) -> np.ndarray:
    """Class ids ``[H,W]`` uint8 of a SYNTHIA label: the first of three 16-bit channels (the second: instances).

    Pillow keeps one byte of a 16-bit channel, the high one. Big-endian samples unpacked as little-endian ones
    yield the other byte, so the file is decoded twice: once for the ids, once to see that nothing lies above.

    Raises:
        OSError, SyntaxError, ValueError: the file is damaged, or no PNG with three 16-bit channels.
    """
    ids, high = (_first_channel(path, order) for order in ("RGB;16L", "RGB;16B"))
    if high.any():
        raise ValueError(f"its first channel holds values up to {int(high.max()) << 8 | 255}, ids end at 255")
    return ids


def _first_channel(path: Path, order: str) -> np.ndarray:
    with Image.open(path) as image:
        if [tile.args for tile in image.tile] != ["RGB;16B"]:
            raise ValueError(f"it is no PNG with three 16-bit channels, but {image.format} {image.mode}")
        image.tile = [image.tile[0]._replace(args=order)]
        return np.array(image)[..., 0]


def read_sbd_classes(path: Path) -> np.ndarray:
    """Class indices ``[H,W]`` uint8 of an SBD label (Hariharan et al., ICCV 2011): ``GTcls.Segmentation``.

    Raises:
        ImportError: SciPy is missing.
        OSError, ValueError: the file is damaged, or holds no such variable.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            "SBD's .mat labels are read with SciPy: pip install 'selfzoo[voc]', or convert them to PNGs in "
            "SegmentationClassAug."
        ) from error
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged file it raises whatever it stumbles over
        raise ValueError(f"no MATLAB file, or a damaged one: {error}") from error
    if not hasattr(content.get("GTcls"), "Segmentation"):
        raise ValueError(f"it holds no GTcls.Segmentation, only {sorted(k for k in content if k[0] != '_')}")
    return np.atleast_2d(content["GTcls"].Segmentation)
