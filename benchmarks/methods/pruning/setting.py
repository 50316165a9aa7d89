"""What the races of pruning share: the model, its text, forward passes and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 8


def smollm2() -> nn.Module:
    """Return SmolLM2-135M in float32 and evaluation mode."""
    from pangu_modules.llm.models.loading import load_causal_lm

    return load_causal_lm("smollm2").eval()


@cache
def text_batches(windows: int, length: int, batch: int = BATCH) -> tuple[dict[str, Tensor], ...]:
    """Return windows of Python's reference texts, `batch` at a time."""
    from datamodules.text.reading import PYTHON_TOPICS, read_texts
    from datamodules.text.windows import pack, tokenize
    from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

    tokens = pack(tokenize(read_texts(PYTHON_TOPICS, ""), load_tokenizer("smollm2")), length)[:windows].long()
    return tuple({"input_ids": part} for part in tokens.split(batch))


def forward(model: Any, batches: Sequence[dict[str, Tensor]]) -> None:
    """Run the decoder, without its head, over the batches."""
    import torch

    with torch.no_grad():
        for batch in batches:
            model.base_model(**batch, use_cache=False)


def largest_difference(ours: Any, peer: Any, ids: Tensor) -> float:
    """Return the largest difference between two models' logits."""
    import torch

    with torch.no_grad():
        return float((ours(ids, use_cache=False).logits - peer(ids, use_cache=False).logits).abs().max())
