"""OneBitConfig: which weights become binary, by which function of the weights, and how fast."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from pangu_modules.common.config import Config
from pangu_modules.llm.models.decoder import LINEAR_LAYERS
from pangu_modules.llm.onebit.weight_functions import FUNCTIONS, WeightFunction

Method = Literal["progressive", "sign", "ste", "lambda", "bitnet_b1", "bitnet_b158", "onebit"]
CONTINUOUS_PHASES = 20
"""Value of the phase number at the end of a schedule without phases (the paper's number of phases)."""


class OneBitConfig(Config):
    """Binarization by continued training (arXiv:2508.06974); the defaults are the paper's where it states them."""

    renamed = {"tail_fraction": "tail_share"}

    method: Method = Field(
        "progressive",
        description="Function from latent to effective weights: progressive (the paper), or a baseline: sign (latent "
        "weights rest), ste (straight-through), lambda (blend), bitnet_b1, bitnet_b158 (ternary), onebit (SVID).",
    )
    targets: tuple[str, ...] = Field(
        LINEAR_LAYERS, min_length=1, description="Names (last parts) of the linear layers to binarize."
    )
    exclude: tuple[str, ...] = Field((), description="Regular expressions; layers whose full name matches stay dense.")
    init: Literal["none", "learned", "svid"] = Field(
        "learned",
        description="Input-channel scales S_t before training: none, learned with the language-model loss (the paper's "
        "stage 1), or the right rank-1 factor of |W| (needs no data).",
    )
    init_steps: PositiveInt = Field(50, description="Optimizer steps of init='learned', each on one batch.")
    init_lr: PositiveFloat = Field(5e-3, description="Learning rate of log S_t in init='learned'.")
    input_scale: Literal["fold", "per_linear"] = Field(
        "fold",
        description="Where S_t stays: fold (into norms and preceding layers, nothing is left at run time) or "
        "per_linear (a frozen vector per layer, the paper's granularity).",
    )
    scales: Literal["analytic", "learned", "dual"] = Field(
        "dual",
        description="Row scale: analytic S_a = mean|W| of the current weights, learned S_l times S_a of the start, or "
        "dual S_l S_a; bitnet and onebit have scales of their own.",
    )
    scale_grad: bool | Literal["auto"] = Field(
        "auto", description="Differentiate S_a too; auto: for progressive yes, for all others no."
    )
    schedule: Literal["paper", "exp", "linear", "constant"] = Field(
        "paper", description="t over phases: t_a (exp(t_b c) - 1), geometric, linear, or the end value throughout."
    )
    phases: int = Field(20, ge=0, description="Phases of equal length with constant t; 0: t changes with every step.")
    t_a: float = Field(1.3, gt=0, description="Factor of the paper's schedule.")
    t_b: float = Field(0.22, gt=0, description="Growth per phase of the paper's schedule; sets the end value of t.")
    phase_origin: Literal[0, 1] = Field(1, description="Number of the first phase; 0 starts with plain training.")
    schedule_steps: PositiveInt | Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Length of the schedule: optimizer steps, or a share of all steps (1.0: all)."
    )
    hard_tail: Literal["scales", "ste", "none"] = Field(
        "scales",
        description="The last steps, with binary weights: scales (latent weights rest, all else trains), ste (latent "
        "weights train straight-through), or no such steps.",
    )
    tail_share: float = Field(0.05, ge=0, lt=1, description="Length of the hard tail as a share of all steps.")
    scale_lr_mult: PositiveFloat = Field(1.0, description="Learning rate of S_l as a multiple of the others'.")
    scale_dtype: Literal["float32", "float16"] = Field(
        "float32", description="Precision that merged row scales are rounded to at the end; GGUF stores float16."
    )

    @field_validator("exclude")
    @classmethod
    def _are_expressions(cls, exclude: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return exclude

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> Self:
        function = self.function
        if self.init != "none" and not function.scaled_by_row_mean:
            raise ValueError(
                f"init={self.init!r} needs a method scaled by row means; with {self.method!r} set init=none"
            )
        if self.scale_grad is True and not function.scaled_by_row_mean:
            raise ValueError(f"scale_grad=True needs a method scaled by row means; with {self.method!r} leave it auto")
        if self.scale_grad is True and self.scales == "learned":
            raise ValueError("scale_grad=True differentiates S_a, which scales='learned' freezes; set scales=dual")
        if self.method == "onebit" and self.scale_lr_mult != 1:
            raise ValueError("scale_lr_mult belongs to S_l, which method 'onebit' does not have; leave it 1")
        return self

    @model_validator(mode="after")
    def _parts_fit_into_the_run(self) -> Self:
        share = self.schedule_steps if isinstance(self.schedule_steps, float) else 0.0
        tail = self.tail_share if self.hard_tail != "none" else 0.0
        if share + tail > 1 + 1e-9:
            raise ValueError(
                f"schedule_steps={share:g} and tail_share={tail:g} add up to more than 1: shorten one of them"
            )
        return self

    @property
    def function(self) -> WeightFunction:
        """The weight function of `method`."""
        return FUNCTIONS[self.method]

    @property
    def differentiates_scale(self) -> bool:
        """Whether S_a is differentiated: `scale_grad` with auto resolved."""
        if self.scales == "learned":
            return False
        return self.function.differentiates_scale if self.scale_grad == "auto" else self.scale_grad

    @property
    def keeps_input_scale(self) -> bool:
        """Whether layers have an input scale at run time: one that is not folded, or b of method "onebit"."""
        return self.method == "onebit" or (self.init != "none" and self.input_scale == "per_linear")

    @property
    def t_end(self) -> float:
        """The last value of t: ``t_a (exp(t_b n) - 1)`` with the number of phases n."""
        return self.t_a * math.expm1(self.t_b * (self.phases or CONTINUOUS_PHASES))
