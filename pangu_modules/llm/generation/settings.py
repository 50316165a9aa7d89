"""GenerationSettings: how tokens are chosen, and where - in this process, or on a server."""

from __future__ import annotations

from typing import Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pangu_modules.common.config import FREE_TEXT, Config, caller_only
from pangu_modules.common.values import check_address


class GenerationSettings(Config):
    """How to choose tokens, and where."""

    max_new_tokens: PositiveInt = Field(128, description="Tokens written at most after each prompt.")
    temperature: NonNegativeFloat = Field(0.0, description="Softmax temperature; 0 takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Keep the likeliest tokens up to this total probability.")
    top_k: NonNegativeInt = Field(0, description="Keep this many of the likeliest tokens; 0 keeps all.")
    samples: PositiveInt = Field(1, description="Completions of each prompt; they share its prefill.")
    seed: NonNegativeInt = Field(0, description="Seed of the sampling.")
    stop: tuple[str, ...] = Field(
        (), description="Texts that end a completion; they are not part of it.", json_schema_extra=FREE_TEXT
    )
    stop_token_ids: tuple[NonNegativeInt, ...] = Field(
        (), description="Tokens that end a completion, beside the model's own end-of-text tokens."
    )
    logprobs: bool = Field(
        False, description="Keep each token's log-probabilities; a server that has none is refused at the start."
    )
    batch_size: PositiveInt = Field(8, description="Completions written at the same time, or requests under way.")
    chunk_tokens: PositiveInt = Field(1024, description="Rows of logits that exist at most at once when scoring.")
    assistant: str | None = Field(
        None,
        description="Drafter of speculative decoding, with the same tokenizer: hub id, folder or 'smollm2'; empty: "
        "none. Completions are then written one at a time, without log-probabilities.",
        json_schema_extra=caller_only(),
    )
    assistant_tokens: PositiveInt = Field(5, description="Tokens drafted at most before the model looks at them.")
    assistant_confidence: float = Field(
        0.4, ge=0, lt=1, description="Stop drafting after a token of lower probability than this; 0: never."
    )
    base_url: str | None = Field(
        None,
        description="OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1; empty: transformers, here.",
        json_schema_extra=caller_only(),
    )
    model: str | None = Field(None, description="Name of the model on that server.", json_schema_extra=caller_only())
    timeout: PositiveFloat = Field(120.0, description="Seconds a request to the server may take.")
    connect_timeout: PositiveFloat = Field(10.0, description="Seconds to wait for a connection to the server.")
    retries: NonNegativeInt = Field(5, description="Further tries of a request that a server could not serve.")
    api_key_variable: str | None = Field(
        None,
        description="Environment variable that holds the server's key; empty: none is sent.",
        json_schema_extra=caller_only(),
    )

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            check_address(value, remedy="the server's key is read from the variable that api_key_variable names")
        return value

    @field_validator("api_key_variable")
    @classmethod
    def _check_variable(cls, value: str | None) -> str | None:
        if value is not None and not value.isidentifier():
            raise ValueError("is the name of an environment variable, e.g. SERVER_KEY, which holds the key")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.base_url is None) != (self.model is None):
            raise ValueError(
                f"base_url and model name a server and its model: give both or neither, got {self.base_url!r} "
                f"and {self.model!r}"
            )
        if self.assistant is not None and self.base_url is not None:
            raise ValueError(
                f"assistant={self.assistant!r} drafts for a model in this process: leave it empty with base_url, a "
                "server is started with a drafter of its own"
            )
        if self.assistant is not None and self.logprobs:
            raise ValueError(
                f"assistant={self.assistant!r} gives no log-probabilities: leave logprobs off, or assistant empty"
            )
        if "" in self.stop:
            raise ValueError("stop has an empty text, which would end every completion: leave it out")
        return self
