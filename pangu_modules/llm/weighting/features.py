"""What a weighting model sees of a batch in a language model's forward pass, which happens anyway.

Encoder 'lm' reads the last hidden states, encoder 'losses' the losses of the single tokens. Hidden states of one model
mean nothing to another, so for transfer the model itself is kept; losses are in nats, whatever the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pangu_modules.common.files import atomic_folder
from pangu_modules.llm.losses import labels_of, token_losses
from pangu_modules.llm.models.conversion import MODEL_FILE
from pangu_modules.llm.models.loading import load_causal_lm
from pangu_modules.llm.weighting.model import mean_over_tokens
from pangu_modules.training.objectives import Batch

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # with mean and deviation they tell rare surprises from even ones
CENTER, SCALE = 4.0, 2.0  # nats; between an untrained model and a good one, so that features are about one


class FeatureReader(ABC):
    """Hands out the features (batch, size) of a batch, from the next forward pass of a module's model.

    Args:
        module: LightningModule with a transformers causal language model in ``module.model``.

    Raises:
        ValueError: there is no such model.
    """

    encoder: ClassVar[str]

    def __init__(self, module: Any) -> None:
        model: Any = getattr(module, "model", None)
        if not (hasattr(model, "get_decoder") and hasattr(getattr(model, "config", None), "hidden_size")):
            raise ValueError(
                f"encoder={self.encoder!r} reads the forward pass of a transformers model in module.model, which "
                f"{type(module).__name__} does not have: take encoder='tiny' or 'features'"
            )
        self.size = self.size_of(model)
        self._part: nn.Module = self.part_of(model)
        self._handle: Any = None

    @staticmethod
    @abstractmethod
    def size_of(model: Any) -> int:
        """Return the number of features of a sequence."""

    @staticmethod
    @abstractmethod
    def part_of(model: Any) -> nn.Module:
        """Return the part of the model whose output tells them."""

    @staticmethod
    @abstractmethod
    def features(output: Any, batch: Batch) -> Tensor:
        """Return the features (batch, size) from that part's output, without a graph."""

    def expect(self, batch: Batch, then: Callable[[Tensor], None]) -> None:
        """Call `then` with the features of `batch` in the middle of the next forward pass, which is its own; once."""
        self.forget()

        def take(module: nn.Module, arguments: Any, output: Any) -> None:
            self.forget()
            with torch.no_grad(), torch.autocast(next(module.parameters()).device.type, enabled=False):
                features = self.features(output, batch)
            then(features)

        # The hook lives for one pass only, so that copies of the module never hold one.
        self._handle = self._part.register_forward_hook(take)

    def forget(self) -> bool:
        """Expect nothing any more; returns whether something was still expected."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()
        return handle is not None


class HiddenStates(FeatureReader):
    """The mean over the tokens of the last hidden states."""

    encoder = "lm"

    @staticmethod
    def size_of(model: Any) -> int:
        """Return the hidden size."""
        return int(model.config.hidden_size)

    @staticmethod
    def part_of(model: Any) -> nn.Module:
        """Return the model without its output layer."""
        decoder: nn.Module = model.get_decoder()
        return decoder

    @staticmethod
    def features(output: Any, batch: Batch) -> Tensor:
        """Return the mean of ``last_hidden_state`` (batch, seq, hidden)."""
        return mean_over_tokens(output.last_hidden_state.detach(), batch.get("attention_mask"))


class TokenLosses(FeatureReader):
    """The profile of a sequence's token losses, see `loss_profile`."""

    encoder = "losses"

    @staticmethod
    def size_of(model: Any) -> int:
        """Return the length of a profile."""
        return 2 + len(QUANTILES)

    @staticmethod
    def part_of(model: Any) -> nn.Module:
        """Return the whole model, whose output holds ``logits``."""
        whole: nn.Module = model
        return whole

    @staticmethod
    def features(output: Any, batch: Batch) -> Tensor:
        """Return the profiles from ``logits`` (batch, seq, vocabulary)."""
        return loss_profile(output.logits.detach(), labels_of(batch))


READERS: dict[str, type[FeatureReader]] = {reader.encoder: reader for reader in (HiddenStates, TokenLosses)}


def loss_profile(logits: Tensor, labels: Tensor) -> Tensor:
    """Return mean, deviation and quantiles of each sequence's token losses, ``(nats - 4) / 2``, (batch, 7).

    A text in wrong order, characters at random and a text one knows by heart may have one mean; how losses spread tells
    them apart. A sequence without targets has zeros.

    Args:
        logits: (batch, seq, vocabulary); position t predicts the token at t + 1.
        labels: (batch, seq), -100 where they are no targets.
    """
    losses, counted = token_losses(logits, labels)
    losses = losses.masked_fill(~counted, torch.nan)
    mean = losses.nanmean(1, keepdim=True)
    deviation = (losses - mean).square().nanmean(1, keepdim=True).sqrt()
    quantiles = losses.nanquantile(torch.tensor(QUANTILES, dtype=losses.dtype, device=losses.device), dim=1).T
    return ((torch.cat([mean, deviation, quantiles], dim=1) - CENTER) / SCALE).nan_to_num(0.0)


class KeptModel(nn.Module):
    """A language model as it was at a round's updates, by whose hidden states another model's data are weighed.

    It costs its own forward pass, without the output layer.

    Args:
        folder: transformers folder, see `keep_model`.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        model: Any = load_causal_lm(str(folder))
        self.backbone: nn.Module = HiddenStates.part_of(model).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Return the features of a batch for the encoder 'lm', (batch, hidden)."""
        mask = batch.get("attention_mask")
        return HiddenStates.features(
            self.backbone(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False), batch
        )


def keep_model(module: Any, folder: Path) -> None:
    """Write ``module.model``, a transformers model, to a folder for `KeptModel`, atomically."""
    with atomic_folder(folder, holding=MODEL_FILE, replace=True) as temporary:
        module.model.save_pretrained(temporary)


def is_kept(folder: Path) -> bool:
    """Return whether `keep_model` wrote to this folder."""
    return (folder / MODEL_FILE).is_file()
