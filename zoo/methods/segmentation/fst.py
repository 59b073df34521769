"""FST: Future-Self-Training for semantic segmentation (Du et al., NeurIPS 2022, arXiv 2209.06993)."""

from __future__ import annotations

from typing import Any

from callbacks import FutureTeacher
from callbacks.future_teacher import Rewind
from zoo.methods.segmentation.self_training import SelfTraining
from zoo.methods.segmentation.semi_supervised import SemiMeanTeacher


class FST(SelfTraining):
    """Self-training whose teacher learns from *future* students, for domain adaptation.

    In each iteration the student is optimised virtually, the teacher absorbs the virtual student(s), the student
    is put back, and the real update is made against the improved teacher. FST is
    :class:`~zoo.methods.segmentation.self_training.SelfTraining` with a :class:`callbacks.FutureTeacher`; the
    rest of the recipe is DAFormer's, which the defaults follow.

    Paper and released code differ; the defaults are the code, which made the published numbers. The paper's
    virtual step only caches gradients, the code really steps the optimiser and copies the parameters back, so
    moments, batch-norm statistics and the EMA ramp keep what the virtual steps did (``rewind="parameters"``);
    ``rewind="everything"`` is the strict reading. The paper's second momentum is the EMA decay itself.

    Args:
        depth: K of FST-D; 3 as released. 0 with ``width=0`` is plain self-training.
        width: N of FST-W, instead of ``depth``.
        rewind: see :class:`callbacks.FutureTeacher`.
        lookahead_lr_scale: factor on the learning rate of the virtual steps.
        ignore_top: as in self-training; 15 rows of Cityscapes.
        ignore_bottom: as in self-training; 120 rows of Cityscapes.
        feature_distance: weight of the ImageNet feature distance.
        **kwargs: see :class:`SelfTraining`.
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 0,
        rewind: Rewind = "parameters",
        lookahead_lr_scale: float = 1.0,
        ignore_top: int = 15,
        ignore_bottom: int = 120,
        feature_distance: float = 0.005,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            ignore_top=ignore_top, ignore_bottom=ignore_bottom, feature_distance=feature_distance, **kwargs
        )
        self.depth, self.width, self.rewind, self.lr_scale = depth, width, rewind, lookahead_lr_scale

    def teacher_callback(self) -> FutureTeacher:
        """The look-ahead in place of the plain EMA; it starts when target images take part."""
        return FutureTeacher(
            depth=self.depth,
            width=self.width,
            rewind=self.rewind,
            lr_scale=self.lr_scale,
            start_step=self.mix_start,
            decay=self.decay,
        )


class FSTSemi(SemiMeanTeacher):
    """Semi-supervised FST: three serial look-aheads, and the real student absorbed after every step.

    Args:
        depth: K; fixed to 3 in the released code.
        rewind: see :class:`callbacks.FutureTeacher`.
        **kwargs: see :class:`SemiMeanTeacher`.
    """

    def __init__(self, depth: int = 3, rewind: Rewind = "parameters", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth, self.rewind = depth, rewind

    def teacher_callback(self) -> FutureTeacher:
        """The look-ahead in the released semi-supervised order."""
        return FutureTeacher(
            depth=self.depth, order="semi", rewind=self.rewind, decay=self.decay, copy_epochs=self.copy_epochs
        )
