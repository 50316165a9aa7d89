"""DataWeightingModel: a small network that looks at a whole batch and gives each sequence its weight in it.

Yu et al., "LLM Data Selection and Utilization via Dynamic Bi-level Optimization" (ICML 2025, arXiv:2507.16178). The
weights are relative: they sum to 1 inside the batch and depend on the other sequences of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable


class DataWeightingModel(Configurable, nn.Module):
    """Encodes each sequence, lets the sequences of the batch look at each other, and scores them.

    Equivariant to the order of the sequences: there is no position in the batch. The last layer starts at zero, so an
    untrained model gives uniform weights.

    Args:
        config: the configuration, complete: `vocab_size` for the encoder 'tiny', `feature_size` for the others.

    Raises:
        ValueError: the size that the encoder needs is not given.
    """

    class Config(BaseConfig):
        """Encoder, size, and how scores become weights."""

        renamed = {"d_model": "hidden_size", "n_layers": "num_layers", "n_mix": "num_mix", "n_heads": "num_heads"}

        encoder: Literal["tiny", "lm", "losses", "features"] = Field(
            "tiny",
            description="What a sequence is seen by: 'tiny': a small transformer over its tokens; 'lm': mean of the "
            "trained model's last hidden states; 'losses': mean, deviation and quantiles of its token losses; "
            "'features': batch['features'].",
        )
        hidden_size: PositiveInt = Field(128, description="Width of encoder and mixing layers.")
        num_layers: NonNegativeInt = Field(2, description="Transformer layers over the tokens, encoder 'tiny' only.")
        num_mix: NonNegativeInt = Field(1, description="Attention layers over the batch; 0 scores each sequence alone.")
        num_heads: PositiveInt = Field(4, description="Attention heads; divides hidden_size.")
        tau: PositiveFloat = Field(1.0, description="Temperature of the softmax over the batch.")
        floor: float = Field(0.1, ge=0, lt=1, description="Share of the weight spread evenly, f: w >= f / batch.")
        score_limit: PositiveFloat | None = Field(
            None,
            description="Scores stay within +- this, smoothly, around the batch's mean, so that weights differ by a "
            "factor of at most exp(2 score_limit / tau); empty: no limit.",
        )
        vocab_size: PositiveInt | None = Field(
            None, description="Tokens that the encoder 'tiny' knows; empty: the trained model's."
        )
        feature_size: PositiveInt | None = Field(
            None, description="Length of a sequence's features; empty: what the encoder 'lm' or 'losses' gives."
        )

        @model_validator(mode="after")
        def _heads_divide(self) -> Self:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}: choose one that does"
                )
            if self.encoder == "features" and self.feature_size is None:
                raise ValueError("encoder='features' needs feature_size, the length of a row of batch['features']")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        if config.encoder == "tiny":
            if config.vocab_size is None:
                raise ValueError("encoder='tiny' embeds tokens: give vocab_size, the number of tokens")
            self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_layers))
            feature_size = config.hidden_size
        elif config.feature_size is None:
            raise ValueError(f"encoder={config.encoder!r} needs feature_size, the length of a sequence's features")
        else:
            feature_size = config.feature_size
        # Losses are on one scale already, and their level is what tells.
        self.input_norm = nn.Identity() if config.encoder == "losses" else nn.LayerNorm(feature_size)
        self.input_projection = nn.Linear(feature_size, config.hidden_size)
        self.mixing = nn.ModuleList(MixingLayer(config.hidden_size, config.num_heads) for _ in range(config.num_mix))
        self.output_norm = nn.LayerNorm(config.hidden_size)
        self.output = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        features: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return one score per sequence, ``s``, (batch,).

        Args:
            input_ids: (batch, seq), for the encoder 'tiny'.
            attention_mask: (batch, seq), 0 at padding.
            features: (batch, feature_size), for the other encoders; no gradient goes into them.
            valid: (batch,) bool; sequences that are not are invisible to the others.

        Raises:
            ValueError: what the encoder needs is not given.
        """
        return self.score(self.encode(input_ids, attention_mask, features), valid)

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Return what is known of each sequence by itself, (batch, hidden_size); arguments as for `forward`."""
        if self.config.encoder == "tiny":
            if input_ids is None:
                raise ValueError("encoder='tiny' needs input_ids (batch, seq)")
            features = self._pooled(input_ids, attention_mask)
        elif features is None:
            raise ValueError(f"encoder={self.config.encoder!r} needs features (batch, {self.config.feature_size})")
        else:
            features = features.detach().to(self.input_projection.weight.dtype)
        encodings: Tensor = self.input_projection(self.input_norm(features))
        return encodings

    def score(self, encodings: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the scores (batch,) of encodings (batch, hidden_size), which may come from several processes."""
        for layer in self.mixing:
            encodings = layer(encodings, valid)
        scores: Tensor = self.output(self.output_norm(encodings)).squeeze(-1)
        if self.config.score_limit is None:
            return scores
        return soft_limit(deviations(scores, valid), self.config.score_limit)

    def weights(self, logits: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the weights (batch,) with the configuration's temperature and floor; see `weights`."""
        return weights(logits, self.config.tau, self.config.floor, valid)

    @staticmethod
    def is_encoder(name: str) -> bool:
        """Return whether a parameter of this name belongs to `encode`, which sees each sequence by itself."""
        return not name.startswith(("mixing.", "output_norm.", "output."))

    def _pooled(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the mean over the tokens of the last layer, (batch, hidden_size)."""
        padding = None
        if attention_mask is not None:
            padding = attention_mask == 0
            padding = padding & ~padding.all(1, keepdim=True)  # attention to nothing would not be a number
        hidden = self.embedding(input_ids) * math.sqrt(self.config.hidden_size)
        hidden = hidden + positions(input_ids.shape[1], self.config.hidden_size).to(hidden)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return mean_over_tokens(hidden, attention_mask)


class MixingLayer(nn.Module):
    """A pre-norm transformer layer over the sequences of a batch, without what it would add to all of them alike.

    The softmax over the batch does not see what all scores share, so nothing in the gradient keeps it small, and under
    Adam's steps of equal size it grows until the last norm hides the differences: weights that were right fall back to
    uniform. So each half of the layer adds the deviation of its output from the batch's mean.

    Args:
        width: of an encoding.
        heads: of the attention; divides `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, encodings: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return encodings (batch, width) that know of each other; those not `valid` (batch,) are not looked at."""
        normed = self.attention_norm(encodings)
        attended, _ = self.attention(
            normed, normed, normed, key_padding_mask=None if valid is None else ~valid, need_weights=False
        )
        encodings = encodings + deviations(attended, valid)
        return encodings + deviations(self.mlp(self.mlp_norm(encodings)), valid)


def deviations(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return values (batch, ...) minus their mean over the batch, or over those of it that are `valid` (batch,)."""
    return values - (values if valid is None else values[valid]).mean(0)


def weights(logits: Tensor, tau: float = 1.0, floor: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """Return ``w = (1 - floor) softmax(s / tau) + floor / batch`` over the valid sequences, 0 for the others.

    Args:
        logits: scores s, (batch,).
        tau: temperature.
        floor: share of the weight that is spread evenly.
        valid: (batch,) bool, sequences that have something to learn; all by default.

    Returns:
        (batch,), non-negative, sums to 1.

    Raises:
        ValueError: there are fewer than two sequences, or none is valid.
    """
    if len(logits) < 2:
        raise ValueError(
            f"weights are relative within the batch; B must be >= 2 (gradient is identically zero), got {len(logits)}: "
            "raise batch_size, or share the weights between processes with sync_weights=True"
        )
    if valid is None:
        return (1 - floor) * functional.softmax(logits / tau, dim=0) + floor / len(logits)
    count = valid.sum()
    if count == 0:
        raise ValueError("no sequence of the batch has a target token, so there is nothing to weight: check the labels")
    shares = functional.softmax((logits / tau).masked_fill(~valid, -torch.inf), dim=0)
    return (1 - floor) * shares + floor * valid.to(shares.dtype) / count


def soft_limit(scores: Tensor, limit: float) -> Tensor:
    """Return ``limit * tanh(scores / limit)``.

    The surrogate is linear in the weights, so that its optimum is all the weight on one sequence; with bounded scores
    the useful sequences meet at the upper limit, with equal weights, and the useless ones at the lower.
    """
    return limit * torch.tanh(scores / limit)


def effective_batch_size(weight: Tensor) -> Tensor:
    """Return ``ESS = 1 / sum(w^2)``, a scalar: the batch size for uniform weights, 1 for a single sequence."""
    return 1 / weight.square().sum()


def mean_over_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean of hidden (batch, seq, width) over the tokens that are not padding, (batch, width)."""
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask.to(hidden.dtype)[..., None]
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def positions(length: int, width: int) -> Tensor:
    """Return sinusoids of the positions (Vaswani et al. 2017, section 3.5), (length, width), float32."""
    steps = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2, dtype=torch.float32) / width)
    table = torch.stack([torch.sin(steps * rates), torch.cos(steps * rates)], dim=-1).flatten(1)
    return table[:, :width]


def model_inputs(batch: Mapping[str, Any], features: Tensor | None = None) -> dict[str, Any]:
    """Return the arguments of `DataWeightingModel.encode` that a batch holds; `features` replaces the batch's own."""
    given = {"input_ids": batch.get("input_ids"), "attention_mask": batch.get("attention_mask")}
    return {**given, "features": batch.get("features") if features is None else features}


def _layer(config: DataWeightingModel.Config) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        config.hidden_size, config.num_heads, 4 * config.hidden_size, dropout=0.0, batch_first=True, norm_first=True
    )
