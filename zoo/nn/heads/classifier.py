"""The last convolution of a decode head, initialised as the segmentation literature does."""

from __future__ import annotations

from torch import nn


def pixel_classifier(inputs: int, num_classes: int, kernel: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Convolution to class logits: weights from N(0, 0.01), bias 0, size kept."""
    conv = nn.Conv2d(inputs, num_classes, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
