"""Names in the released semi-supervised networks (U2PL, FST) → names of our heads.

Ordered (pattern, replacement) per decode head, for names below ``decoder.``, or ``auxor.`` for ``fcn``. Heads
that are not listed carry the released names already. ``deeplabv3plus`` and ``fcn`` need ``bias: true`` to take
these files; the release's ``representation`` branch belongs to a contrastive loss that FST does not use.
"""

from __future__ import annotations

SEMI_HEAD_RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "deeplabv2": ((r"^classifier\.conv2d_list\.(\d)\.", r"aspp_modules.\1.conv."),),
    "deeplabv3plus": (
        (r"^low_conv\.0\.", "low_level_conv.conv."),
        (r"^low_conv\.1\.", "low_level_conv.bn."),
        (r"^aspp\.conv1\.1\.", "aspp.image_pool.1.conv."),
        (r"^aspp\.conv1\.2\.", "aspp.image_pool.1.bn."),
        (r"^aspp\.conv2\.", "aspp.aspp_modules.0."),
        (r"^aspp\.conv3\.", "aspp.aspp_modules.1."),
        (r"^aspp\.conv4\.", "aspp.aspp_modules.2."),
        (r"^aspp\.conv5\.", "aspp.aspp_modules.3."),
        (r"^aspp\.aspp_modules\.(\d)\.0\.", r"aspp.aspp_modules.\1.conv."),
        (r"^aspp\.aspp_modules\.(\d)\.1\.", r"aspp.aspp_modules.\1.bn."),
        (r"^head\.0\.", "aspp.bottleneck.conv."),
        (r"^head\.1\.", "aspp.bottleneck.bn."),
        (r"^classifier\.0\.", "decoder.0.conv."),
        (r"^classifier\.1\.", "decoder.0.bn."),
        (r"^classifier\.4\.", "decoder.2.conv."),
        (r"^classifier\.5\.", "decoder.2.bn."),
        (r"^classifier\.8\.", "conv_seg."),
    ),
    "pspnet_shuffle": (
        (r"^psp\.stages\.(\d)\.1\.", r"psp_modules.\1.1.conv."),
        (r"^psp\.stages\.(\d)\.2\.", r"psp_modules.\1.1.bn."),
        (r"^psp\.bottleneck\.0\.", "bottleneck.conv."),
        (r"^psp\.bottleneck\.1\.", "bottleneck.bn."),
        (r"^decoder\.0\.", "conv_seg."),
        (r"^decoder\.1\.", "upsample.0."),
        (r"^decoder\.2\.", "upsample.1."),
        (r"^decoder\.3\.", "upsample.2."),
    ),
    "fcn": (
        (r"^aux\.0\.", "convs.0.conv."),
        (r"^aux\.1\.", "convs.0.bn."),
        (r"^aux\.4\.", "conv_seg."),
    ),
}
#: Names in these files that no head has.
SEMI_HEAD_IGNORED = r"^representation\."
