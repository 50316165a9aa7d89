"""What fits a language model's text: which tokenizer is the model's, and whether the data have the same."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from pangu_modules.llm.models.gguf.tokenizer import holds_tokenizer
from pangu_modules.llm.models.names import is_gguf
from pangu_modules.llm.models.tokenizer_loading import is_code_alone, load_tokenizer
from pangu_modules.llm.tokenizers import difference

POSITION_TABLE = re.compile(r"pos|wpe")  # embed_positions, position_embeddings, wpe
SPARE_POSITIONS = 8  # rows that a table of positions has beyond the model's positions (OPT: 2)


def find_tokenizer(config: Any, runtime: Mapping[str, Any], vocabulary: int) -> Any:
    """Return the tokenizer of a model that is built: the configuration's, the model's own or the data's.

    Args:
        config: of the module: `CausalLM.Config`.
        runtime: ``tokenizer``, the data's, and ``default_tokenizer``, for a model from scratch; names, or missing.
        vocabulary: rows of the model's embedding.

    Returns:
        The tokenizer, or None for a model of bare token ids.

    Raises:
        ValueError: the data have another tokenizer than the model, or one with more tokens than the embedding has rows.
    """
    name = runtime.get("tokenizer")
    own = _own_tokenizer(config)
    if name is None:
        if own is not None or config.model is not None:
            return own  # may be longer than the embedding: no text needs a token that was added for padding
        name = runtime.get("default_tokenizer")
        if name is None:
            return None
    if own is not None and name in (config.tokenizer, config.model):
        return own
    tokenizer = load_tokenizer(name, trust_remote_code=config.trust_remote_code)
    if own is not None:
        _refuse_difference(difference(own, tokenizer, with_special_tokens=True), f"{name!r}", _place(config))
    if len(tokenizer) > max(vocabulary, 0 if own is None else len(own)):
        raise ValueError(
            f"the data's tokenizer {name!r} has {len(tokenizer)} tokens, the model's vocabulary "
            f"(model_args.vocab_size) {vocabulary}: set vocab_size to at least {len(tokenizer)}, or give a model that "
            "has this tokenizer"
        )
    return tokenizer


def check_same_tokens(own: Any, tokenizer: Any) -> None:
    """Refuse data whose tokens are not the model's; a model of bare token ids takes any.

    Raises:
        ValueError: they differ.
    """
    if own is not None and tokenizer is not own:
        place = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        _refuse_difference(difference(own, tokenizer, with_special_tokens=True), f"{place!r}", "the model's")


def check_siblings(
    what: str, name: str, other: Any, model: Any, tokenizer: Any, *, trust_remote_code: bool = False
) -> None:
    """Refuse a teacher or drafter whose tokens are not the model's; the embeddings may be padded to different lengths.

    Args:
        what: names it in messages: ``teacher='x'``.
        name: of its tokenizer: a hub id or folder; where it has none, the sizes of the vocabularies must be equal.
        other: the teacher or drafter, a transformers model.
        model: the model it works with.
        tokenizer: the model's, or None.
        trust_remote_code: run Python code that comes with the other tokenizer.

    Raises:
        ValueError: the tokens differ; the first that does is named.
    """
    rows, own_rows = (each.config.get_text_config().vocab_size for each in (other, model))
    theirs = None if tokenizer is None else _tokenizer_or_none(name, trust_remote_code)
    if theirs is None:
        if rows != own_rows:
            raise ValueError(
                f"{what} has a vocabulary of {rows}, the model of {own_rows}: the two must have the same tokens, which "
                "only tokenizers can show where the sizes differ; take one of the same family with its tokenizer"
            )
        return
    found = difference(tokenizer, theirs)
    if found is None and rows < len(tokenizer) <= own_rows:
        found = f"the model's token {rows} {tokenizer.convert_ids_to_tokens(rows)!r} is beyond the other's {rows} rows"
    if found is not None:
        raise ValueError(f"{what} has other tokens than the model: {found}; take one of the same family")


def check_positions(model: Any, sequence_length: int) -> None:
    """Refuse sequences that are longer than a model's table of positions, and warn where they are beyond its training.

    Raises:
        ValueError: the model has no position for some of their tokens.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or sequence_length <= positions:
        return
    sentence = f"data.sequence_length={sequence_length} is longer than the model's {positions} positions"
    if _has_table(model, positions):
        raise ValueError(f"{sentence} (max_position_embeddings): give data.sequence_length={positions} or less")
    warnings.warn(f"{sentence} (max_position_embeddings): it was not trained on such distances", stacklevel=2)


def _has_table(model: nn.Module, positions: int) -> bool:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return any(
        POSITION_TABLE.search(name) and tensor.ndim == 2 and 0 <= len(tensor) - positions <= SPARE_POSITIONS
        for name, tensor in tensors
    )


def _own_tokenizer(config: Any) -> Any:
    """Load the configuration's tokenizer, or that of the model it names; None if there is none."""
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer, trust_remote_code=config.trust_remote_code)
    return None if config.model is None else _tokenizer_or_none(config.model, config.trust_remote_code)


def _tokenizer_or_none(name: str, trust_remote_code: bool) -> Any:
    try:
        return load_tokenizer(name, trust_remote_code=trust_remote_code)
    except ValueError:  # the weights are there, so what is missing is the tokenizer
        is_there = holds_tokenizer(name) if is_gguf(name) else is_code_alone(name)
        if is_there:
            raise
        return None


def _place(config: Any) -> str:
    if config.tokenizer is not None:
        return f"module.tokenizer={config.tokenizer!r}"
    return f"that of model={config.model!r}"


def _refuse_difference(found: str | None, data: str, model: str) -> None:
    if found is not None:
        raise ValueError(
            f"the data's tokenizer {data} is not {model}: {found}. Leave data.tokenizer empty to take the model's own, "
            "or name one tokenizer in both data.tokenizer and module.tokenizer to train the model on new tokens"
        )
