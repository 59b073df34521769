"""What methods on video with sound share: inputs of one moment, prediction, and how their networks are exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.method import Batch
from zoo.methods.audio.base import AudioMethod, named
from zoo.nn.deployed import FusedTokens


class AudioVisualMethod(AudioMethod):
    """Base of methods on video and log-mel spectrograms of the same moment.

    Batches hold ``video`` float32 ``[B, 3, frames, height, width]`` in [0, 1] and ``spectrogram`` float32
    ``[B, T, mels]``. The datamodule's feature pipeline is the method's, too, and its settings are in every checkpoint.

    Args:
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.
    """

    input_name = "video"
    more_inputs: ClassVar[tuple[str, ...]] = ("spectrogram",)

    def example_input(self, size: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Two videos of noise, and two spectrograms, as large as the network was built for.

        Args:
            size: is not taken: positions are fixed.
        """
        backbone: Any = self.student.backbone
        generator = torch.Generator().manual_seed(0)
        video = torch.rand(2, backbone.video.in_chans, *backbone.video.size, generator=generator)
        spectrogram = torch.randn(2, *backbone.audio.size, generator=generator) / 2
        return video.to(self.device), spectrogram.to(self.device)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Fused tokens of both modalities, nothing masked."""
        return self.deployed_backbone(network)

    def deployed_backbone(self, network: Any) -> nn.Module:
        """The same."""
        return FusedTokens(network.backbone)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Videos and spectrograms of a batch.

        Raises:
            ValueError: the batch lacks one of them.
        """
        for key, remedy in (
            ("video", "take an audio-visual benchmark"),
            ("spectrogram", "set data.features to {class_path: zoo.nn.AudioFeatures}"),
        ):
            if key not in batch:
                raise ValueError(
                    f"{type(self).__name__} learns from video and spectrograms, and the batch has {', '.join(batch)}: "
                    f"{remedy}"
                )
        return batch["video"], batch["spectrogram"]

    # -- prediction -------------------------------------------------------------------------------------

    def forward(self, video: Tensor, spectrogram: Tensor) -> Tensor:  # type: ignore[override]
        """The same as :meth:`features`."""
        return self.features(video, spectrogram)

    def features(self, video: Tensor, spectrogram: Tensor) -> Tensor:  # type: ignore[override]
        """One vector per clip, ``[B, 2 D]``: the means of the fused tokens of both modalities."""
        backbone: Any = self.student.backbone
        fused = backbone(video, spectrogram)
        return torch.cat((fused.video.mean(1), fused.audio.mean(1)), 1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Features ``[B, 2 D]`` of the clips of a batch, the mean over their views."""
        features = self.features(*self.inputs(batch))
        return {"features": features.unflatten(0, (len(batch["index"]), -1)).mean(1), **named(batch)}

    @torch.no_grad()
    def predict(self, clip: Mapping[str, Any], sample_rate: int = 16_000) -> Tensor:  # type: ignore[override]
        """What :meth:`forward` says of one clip.

        Args:
            clip: ``video``, frames ``[T, height, width, 3]`` uint8 or ``[3, T, height, width]`` float in [0, 1], and
                ``waveform``, float ``[samples]`` in [-1, 1] of the same moment. Frames are picked evenly and resized to
                what the network was built for; sound is cut or padded.
            sample_rate: of the waveform, in Hz.

        Raises:
            ValueError: a part is missing, or of another form.
        """
        if absent := [key for key in ("video", "waveform") if key not in clip]:
            raise ValueError(f"a clip has video and waveform; {absent[0]} is missing among {', '.join(clip)}")
        video, spectrogram = (
            self.prepared_video(clip["video"]),
            self.spectrogram(clip["waveform"], sample_rate),
        )
        training = self.training
        self.eval()
        answer = self(video, spectrogram)[0]
        self.train(training)
        return answer

    def prepared_video(self, video: np.ndarray | Tensor) -> Tensor:
        """One video as a batch ``[1, 3, frames, height, width]`` in [0, 1].

        Raises:
            ValueError: another shape or type, or values outside [0, 1].
        """
        frames = torch.as_tensor(video)
        if frames.ndim == 4 and frames.dtype == torch.uint8 and frames.shape[-1] == 3:
            frames = frames.permute(3, 0, 1, 2).to(self.device).float() / 255
        elif frames.ndim != 4 or not frames.is_floating_point() or frames.shape[0] != 3:
            raise ValueError(
                f"video must be uint8 [T, height, width, 3] or float [3, T, height, width] in [0, 1], got "
                f"{frames.dtype} {list(frames.shape)}"
            )
        frames = frames.to(self.device, torch.float32)
        if not bool(((frames >= 0) & (frames <= 1)).all()):
            raise ValueError("video holds floats outside [0, 1], or nan: divide bytes by 255")
        backbone: Any = self.student.backbone
        count, *size = backbone.video.size
        picked = torch.linspace(0, frames.shape[1] - 1, count, device=self.device).long()
        resized = F.interpolate(frames[:, picked].transpose(0, 1), size, mode="bilinear", antialias=True)
        return resized.transpose(0, 1)[None]
