"""Medical Segmentation Decathlon (Antonelli et al., 2022): ten tasks, read by one rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

from datamodules.decathlon import DecathlonVolumes
from datamodules.layout import Layout, Split
from datamodules.volume_lists import listed_layout
from datamodules.volume_processing import Processing

Task = Literal[
    "Task01_BrainTumour",
    "Task02_Heart",
    "Task03_Liver",
    "Task04_Hippocampus",
    "Task05_Prostate",
    "Task06_Lung",
    "Task07_Pancreas",
    "Task08_HepaticVessel",
    "Task09_Spleen",
    "Task10_Colon",
]


@dataclass(frozen=True)
class _Facts:
    """Numbers of published volumes, modality, and channels of 4-D files."""

    train: int
    test: int
    ct: bool = True
    channels: tuple[int, ...] | None = None


_TASKS: Final[dict[str, _Facts]] = {
    "Task01_BrainTumour": _Facts(484, 266, ct=False, channels=(0, 1, 2, 3)),
    "Task02_Heart": _Facts(20, 10, ct=False),
    "Task03_Liver": _Facts(131, 70),
    "Task04_Hippocampus": _Facts(260, 130, ct=False),
    "Task05_Prostate": _Facts(32, 16, ct=False, channels=(0, 1)),
    "Task06_Lung": _Facts(63, 32),
    "Task07_Pancreas": _Facts(281, 139),
    "Task08_HepaticVessel": _Facts(303, 140),
    "Task09_Spleen": _Facts(41, 20),
    "Task10_Colon": _Facts(126, 64),
}


class MSD(DecathlonVolumes):
    """One of the ten tasks; classes and volumes come from its ``dataset.json``.

    Rule of processing: CT is spaced 1.5 mm, its window -175..250 HU (lungs -1000..500); MRI is spaced 1 mm and each
    channel cut at its 0.5th and 99.5th percentile; brain tumours keep their four channels, the prostate its two. A
    fifth of the training volumes is held out for validation. ``predict_split: test`` predicts volumes whose labels are
    not public.

    Args:
        task: the folder's name, such as ``Task09_Spleen``.
        root: the task's folder, which holds ``dataset.json``.
        num_val: volumes held out; None takes a fifth.
        processing: what is done to volumes; None takes the rule.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "msd"
    holds_out_val = True
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": listed_layout(
            "Medical Segmentation Decathlon",
            "medicaldecathlon.com",
            "dataset.json",
            train=Split("training"),
            test=Split("test"),
        )
    }

    def __init__(
        self,
        task: Task = "Task09_Spleen",
        root: str | None = None,
        num_val: int | None = None,
        processing: Processing | None = None,
        **common: Any,
    ) -> None:
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}.")
        self.task = task
        super().__init__(
            root=root,
            num_val=max(1, _TASKS[task].train // 5) if num_val is None else num_val,
            processing=processing or processing_of_task(task),
            **common,
        )

    def tree(self) -> Layout:
        """The task's layout."""
        facts = _TASKS[self.task]
        return listed_layout(
            f"Medical Segmentation Decathlon, {self.task}",
            f"medicaldecathlon.com: {self.task}.tar",
            self.list_file,
            train=Split("training", (facts.train,)),
            test=Split("test", (facts.test,)),
        )


def processing_of_task(task: Task) -> Processing:
    """The rule of processing, see :class:`MSD`."""
    facts = _TASKS[task]
    if not facts.ct:
        return Processing(spacing=(1.0, 1.0, 1.0), window=None, channels=facts.channels)
    return Processing(window=(-1000.0, 500.0) if task == "Task06_Lung" else (-175.0, 250.0))
