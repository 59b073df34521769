"""Front for timm: any of its models that gives feature maps, with the facts a decode head needs."""

from __future__ import annotations

from typing import Any

import timm
from timm.layers import LayerNorm2d
from timm.models import is_model_in_modules
from torch import Tensor, nn

# Families that only accept the image size they were built for, unless told otherwise.
_ANY_SIZE: dict[tuple[str, ...], dict[str, Any]] = {
    ("vision_transformer", "vision_transformer_hybrid", "deit", "eva"): {"dynamic_img_size": True},
    ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr"): {"strict_img_size": False},
}


class TimmBackbone(nn.Module):
    """A timm model as feature extractor.

    Vision and Swin transformers are built so that they take images of any size (position embeddings are
    interpolated); for other models of a fixed size pass ``img_size``. With other than three input channels
    the normalisation is the mean over timm's three.

    Args:
        name: timm's name, with or without a weight tag.
        pretrained: download and load the weights of that tag.
        in_chans: channels of the input image.
        layer_norm: a layer norm over the channels of each map, as the segmentation networks of Swin have it
            (Liu et al., ICCV 2021; timm's own features are taken before any).
        **kwargs: handed to ``timm.create_model``: ``out_indices`` (which maps), ``output_stride`` (8, 16 or
            32; dilation in place of stride, for convolutional networks), ``drop_path_rate``, ``img_size``,
            ...
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_chans: int = 3,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.name = name
        for families, options in _ANY_SIZE.items():
            if is_model_in_modules(name, families) and "img_size" not in kwargs:
                kwargs = {**options, **kwargs}
        self.model = timm.create_model(
            name, pretrained=pretrained, in_chans=in_chans, features_only=True, **kwargs
        )
        #: What timm built the model with, but for the weights.
        self.arguments = {"in_chans": in_chans, **kwargs}
        self.in_chans = in_chans
        self.channels: tuple[int, ...] = tuple(self.model.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.model.feature_info.reduction())
        facts = self.model.default_cfg
        self.mean, self.std = (per_channel(facts[key], in_chans) for key in ("mean", "std"))
        self.channels_come_last = str(getattr(self.model, "output_fmt", "")).endswith("NHWC")  # Swin
        self.norms = nn.ModuleList(LayerNorm2d(c, eps=1e-5) for c in self.channels if layer_norm)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Normalised images ``[B, in_chans, H, W]`` → maps ``[B, channels[i], h_i, w_i]``.

        Raises:
            ValueError: the model was built for another image size.
        """
        try:
            maps = self.model(image)
        except AssertionError as error:
            size = list(image.shape[-2:])
            raise ValueError(
                f"timm model {self.name!r} cannot take images of {size}: {error} Use a size that fits, build "
                f"the model with img_size={size} if it has that argument, or take another model."
            ) from error
        if self.channels_come_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [norm(m) for norm, m in zip(self.norms, maps, strict=True)] if self.norms else list(maps)

    forward = forward_features


def create_timm_backbone(
    name: str, pretrained: bool = False, in_chans: int = 3, **kwargs: Any
) -> TimmBackbone:
    """Build a :class:`TimmBackbone`; the arguments are its own."""
    return TimmBackbone(name, pretrained, in_chans, **kwargs)


def per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    """Mean or standard deviation for ``in_chans`` channels: ``values``, or their mean where the number differs."""
    return tuple(values) if len(values) == in_chans else (sum(values) / len(values),) * in_chans
