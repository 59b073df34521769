"""What raw pixels reach: the rows to print beside every probe of learned features.

    python -m benchmarks.raw_pixels Optdigits
    python -m benchmarks.raw_pixels FashionMNIST --labels 100 1000 4000 --tests 2000

A probe that does not beat these rows has learned nothing. Labelled images are chosen with equal shares of the
classes; the settings of the classifiers are fixed, nothing is chosen on the test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch

import datamodules
from datamodules.image_sets import balanced_choice
from datamodules.images import ImageDataModule
from zoo.raw_pixels import RawPixels

WEIGHTED_K = 20
NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """Test accuracies of raw pixels in percent."""

    labels: int
    tests: int
    weighted_knn: float
    neighbours: float
    logistic: float
    seconds: float


def raw_pixel_row(
    data: ImageDataModule, labels: int | None = None, tests: int | None = None, seed: int = 0
) -> Row:
    """Classify test images by their pixels.

    Args:
        data: the benchmark, set up or not.
        labels: labelled training images, with equal shares of the classes; None takes all.
        tests: the first so many test images; None takes all.
        seed: of the choice of labelled images.

    Returns:
        accuracy of weighted k-NN (:func:`zoo.nn.knn.knn_scores`, k = 20), of 5 nearest neighbours with equal votes
        and Euclidean distance, and of multinomial logistic regression (scikit-learn's default, pixels in
        [0, 1]).
    """
    from sklearn.neighbors import KNeighborsClassifier

    start = time.process_time()
    train = data.subset("labelled")
    if labels is not None:
        train = train.part(balanced_choice(train.labels, labels, seed))
    test = data.subset("test")
    test = test if tests is None else test.part(np.arange(min(tests, len(test))))
    shown, asked = (subset.batch(np.arange(len(subset))) for subset in (train, test))
    y, truth, query = shown["label"], asked["label"], asked["image"].float() / 255
    raw = RawPixels(shown["image"], y, data.num_classes, min(WEIGHTED_K, len(y)))
    votes = KNeighborsClassifier(min(NEIGHBOURS, len(y))).fit(raw.x.numpy(), y.numpy())
    weighted = torch.cat([raw.neighbours(part) for part in query.split(1024)])
    equal = torch.from_numpy(votes.predict(raw.pixels(query).numpy()))
    accuracy = [
        100.0 * float((guess == truth).float().mean()) for guess in (weighted, equal, raw.logistic(query))
    ]
    return Row(len(y), len(truth), *accuracy, seconds=round(time.process_time() - start, 1))


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = [
        f"| labels | test images | {WEIGHTED_K}-NN, weighted cosine | {NEIGHBOURS}-NN | logistic regression | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.labels} | {r.tests} | {r.weighted_knn:.1f} | {r.neighbours:.1f} | {r.logistic:.1f} | {r.seconds} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of raw pixels on an image benchmark.")
    parser.add_argument("benchmark", help="a class of datamodules, e.g. Optdigits")
    parser.add_argument("--root", help="folder of the official tree, where the benchmark has one")
    parser.add_argument("--labels", type=int, nargs="*", help="numbers of labelled images; default: all")
    parser.add_argument("--tests", type=int, help="the first so many test images; default: all")
    arguments = parser.parse_args()
    settings = {"root": arguments.root} if arguments.root else {}
    data: ImageDataModule = getattr(datamodules, arguments.benchmark)(**settings)
    data.prepare_data()
    rows = [raw_pixel_row(data, labels, arguments.tests) for labels in arguments.labels or [None]]
    print(f"{data.name}: accuracy of raw pixels, percent\n\n{table(rows)}")


if __name__ == "__main__":
    main()
