"""Semi-supervised segmentation networks of U2PL and FST: ``encoder``, ``decoder``, ``auxor``."""

from __future__ import annotations

from zoo.checkpoints.files import Tensors
from zoo.checkpoints.layouts.facts import describe_resnet
from zoo.checkpoints.rules import Below, Drop, Importer, Rename, renames
from zoo.nn.heads.released import SEMI_HEAD_IGNORED, SEMI_HEAD_RENAMES

#: Beginnings of names by which a decode head is told.
_HEADS = {"classifier.conv2d_list.": "deeplabv2", "low_conv.": "deeplabv3plus", "psp.": "pspnet_shuffle"}


class DecodeHead:
    """The decoders of the release have rules of their own, which would spoil each other's names."""

    def apply(self, state: Tensors) -> Tensors:
        """Rename by the rules of the head that ``state`` is."""
        heads = (head for marker, head in _HEADS.items() if any(name.startswith(marker) for name in state))
        for rule in renames(SEMI_HEAD_RENAMES[head] if (head := next(heads, None)) else ()):
            state = rule.apply(state)
        return state


SEMI = Importer(
    "semi_segmentation",
    "semi-supervised segmentation network of U2PL or FST",
    (r"^encoder\.layer1\.0\.conv1\.weight$", r"^decoder\."),
    (
        Rename(r"^encoder\.", "backbone."),
        Rename(r"^decoder\.", "decode_head."),
        Rename(r"^auxor\.", "auxiliary_head."),
        Below("decode_head", (Drop(SEMI_HEAD_IGNORED), DecodeHead())),
        Below("auxiliary_head", renames(SEMI_HEAD_RENAMES["fcn"])),
    ),
    # the teacher is the one that is evaluated (FST card, section 10)
    {"teacher": r"teacher_state\.", "student": r"model_state\.", "network": ""},
    describe=describe_resnet,
)
