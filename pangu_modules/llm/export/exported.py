"""What an export needs of a module, so that exports know the shape of a language model's module and not its class."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class ExportedModule(Protocol):
    """A causal language model with its text files, as `CausalLM` is one.

    Attributes:
        config: its configuration, with ``structure`` and ``trust_remote_code``.
        runtime: ``files``: the text files that come with the model, by name.
        model: the transformers model.
    """

    config: Any
    runtime: dict[str, Any]
    model: nn.Module

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, or None."""

    @property
    def loaded_dtype(self) -> str:
        """The type that the weights were loaded from, e.g. ``bfloat16``."""
