"""SegmentationIoU against counting by hand and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from zoo.metrics import SegmentationIoU

C = 5


def draw(seed: int, shape: tuple[int, ...] = (3, 8, 9)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, C, shape, generator=generator)
    prediction = torch.where(
        torch.rand(shape, generator=generator) < 0.6, label, torch.randint(0, C, shape, generator=generator)
    )
    label[torch.rand(shape, generator=generator) < 0.2] = 255
    return prediction, label


def iou_by_hand(prediction: Tensor, label: Tensor) -> list[float]:
    p, t = prediction.flatten().tolist(), label.flatten().tolist()
    pairs = [(a, b) for a, b in zip(p, t, strict=True) if b != 255]
    result = []
    for c in range(C):
        union = sum(c in pair for pair in pairs)
        result.append(sum(pair == (c, c) for pair in pairs) / union if union else float("nan"))
    return result


def test_iou_is_counted_over_all_batches() -> None:
    metric = SegmentationIoU(C)
    jaccard = MulticlassJaccardIndex(C, average="none", ignore_index=255)
    data = [draw(seed) for seed in range(3)]
    for prediction, label in data:
        metric.update(prediction, label)
        jaccard.update(prediction, label)
    expected = iou_by_hand(*(torch.cat(parts) for parts in zip(*data, strict=True)))
    result = metric.compute()
    np.testing.assert_allclose(result["iou"], expected, rtol=1e-6)
    assert result["mIoU"].item() == pytest.approx(np.mean(expected))
    torch.testing.assert_close(result["iou"], jaccard.compute())

    metric.reset()
    metric.update(*data[1])
    np.testing.assert_allclose(metric.compute()["iou"], iou_by_hand(*data[1]), rtol=1e-6)


def test_logits_and_small_integer_types_count_the_same() -> None:
    prediction, label = draw(0)
    expected = SegmentationIoU(C)
    expected.update(prediction, label)
    logits = torch.nn.functional.one_hot(prediction, C).movedim(-1, 1).float()
    for form, truth in ((logits, label), (prediction.byte(), label.byte()), (prediction.int(), label)):
        metric = SegmentationIoU(C)
        metric.update(form, truth)
        assert torch.equal(metric.confusion, expected.confusion)


def test_classes_that_do_not_occur_are_nan_and_not_in_the_mean() -> None:
    metric = SegmentationIoU(C)
    metric.update(torch.tensor([[[0, 0, 1, 3]]]), torch.tensor([[[0, 1, 1, 255]]]))
    result = metric.compute()
    np.testing.assert_allclose(result["iou"], [0.5, 0.5, np.nan, np.nan, np.nan])
    assert result["mIoU"].item() == 0.5


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    metric = SegmentationIoU(C)
    metric.update(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]))
    result = metric.compute()
    np.testing.assert_allclose(result["iou"], [0.5, np.nan, 0, np.nan, np.nan])
    assert result["mIoU"].item() == 0.25


def test_the_mean_is_over_the_counted_classes() -> None:
    prediction, label = draw(1)
    expected = iou_by_hand(prediction, label)
    metric = SegmentationIoU(C, classes=[0, 3])
    metric.update(prediction, label)
    result = metric.compute()
    assert result["mIoU"].item() == pytest.approx((expected[0] + expected[3]) / 2)
    np.testing.assert_allclose(result["iou"], expected, rtol=1e-6)  # uncounted predictions stay errors

    later = SegmentationIoU(C)
    later.classes = [1]  # a benchmark names its classes after the metric was built
    later.update(prediction, label)
    assert later.compute()["mIoU"].item() == pytest.approx(expected[1])


def test_sixteen_class_score_is_the_rescaled_nineteen_class_one() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = [c for c in range(19) if c not in (9, 14, 16)]  # SYNTHIA lacks terrain, truck and train
    label = torch.tensor(classes)[torch.randint(0, 16, (4, 16, 16), generator=generator)]
    prediction = torch.where(torch.rand(label.shape, generator=generator) < 0.7, label, label.roll(1))
    prediction[0, 0, :3] = torch.tensor([9, 14, 16])
    all_classes, sixteen = SegmentationIoU(19), SegmentationIoU(19, classes=classes)
    for metric in (all_classes, sixteen):
        metric.update(prediction, label)
    torch.testing.assert_close(sixteen.compute()["mIoU"], all_classes.compute()["mIoU"] * 19 / 16)


def test_the_ignored_label_may_be_a_class_index() -> None:
    label = torch.tensor([[[0, 0, 1, 1]]])
    metric = SegmentationIoU(C, ignore_index=0)
    metric.update(torch.tensor([[[1, 2, 1, 2]]]), label)
    np.testing.assert_allclose(metric.compute()["iou"], [np.nan, 0.5, 0, np.nan, np.nan])


@pytest.mark.parametrize("strange", [C, 7, 300])
def test_unknown_labels_are_an_error(strange) -> None:
    prediction, label = draw(2)
    label[0, 0, :2] = strange
    metric = SegmentationIoU(C)
    metric.update(prediction, label)
    with pytest.raises(ValueError, match=r"2 labels are neither within \[0, 5\) nor ignore_index=255"):
        metric.compute()


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"prediction \(1, 2, 2\) and label \(1, 4, 4\) differ in shape"):
        SegmentationIoU(C).update(torch.zeros(1, 2, 2), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"num_classes must be within .* got 0 and 255"):
        SegmentationIoU(0)
    with pytest.raises(ValueError, match=r"ignore_index within .* got 5 and -1"):
        SegmentationIoU(C, ignore_index=-1)


def test_predictions_must_be_classes() -> None:
    prediction, label = draw(0)
    prediction[0, 0, 0] = C
    with pytest.raises(ValueError, match="prediction holds class 5, but num_classes is 5"):
        SegmentationIoU(C).update(prediction, label)
    with pytest.raises(ValueError, match="prediction holds class 6, but num_classes is 5"):
        SegmentationIoU(C).update(torch.eye(7)[6].view(1, 7, 1, 1), torch.zeros(1, 1, 1))


def test_ranks_are_summed() -> None:
    data = [draw(seed) for seed in range(2)]
    ranks = [SegmentationIoU(C) for _ in data]
    for rank, (prediction, label) in zip(ranks, data, strict=True):
        rank.update(prediction, label)
    ranks[0].merge_state(ranks[1])
    expected = iou_by_hand(*(torch.cat(parts) for parts in zip(*data, strict=True)))
    np.testing.assert_allclose(ranks[0].compute()["iou"], expected, rtol=1e-6)
