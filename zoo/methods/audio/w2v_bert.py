"""w2v-BERT: contrastive learning and masked language modelling of speech, end to end (Chung et al., ASRU 2021)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.conformer import ConformerBackbone, quarter
from zoo.draws import generator_at
from zoo.method import Batch
from zoo.methods.audio.base import AudioMethod
from zoo.nn.audio_augment import within
from zoo.nn.gumbel import Codes, GumbelQuantiser, diversity_loss, mean_usage, one_hot_usage, perplexity
from zoo.nn.masking_spans import SpanMasking
from zoo.nn.span_contrast import StepScores, draw_distractors, mean_over_steps, step_scores
from zoo.optim import Optim
from zoo.registry import create_backbone

#: Terms of the loss; each has its weight in :class:`W2vBERT`.
TERMS = ("contrastive", "diversity", "prediction")


class W2vBERTNetwork(nn.Module):
    """Backbone, quantiser of its encoded steps, and the layer that names codes.

    Args:
        backbone: a :class:`zoo.backbones.ConformerBackbone`.
        contrastive_layers: the first so many of its layers make the context vectors; the others read these.
        groups: codebooks.
        entries: of every codebook.
        logits_std: see :class:`zoo.nn.gumbel.GumbelQuantiser`.
    """

    def __init__(
        self,
        backbone: ConformerBackbone,
        contrastive_layers: int,
        groups: int,
        entries: int,
        logits_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone, self.contrastive_layers = backbone, contrastive_layers
        self.num_blocks = backbone.num_blocks
        self.quantiser = GumbelQuantiser(
            backbone.encoded_dim, backbone.embed_dim, groups, entries, logits_std
        )
        predicts = contrastive_layers < backbone.num_blocks
        self.prediction = nn.Linear(backbone.embed_dim, groups * entries) if predicts else None

    def forward(
        self, encoded: Tensor, mask: Tensor, padding: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Context vectors ``[B, S, D]`` of masked steps ``[B, S, F]``, and logits of codes ``[B, S, G, V]``."""
        x = self.backbone.embed(encoded, mask, noise)
        context = self.backbone.run(x, 0, self.contrastive_layers, padding)
        if self.prediction is None:
            return context, None
        logits = self.prediction(self.backbone.run(context, self.contrastive_layers, None, padding))
        return context, logits.unflatten(-1, (self.quantiser.groups, self.quantiser.entries))

    def block_of(self, parameter_name: str) -> int:
        """Depth of a parameter: that in the backbone; quantiser and prediction come after everything."""
        name = parameter_name.removeprefix("backbone.")
        return self.backbone.block_of(name) if name != parameter_name else self.num_blocks + 1


class W2vBERT(AudioMethod):
    """Find the code of a masked step among others (wav2vec 2.0), and, some layers later, name it (BERT).

    Two convolutions make steps of 40 ms of log-mel spectrograms. Spans of them are masked; the first conformer layers
    turn what is left into context vectors, the others into predictions. The steps as they were before masking are
    quantised, and of every masked step

    * ``contrastive``: the cosine of context vector and own code, over ``temperature``, competes with that of
      ``distractors`` codes of other masked steps of the same utterance;
    * ``diversity``: all entries of a codebook shall be used alike, ``(V - perplexity) / V``;
    * ``prediction``: cross-entropy of the most probable entry, which no gradient goes through.

    With ``prediction_layers: 0`` it is wav2vec 2.0 with conformers. There is no teacher. No code was released; what
    the paper's summaries leave open is an option here: ``mask_with``, ``gumbel``, ``distractors``, ``temperature``,
    ``average``, and the backbone's convolutions and positions.

    Logs ``train/`` and ``val/``: ``contrastive_accuracy`` (the own code scores highest), ``prediction_accuracy``,
    ``code_perplexity`` (of the most probable entries) and ``soft_perplexity`` (of the probabilities, which the
    diversity term works on). A code perplexity near 1 is a collapsed codebook.

    Args:
        backbone: ``conformer_xl`` or ``conformer_xxl``.
        backbone_args: further arguments of :class:`zoo.backbones.ConformerBackbone`.
        pretrained: weights of the backbone to start from; ``False``: none, as published.
        contrastive_layers: layers before the contrastive term; 12 as published.
        prediction_layers: layers after it; ``None``: all that the backbone has. The backbone is made as deep as both.
        groups: codebooks; 1 as published.
        entries: V of every codebook.
        logits_std: of the quantiser's first weights, see :class:`zoo.nn.gumbel.GumbelQuantiser`.
        mask_probability: that a step begins a masked span.
        mask_length: steps of a span.
        mask_with: ``learned`` vector, or normal ``noise``.
        distractors: K.
        temperature: kappa, of the contrastive term.
        gumbel: (first, factor per step, last) temperature of the quantiser.
        contrastive_weight: beta of the first two terms.
        diversity_weight: alpha of the diversity term, times beta.
        prediction_weight: gamma.
        average: over all masked ``steps`` of a batch, or over those of each utterance and then over ``utterances``.
        optim: see :class:`zoo.optim.Optim`.
        init_from: see :class:`zoo.Method`.

    Raises:
        ValueError: an option out of range, or a backbone that is no conformer.
    """

    monitor = "val/loss"
    monitor_mode = "min"
    student: W2vBERTNetwork

    def __init__(
        self,
        backbone: str = "conformer_xl",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        contrastive_layers: int = 12,
        prediction_layers: int | None = None,
        groups: int = 1,
        entries: int = 1024,
        logits_std: float = 1.0,
        mask_probability: float = 0.065,
        mask_length: int = 10,
        mask_with: Literal["learned", "noise"] = "learned",
        distractors: int = 100,
        temperature: float = 0.1,
        gumbel: tuple[float, float, float] = (2.0, 0.999995, 0.5),
        contrastive_weight: float = 1.0,
        diversity_weight: float = 0.1,
        prediction_weight: float = 1.0,
        average: Literal["steps", "utterances"] = "steps",
        optim: Optim | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optim, init_from)
        for argument, value, allowed in (
            ("mask_with", mask_with, ("learned", "noise")),
            ("average", average, ("steps", "utterances")),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
        if distractors < 1 or temperature <= 0 or min(gumbel) <= 0:
            raise ValueError(
                f"distractors={distractors}, temperature={temperature} and gumbel={tuple(gumbel)} must be positive"
            )
        options = {"mask_token": mask_with == "learned", **(backbone_args or {})}
        if prediction_layers is not None:
            options["depth"] = contrastive_layers + prediction_layers
        network = create_backbone(backbone, pretrained, in_chans=1, **options)
        if not isinstance(network, ConformerBackbone):
            raise ValueError(f"backbone={backbone!r} must be a conformer: conformer_xl or conformer_xxl")
        if not 1 <= contrastive_layers <= network.num_blocks:
            raise ValueError(
                f"contrastive_layers={contrastive_layers} must be within [1, {network.num_blocks}], the depth"
            )
        self.student = W2vBERTNetwork(network, contrastive_layers, groups, entries, logits_std)
        self.masking = SpanMasking(mask_probability, mask_length)
        self.mask_with, self.distractors, self.temperature = mask_with, distractors, temperature
        self.gumbel, self.per_item = gumbel, average == "utterances"
        self.weights = dict(
            zip(
                TERMS,
                (contrastive_weight, contrastive_weight * diversity_weight, prediction_weight),
                strict=True,
            )
        )

    def default_optim(self) -> Optim:
        """Adam with the transformer's schedule: up to 2e-3 in 25k steps, then as 1 / sqrt(step) (XL)."""
        return Optim(
            "adam",
            lr=2e-3,
            weight_decay=0.0,
            options={"betas": [0.9, 0.98]},
            schedule="inverse_sqrt",
            warmup_steps=25_000,
            warmup_ratio=0.0,
        )

    def gumbel_temperature(self) -> float:
        """Of the quantiser at the optimiser step that is running."""
        first, factor, last = self.gumbel
        return max(first * factor**self.global_step, last)

    # -- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take the losses; log what they say of codes and predictions."""
        writes = self.writes_logs()
        batch = {**batch, "place": self.place(batch_idx), "scored": writes}
        loss = super().training_step(batch, batch_idx)
        if writes:
            self.log_dict({f"train/{name}": value for name, value in batch["scores"].items()})
        return loss

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms; ``batch["scores"]`` is left behind, the metrics that are logged.

        Where ``batch["scored"]`` is false there are none.
        """
        image = self.image(batch)
        network, generator = self.student, generator_at(batch.get("place", "0/0/0"), image.device)
        encoded = network.backbone.encode(image)
        valid = within(quarter(batch["frames"]), encoded.shape[1])
        mask = self.masking(valid, generator)
        noise = None
        if self.mask_with == "noise":
            noise = torch.randn(encoded.shape, device=encoded.device, generator=generator)
        codes: Codes = network.quantiser(encoded, self.gumbel_temperature(), generator)
        context, logits = network(encoded, mask, ~valid, noise)
        distractors = draw_distractors(mask, self.distractors, generator)
        scores = step_scores(context, codes.vectors, codes.chosen, mask, distractors, self.temperature)
        own_first = torch.zeros_like(distractors[..., 0])
        errors = F.cross_entropy(scores.logits.transpose(1, 2), own_first, reduction="none")
        usage = mean_usage(codes.probability, valid)
        losses = {
            "contrastive": self.mean(errors, scores.counts),
            "diversity": diversity_loss(usage),
        }
        if logits is not None:
            entropy = F.cross_entropy(logits.permute(0, 3, 1, 2).float(), codes.ids, reduction="none")
            losses["prediction"] = self.mean(entropy.mean(-1), mask)
        if batch.get("scored", True):
            with torch.no_grad():
                batch["scores"] = self._scores(scores, codes, usage, logits, valid, mask)
        return {name: loss * self.weights[name] for name, loss in losses.items()}

    def _scores(
        self,
        scores: StepScores,
        codes: Codes,
        usage: Tensor,
        logits: Tensor | None,
        valid: Tensor,
        mask: Tensor,
    ) -> dict[str, Tensor]:
        """How often the own code was told from others and was predicted, and of how many codes use is made."""
        used = one_hot_usage(codes.ids, self.student.quantiser.entries, valid)
        found = {
            "contrastive_accuracy": self.mean((scores.logits.argmax(-1) == 0).float(), scores.counts),
            "code_perplexity": perplexity(used).mean(),
            "soft_perplexity": perplexity(usage).mean(),
        }
        if logits is not None:
            right = (logits.argmax(-1) == codes.ids).all(-1)
            found["prediction_accuracy"] = self.mean(right.float(), mask)
        return found

    def mean(self, values: Tensor, counts: Tensor) -> Tensor:
        """Mean of ``[B, S]`` over the steps that count, as ``average`` says."""
        return mean_over_steps(values, counts, self.per_item)

    # -- evaluation -------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses and scores on masks that are the same in every validation; codes are the most probable."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on test clips."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        batch = {**batch, "place": f"{self.global_rank}/{stage}/{batch_idx}"}
        losses = self.losses(batch)
        values = {**losses, "loss": torch.stack(list(losses.values())).sum(), **batch["scores"]}
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(named, batch_size=len(batch["spectrogram"]), sync_dist=True)
