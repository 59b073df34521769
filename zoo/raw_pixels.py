"""Classifiers of raw pixels: what every probe of learned features has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nn.knn import check_k, knn_scores


class RawPixels:
    """Weighted k nearest neighbours and multinomial logistic regression on pixels in [0, 1].

    The logistic regression is scikit-learn's with its default regularisation, and is fitted when first asked.

    Args:
        images: ``[N, C, H, W]`` uint8; of grey images repeated to three channels one is used.
        labels: int64 ``[N]``.
        num_classes: number of classes.
        k: number of neighbours; at most N.

    Raises:
        ValueError: k is larger than N.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, k: int = 20) -> None:
        check_k([k], len(labels))
        self.grey = bool((images[:, :1] == images).all())
        self.labels, self.num_classes, self.k = labels, num_classes, k
        self.x = self.pixels(images.float() / 255)
        self._logistic: object = None

    def pixels(self, images: Tensor) -> Tensor:
        """Float images in [0, 1] ``[B, C, H, W]`` → ``[B, C * H * W]``, of grey ones ``[B, H * W]``."""
        return (images[:, :1] if self.grey else images).flatten(1)

    def neighbours(self, images: Tensor) -> Tensor:
        """Classes of float images by weighted k-NN (:func:`zoo.nn.knn.knn_scores`), int64 ``[B]``."""
        votes = knn_scores(self.pixels(images), self.x, self.labels, self.num_classes, [self.k])
        return votes[self.k].argmax(1)

    def logistic(self, images: Tensor) -> Tensor:
        """Classes of float images by logistic regression, int64 ``[B]``.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        if self._logistic is None:
            try:
                from sklearn.linear_model import LogisticRegression
            except ImportError as error:
                raise ImportError(
                    "logistic regression of pixels needs scikit-learn: pip install 'selfzoo[digits]'"
                ) from error
            self._logistic = LogisticRegression(max_iter=1000).fit(self.x.numpy(), self.labels.numpy())
        return torch.from_numpy(self._logistic.predict(self.pixels(images).numpy()))  # type: ignore[attr-defined]
