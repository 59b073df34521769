"""Which views of a track are taken: drawn at random, until one shows road and sky and little else unlabelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from datamodules.labels import IGNORE_INDEX
from datamodules.track_files import Scene, TrackError
from datamodules.track_labels import ROAD, SKY
from datamodules.track_render import Camera, render

_TRIES: Final = 200


class Stretch(NamedTuple):
    """A track (its folder below ``tracks``) and which pieces of its lap: intervals of their numbers."""

    track: str
    pieces: tuple[tuple[int, int], ...] = ((0, 100_000),)

    @property
    def name(self) -> str:
        """The track's own name."""
        return self.track.rpartition("/")[2]


def draw_view(
    scene: Scene, stretch: Stretch, seed: Sequence[int], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """One view from the drivable track, and its labels; the same arguments always give the same pixels.

    The camera hovers 1.3 m to 1.9 m above a random triangle of the stretch and looks at another piece of track 12
    to 30 m away. Views are drawn again unless road covers 12 % to 75 % of them, sky at least 3 %, and pixels
    without a class at most 25 %.

    Args:
        scene: the track.
        stretch: where the camera may stand.
        seed: numbers that name the view.
        height: rows in pixels.
        width: columns in pixels.

    Raises:
        TrackError: none of 200 draws is such a view.
    """
    rng = np.random.default_rng(seed)
    drivable = ~np.isnan(scene.piece)
    road, piece = scene.points[drivable].mean(axis=1), scene.piece[drivable]
    places = road[np.any([(first <= piece) & (piece < last) for first, last in stretch.pieces], axis=0)]
    for _ in range(_TRIES if len(places) else 0):
        place = places[rng.integers(len(places))]
        distance = np.linalg.norm(road - place, axis=1)
        targets = road[(distance > 12) & (distance < 30) & (np.abs(road[:, 1] - place[1]) < 3)]
        if not len(targets):
            continue
        shift = (rng.normal(0, 0.5), 1.5 + rng.uniform(-0.2, 0.4), rng.normal(0, 0.5))
        target = targets[rng.integers(len(targets))] + (0, 1.4, 0)
        image, labels = render(scene, Camera(place + shift, target), height, width)
        if _is_acceptable(labels):
            return image, labels
    raise TrackError(
        f"{stretch.track}: no view from pieces {stretch.pieces} shows road and sky ({_TRIES} were drawn)."
    )


def _is_acceptable(labels: np.ndarray) -> bool:
    road, sky, nothing = ((labels == label).mean() for label in (ROAD, SKY, IGNORE_INDEX))
    return bool(0.12 <= road <= 0.75 and sky >= 0.03 and nothing <= 0.25)
