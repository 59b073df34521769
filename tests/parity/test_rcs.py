"""Rare-class sampling against numbers recorded from FST's released code (``rcs.class_probs``)."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.sampling import rare_class_probabilities

# Pixels of the 19 classes in six source images, and what get_rcs_class_probs(temperature=0.01) made of them.
COUNTS = [
    [16593, 129925, 0, 6269, 0, 514, 322, 84, 4413, 0, 1724, 0, 466, 200, 0, 3598, 0, 0, 7224],
    [0, 90673, 57402, 0, 0, 0, 1688, 4906, 5500, 0, 0, 6965, 3160, 8231, 0, 615, 6673, 2884, 6189],
    [174050, 42962, 103139, 534, 5104, 0, 0, 6498, 2812, 251, 0, 3853, 5683, 0, 7572, 0, 143, 8446, 0],
    [147206, 14762, 95663, 3324, 0, 5895, 75, 5475, 508, 433, 3011, 0, 0, 0, 0, 1204, 323, 4657, 1843],
    [0, 76146, 41894, 2804, 4874, 5325, 1920, 6383, 3130, 4202, 470, 3475, 0, 391, 6559, 2675, 8345, 8974, 0],
    [0, 182253, 58559, 552, 5313, 7034, 4942, 3525, 0, 1302, 4930, 507, 4184, 671, 3615, 0, 2860, 729, 0],
]  # fmt: skip
CLASSES = [9, 15, 6, 13, 10, 3, 12, 11, 18, 4, 8, 14, 16, 5, 17, 7, 0, 2, 1]
PROBABILITIES = [
    0.1058029085, 0.09295067936, 0.08769963682, 0.0845022276, 0.08089137822, 0.06441748142, 0.06437375396,
    0.05889762193, 0.05709903315, 0.05696328357, 0.05295766145, 0.04820305109, 0.04628150165, 0.04496619105,
    0.02808057703, 0.02591308765, 1.687353729e-11, 4.694772349e-12, 2.251694484e-17,
]  # fmt: skip


def test_class_probabilities() -> None:
    pixels = np.array(COUNTS).sum(0)

    ours = rare_class_probabilities(pixels, temperature=0.01)

    assert np.argsort(-ours).tolist() == CLASSES  # ascending pixel counts are descending probabilities
    assert ours[CLASSES] == pytest.approx(PROBABILITIES, rel=1e-5, abs=1e-6)
    # The three common classes are below the absolute tolerance. The recorded values were computed in float32 from
    # scores near 100, whose spacing of 8e-6 is their relative error.
    assert ours[[0, 2, 1]] == pytest.approx(PROBABILITIES[-3:], rel=1e-4)
